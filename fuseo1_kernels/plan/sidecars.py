"""Makes the sidecars of a merged model: the small files beside the weights."""

from __future__ import annotations

import os
import platform
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from ..checkpoint.companions import is_tokenizers
from ..checkpoint.files import read_bytes
from ..checkpoint.hub import repo_of_snapshot
from ..checkpoint.json_file import MAX_BYTES
from ..checkpoint.layout import (
    CONFIG,
    GENERATION_CONFIG,
    MERGE_CONFIG,
    MODEL_CARD,
    check_links,
    homes_of,
)
from ..checkpoint.model_card import model_card, read_license
from ..checkpoint.shards import index_json
from ..checkpoint.sidecar import Sidecars, model_of_template, sidecar_files
from ..checkpoint.source import Source
from ..checkpoint.stop_tokens import (
    find_stop_mismatch,
    find_turn_end_mismatch,
    find_turn_mismatch,
)
from ..checkpoint.tokenizer_json import change_tokenizer
from ..checkpoint.vocabulary import Vocabulary
from ..config.chat_templates import CHAT_TEMPLATES, TURN_ENDS
from ..config.references import split_reference
from ..config.schema import MergeConfig
from ..errors import printable
from ..version import __version__
from .alignment import Alignment
from .layer_config import move_alignment_heads
from .models import AllowLinks
from .plan import Plan
from .vocabularies import check_vocabularies, embedding_rows


def make_sidecars(
    config: MergeConfig,
    plan: Plan,
    sources: Mapping[str, Source],
    lender: Source | None,
    alignment: Alignment | None,
    out_dir: str | os.PathLike[str] | None,
    copy_tokenizer: bool,
    allow_links: AllowLinks,
    max_memory: int,
) -> Sidecars:
    """Return the sidecars. They are made before any weight is read, so that mistakes show early.

    Args:
        config: the merge.
        plan: its plan.
        sources: the merged models, by the config's names.
        lender: the model that lends its tokenizer, or None.
        alignment: how rows are gathered by token; None: they are merged by id.
        out_dir: its last part is the model's name in README.md; None: the model has no name.
        copy_tokenizer: copy tokenizer files.
        allow_links: directories outside of the models to which links in them may lead.
        max_memory: the most bytes that a tokenizer may take while it is read.

    Raises:
        MergeError: a file is missing or damaged, or vocabularies differ.
    """
    models = {**sources, **plan.stages}
    base = models[config.config_model]
    opened = dict(sources) if lender is None else {**sources, lender.name: lender}
    for source in opened.values():
        # Of the other models only the tokenizer and the license are read.
        _check_links(source, source in (base, lender), allow_links)
    overrides = config.tokenizer_files.overrides if config.tokenizer_files else {}
    files, notes = sidecar_files(
        base=base,
        tokenizer=lender,
        tokenizer_overrides=overrides,
        chat_template=CHAT_TEMPLATES.get(config.chat_template or "", config.chat_template),
        sources=list(sources.values()),
        out_dtype=plan.dtype_name,
        config=plan.config,
        vocab_size=plan.vocab_size,
        uncropped=embedding_rows(plan.jobs, base),
        copy_tokenizer=copy_tokenizer,
    )
    if plan.decoder_layers is not None:
        move_alignment_heads(files, plan.decoder_layers)
    vocabulary: Vocabulary | None
    if alignment is not None:
        vocabulary, compared = alignment.vocabulary, alignment.notes
        if alignment.change:
            change_tokenizer(files, (lender or base).path, alignment.change)
    else:
        vocabulary, compared = check_vocabularies(
            plan.jobs,
            lender or base,
            copied=copy_tokenizer,
            as_they_stand=config.tokenizer_files is not None,
            max_memory=max_memory,
        )
    notes += compared
    if copy_tokenizer and (mismatch := find_stop_mismatch(files, vocabulary)):
        notes.append(mismatch)
    if config.chat_template is not None:
        notes += _turn_mismatch(files, lender or base, list(sources.values()), allow_links)
    end = TURN_ENDS.get(config.chat_template or "")
    if end is not None and (mismatch := find_turn_end_mismatch(files, vocabulary, end)):
        notes.append(mismatch)
    labels = _labels(opened)
    merged = config.stored_names() if config.earlier else config.target_names()
    files[MODEL_CARD] = model_card(
        name="" if out_dir is None else printable(os.path.basename(os.path.realpath(out_dir))),
        recipe_yaml=config.to_yaml(labels),
        base=labels.get(config.base or ""),
        targets=[labels[name] for name in merged if name in labels and name != config.base],
        method=config.merge_method,
        dtype=plan.dtype_name,
        versions={"fuseo1-kernels": __version__, "Python": platform.python_version()},
        license=_common_license([*sources.values()]),
        notes=config.notes,
    )
    files[MERGE_CONFIG] = config.to_yaml().encode()
    index = index_json(plan.shards)
    if index is not None:
        files["model.safetensors.index.json"] = index
    return Sidecars(files, notes)


def _turn_mismatch(
    files: Mapping[str, bytes], lender: Source, sources: Sequence[Source], allow_links: AllowLinks
) -> Iterator[str]:
    """Yield a note where the chat template of one model goes with another's stops. Raises CheckpointError."""
    giver = model_of_template(files, lender, sources)
    if giver is None:
        return
    held = [name for name in (GENERATION_CONFIG, CONFIG) if (giver.path / name).exists()]
    check_links(giver.path, held, homes_of(giver.path, allow_links))
    its = {name: read_bytes(giver.path / name, MAX_BYTES) for name in held}
    if mismatch := find_turn_mismatch(files, giver.name, its):
        yield mismatch


def _check_links(source: Source, whole: bool, allow_links: AllowLinks) -> None:
    """Raise CheckpointError for a link to a place that the user has not named: nothing of that gets into the model."""
    found = source.companions
    names = [n for n in (*found.names, *found.code) if whole or is_tokenizers(n)]
    check_links(source.path, [*names, MODEL_CARD], homes_of(source.path, allow_links))


def _labels(sources: Mapping[str, Source]) -> dict[str, str]:
    """Return what the card calls each model: a hub id, or the name of its folder, without the path to it."""
    labels: dict[str, str] = {}
    for name, source in sources.items():
        model, adapter = split_reference(name)
        label = _label(model, source.path)
        if adapter is not None and source.folds:
            label = f"{label}+{_label(adapter, source.folds.path)}"
        same = [label, *(f"{label} ({number})" for number in range(2, len(sources) + 1))]
        labels[name] = next(each for each in same if each not in labels.values())
    return labels


def _label(name: str, path: Path) -> str:
    if path != Path(os.path.expanduser(name)):
        return name  # a hub id
    return repo_of_snapshot(path) or os.path.basename(os.path.realpath(path))


def _common_license(sources: Sequence[Source]) -> dict[str, str]:
    """Return the license that all models state; {} if they do not agree."""
    adapters = (source.folds.path for source in sources if source.folds)
    first, *others = map(read_license, [*(source.path for source in sources), *adapters])
    return first if all(other == first for other in others) else {}
