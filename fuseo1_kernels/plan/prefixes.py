"""Recognizes models whose tensors have the same names but for a prefix."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping

from ..checkpoint.source import Source
from ..errors import printable

_SAVED_INSIDE = {
    "module.": "it was saved inside of DataParallel: save its `.module`",
    "_orig_mod.": "it was saved after torch.compile: save its `._orig_mod`",
    "_fsdp_wrapped_module.": "it was saved inside of FSDP: save its full state dict",
}
_SAME_CLASS = (
    "load both with one class of transformers (AutoModelForCausalLM, say) and save them again"
)
# Names that are tried, and the share of absent tensors that the prefix has to explain.
_TRIED, _SHARE = 20, 0.5


def different_prefixes(sources: Mapping[str, Source]) -> Iterator[str]:
    """Yield a problem for every model that lacks tensors of the first because its names have, or lack, a prefix."""
    (first, reference), *others = sources.items()
    for model, source in others:
        absent = [name for name in reference.tensors if name not in source.tensors]
        if len(absent) <= _SHARE * len(reference.tensors):
            continue
        for longer, shorter, names in (
            (model, first, _added(absent, source.tensors)),
            (first, model, _added(list(source.tensors), absent)),
        ):
            if names is not None and len(names[1]) > _SHARE * len(absent):
                prefix, (short, *_) = names
                last = prefix[prefix.rstrip(".").rfind(".") + 1 :]
                advice = _SAVED_INSIDE.get(last, _SAME_CLASS)
                yield (
                    f"model {longer}: its tensors are called {printable(prefix + short)} where {shorter} has"
                    f" {printable(short)}: the prefix {prefix!r} differs; {advice}"
                )
                break


def _added(
    short: list[str], long: Mapping[str, object] | list[str]
) -> tuple[str, list[str]] | None:
    """Return the prefix that most names in `short` have in `long`, and these names; None if there is no prefix."""
    held = set(long)
    found: Counter[str] = Counter()
    for name in short[:_TRIED]:
        ending = f".{name}"
        found.update(other[: -len(name)] for other in held if other.endswith(ending))
    for prefix, _ in found.most_common(1):
        return prefix, [name for name in short if prefix + name in held]
    return None
