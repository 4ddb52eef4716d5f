"""The output's tokens, and which row of each model stands for each of them."""

from __future__ import annotations

import math
from array import array
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from ..checkpoint.source import Source
from ..checkpoint.tokenizer_json import PLAIN, TokenizerChange, read_added_tokens
from ..checkpoint.vocabulary import MOST_TOKENS, Vocabulary, read_vocabulary, tokenizer_digest
from ..config.schema import MergeConfig
from ..config.tokenizer import ModelTokenRow, TokenizerKeys, TokenRow
from ..errors import CheckpointError, counted, printable
from .gathered import Gathered
from .inputs import Input
from .row_tables import ChosenRow, RowTable, make_tables
from .token_tensors import TokenTensors, is_embedding


@dataclass
class Alignment:
    """The rows that are merged for each of the output's tokens.

    Attributes:
        vocabulary: the output's.
        rows: how many rows the output has; `padding` of them, the last ones, have no token.
        change: what makes the output's tokenizer of its lender's; false if it is the lender's.
        tensors: which tensors of each model have a row per token, by the config's names.
        ids: by model, for each id of the output the model's id of the same token; -1: the model has no row for it.
        chosen: the rows that the config names, by the output's id.
        base: the config's base, or None.
        notes: remarks for the user.
    """

    vocabulary: Vocabulary
    rows: int
    padding: int
    change: TokenizerChange
    tensors: Mapping[str, TokenTensors]
    ids: Mapping[str, Sequence[int]]
    chosen: Mapping[int, ChosenRow]
    base: str | None
    notes: list[str]
    _tables: dict[tuple[Any, Any], tuple[RowTable | None, ...]] = field(default_factory=dict)

    @property
    def vocab_size(self) -> int | None:
        """The output's number of rows; None if no model has any."""
        return self.rows if any(found.names for found in self.tensors.values()) else None

    def covers(self, tensors: Mapping[str, str], inputs: Sequence[Input], base: str | None) -> bool:
        """Whether the inputs of a tensor, whose names `tensors` has by model, have a row per token.

        Args:
            tensors: by model, the tensor's name there.
            inputs: the tensors as they stand.
            base: see `gather`.

        Raises:
            CheckpointError: only some of them have, and rows would not match.
        """
        found = zip(tensors.items(), inputs, strict=True)
        lacking = [(m, x) for (m, name), x in found if name not in self.tensors[m].names]
        if not lacking:
            return len({x.shape[1:] for x in inputs}) == 1
        embedded = all(is_embedding(x.tensor, x.shape) for x in inputs)
        if embedded and any(self._tables_of((*tensors,), base)):
            model, x = lacking[0]
            problem = (
                f"tensor {printable(x.tensor)}: has {counted(x.shape[0], 'row')} in model {model}, where a token has"
                f" one of {self.tensors[model].rows}"
            )
            if len(lacking) < len(inputs):
                raise CheckpointError(f"{problem}; only tensors of as many are aligned by token")
            self.notes.append(f"{problem}; its rows are merged as they stand")
        return False

    def gather(
        self, models: tuple[str, ...], inputs: Sequence[Input], base: str | None
    ) -> list[Input]:
        """Return the inputs of a tensor with the output's rows; as they are where the first rows are the output's.

        Args:
            models: the models whose tensors `inputs` are.
            inputs: the tensors as they stand.
            base: the base of the tensor's part; None: the config's.

        Raises:
            CheckpointError: the row of a token is nowhere.
        """
        return [
            x if table is None else Gathered.of(x, tuple(inputs[i] for i in table.models), table)
            for x, table in zip(inputs, self._tables_of(models, base), strict=True)
        ]

    def _tables_of(self, models: tuple[str, ...], base: str | None) -> tuple[RowTable | None, ...]:
        key = models, base or self.base
        if key not in self._tables:
            ids = [self.ids[model] for model in models]
            self._tables[key] = make_tables(ids, *key, self.chosen, self.padding)
        return self._tables[key]


