"""The base class of the config's mappings."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from pydantic import BaseModel, ConfigDict, model_validator

from .yaml_text import short_yaml


class Section(BaseModel):
    """One mapping of the config. Only its fields are valid keys."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    #: Keys that mergekit has here and this package has not, with a remedy.
    not_yet: ClassVar[dict[str, str]] = {}
    #: Keys that mergekit has here and never reads.
    unread: ClassVar[tuple[str, ...]] = ()
    #: Whether mergekit has no such mapping.
    only_here: ClassVar[bool] = False

    @model_validator(mode="before")
    @classmethod
    def _check_shape(cls, data: Any) -> Any:
        if not isinstance(data, (cls, Mapping)):
            keys = ", ".join(cls.model_fields)
            raise ValueError(f"must be a mapping with the keys {keys}, not {short_yaml(data)}")
        return data

    @classmethod
    def not_yet_message(cls, key: str) -> str:
        """Return the message for one of the keys `not_yet`."""
        return f"mergekit has the key {key!r}; not in fuseo1-kernels yet{cls.not_yet[key]}"
