"""Identifies a merge by everything its bytes depend on, so that a run recognizes its own unfinished output."""

from __future__ import annotations

import json
import os
from collections.abc import Collection
from pathlib import Path
from typing import Any

import xxhash

from ..checkpoint.identity import MergeIdentity
from ..version import __version__
from .plan import Plan


def fingerprint(plan: Plan, nonfinite: str) -> MergeIdentity:
    """Return everything that decides the bytes of the merged tensors."""
    sources = {id(x.source): x.source for job in plan.jobs for x in job.stored}
    identities = {f: i for source in sources.values() for f, i in source.files.items()}
    real = {file: _real(file) for file in identities}
    plan_digest = xxhash.xxh3_128()
    for job in plan.jobs:  # one by one: there may be many thousands
        stored = [[real[x.info.file], x.info.offset, x.info.dtype] for x in job.stored]
        specs = [x.spec for x in job.inputs]
        tensor = [job.name, job.dtype.code, job.shape, repr(job.rule), stored, specs]
        plan_digest.update(json.dumps(tensor).encode())
    for shard in plan.shards:
        plan_digest.update(json.dumps(shard.file).encode() + shard.header)
    return MergeIdentity(
        version=__version__,
        nonfinite=nonfinite,
        plan=plan_digest.hexdigest(),
        files={real[file]: identity for file, identity in identities.items()},
    )


def merge_digest(identity: MergeIdentity) -> str:
    """Return a checksum by which a finished model recognizes its merge."""
    return digest([identity.version, identity.nonfinite, identity.plan, identity.files])


def tensors_from(plan: Plan, files: Collection[str]) -> set[str]:
    """Return the names of the output tensors that are merged from any of `files`, by a fingerprint's names."""
    sources = {file for job in plan.jobs for x in job.stored for file in x.source.files}
    found = {file for file in sources if _real(file) in files}
    return {job.name for job in plan.jobs if any(x.info.file in found for x in job.stored)}


def _real(file: Path) -> str:
    """Return the real path as text that JSON can hold: what is not UTF-8 is escaped."""
    return os.fsencode(os.path.realpath(file)).decode("utf-8", "backslashreplace")


def digest(value: Any) -> str:
    """Return the xxh3-128 checksum, in hex, of a value in JSON's types."""
    return xxhash.xxh3_128_hexdigest(json.dumps(value, sort_keys=True).encode())
