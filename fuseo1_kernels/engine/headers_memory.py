"""The memory that headers, plan and results take, tensor by tensor, for as long as a merge runs."""

from __future__ import annotations

from ..errors import MergeError, counted, mib
from ..plan.gathered import Gathered
from ..plan.plan import Plan

# Measured with 100,000 tensors of three models, which took 2.7 KB each (docs/storage.md).
_BY_INPUT, _BY_TENSOR = 512, 1024
# A name stands in the plan, in the header, in the index, in the journal and in the checksums.
_COPIES = 4


def headers_memory(plan: Plan) -> int:
    """Return the bytes that `plan`'s headers, jobs and records take, whatever their tensors' sizes."""
    inputs = sum(len(job.stored) for job in plan.jobs)
    headers = sum(len(shard.header) for shard in plan.shards)
    tables = {
        id(x.table): x.table.nbytes
        for job in plan.jobs
        for x in job.inputs
        if isinstance(x, Gathered)
    }
    by_tensor = inputs * _BY_INPUT + len(plan.jobs) * _BY_TENSOR
    return by_tensor + headers * _COPIES + sum(tables.values())


def left_by_headers(plan: Plan, max_memory: int, needed: int) -> int:
    """Return the bytes of `max_memory` that are left for tensors. Raises MergeError for less than `needed` bytes."""
    headers = headers_memory(plan)
    if headers + needed <= max_memory:
        return max_memory - headers
    tensors = counted(len(plan.jobs), "tensor")
    what = f", {mib(headers)} of it for the headers of {tensors}" if headers >= 1 << 20 else ""
    raise MergeError(
        f"--max-memory {max_memory >> 20} MiB is too little for these models;"
        f" the least is {mib(headers + needed)}{what}"
    )
