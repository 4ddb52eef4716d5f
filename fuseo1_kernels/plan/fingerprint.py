"""What the bytes of a merge depend on, in few words: how a run knows its own unfinished work again."""

from __future__ import annotations

import json
import os
from typing import Any

import xxhash

from ..version import __version__
from .plan import Plan


def fingerprint(plan: Plan, nonfinite: str) -> dict[str, Any]:
    """Return, in JSON's types, everything that decides the bytes of the merged tensors.

    {"version", "nonfinite", "plan": checksum, "files": {path: [size, mtime in ns, inode]}}: threads,
    memory and backend are not in it, for they change nothing.
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
    """Return the checksum of a value in JSON's types."""
    return xxhash.xxh3_128_hexdigest(json.dumps(value, sort_keys=True).encode())
