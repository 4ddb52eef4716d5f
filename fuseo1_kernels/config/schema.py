"""The merge configuration in mergekit's YAML vocabulary, checked in full before any model is opened.

    config = load_config("merge.yaml")
    config.base_model, config.target_names(), config.output_dtype

Every mistake raises one ConfigError that names the file, the key and the remedy. Keys of mergekit 0.1.5 that this
package does not support are refused by name, never ignored. docs/config.md describes every key.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from typing import Any

from pydantic import (
    Field,
    PrivateAttr,
    ValidationInfo,
    field_validator,
    model_validator,
)

from ..errors import ConfigError, did_you_mean
from ..methods import METHODS
from ..methods.method import Method
from .checks import NO_BASE, check_setting, check_sources, check_spelling, check_values, collect
from .resolve import Part, Scope, all_scopes
from .section import Section
from .tokenizer import TokenizerKeys
from .types import (
    ChatTemplate,
    DType,
    LayerContainer,
    LayerRange,
    ModelName,
    ModuleName,
    OutputDType,
    Overrides,
    Parameters,
)
from .yaml_text import dump_yaml, join_yaml

#: The module that is the whole model, in mergekit, where the architecture has no parts.
DEFAULT_MODULE = "default"
# Keys that decide on files beside the weights.
_LENT = ("tokenizer_source", "tokenizer", "tokenizer_files", "chat_template")


class InputModel(Section):
    """One entry of `models`: a model and its own values of per-model parameters."""

    model: ModelName
    parameters: Parameters = Field(default_factory=dict)


class SliceSource(InputModel):
    """One entry of a slice's `sources`: the layers [first, end) of a model."""

    layer_range: LayerRange


class OutputSlice(Section):
    """One entry of `slices`: consecutive output layers, merged from as many layers of each source."""

    unread = ("residual_weight",)

    sources: list[SliceSource]
    base_model: ModelName | None = None
    parameters: Parameters = Field(default_factory=dict)


class OutputModule(Section):
    """One entry of `modules`: the part of the model that its key names, of whole models or of slices."""

    slices: list[OutputSlice] | None = None
    models: list[InputModel] | None = None
    parameters: Parameters = Field(default_factory=dict)


class TokenizerFiles(Section):
    """`tokenizer_files`: copy this model's tokenizer and chat template. Token ids and embedding rows stay as they are.

    `overrides` replace keys of the copied tokenizer_config.json.
    """

    only_here = True

    model: ModelName
    overrides: Overrides = Field(default_factory=dict)


