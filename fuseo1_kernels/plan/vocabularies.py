"""Checks that the merged embeddings have a row for each token, and that a row means one token in all models."""

from __future__ import annotations

from collections.abc import Sequence

from ..checkpoint.source import Source
from ..checkpoint.vocabulary import MergedRows, Vocabulary, read_vocabulary, tokenizer_digest
from ..errors import CheckpointError, counted
from .job import Job
from .token_tensors import is_embedding


def check_vocabularies(
    jobs: Sequence[Job], lender: Source, *, copied: bool, as_they_stand: bool, max_memory: int
) -> tuple[Vocabulary | None, list[str]]:
    """Return the lender's vocabulary, and notes on tokenizers that differ.

    Args:
        jobs: the merged tensors. Rows of embeddings are merged by id.
        lender: the model whose tokenizer goes along.
        copied: its files are copied. If not, all that is wrong with tokenizers is a note.
        as_they_stand: merge rows although they mean different tokens.
        max_memory: the most bytes that a tokenizer may take while it is read.

    Raises:
        CheckpointError: a tokenizer is damaged, a token has no row, or an id means different tokens in any two models
            and not `as_they_stand`.
    """
    embeddings = [job for job in jobs if is_embedding(job.name, job.shape)]
    # A model may have embeddings of something else, too; cropped ones are all of one size.
    rows = max((job.shape[0] for job in embeddings), default=0)
    merged = list({id(x.source): x.source for job in embeddings for x in job.stored}.values())
    if not copied:
        try:
            return None, _compare(merged, rows, True, max_memory)[1] if merged else []
        except CheckpointError as error:
            return None, [f"vocabularies are not compared: {error}"]
    others = [model for model in merged if model is not lender]
    vocabulary, notes = _compare([lender, *others], rows, as_they_stand, max_memory)
    if vocabulary and embeddings:
        notes = [*_check_rows(rows, lender, vocabulary), *notes]
    return vocabulary, notes


def embedding_rows(jobs: Sequence[Job], model: Source) -> set[int]:
    """Return how many rows the embeddings of `model` have that are merged, before any is cropped."""
    embeddings = (job for job in jobs if is_embedding(job.name, job.shape))
    return {x.shape[0] for job in embeddings for x in job.inputs if x.stored[0].source is model}


def _compare(
    models: Sequence[Source], rows: int, as_they_stand: bool, max_memory: int
) -> tuple[Vocabulary | None, list[str]]:
    """Return the first model's vocabulary, and a note if others differ. Raises CheckpointError."""
    first, *others = models
    known: dict[str, MergedRows] = {}

    def add(vocabulary: Vocabulary) -> str | None:
        """Return, in words, a conflict with the models before."""
        conflict = known.setdefault(vocabulary.kind, MergedRows(rows)).add(vocabulary)
        if conflict and not as_they_stand:
            raise CheckpointError(
                f"{conflict}: their rows do not match. `tokenizer_source: base`, MODEL or union gathers rows by token;"
                " `tokenizer_files:` merges rows as they stand and copies one model's tokenizer with its ids"
            )
        return conflict

    def compare(other: Source) -> str | None:
        # A large vocabulary takes 100 MB and more: this one is gone before the next is read.
        same = digest is not None and tokenizer_digest(other.path) == digest
        its_own = None if same else read_vocabulary(other.name, other.path, max_memory)
        if its_own is None:
            return None
        return add(its_own) or (reference and reference.find_difference(its_own))

    digest = tokenizer_digest(first.path) if others else None
    reference = read_vocabulary(first.name, first.path, max_memory)
    if reference and others:
        add(reference)
    differing = list(filter(None, map(compare, others)))
    if not differing:
        return reference, []
    more = f", and {counted(len(differing) - 1, 'model')} more differ" if differing[1:] else ""
    return reference, [f"tokenizers differ: {differing[0]}{more}; rows are merged as they stand"]


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
