"""The merge configuration: mergekit's YAML vocabulary, checked in full before any model is opened.

    config = load_config("merge.yaml")
    config.base_model, config.target_names(), config.output_dtype

Whatever is wrong ends in one ConfigError that names the file, the key and what to write instead.
What mergekit 0.1.5 understands and this package does not is refused by name, never ignored.
docs/config.md describes every key.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, ClassVar

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    ValidationInfo,
    field_validator,
    model_validator,
)

from ..errors import ConfigError, did_you_mean
from ..methods import METHODS, NOT_YET
from ..methods.method import Method, Parameter, Scalar
from .checks import check_setting, check_spelling, how_many
from .parameter_values import Setting, evaluate
from .types import (
    ChatTemplate,
    DType,
    LayerRange,
    ModelName,
    OutputDType,
    Overrides,
    Parameters,
    TokenizerSource,
)
from .yaml_text import dump_yaml, shown


class _Section(BaseModel):
    """One mapping of the config. Its keys are its fields, and no others."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    #: What mergekit takes here and this package does not, with what to do instead.
    not_yet: ClassVar[dict[str, str]] = {}

    @model_validator(mode="before")
    @classmethod
    def _check_keys(cls, data: Any) -> Any:
        if isinstance(data, cls):
            return data
        if not isinstance(data, Mapping):
            keys = ", ".join(cls.model_fields)
            raise ValueError(f"must be a mapping with the keys {keys}, not {shown(data)}")
        problems = [cls._unknown(key) for key in data if key not in cls.model_fields]
        if problems:
            raise ValueError("; ".join(problems))
        return data

    @classmethod
    def _unknown(cls, key: Any) -> str:
        if key in cls.not_yet:
            return f"mergekit has the key {key!r}; not in fuseo1-kernels yet{cls.not_yet[key]}"
        word = key if isinstance(key, str) else shown(key)
        return f"unknown key {shown(key)}{did_you_mean(word, cls.model_fields)}"


class InputModel(_Section):
    """One entry of `models`: a model, and values of parameters that each model has for itself."""

    model: ModelName
    parameters: Parameters = Field(default_factory=dict)


class SliceSource(InputModel):
    """One entry of a slice's `sources`: the layers [first, end) of a model."""

    layer_range: LayerRange


class OutputSlice(_Section):
    """One entry of `slices`: a run of output layers, merged from as many layers of each source."""

    not_yet = {"residual_weight": ""}

    sources: list[SliceSource]
    base_model: ModelName | None = None
    parameters: Parameters = Field(default_factory=dict)


class TokenizerFiles(_Section):
    """`tokenizer_files`: copy this model's tokenizer and chat template, token ids as they stand.

    No embedding row is moved. `overrides` replace keys of the copied tokenizer_config.json.
    """

    model: ModelName
    overrides: Overrides = Field(default_factory=dict)


