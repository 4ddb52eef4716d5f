"""The merge configuration in mergekit's YAML vocabulary, checked in full before any model is opened.

    config = load_config("merge.yaml")
    config.base_model, config.target_names(), config.output_dtype

Every mistake raises one ConfigError that names the file, the key and the remedy. Keys of mergekit 0.1.5 that this
package does not support are refused by name, never ignored. docs/config.md describes every key.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    PrivateAttr,
    ValidationInfo,
    field_validator,
    model_validator,
)

from ..errors import ConfigError, did_you_mean
from ..methods import METHODS, NOT_YET
from ..methods.method import Method
from .checks import check_setting, check_spelling
from .resolve import Part, Scope, all_scopes
from .tokenizer import TokenizerKeys
from .types import (
    ChatTemplate,
    DType,
    LayerContainer,
    LayerRange,
    ModelName,
    OutputDType,
    Overrides,
    Parameters,
)
from .yaml_text import dump_yaml, join_yaml, short_yaml

# Keys that decide on files beside the weights.
_LENT = ("tokenizer_source", "tokenizer", "tokenizer_files", "chat_template")


class _Section(BaseModel):
    """One mapping of the config. Only its fields are valid keys."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    #: Keys that mergekit has here and this package has not, with a remedy.
    not_yet: ClassVar[dict[str, str]] = {}

    @model_validator(mode="before")
    @classmethod
    def _check_keys(cls, data: Any) -> Any:
        if isinstance(data, cls):
            return data
        if not isinstance(data, Mapping):
            keys = ", ".join(cls.model_fields)
            raise ValueError(f"must be a mapping with the keys {keys}, not {short_yaml(data)}")
        problems = [cls._unknown(key) for key in data if key not in cls.model_fields]
        if problems:
            raise ValueError("; ".join(problems))
        return data

    @classmethod
    def _unknown(cls, key: Any) -> str:
        if key in cls.not_yet:
            return f"mergekit has the key {key!r}; not in fuseo1-kernels yet{cls.not_yet[key]}"
        word = key if isinstance(key, str) else short_yaml(key)
        return f"unknown key {short_yaml(key)}{did_you_mean(word, cls.model_fields)}"


class InputModel(_Section):
    """One entry of `models`: a model and its own values of per-model parameters."""

    model: ModelName
    parameters: Parameters = Field(default_factory=dict)


class SliceSource(InputModel):
    """One entry of a slice's `sources`: the layers [first, end) of a model."""

    layer_range: LayerRange


class OutputSlice(_Section):
    """One entry of `slices`: consecutive output layers, merged from as many layers of each source."""

    not_yet = {"residual_weight": ""}

    sources: list[SliceSource]
    base_model: ModelName | None = None
    parameters: Parameters = Field(default_factory=dict)


class TokenizerFiles(_Section):
    """`tokenizer_files`: copy this model's tokenizer and chat template. Token ids and embedding rows stay as they are.

    `overrides` replace keys of the copied tokenizer_config.json.
    """

    model: ModelName
    overrides: Overrides = Field(default_factory=dict)


