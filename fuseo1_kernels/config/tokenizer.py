"""The keys of `tokenizer:`, as checked values: which tokens the output has, and where their rows come from."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, model_validator

from ..errors import did_you_mean
from .references import as_name
from .section import Section
from .types import ModelName
from .yaml_text import short_yaml

# Of rows. More pad nothing but files.
_MOST_PADDING = 1 << 20


class _Kind(BaseModel):
    """A mapping of one kind. Only its fields are valid keys."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    @model_validator(mode="before")
    @classmethod
    def _check_keys(cls, data: Any) -> Any:
        if isinstance(data, cls):
            return data
        for key in data:
            if key not in cls.model_fields:
                word = key if isinstance(key, str) else short_yaml(key)
                raise ValueError(
                    f"unknown key {short_yaml(key)}{did_you_mean(word, cls.model_fields)}"
                )
        return data


class ZeroRow(_Kind):
    """A row of zeros."""

    kind: Literal["zero"]


class ModelTokenRow(_Kind):
    """The row of a token of a model, by its text or its id there."""

    kind: Literal["model_token"]
    model: ModelName
    token_id: Annotated[int, Field(ge=0, strict=True)] | None = None
    token: str | None = None

    @model_validator(mode="after")
    def _check_token(self) -> ModelTokenRow:
        if (self.token_id is None) == (self.token is None):
            raise ValueError("exactly one of `token` and `token_id` must be given")
        return self


def _row_source(value: Any) -> Any:
    """Return a model's name, or a mapping by its kind. Raises ValueError."""
    if value is None or isinstance(value, (str, ZeroRow, ModelTokenRow)):
        return value
    kind = value.get("kind") if isinstance(value, dict) else None
    if kind == "zero":
        return ZeroRow.model_validate(value)
    if kind == "model_token":
        return ModelTokenRow.model_validate(value)
    if isinstance(value, dict) and "kind" not in value:
        return as_name(value)
    raise ValueError(
        "must be a model's name or a mapping with the kind zero or model_token, not "
        f"{short_yaml(value)}"
    )


class TokenRow(Section):
    """One entry of `tokens`: the row of a token that a model lacks; with `force`, of all models."""

    source: Annotated[ZeroRow | ModelTokenRow | ModelName | None, BeforeValidator(_row_source)] = (
        None
    )
    force: bool = False

    @model_validator(mode="after")
    def _check_force(self) -> TokenRow:
        if self.force and self.source is None:
            raise ValueError("`force` needs a `source`: a model, or kind zero or model_token")
        return self


def _token_text(value: Any) -> Any:
    """YAML reads a token such as 3 or true as a number or a truth value: which text it was is lost."""
    if value is None:
        return {}
    for key in value if isinstance(value, dict) else ():
        if not isinstance(key, str) or not key:
            raise ValueError(f"the token {short_yaml(key)} is no text: put it in quotes")
    return value


def _padding(value: Any) -> Any:
    if value is None or (type(value) is int and 0 < value <= _MOST_PADDING):
        return value
    raise ValueError(f"must be a whole number from 1 to {_MOST_PADDING}, not {short_yaml(value)}")


class TokenizerKeys(Section):
    """`tokenizer`: the output's tokens, and their rows.

    `source`: all tokens of all models (`union`), or those of one (`base` or its name). `tokens`: where the rows of
    single tokens come from; tokens that are new are added. `pad_to_multiple_of`: the number of rows is rounded up.
    """

    source: ModelName = "union"
    tokens: Annotated[dict[str, TokenRow], BeforeValidator(_token_text)] = Field(
        default_factory=dict
    )
    pad_to_multiple_of: Annotated[int | None, BeforeValidator(_padding)] = None
