"""Checks that the merged embeddings have a row for each token, and that a row means one token in all models."""

from __future__ import annotations

from collections.abc import Sequence

from ..checkpoint.files import read_bytes
from ..checkpoint.source import Source
from ..checkpoint.vocabulary import MergedRows, Vocabulary, read_vocabulary
from ..errors import CheckpointError, counted
from .job import Job
from .plan import is_embedding


def check_vocabularies(
    jobs: Sequence[Job], lender: Source, vocabulary: Vocabulary | None, as_they_stand: bool
) -> list[str]:
    """Return notes on tokenizers that differ.

    Args:
        jobs: the merged tensors. Rows of embeddings are merged by id.
        lender: the model whose tokenizer goes along.
        vocabulary: the lender's.
        as_they_stand: merge rows although they mean different tokens.

    Raises:
        CheckpointError: a token has no row, or an id means different tokens in any two models and not `as_they_stand`.
    """
    embeddings = [job for job in jobs if is_embedding(job.name, job.shape)]
    if not embeddings:
        return []
    # A model may have embeddings of something else, too; cropped ones are all of one size.
    rows = max(job.shape[0] for job in embeddings)
    known: dict[str, MergedRows] = {}

    def compare(its_own: Vocabulary | None) -> str | None:
        """Return, in words, how a model differs from those before."""
        if its_own is None:
            return None
        conflict = known.setdefault(its_own.kind, MergedRows(rows)).add(its_own)
        if conflict and not as_they_stand:
            raise CheckpointError(
                f"{conflict}: their rows do not match. mergekit would permute rows here; `tokenizer_files:`"
                " merges rows as they stand and copies one model's tokenizer with its ids"
            )
        return conflict or (vocabulary and vocabulary.find_difference(its_own))

    compare(vocabulary)
    others = {id(x.source): x.source for job in embeddings for x in job.inputs}
    # One at a time: a large vocabulary takes hundreds of MB.
    found = [
        compare(read_vocabulary(other.name, other.path))
        for other in others.values()
        if other is not lender and not _same_file(lender, other)
    ]
    differing = list(filter(None, found))
    notes = _check_rows(rows, lender, vocabulary) if vocabulary else []
    if differing:
        more = f", and {counted(len(differing) - 1, 'model')} more differ" if differing[1:] else ""
        notes.append(f"tokenizers differ: {differing[0]}{more}; rows are merged as they stand")
    return notes


def _check_rows(rows: int, lender: Source, vocabulary: Vocabulary) -> list[str]:
    """Return a note if the lender itself has fewer rows than ids. Raises CheckpointError if only the output has."""
    last = max(vocabulary.tokens, default=-1)
    if vocabulary.kind or last < rows:
        return []
    problem = (
        f"the tokenizer of {lender.name} has the token {vocabulary.tokens[last]!r:.80} with id {last},"
        f" but the merged embeddings have {rows} rows"
    )
    own = [t.shape[0] for t in lender.tensors.values() if is_embedding(t.name, t.shape)]
    if own and max(own) <= rows:
        return [f"{problem}, as many as its own"]
    raise CheckpointError(
        f"{problem}; take a tokenizer that has no such ids (`tokenizer_files:`), or --no-copy-tokenizer"
    )


def _same_file(one: Source, other: Source) -> bool:
    """Whether two models have the same tokenizer.json: the usual case, without parsing 7 MB of JSON."""
    files = [source.path / "tokenizer.json" for source in (one, other)]
    return all(file.exists() for file in files) and read_bytes(files[0]) == read_bytes(files[1])
