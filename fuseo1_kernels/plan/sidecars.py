"""Makes the sidecars of a merged model: the small files beside the weights."""

from __future__ import annotations

import platform
from collections.abc import Mapping

from ..checkpoint.layout import check_links, homes_of
from ..checkpoint.shards import index_json
from ..checkpoint.sidecar import check_same_vocabulary, model_card, sidecar_files
from ..checkpoint.source import Source
from ..config.schema import MergeConfig
from ..version import __version__
from .models import AllowLinks
from .plan import Plan

#: The file that holds a merged model's config. Tools on the hub look for it under mergekit's name.
MERGE_CONFIG = "mergekit_config.yml"


def make_sidecars(
    config: MergeConfig,
    plan: Plan,
    sources: Mapping[str, Source],
    lender: Source | None,
    title: str,
    copy_tokenizer: bool,
    allow_links: AllowLinks = (),
) -> dict[str, bytes]:
    """Return the sidecars by file name. They are made before any weight is read, so that mistakes show early.

    Args:
        config: the merge.
        plan: its plan.
        sources: the merged models, by the config's names.
        lender: the model that lends its tokenizer, or None.
        title: the model's name in its README.md.
        copy_tokenizer: copy tokenizer files.
        allow_links: directories outside of the models to which links in them may lead.

    Raises:
        MergeError: a file is missing or damaged, or vocabularies differ.
    """
    base = sources[config.config_model]
    if lender is not None and config.tokenizer_source is not None:
        check_same_vocabulary(lender, [s for s in sources.values() if s is not lender])
    overrides = config.tokenizer_files.overrides if config.tokenizer_files else {}
    files = sidecar_files(
        base=base,
        tokenizer=lender,
        tokenizer_overrides=overrides,
        chat_template=config.chat_template,
        sources=list(sources.values()),
        out_dtype=plan.dtype_name,
        num_layers=plan.num_layers,
        vocab_size=plan.vocab_size,
        copy_tokenizer=copy_tokenizer,
    )
    # Nothing of a place that the user has not named gets into the merged model.
    for source in (*sources.values(), *([lender] if lender else [])):
        homes = homes_of(source.path, allow_links)
        check_links(source.path, [*files, "README.md"], homes)
    files["README.md"] = model_card(
        name=title,
        recipe_yaml=config.to_yaml(),
        base=config.base,
        targets=config.target_names(),
        method=config.merge_method,
        dtype=plan.dtype_name,
        versions={"fuseo1-kernels": __version__, "Python": platform.python_version()},
    )
    files[MERGE_CONFIG] = config.to_yaml().encode()
    index = index_json(plan.shards)
    if index is not None:
        files["model.safetensors.index.json"] = index
    return files
