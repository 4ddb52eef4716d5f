"""Loads a config from a file, a recipe or a mapping, and turns pydantic's errors into ConfigErrors."""

from __future__ import annotations

import os
import stat
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any, TypeAlias

from pydantic import ValidationError
from pydantic_core import ErrorDetails

from ..errors import ConfigError
from ..methods import METHODS
from .chain import parse_chain
from .other_tools import other_tool
from .recipes import find_recipe, nearest_recipe
from .schema import MergeConfig
from .sieve import Sieve
from .yaml_text import key_path, read_yaml, short_yaml

# Messages for missing keys.
_REQUIRED = {
    "merge_method": f"is required: {', '.join(METHODS)}",
    "layer_range": "is required: [first, end), such as [0, 24]",
}
# More than any config has.
_MOST = 16 << 20
_WEIGHTS = (".safetensors", ".bin", ".gguf", ".pt", ".pth")
_NAME_IT = "give a YAML file that names the model under `models`, or a recipe's name"
# By pydantic's error type.
_MUST_BE = {
    "string_type": "text",
    "list_type": "a list",
    "dict_type": "a mapping",
    "int_type": "a whole number",
    "bool_type": "true or false",
    "bool_parsing": "true or false",
}


def load_config(
    source: str | os.PathLike[str], text: str | None = None, *, like_mergekit: bool = False
) -> MergeConfig:
    """Return the config in the YAML file `source`. If `text` is given, it is parsed instead of the file.

    `like_mergekit`: ignore what mergekit 0.1.5 ignores, with notes: keys that it does not know, parameters of other
    methods; of a key that is given twice, the first. Otherwise they are errors.

    Raises:
        ConfigError: names `source` and the cause: an unreadable file, invalid YAML (with line and column), or a key.
    """
    name = os.fspath(source)
    if text is None:
        text = _read_text(name)
    repeated: list[str] | None = [] if like_mergekit else None
    documents = read_yaml(text, name, repeated)
    config = parse_documents(documents, name, like_mergekit=like_mergekit)
    return config.with_notes(repeated) if repeated else config


def _read_text(name: str) -> str:
    """Return the text of the file `name`, which may be a shell's pipe, `<(...)`. Raises ConfigError."""
    if name.endswith(_WEIGHTS):
        raise ConfigError(f"{name}: holds weights; {_NAME_IT}")
    try:
        _check_kind(name, os.stat(name))  # before it is opened: that can do something to a device
        with open(os.open(name, os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY), "rb") as stream:
            _check_kind(name, os.fstat(stream.fileno()))
            os.set_blocking(stream.fileno(), True)
            data = stream.read(_MOST + 1)
        if len(data) > _MOST:
            raise ConfigError(f"{name}: is not a config: it has more than {_MOST} bytes")
        return data.decode("utf-8")
    except OSError as error:
        raise ConfigError(f"{name}: cannot be read: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise ConfigError(f"{name}: is not a YAML file: its bytes are not UTF-8 text") from error


def _check_kind(name: str, status: os.stat_result) -> None:
    """Raise ConfigError unless it is a file, or a pipe that has a writer: for that of one with a name one may wait."""
    if stat.S_ISDIR(status.st_mode):
        if os.path.exists(os.path.join(name, "config.json")):
            raise ConfigError(f"{name}: is a model; {_NAME_IT}")
        raise ConfigError(f"{name}: is a directory; give a YAML file or a recipe's name")
    pipe = stat.S_ISFIFO(status.st_mode) and "/pipe:[" in os.path.realpath(name)
    if not stat.S_ISREG(status.st_mode) and not pipe:
        raise ConfigError(f"{name}: is not a file; give a YAML file or a recipe's name")


def parse_documents(
    documents: Sequence[Any], name: str, *, like_mergekit: bool = False
) -> MergeConfig:
    """Return the config in a YAML file's documents: one, or a chain of merges. Raises ConfigError.

    `like_mergekit` is that of `load_config`.
    """
    parse = partial(parse_config, like_mergekit=like_mergekit)
    if len(documents) == 1:
        return parse(documents[0], name)
    return parse_chain(documents, name, parse)


def parse_config(
    data: Mapping[str, Any], name: str = "config", *, like_mergekit: bool = False
) -> MergeConfig:
    """Return the config in the mapping `data`. Raises ConfigError; its messages begin with `name`.

    `like_mergekit` is that of `load_config`.
    """
    if not isinstance(data, Mapping):
        raise ConfigError(
            f"{name}: must be a mapping of keys such as merge_method, not {short_yaml(data)}"
        )
    if tool := other_tool(data):
        raise ConfigError(f"{name}: is a config of {tool}, not of a merge")
    sieve = Sieve(like_mergekit)
    rest, problems = sieve.sift(data), sieve.problems
    cause: Exception | None = None
    try:
        config = MergeConfig.model_validate(rest)
    except ConfigError as error:
        cause, problems = error, [*problems, *error.args]
    except ValidationError as error:
        cause, problems = error, [*problems, *map(_problem, error.errors())]
    if problems:
        raise ConfigError(f"{name}: {problems[0]}", *problems[1:]) from cause
    return config.with_notes(sieve.notes)


def _problem(detail: ErrorDetails) -> str:
    """Return the message for one of pydantic's errors: the key's path and a remedy."""
    path = ""
    for step in detail["loc"]:
        path = f"{path}[{step}]" if isinstance(step, int) else key_path(path, step)
    kind, key = detail["type"], str(detail["loc"][-1]) if detail["loc"] else ""
    if kind == "value_error":
        text = str(detail["ctx"]["error"])
    elif kind == "missing":
        text = _REQUIRED.get(key, "is required")
    elif kind == "greater_than_equal":
        text = f"must be at least {detail['ctx']['ge']}, not {short_yaml(detail['input'])}"
    elif kind in _MUST_BE:
        text = f"must be {_MUST_BE[kind]}, not {short_yaml(detail['input'])}"
    else:
        text = detail["msg"]
    return f"{path}: {text}" if path else text


#: A path of a YAML file, a recipe's name, a mapping, a list of mappings (a chain of merges), or a config.
AnyConfig: TypeAlias = (
    str | os.PathLike[str] | Mapping[str, Any] | Sequence[Mapping[str, Any]] | MergeConfig
)


def as_config(config: AnyConfig, *, like_mergekit: bool = False) -> MergeConfig:
    """Return the validated config. Raises ConfigError. `like_mergekit` is that of `load_config`."""
    if isinstance(config, MergeConfig):
        return config
    if isinstance(config, Mapping):
        return parse_config(config, like_mergekit=like_mergekit)
    if isinstance(config, Sequence) and not isinstance(config, str):
        return parse_documents(config, "config", like_mergekit=like_mergekit)
    name = os.path.expanduser(os.fspath(config))
    text = find_recipe(name)
    # A directory with a recipe's name is most likely the recipe's output.
    if text is not None and (os.path.isdir(name) or not os.path.exists(name)):
        return load_config(name, text, like_mergekit=like_mergekit)
    if os.path.exists(name):
        return load_config(name, like_mergekit=like_mergekit)
    near = nearest_recipe(name)
    hint = f"did you mean the recipe {near}?" if near else "--list-recipes lists the recipes"
    raise ConfigError(f"{name or repr(name)}: neither a file nor a recipe; {hint}")