class MergeConfig(Section):
    """The config of a merge. Make one with `load_config` or `parse_config`, which raise ConfigError."""

    models: list[InputModel] | None = None
    slices: list[OutputSlice] | None = None
    modules: dict[ModuleName, OutputModule] | None = None
    merge_method: str
    base_model: ModelName | None = Field(default=None, validate_default=True)
    slices_of: LayerContainer | None = None
    parameters: Parameters = Field(default_factory=dict)
    dtype: OutputDType = None
    out_dtype: OutputDType = None
    tokenizer_source: ModelName | None = None
    tokenizer: TokenizerKeys | None = None
    tokenizer_files: TokenizerFiles | None = None
    chat_template: ChatTemplate | None = None

    _notes: tuple[str, ...] = PrivateAttr(default=())
    #: The merges whose results this one uses, by name; each before those that use it (chain.py).
    _earlier: dict[str, MergeConfig] = PrivateAttr(default_factory=dict)

    @property
    def notes(self) -> tuple[str, ...]:
        """A line for each key, as the config was given, that has no effect on the merge."""
        of_bases = {
            f"{scope.where}: {scope.model!r} is the base; its own parameters have no effect"
            for part in self.resolve()
            for scope in part.scopes
            if scope.model is not None and scope.model == part.base and scope.parameters
        }
        of_earlier = (
            f"merge {name}: {note}" for name, each in self.earlier.items() for note in each.notes
        )
        return (*of_earlier, *self._notes, *sorted(of_bases))

    def with_notes(self, notes: Sequence[str]) -> MergeConfig:
        """Return the same config with further notes, on keys that were taken out of it."""
        same = self.model_copy()
        same._notes = (*self._notes, *notes)
        return same

    @property
    def earlier(self) -> Mapping[str, MergeConfig]:
        """The merges of earlier documents, by the names that this config has for their results; used ones first."""
        return self._earlier

    def after(self, earlier: Mapping[str, MergeConfig]) -> MergeConfig:
        """Return this config as the last of a chain: a model with a name in `earlier` is the result of that merge."""
        chain: dict[str, MergeConfig] = {}
        for name, config in earlier.items():
            chain[name] = config._lent_by(chain)
        last = self._lent_by(chain)
        last._earlier = chain
        return last

    def _lent_by(self, earlier: Mapping[str, MergeConfig]) -> MergeConfig:
        """Return a copy that asks for the tokenizer and the template which its base would have as a directory."""
        lender = earlier.get(self.config_model)
        if lender is None or any(getattr(self, key) is not None for key in _LENT):
            return self.model_copy()
        lent = {key: getattr(lender, key) for key in _LENT}
        if lender.tokenizer_source is not None:
            lent["tokenizer_source"] = lender.tokenizer_model
        return self.model_copy(update=lent)

    @property
    def output_dtype(self) -> DType | None:
        """The dtype of the merged tensors. None: each tensor has its inputs' promoted dtype."""
        return self.out_dtype or self.dtype

    @property
    def method(self) -> Method:
        """The merge method."""
        return METHODS[self.merge_method]

    @property
    def aligned_to(self) -> TokenizerKeys | None:
        """The output's tokens, by which rows are gathered; None: rows are merged by id."""
        if self.tokenizer_source is not None:
            return TokenizerKeys(source=self.tokenizer_source)
        return self.tokenizer

    @property
    def tokenizer_model(self) -> str | None:
        """The model that lends its tokenizer to the output; None: the config names none."""
        if self.tokenizer_files is not None:
            return self.tokenizer_files.model
        if self.aligned_to is None:
            return None
        source = self.aligned_to.source
        return self.config_model if source in ("base", "union") else source

    def resolve(self) -> tuple[Part, ...]:
        """Return one part for each slice, in output order; for whole models, one part; module by module.

        As in mergekit, a `base_model` that the method ignores is merged as the last model if `models` does not list it.
        """
        return tuple(part for part, _ in self._groups())

    def _groups(self) -> Iterator[tuple[Part, list[str]]]:
        """Yield every part, with the models that the config lists for it."""
        if self.modules is None:
            yield from self._groups_of(self, "", None, ())
        for name, module in (self.modules or {}).items():
            begin = f"modules.{name}."
            shared = (Scope(f"{begin}parameters", None, module.parameters),)
            whole = name == DEFAULT_MODULE and len(self.modules or {}) == 1
            yield from self._groups_of(module, begin, None if whole else name, shared)

    def _groups_of(
        self,
        output: MergeConfig | OutputModule,
        begin: str,
        module: str | None,
        shared: tuple[Scope, ...],
    ) -> Iterator[tuple[Part, list[str]]]:
        if output.slices is None:
            sources = output.models or []
            part = self._part(sources, self.base_model, f"{begin}models", module, None, shared)
            yield part, [source.model for source in sources]
        for index, out_slice in enumerate(output.slices or ()):
            where = f"{begin}slices[{index}]"
            scopes = (*shared, Scope(f"{where}.parameters", None, out_slice.parameters))
            base = out_slice.base_model or self.base_model
            ranges = {source.model: source.layer_range for source in out_slice.sources}
            part = self._part(out_slice.sources, base, f"{where}.sources", module, ranges, scopes)
            yield part, [source.model for source in out_slice.sources]

    def _part(
        self,
        sources: Sequence[InputModel],
        base: str | None,
        where: str,
        module: str | None,
        ranges: dict[str, tuple[int, int]] | None,
        shared: tuple[Scope, ...],
    ) -> Part:
        names = [source.model for source in sources]
        if self.method.base == "ignored":
            if ranges is None and base is not None and base not in names:
                names.append(base)
            base = None
        elif base is not None:
            names = [base, *(name for name in names if name != base)]
        own = tuple(
            Scope(f"{where}[{index}].parameters", source.model, source.parameters)
            for index, source in enumerate(sources)
            if source.parameters
        )
        scopes = (Scope("", None, self.parameters), *shared, *own)
        return Part(self.method, where, module, tuple(names), base, ranges or {}, scopes)

    def model_names(self) -> list[str]:
        """Return every model to open, once: the base first, if there is one; then in config order.

        A model that only lends its tokenizer is not included.
        """
        names = [] if self.base is None else [self.base]
        for part in self.resolve():
            names += part.models
        if self.base_model is not None:
            names.append(self.base_model)
        return list(dict.fromkeys(names))

    def stored_names(self) -> list[str]:
        """Return every model to open, once, those of earlier merges included."""
        chain = (*self.earlier.values(), self)
        names = [name for config in chain for name in config.model_names()]
        return [name for name in dict.fromkeys(names) if name not in self.earlier]

    def target_names(self) -> list[str]:
        """Return the models to merge, in config order, without the base."""
        names = [name for part in self.resolve() for name in part.models]
        return [name for name in dict.fromkeys(names) if name != self.base]

    @property
    def base(self) -> str | None:
        """The base of the merge; None if there is none or the method ignores it."""
        return None if self.method.base == "ignored" else self.base_model

    @property
    def config_model(self) -> str:
        """The model that lends its config.json, and its tokenizer unless the config names another."""
        return self.base_model or self.model_names()[0]

    def to_yaml(self, names: Mapping[str, str] | None = None) -> str:
        """Return the config as YAML text, without keys that have their default value.

        `names`: what to call models instead of the config's names.
        """
        chain: list[tuple[dict[str, Any], MergeConfig]]
        chain = [*(({"name": name}, config) for name, config in self.earlier.items()), ({}, self)]
        return join_yaml(
            [
                dump_yaml(
                    own
                    | _renamed(config.model_dump(mode="json", exclude_defaults=True), names or {})
                )
                for own, config in chain
            ]
        )

    @field_validator("merge_method")
    @classmethod
    def _check_method(cls, name: str) -> str:
        if name not in METHODS:
            raise ValueError(f"unknown method {name!r}{did_you_mean(name, METHODS)}")
        return name

    @field_validator("base_model")
    @classmethod
    def _check_base(cls, name: str | None, info: ValidationInfo) -> str | None:
        method = METHODS.get(info.data.get("merge_method", ""))
        whole = all(info.data.get(key, ...) is None for key in ("slices", "modules"))
        if name is None and whole and method is not None and method.base == "required":
            raise ValueError(NO_BASE)
        return name

    @model_validator(mode="after")
    def _check_whole(self) -> MergeConfig:
        problems = [*self._contradictions()]
        if not problems:
            check_all = partial(collect, problems)
            check_all(check_spelling, self.model_names())
            groups = [*self._groups()]
            for part, names in groups:
                check_all(check_sources, part, names)
            for scope in all_scopes([part for part, _ in groups]):
                where, of_one_model = scope.where or "parameters", scope.model is not None
                for name, setting in scope.parameters.items():
                    check_all(check_setting, self.method, where, name, setting, of_one_model)
            problems += dict.fromkeys(line for part, _ in groups for line in part.missing())
            if not problems:
                for part, _ in groups:
                    check_all(check_values, part)
                problems = [*dict.fromkeys(problems)]
        if problems:
            raise ConfigError(*problems)
        return self

    def _contradictions(self) -> Iterator[str]:
        """Yield a problem for each pair of keys that exclude or need each other."""
        if [self.models, self.slices, self.modules].count(None) != 2:
            yield "exactly one of `models`, `slices` and `modules` must be given"
        for name, module in (self.modules or {}).items():
            if (module.models is None) == (module.slices is None):
                yield f"modules.{name}: exactly one of `models` and `slices` must be given"
        if self.modules == {}:
            yield "modules: is empty"
        for where, slices in self._all_slices():
            if not slices:
                yield f"{where}: is empty"
        if self.slices_of is not None and not any(True for _ in self._all_slices()):
            yield "slices_of: says which layers `slices` cut; there are no `slices`"
        if self.slices_of is not None and len(self.modules or {}) > 1:
            yield "slices_of: the config has several modules, which say by their names what is cut"
        keys = ("tokenizer_source", "tokenizer", "tokenizer_files")
        given = [key for key in keys if getattr(self, key) is not None]
        if given[1:]:
            yield f"`{given[0]}` and `{given[1]}` exclude each other"
        if self.aligned_to and self.aligned_to.source == "base" and self.base_model is None:
            key = "tokenizer_source" if self.tokenizer is None else "tokenizer.source"
            yield f"{key}: there is no base_model; give a model's name"

    def _all_slices(self) -> Iterator[tuple[str, Sequence[OutputSlice]]]:
        """Yield the lists of slices, with their key paths."""
        if self.slices is not None:
            yield "slices", self.slices
        for name, module in (self.modules or {}).items():
            if module.slices is not None:
                yield f"modules.{name}.slices", module.slices


def _renamed(value: Any, names: Mapping[str, str]) -> Any:
    """Return a part of a config with the models in it called by `names`."""
    if isinstance(value, list):
        return [_renamed(item, names) for item in value]
    if not isinstance(value, dict):
        return value
    keys = ("model", "base_model", "tokenizer_source", "source")
    return {
        key: names.get(item, item)
        if key in keys and isinstance(item, str)
        else _renamed(item, names)
        for key, item in value.items()
    }