def align(
    config: MergeConfig, sources: Mapping[str, Source], lender: Source | None, max_memory: int
) -> Alignment | None:
    """Return the alignment that the config asks for; None if it asks for none: rows are merged by id.

    Args:
        config: the merge.
        sources: the merged models, by the config's names.
        lender: the model whose tokenizer the output's is made of.
        max_memory: the most bytes that a tokenizer may take while it is read.

    Raises:
        CheckpointError: a tokenizer is damaged or missing, or a token's row is nowhere.
    """
    if config.earlier:
        _check_chain(config)
        return None
    keys = config.aligned_to
    if keys is None or lender is None:
        return None
    first = read_vocabulary(lender.name, lender.path, max_memory)
    if first is None or first.kind:
        if _is_copied(keys):
            return None  # such ids are compared, and rows stay
        raise _unaligned(lender, first)
    tensors = {name: TokenTensors(source) for name, source in sources.items()}
    of_base = keys.source in ("base", "union")
    rows = tensors[config.config_model].rows if of_base else None
    making = _Making(keys, tensors, first, rows, config.base_model)
    del first
    models = [config.config_model, *(name for name in sources if name != config.config_model)]
    digest = None

    def fits(name: str) -> bool:
        return (tensors[name].rows or 0) <= (tensors[models[0]].rows or 0)

    for name in models:
        source = sources[name]
        # The usual case. One with more rows than the first has more tokens with a row, perhaps.
        same = digest is not None and fits(name) and tokenizer_digest(source.path) == digest
        vocabulary = None if same else read_vocabulary(source.name, source.path, max_memory)
        if name == models[0]:
            digest = tokenizer_digest(source.path)
        if vocabulary is not None and not vocabulary.kind:
            making.add(name, source, vocabulary)
        elif vocabulary is None:
            making.add_like(name, None if name == models[0] else models[0], said=not same)
        else:
            raise _unaligned(source, vocabulary)
    return making.finish()