class MergeConfig(_Section):
    """A whole merge. Make one with `load_config` or `parse_config`, which raise ConfigError."""

    not_yet = {
        "modules": " (use `models` or `slices`)",
        "tokenizer": " (use `tokenizer_source` or `tokenizer_files`)",
    }

    models: list[InputModel] | None = None
    slices: list[OutputSlice] | None = None
    merge_method: str
    base_model: ModelName | None = Field(default=None, validate_default=True)
    parameters: Parameters = Field(default_factory=dict)
    dtype: OutputDType = None
    out_dtype: OutputDType = None
    tokenizer_source: TokenizerSource = None
    tokenizer_files: TokenizerFiles | None = None
    chat_template: ChatTemplate | None = None

    @property
    def output_dtype(self) -> DType | None:
        """The dtype of the merged tensors; None if the config leaves it to the checkpoints."""
        return self.out_dtype or self.dtype

    @property
    def method(self) -> Method:
        """The record of the merge method."""
        return METHODS[self.merge_method]

    @property
    def parts(self) -> Sequence[OutputSlice | None]:
        """The slices; without any None alone, which stands for whole models."""
        return self.slices or (None,)

    def base_of(self, part: OutputSlice | None = None) -> str | None:
        """The base of a slice (None: of the whole models); None if the method goes without one."""
        if self.method.base == "ignored":
            return None
        return (part.base_model if part else None) or self.base_model

    def merged_models(self, part: OutputSlice | None = None) -> list[str]:
        """The models that a slice (None: a whole model) is merged from: the base first, then in config order.

        As in mergekit, a base that the method ignores is one model more, the last, if `models` does not list it.
        """
        names = [source.model for source in self._sources(part)]
        base = self.base_of(part)
        if base is not None:
            return [base, *(name for name in names if name != base)]
        if part is None and self.base_model is not None and self.base_model not in names:
            names.append(self.base_model)
        return names

    def model_names(self) -> list[str]:
        """Every model that is opened, once: the base first, if there is one, then in config order.

        A model that only lends its tokenizer (`tokenizer_source`, `tokenizer_files`) is not one.
        """
        base = self.base_of()
        names = [] if base is None else [base]
        for part in self.parts:
            names += self.merged_models(part)
        if self.base_model is not None:
            names.append(self.base_model)
        return list(dict.fromkeys(names))

    def target_names(self) -> list[str]:
        """The models that are merged, in config order, without the base."""
        names = [name for part in self.parts for name in self.merged_models(part)]
        return [name for name in dict.fromkeys(names) if name != self.base_of()]

    @property
    def config_model(self) -> str:
        """The model that lends its config.json and, if nothing else is said, its tokenizer."""
        return self.base_model or self.model_names()[0]

    def parameter(
        self,
        name: str,
        default: Scalar | None,
        *,
        tensor: str,
        t: float,
        out_slice: OutputSlice | None = None,
        model: str | None = None,
    ) -> Any:
        """Return the value of the method's parameter `name` for one tensor.

        The first place that has a value for this tensor wins: the model's own parameters (only if
        `model` is given), the slice's, the top-level ones, `default`. As in mergekit, `t` is
        i / (n - 1) in layer i of a slice (or model) of n layers, 1 if n == 1, and 0 for tensors
        outside the layers.
        """
        spec = self.method.parameters[name]

        def convert(scalar: Scalar) -> Scalar:
            return spec.validate(scalar, f"parameters.{name}")

        for place in self._places(out_slice, model):
            if name in place:
                value = evaluate(place[name], tensor=tensor, t=t, convert=convert)
                if value is not None:
                    # Between two whole numbers there may be none.
                    return convert(value) if spec.kind == "int" else value
        return default

    def _sources(self, part: OutputSlice | None) -> Sequence[InputModel]:
        return (part.sources if part else self.models) or ()

    def _places(self, part: OutputSlice | None, model: str | None) -> Iterator[dict[str, Setting]]:
        """Yield the parameters that hold for a model of a slice, the nearest first."""
        yield from (s.parameters for s in self._sources(part) if s.model == model)
        if part is not None:
            yield part.parameters
        yield self.parameters

    def to_yaml(self) -> str:
        """Return the config as YAML text, without the keys that stand at their default."""
        return dump_yaml(self.model_dump(mode="json", exclude_defaults=True))

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
        if name is None and (method is None or method.base == "required"):
            raise ValueError("is required: the model that the others were fine-tuned from")
        return name

    @model_validator(mode="after")
    def _check_whole(self) -> MergeConfig:
        if (self.models is None) == (self.slices is None):
            raise ConfigError("exactly one of `models` and `slices` must be given")
        if self.tokenizer_source and self.tokenizer_files:
            raise ConfigError("`tokenizer_source` and `tokenizer_files` exclude each other")
        if self.tokenizer_source == "base" and self.base_model is None:
            raise ConfigError("tokenizer_source: there is no base_model; give a model's name")
        check_spelling(self.model_names())
        if self.models is not None:
            self._check_group("models", None)
        if self.slices is not None and not self.slices:
            raise ConfigError("slices: is empty")
        for index, part in enumerate(self.slices or ()):
            self._check_group(f"slices[{index}].sources", part)
            _check_sources(f"slices[{index}].sources", part, self.base_of(part))
        for where, parameters, of_one_model in self._parameter_places():
            for name, setting in parameters.items():
                check_setting(self.method, where, name, setting, of_one_model)
        for group in self.parts:
            for spec in self.method.parameters.values():
                self._check_required(spec, group)
        return self

    def _check_group(self, where: str, part: OutputSlice | None) -> None:
        """Models that are merged with each other: each once, and as many as the method takes."""
        names = [source.model for source in self._sources(part)]
        for index, name in enumerate(names):
            if name in names[:index]:
                raise ConfigError(f"{where}[{index}].model: {name!r} is listed twice")
        base, method = self.base_of(part), self.method
        merged = self.merged_models(part)
        number = len(merged) - (base is not None)
        if method.takes(number):
            return
        rule = f"{method.name} merges {how_many(method.least, method.most)}"
        if base is not None:
            rule += f" beside the base {base!r}"
        lent = base is None and merged[len(names) :]
        added = f", the base_model {merged[-1]!r} included" if lent else ""
        raise ConfigError(f"{where}: {rule}; here {'is' if number == 1 else 'are'} {number}{added}")

    def _check_required(self, spec: Parameter, part: OutputSlice | None) -> None:
        """A required parameter must have a value somewhere, if not for every tensor."""
        if not spec.required:
            return
        base = self.base_of(part)
        models = [name for name in self.merged_models(part) if name != base]
        for model in models if spec.per_model else [None]:
            if not any(spec.name in place for place in self._places(part, model)):
                raise ConfigError(self.lacks(spec, model))

    def lacks(self, spec: Parameter, model: str | None) -> str:
        """Return what to say of a required parameter, of one model or None of all, that has no value."""
        whose, also = "", ""
        if model is not None:
            whose = f" for model {model!r}"
            also = "the model's own `parameters:`, or for all models under "
        return (
            f"{self.merge_method} needs the parameter {spec.name!r}{whose}: give it under {also}"
            "the top-level `parameters:`"
        )

    def _parameter_places(self) -> Iterator[tuple[str, dict[str, Setting], bool]]:
        """Yield (where, parameters, whether they are of one model only)."""
        yield "parameters", self.parameters, False
        for index, source in enumerate(self.models or ()):
            yield f"models[{index}].parameters", source.parameters, True
        for index, part in enumerate(self.slices or ()):
            yield f"slices[{index}].parameters", part.parameters, False
            for place, slice_source in enumerate(part.sources):
                where = f"slices[{index}].sources[{place}].parameters"
                yield where, slice_source.parameters, True


def _check_sources(where: str, part: OutputSlice, base: str | None) -> None:
    """The base is one of a slice's sources, and all have as many layers."""
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