class MergeConfig(_Section):
    """The config of a merge. Make one with `load_config` or `parse_config`, which raise ConfigError."""

    not_yet = {"modules": " (use `models` or `slices`)"}

    models: list[InputModel] | None = None
    slices: list[OutputSlice] | None = None
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

    #: The merges whose results this one uses, by name; each before those that use it (chain.py).
    _earlier: dict[str, MergeConfig] = PrivateAttr(default_factory=dict)

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
        """Return one part for each slice, in output order; for whole models, one part.

        As in mergekit, a `base_model` that the method ignores is merged as the last model if `models` does not list it.
        """
        if self.slices is None:
            return (self._part(self.models or (), self.base_model, "models", None, ()),)
        parts = []
        for index, out_slice in enumerate(self.slices):
            where = f"slices[{index}]"
            shared = (Scope(f"{where}.parameters", None, out_slice.parameters),)
            base = out_slice.base_model or self.base_model
            ranges = {source.model: source.layer_range for source in out_slice.sources}
            parts.append(self._part(out_slice.sources, base, f"{where}.sources", ranges, shared))
        return tuple(parts)

    def _part(
        self,
        sources: Sequence[InputModel],
        base: str | None,
        where: str,
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
        everywhere = Scope("", None, self.parameters)
        return Part(self.method, tuple(names), base, ranges or {}, (everywhere, *shared, *own))

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
        if name in NOT_YET:
            raise ValueError(
                f"mergekit has {name}; not in fuseo1-kernels yet (here: {', '.join(METHODS)})"
            )
        if name not in METHODS:
            raise ValueError(f"unknown method {name!r}{did_you_mean(name, METHODS)}")
        return name

    @field_validator("base_model")
    @classmethod
    def _check_base(cls, name: str | None, info: ValidationInfo) -> str | None:
        method = METHODS.get(info.data.get("merge_method", ""))
        if name is None and method is not None and method.base == "required":
            raise ValueError("is required: the model that the others were fine-tuned from")
        return name

    @model_validator(mode="after")
    def _check_whole(self) -> MergeConfig:
        if (self.models is None) == (self.slices is None):
            raise ConfigError("exactly one of `models` and `slices` must be given")
        if self.slices_of is not None and self.slices is None:
            raise ConfigError("slices_of: says which layers `slices` cut; there are no `slices`")
        keys = ("tokenizer_source", "tokenizer", "tokenizer_files")
        given = [key for key in keys if getattr(self, key) is not None]
        if given[1:]:
            raise ConfigError(f"`{given[0]}` and `{given[1]}` exclude each other")
        if self.aligned_to and self.aligned_to.source == "base" and self.base_model is None:
            key = given[0] if self.tokenizer is None else "tokenizer.source"
            raise ConfigError(f"{key}: there is no base_model; give a model's name")
        check_spelling(self.model_names())
        parts = self.resolve()
        if self.models is not None:
            self._check_group("models", self.models, parts[0])
        if self.slices is not None and not self.slices:
            raise ConfigError("slices: is empty")
        for index, (out_slice, part) in enumerate(zip(self.slices or (), parts, strict=False)):
            where = f"slices[{index}].sources"
            self._check_group(where, out_slice.sources, part)
            _check_sources(where, out_slice, part.base)
        for scope in all_scopes(parts):
            where, of_one_model = scope.where or "parameters", scope.model is not None
            for name, setting in scope.parameters.items():
                check_setting(self.method, where, name, setting, of_one_model)
        for part in parts:
            part.check_required()
        return self

    def _check_group(self, where: str, sources: Sequence[InputModel], part: Part) -> None:
        """Raise ConfigError if a model is listed twice, or if the method does not take that many models."""
        names = [source.model for source in sources]
        for index, name in enumerate(names):
            if name in names[:index]:
                raise ConfigError(f"{where}[{index}].model: {name!r} is listed twice")
        number, method = len(part.targets), self.method
        if method.takes(number):
            return
        base = None if part.base is None else f"the base {part.base!r}"
        takes = f"{method.name} merges {method.counts(base)}"
        base_added = part.base is None and len(part.models) > len(names)
        included = f", the base_model {part.models[-1]!r} included" if base_added else ""
        are = "is" if number == 1 else "are"
        raise ConfigError(f"{where}: {takes}; here {are} {number}{included}")


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


def _check_sources(where: str, part: OutputSlice, base: str | None) -> None:
    """Raise ConfigError unless the base is one of a slice's sources and all sources have as many layers."""
    if base is not None and base not in [source.model for source in part.sources]:
        raise ConfigError(
            f"{where}: the base {base!r} is not among them: add it, with its layer_range"
        )
    lengths = [source.layer_range[1] - source.layer_range[0] for source in part.sources]
    if len(set(lengths)) > 1:
        raise ConfigError(
            f"{where}: every layer_range must be as long as the others; "
            f"these have {', '.join(map(str, lengths))} layers"
        )
