"""The small files beside the weights: configuration, tokenizer, chat template, model card."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from ..errors import CheckpointError, ConfigError
from .files import read_bytes
from .hub import split_hub_id
from .json_file import dump_object, parse_object, read_object
from .layout import CONFIG
from .source import Source

GENERATION_CONFIG = "generation_config.json"
TOKENIZER_JSON, TOKENIZER_CONFIG = "tokenizer.json", "tokenizer_config.json"
CHAT_TEMPLATE, CHAT_TEMPLATE_JSON = "chat_template.jinja", "chat_template.json"

#: The files of a tokenizer, as far as a model has them.
TOKENIZER_FILES = (
    TOKENIZER_JSON,
    TOKENIZER_CONFIG,
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "merges.txt",
    "vocab.txt",
    "tokenizer.model",
    "sentencepiece.bpe.model",
    "spiece.model",
    CHAT_TEMPLATE,
    CHAT_TEMPLATE_JSON,
)


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
    copy_tokenizer: bool,
) -> dict[str, bytes]:
    """Return name -> content of the files to put beside the weights.

    `base` is the base or, in a merge without one, another of its models. config.json is `config` (the
    base's, with what the plan changed; {}: none) with `out_dtype` ("bfloat16", ...) and, if given, `vocab_size`;
    generation_config.json is the base's. The tokenizer's files come from `tokenizer` (None: the base) byte for byte,
    except that `tokenizer_overrides` replace keys of tokenizer_config.json and `chat_template` (Jinja text, or "auto":
    the most common one of `sources`, the first on a tie) replaces the template in every file that has it. Raises
    CheckpointError or ConfigError.
    """
    files: dict[str, bytes] = {}
    if config:
        files[CONFIG] = dump_object(_config(config, out_dtype, vocab_size))
    generation = base.path / GENERATION_CONFIG
    if generation.exists():
        files[GENERATION_CONFIG] = read_bytes(generation)
    if not copy_tokenizer:
        if tokenizer is not None or tokenizer_overrides or chat_template:
            raise ConfigError(
                "the config asks for a tokenizer or a chat template, --no-copy-tokenizer for none;"
                " drop one of them"
            )
        return files

    found = _tokenizer_files(tokenizer or base)
    if tokenizer is not None and not found:
        raise CheckpointError(f"{tokenizer.path}: has no tokenizer files to copy")
    if tokenizer_overrides and TOKENIZER_CONFIG not in found:
        raise CheckpointError(
            f"{(tokenizer or base).path}: has no {TOKENIZER_CONFIG} to override"
            f" {', '.join(tokenizer_overrides)} in"
        )
    changes = dict(tokenizer_overrides)
    template = _most_common_template(sources) if chat_template == "auto" else chat_template
    if template is not None:
        # JSON can escape half of a surrogate pair, which no UTF-8 text holds.
        found[CHAT_TEMPLATE] = template.encode("utf-8", "replace")
        if CHAT_TEMPLATE_JSON in found:
            found[CHAT_TEMPLATE_JSON] = dump_object({"chat_template": template})
        changes["chat_template"] = template
    if changes and TOKENIZER_CONFIG in found:
        where = str((tokenizer or base).path / TOKENIZER_CONFIG)
        config = parse_object(found[TOKENIZER_CONFIG], where)
        found[TOKENIZER_CONFIG] = dump_object(config | changes)
    return files | found


def check_same_vocabulary(reference: Source, others: Sequence[Source]) -> None:
    """Raise CheckpointError if a token has one id in `reference` and another in one of `others`.

    Rows of embeddings are merged by id, so such a token's rows would be mixed with another token's.
    A token that only one of the models has is allowed; a model without tokenizer.json or vocab.json
    is not checked.
    """
    tokenizer = reference.path / TOKENIZER_JSON
    same = read_bytes(tokenizer) if tokenizer.exists() else None
    ids: dict[str, int] | None = None
    for other in others:
        tokenizer = other.path / TOKENIZER_JSON
        if same is not None and tokenizer.exists() and read_bytes(tokenizer) == same:
            continue  # the usual case, without parsing 7 MB of JSON
        if ids is None:
            ids = _vocabulary(reference)
        for token, index in _vocabulary(other).items():
            if ids.get(token, index) != index:
                raise CheckpointError(
                    f"token {token!r} has id {ids[token]} in {reference.name} and {index} in"
                    f" {other.name}: their rows do not match. mergekit would permute rows here;"
                    " `tokenizer_files:` merges rows as they stand and copies one model's tokenizer"
                    " with its ids"
                )


def model_card(
    *,
    name: str,
    recipe_yaml: str,
    base: str | None,
    targets: Sequence[str],
    method: str,
    dtype: str,
    versions: Mapping[str, str],
) -> bytes:
    """Return the merged model's README.md: the hub's front matter, sources, recipe, versions.

    A merge without a base has only `targets`. Only hub ids go into the front matter: the hub refuses a
    card whose base_model is a local path.
    """
    models = [*([] if base is None else [base]), *targets]
    repos = [split[0] for split in map(split_hub_id, models) if split]
    front = ["library_name: transformers", "tags:", "- merge", "- fuseo1-kernels", f"- {method}"]
    if repos:
        # A JSON string is a YAML string.
        front += ["base_model:", *(f"- {json.dumps(repo)}" for repo in dict.fromkeys(repos))]
        front += ["base_model_relation: merge"]
    fence = "```"
    while fence in recipe_yaml:
        fence += "`"
    lines = [
        "---",
        *front,
        "---",
        "",
        f"# {name}",
        "",
        f"A merge of {len(targets)} models with the method `{method}`, written as {dtype}.",
        "",
        *([] if base is None else [f"- base: `{base}`"]),
        *(f"- merged: `{target}`" for target in targets),
        "",
        "## Recipe",
        "",
        f"{fence}yaml",
        recipe_yaml.rstrip("\n"),
        fence,
        "",
        "## Made with",
        "",
        *(f"- {package} {version}" for package, version in versions.items()),
    ]
    return ("\n".join(lines) + "\n").encode("utf-8")


def _config(config: Mapping[str, Any], out_dtype: str, vocab_size: int | None) -> dict[str, Any]:
    result = dict(config)
    # transformers 5 writes `dtype` and reads both; 4 writes and reads `torch_dtype`.
    for key in [key for key in ("dtype", "torch_dtype") if key in config] or ["torch_dtype"]:
        result[key] = out_dtype
    if vocab_size is not None:
        result["vocab_size"] = vocab_size
    return result


def _tokenizer_files(source: Source) -> dict[str, bytes]:
    files = {name: source.path / name for name in TOKENIZER_FILES}
    return {name: read_bytes(file) for name, file in files.items() if file.exists()}


def _most_common_template(sources: Sequence[Source]) -> str | None:
    templates = [template.strip() for template in map(_template, sources) if template]
    return Counter(templates).most_common(1)[0][0] if templates else None


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


def _vocabulary(source: Source) -> dict[str, int]:
    """Return token -> id, from tokenizer.json, else from vocab.json and added_tokens.json."""
    file = source.path / TOKENIZER_JSON
    if not file.exists():
        ids: dict[str, Any] = {}
        for name in ("vocab.json", "added_tokens.json"):
            if (source.path / name).exists():
                ids |= read_object(source.path / name)
        return ids
    data = read_object(file)
    try:
        vocab = data["model"]["vocab"]
        # A Unigram model lists (token, score); a token's id is its place in the list.
        ids = (
            dict(vocab)
            if isinstance(vocab, dict)
            else {token: index for index, (token, _) in enumerate(vocab)}
        )
        return ids | {token["content"]: token["id"] for token in data.get("added_tokens", ())}
    except (KeyError, TypeError, ValueError) as error:
        raise CheckpointError(f"{file}: not a tokenizer: no vocabulary in it") from error