class _Making:
    """The output's vocabulary while models are read, one after the other."""

    def __init__(
        self,
        keys: TokenizerKeys,
        tensors: Mapping[str, TokenTensors],
        lent: Vocabulary,
        rows: int | None,
        base: str | None,
    ) -> None:
        """Begin with the vocabulary `lent`, of which the first `rows` ids count; None: all."""
        self._base = base
        self._keys, self._tensors, self._lender = keys, tensors, lent.model
        self._ids = lent.ids()
        last = math.inf if rows is None else rows
        self._removed = frozenset(t for t, index in self._ids.items() if index >= last)
        for token in self._removed:
            del self._ids[token]
        # Tokens whose id is another's, which its row is for.
        self._minor = lent.shared.keys()
        self._next = max(self._ids.values(), default=-1) + 1
        self._check_count(self._next)
        self._known: dict[str, dict[str, Any]] | None = None  # the first model's added tokens
        self._entries: dict[int, dict[str, Any]] = {}
        self._added: dict[str, tuple[dict[str, Any], list[tuple[str, int]]]] = {}
        self._rows: dict[str, array[int]] = {}
        self._named: dict[tuple[str, str], int] = {}
        self._asked = {
            row.source.token
            for row in keys.tokens.values()
            if isinstance(row.source, ModelTokenRow) and row.source.token is not None
        }
        self.notes: list[str] = []
        if keys.source != "union":
            self._add_named()

    def add(self, name: str, source: Source, vocabulary: Vocabulary) -> None:
        """Add a model: the first of all is the base."""
        added = read_added_tokens(source.path) if self._keys.source == "union" else {}
        self._known = added if self._known is None else self._known
        last = self._last(name)
        rows = self._rows[name] = array("i", [-1]) * self._next
        ids = vocabulary.ids()
        for token in self._asked & ids.keys():
            self._named[name, token] = ids[token]
        for token, index in ids.items() if self._keys.source != "union" else _by_id(ids):
            if not 0 <= index < last:
                continue
            if token in added and token not in self._known:
                self._added.setdefault(token, (added[token], []))[1].append((name, index))
                continue
            place = self._ids.get(token)
            if place is None:
                if self._keys.source != "union":
                    continue
                place = self._new(token, PLAIN)
            if place >= len(rows):
                rows.extend([-1] * (place + 1 - len(rows)))
            if rows[place] < 0 or token not in self._minor:
                rows[place] = index

    def add_like(self, name: str, other: str | None, said: bool) -> None:
        """Add a model with the ids of another; None: of the lender. `said`: it has none, and a note says so."""
        last = self._last(name)
        ids = range(self._next) if other is None else self._rows[other]
        self._rows[name] = array("i", (i if i < last else -1 for i in ids))
        for model, token in list(self._named) if other else ():
            if model == other:
                self._named[name, token] = self._named[model, token]
        for _, places in self._added.values():
            places += [(name, index) for model, index in places if model == other and index < last]
        if said:
            self.notes.append(
                f"model {name}: has no vocabulary of a known format; its ids are taken to be those of"
                f" {other or self._lender}"
            )

    def _last(self, name: str) -> float:
        rows = self._tensors[name].rows
        return math.inf if rows is None else rows

    def _new(self, token: str, entry: Mapping[str, Any]) -> int:
        if not token.isascii() and token != token.encode("utf-8", "replace").decode("utf-8"):
            raise CheckpointError(
                f"token {token!r:.80}: half of a surrogate pair is no text; no tokenizer.json can hold it"
            )
        place = self._ids[token] = self._next
        self._entries[place] = {"content": token, **entry}
        self._next += 1
        return place

    def _add_named(self) -> None:
        """Add the tokens that the config names and the output lacks."""
        for token in self._keys.tokens:
            if token not in self._ids:
                self._new(token, PLAIN)

    def finish(self) -> Alignment:
        """Return the alignment. Raises CheckpointError if it is absurdly large."""
        for token, (entry, places) in self._added.items():
            place = self._ids.get(token)
            if place is None:
                place = self._new(token, entry)
            else:
                self._entries[place] = {"content": token, **entry}
            for name, index in places:
                rows = self._rows[name]
                if place >= len(rows):
                    rows.extend([-1] * (place + 1 - len(rows)))
                rows[place] = index
        self._add_named()
        # Two tokens may share an id; mergekit counts both.
        count = max(self._next, len(self._ids))
        if not count:
            raise CheckpointError(
                f"model {self._lender}: tokens cannot be aligned: no token has a row"
            )
        self._check_count(count)
        for rows in self._rows.values():
            rows.extend([-1] * (count - len(rows)))
        chosen = {
            self._ids[token]: self._choose(token, row) for token, row in self._keys.tokens.items()
        }
        padding = -count % (self._keys.pad_to_multiple_of or 1)
        self._note_lacking(chosen)
        return Alignment(
            vocabulary=Vocabulary(
                self._lender, {index: token for token, index in self._ids.items()}
            ),
            rows=count + padding,
            padding=padding,
            change=TokenizerChange(self._entries, self._removed),
            tensors=self._tensors,
            ids=self._rows,
            chosen=chosen,
            base=self._base,
            notes=self.notes,
        )

    def _check_count(self, count: int) -> None:
        """Raise CheckpointError for more ids than any tokenizer has: there is a number for each."""
        if count > MOST_TOKENS:
            raise CheckpointError(
                f"model {self._lender}: tokens cannot be aligned: ids up to {count - 1!s:.30} are no tokenizer's"
            )

    def _choose(self, token: str, row: TokenRow) -> ChosenRow:
        """Return the row that the config names. Raises CheckpointError if a model has no such token or row."""
        source, where = row.source, f"tokenizer.tokens: {token!r:.80}"
        if not isinstance(source, ModelTokenRow):
            model = source if isinstance(source, str) else None
            return ChosenRow(where, source is not None, model, None, row.force)
        index = source.token_id
        if source.model not in self._tensors:
            raise CheckpointError(
                f"{where}: model {source.model} is not merged, so it has no row to take"
            )
        if index is None:
            index = self._named.get((source.model, source.token or ""))
        if index is None:
            raise CheckpointError(
                f"{where}: model {source.model} has no token {source.token!r:.80}"
            )
        if not 0 <= index < self._last(source.model):
            rows = self._tensors[source.model].rows
            raise CheckpointError(
                f"{where}: model {source.model} has {rows} rows, and none of id {index}"
            )
        return ChosenRow(where, True, source.model, index, row.force)

    def _note_lacking(self, chosen: Mapping[int, ChosenRow]) -> None:
        found = [max(column) >= 0 for column in zip(*self._rows.values(), strict=True)]
        lacking = [t for t, i in self._ids.items() if not found[i] and i not in chosen]
        if lacking:
            self.notes.append(
                f"{counted(len(lacking), 'token')} of the output's tokenizer, {lacking[0]!r:.80} among them, "
                "are in no model; their rows are zeros"
            )
        if self._removed:
            self.notes.append(
                f"{counted(len(self._removed), 'token')} of the tokenizer of {self._lender}, "
                f"{min(self._removed)!r:.80} among them, have no rows; tokenizer.json goes without them"
            )


def _is_copied(keys: TokenizerKeys) -> bool:
    """Whether no more is asked for than one model's tokenizer."""
    return keys == TokenizerKeys(source=keys.source) and keys.source != "union"


def _check_chain(config: MergeConfig) -> None:
    """Raise CheckpointError where a chain asks for more than one model's tokenizer: its rows are merged by id."""
    for name, each in (*config.earlier.items(), ("the last one", config)):
        if each.aligned_to is not None and not _is_copied(each.aligned_to):
            raise CheckpointError(
                f"merge {name}: tokens are not aligned in a chain of merges; give `tokenizer_source: MODEL`, or run the"
                " merge by itself"
            )


def _by_id(ids: Mapping[str, int]) -> list[tuple[str, int]]:
    return sorted(ids.items(), key=lambda item: item[1])


def _unaligned(source: Source, vocabulary: Vocabulary | None) -> CheckpointError:
    why = (
        "it has no vocabulary of a known format"
        if vocabulary is None
        else f"the ids of {vocabulary.kind} are not rows"
    )
    return CheckpointError(
        f"model {source.name}: its tokens cannot be aligned: {why}; `tokenizer_files:` merges rows as they stand"
    )
