"""The small files beside the weights: configuration, tokenizer, chat template, and what else goes along."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

from ..errors import CheckpointError, ConfigError, printable
from .companions import Companions, is_tokenizers
from .config_sections import TEXT_CONFIGS, change_section, section_at
from .custom_code import find_code
from .files import read_bytes
from .json_file import change_objects, dump_object, parse_object, read_object
from .layout import CONFIG, GENERATION_CONFIG, TOKENIZER_CONFIG
from .source import Source

CHAT_TEMPLATE, CHAT_TEMPLATE_JSON = "chat_template.jinja", "chat_template.json"

#: Keys of config.json that belong to the tokenizer.
_TOKEN_KEYS = ("bos_token_id", "eos_token_id", "pad_token_id")
#: Of config.json and its parts. Merged weights are full.
_QUANTIZATION = "quantization_config"
# The most files that a note lists.
_SHOWN = 10
# Bytes of one Python file.
_MOST_CODE = 8 << 20


class Sidecars(NamedTuple):
    """The content of each file to put beside the weights, by name, and notes on them."""

    files: dict[str, bytes]
    notes: list[str]


def sidecar_files(
    *,
    base: Source,
    tokenizer: Source | None,
    tokenizer_overrides: Mapping[str, Any],
    chat_template: str | None,
    sources: Sequence[Source],
    out_dtype: str,
    config: Mapping[str, Any],
    vocab_size: int | None,
    uncropped: Collection[int] = (),
    copy_tokenizer: bool,
) -> Sidecars:
    """Return the files to put beside the weights.

    The tokenizer's files and generation_config.json come from the tokenizer's lender, everything else from the base
    (companions.py), byte for byte but for what the arguments change. config.json loses its quantization_config, as
    merged weights are not quantized, and gets the lender's ids of special tokens.

    Args:
        base: the base or, in a merge without one, another of its models.
        tokenizer: the model that lends its tokenizer; None: the base.
        tokenizer_overrides: new values of keys of tokenizer_config.json.
        chat_template: the template for every file that has one: Jinja text, or "auto", the most common one of
            `sources` (the first on a tie); None: the lender's.
        sources: the merged models.
        out_dtype: the dtype that config.json states: "bfloat16", ...
        config: the base's config.json, with what the plan changed; {}: none is written.
        vocab_size: the number of rows of the embeddings; None: as `config` has it.
        uncropped: numbers of rows that `vocab_size` replaces wherever they are stated as sizes of a vocabulary.
        copy_tokenizer: whether the tokenizer's files go along.

    Raises:
        CheckpointError: a file is damaged, or the lender lacks files that are asked for.
        ConfigError: the config asks for a tokenizer or a chat template, and `copy_tokenizer` is false.
    """
    if not copy_tokenizer and (tokenizer is not None or tokenizer_overrides or chat_template):
        raise ConfigError(
            "the config asks for a tokenizer or a chat template, --no-copy-tokenizer for none;"
            " drop one of them"
        )
    files: dict[str, bytes] = {}
    notes: list[str] = []
    lender = tokenizer or base
    of_base, of_lender = base.companions, lender.companions

    lent = [name for name in of_lender.names if copy_tokenizer and is_tokenizers(name)]
    if tokenizer is not None and not lent:
        raise CheckpointError(f"{tokenizer.path}: has no tokenizer files to copy")
    of_lender.read_into(files, lent)
    _change_tokenizer(files, lender, tokenizer_overrides, chat_template, sources)
    if GENERATION_CONFIG in of_lender.names:
        of_lender.read_into(files, [GENERATION_CONFIG])
        if (
            copy_tokenizer and GENERATION_CONFIG in files
        ):  # read for its stops: errors are to say where
            parse_object(files[GENERATION_CONFIG], str(of_lender.folder / GENERATION_CONFIG))
    _add_code(files, of_lender, [n for n in lent if n == TOKENIZER_CONFIG], {})
    others = [n for n in of_base.names if n not in files and not is_tokenizers(n)]
    of_base.read_into(files, others)
    _add_code(files, of_base, [n for n in others if n.endswith(".json")], base.config)
    notes += _left_out(base, of_base, files, "no auto_map names")
    if lender is not base:
        notes += _left_out(
            lender, _of_tokenizer(of_lender), files, "no auto_map of its tokenizer names"
        )

    if not config:
        notes.append(
            f"model {base.name}: has no {CONFIG}, so the merged model has none either and transformers will not load it"
        )
        return Sidecars(files, notes)
    merged = _config(config, out_dtype)
    if lender is not base:
        _adopt_token_ids(merged, lender.config)
    if vocab_size is not None:
        merged = _set_vocab_size(merged, vocab_size, uncropped)
    full = change_objects(
        merged, lambda part: {k: v for k, v in part.items() if k != _QUANTIZATION}
    )
    if full != merged:
        notes.append(
            f"model {base.name}: {_QUANTIZATION} left out of {CONFIG}: the merged weights are not quantized"
        )
    return Sidecars({CONFIG: dump_object(full), **files}, notes)


def _change_tokenizer(
    files: dict[str, bytes],
    lender: Source,
    overrides: Mapping[str, Any],
    chat_template: str | None,
    sources: Sequence[Source],
) -> None:
    """Apply `overrides` and `chat_template` to the tokenizer's `files`. Raises CheckpointError."""
    if overrides and TOKENIZER_CONFIG not in files:
        raise CheckpointError(
            f"{lender.path}: has no {TOKENIZER_CONFIG} to override {', '.join(overrides)} in"
        )
    changes = dict(overrides)
    template = _most_common_template(sources) if chat_template == "auto" else chat_template
    if template is not None:
        # JSON can escape half of a surrogate pair, which no UTF-8 text holds.
        files[CHAT_TEMPLATE] = template.encode("utf-8", "replace")
        if CHAT_TEMPLATE_JSON in files:
            files[CHAT_TEMPLATE_JSON] = dump_object({"chat_template": template})
        changes["chat_template"] = template
    if changes and TOKENIZER_CONFIG in files:
        config = parse_object(files[TOKENIZER_CONFIG], str(lender.path / TOKENIZER_CONFIG))
        files[TOKENIZER_CONFIG] = dump_object(config | changes)


