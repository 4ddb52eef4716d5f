"""Identifies a merge by everything its bytes depend on, so that a run recognizes its own unfinished output."""

from __future__ import annotations

import json
import os
from typing import Any

import xxhash

from ..version import __version__
from .plan import Plan


def fingerprint(plan: Plan, nonfinite: str) -> dict[str, Any]:
    """Return, in JSON's types, everything that decides the bytes of the merged tensors.

    The keys are "version", "nonfinite", "plan" (a checksum) and "files" ({path: [size, mtime in ns, inode]}). Threads,
    memory and backend are not included: they do not change the bytes.
    """
    sources = {id(x.source): x.source for job in plan.jobs for x in job.inputs}
    identities = {f: i for source in sources.values() for f, i in source.files.items()}
    real = {file: os.path.realpath(file) for file in identities}
    tensors = [
        [
            *(job.name, job.dtype.code, job.shape, repr(job.rule)),
            [[real[x.info.file], x.info.offset, x.info.dtype] for x in job.inputs],
        ]
        for job in plan.jobs
    ]
    shards = [[shard.file, xxhash.xxh3_128_hexdigest(shard.header)] for shard in plan.shards]
    return {
        "version": __version__,
        "nonfinite": nonfinite,
        "plan": digest([tensors, shards]),
        "files": {real[file]: list(identity) for file, identity in identities.items()},
    }


def digest(value: Any) -> str:
    """Return the xxh3-128 checksum, in hex, of a value in JSON's types."""
    return xxhash.xxh3_128_hexdigest(json.dumps(value, sort_keys=True).encode())