def _add_code(
    files: dict[str, bytes], found: Companions, configs: Sequence[str], also: Mapping[str, Any]
) -> None:
    """Add the Python files that a model's `auto_map` names in the files `configs` or in `also`, and their imports."""
    parsed = [
        parse_object(files[name], f"{found.folder / name} (read for its auto_map)")
        for name in configs
        if b'"auto_map"' in files[name]
    ]
    code = find_code(
        [also, *parsed], found.code, lambda name: read_bytes(found.folder / name, _MOST_CODE)
    )
    found.read_into(files, (name for name in code if name not in files))


def _left_out(
    source: Source, found: Companions, files: Mapping[str, bytes], code: str
) -> Iterator[str]:
    """Yield a note on what of a model's folder does not go along."""
    merged = {
        str(file.relative_to(source.path))
        for file in source.files
        if file.is_relative_to(source.path)
    }
    reasons = found.left_out | {n: f"Python code that {code}" for n in found.code if n not in files}
    listed = [f"{printable(n)} ({why})" for n, why in sorted(reasons.items()) if n not in merged]
    if listed:
        more = f" and {len(listed) - _SHOWN} more" if len(listed) > _SHOWN else ""
        yield f"model {source.name}: does not go along: {', '.join(listed[:_SHOWN])}{more}"


def _of_tokenizer(found: Companions) -> Companions:
    """Return `found` with what is left out of its tokenizer alone; with everything if not all was looked at."""
    left_out = {
        name: why
        for name, why in found.left_out.items()
        if found.is_full or is_tokenizers(name) or name == GENERATION_CONFIG
    }
    return replace(found, left_out=left_out)


def _config(config: Mapping[str, Any], out_dtype: str) -> dict[str, Any]:
    result = dict(config)
    # transformers 5 writes `dtype` and reads both; 4 writes and reads `torch_dtype`.
    for key in [key for key in ("dtype", "torch_dtype") if key in config] or ["torch_dtype"]:
        result[key] = out_dtype
    return result


def _adopt_token_ids(config: dict[str, Any], lenders: Mapping[str, Any]) -> None:
    """Set the ids of special tokens to those in the lender's config.json, as far as it has them."""
    for path in ((), *TEXT_CONFIGS):
        lent = section_at(lenders, path)
        if lent is not None and section_at(config, path) is not None:
            change_section(config, path, {key: lent[key] for key in _TOKEN_KEYS if key in lent})


def _set_vocab_size(config: dict[str, Any], rows: int, uncropped: Collection[int]) -> Any:
    """Return `config` with the size set wherever it is the language model's, or one of `uncropped`."""
    named = [part for path in TEXT_CONFIGS if (part := section_at(config, path)) is not None]
    stated = False

    def change(part: dict[str, Any]) -> dict[str, Any]:
        nonlocal stated
        size = part.get("vocab_size")
        if not (type(size) is int and size in uncropped) and not any(part is n for n in named):
            return part
        stated = True
        return part | {"vocab_size": rows}

    changed = change_objects(config, change)
    return changed if stated and "vocab_size" not in config else changed | {"vocab_size": rows}


def _most_common_template(sources: Sequence[Source]) -> str | None:
    templates = [template.strip() for template in map(_template, sources) if template]
    return Counter(templates).most_common(1)[0][0] if templates else None


def model_of_template(
    files: Mapping[str, bytes], lender: Source, sources: Sequence[Source]
) -> Source | None:
    """Return the first of `sources` that has the chat template of `files`; None if nobody has, or `lender` has it."""
    template = files.get(CHAT_TEMPLATE, b"").strip()
    having = (s for s in (lender, *sources) if _encoded(_template(s)) == template)
    giver = next(having, None) if template else None
    return None if giver is lender else giver


def _encoded(template: str | None) -> bytes:
    # JSON can escape half of a surrogate pair, which no UTF-8 text holds.
    return (template or "").strip().encode("utf-8", "replace")


def _template(source: Source) -> str | None:
    """Return the model's chat template; if it names several, the default one."""
    file = source.path / CHAT_TEMPLATE
    if file.exists():
        return read_bytes(file).decode("utf-8", "replace")
    for name in (CHAT_TEMPLATE_JSON, TOKENIZER_CONFIG):
        file = source.path / name
        template = read_object(file).get("chat_template") if file.exists() else None
        if isinstance(template, list):
            named = (t for t in template if isinstance(t, dict) and t.get("name") == "default")
            template = next(named, {}).get("template")
        if isinstance(template, str):
            return template
    return None
