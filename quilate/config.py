"""Typed configuration: load from YAML, override, validate, freeze, explain.

A config class is a frozen pydantic model next to the code that uses it. The docstring under each field is its
documentation everywhere: in `docs/recipes.md`, in error messages, in `--help`.
"""

from __future__ import annotations

import difflib
import types
import typing
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel, ConfigDict, ValidationError, model_validator
from pydantic.fields import FieldInfo
from pydantic_core import ErrorDetails, PydanticCustomError

from quilate.errors import ConfigError
from quilate.files import read_yaml

Location = tuple[str | int, ...]
C = TypeVar("C", bound="Config")


class Config(BaseModel):
    """Base of every config: unknown keys are errors, values are never coerced, instances are frozen."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, use_attribute_docstrings=True)

    @model_validator(mode="before")
    @classmethod
    def _refuse_unknown_keys(cls, value: Any) -> Any:
        if isinstance(value, Mapping):
            for key in value:
                if key not in cls.model_fields:
                    nearest = difflib.get_close_matches(str(key), cls.model_fields, n=1, cutoff=0.5)
                    raise PydanticCustomError(
                        "unknown_key",
                        "unknown key '{key}'{guess}; valid keys here: {valid}",
                        {
                            "key": key,
                            "guess": f": did you mean '{nearest[0]}'?" if nearest else "",
                            "valid": ", ".join(cls.model_fields),
                        },
                    )
        return value

    def as_json(self) -> dict[str, Any]:
        """The plain JSON-able value; equal configs give equal values."""
        return self.model_dump(mode="json")


def load(config_class: type[C], path: Path, overrides: Sequence[str] = ()) -> C:
    """Read, override and validate a YAML file.

    Args:
        path: a YAML 1.2 file.
        overrides: `a.b=c` strings; `c` is read as YAML, the later one wins.

    Raises:
        ConfigError: anything in it is not valid; the message names the file, the line, the key and the rule.
        DataError: the file is missing.
    """
    value, lines = read_yaml(path)
    if not isinstance(value, dict):
        raise ConfigError(f"{path} is not a map of keys", hint="start from `quilate init`, or see docs/recipes.md")
    for override in overrides:
        apply_override(value, override)
    return validate(config_class, value, source=str(path), lines=lines)


def validate(config_class: type[C], value: Any, *, source: str, lines: Mapping[Location, int] | None = None) -> C:
    """Validate a plain value. `source` and `lines` place the errors.

    Raises:
        ConfigError: every problem found, one a line.
    """
    try:
        return config_class.model_validate(value)
    except ValidationError as error:
        problems = [_describe(item, value, source, lines or {}) for item in error.errors()]
        raise ConfigError(
            "\n".join(problems), hint="docs/recipes.md lists every key, its type and its default"
        ) from error


def apply_override(value: dict[str, Any], override: str) -> None:
    """Set `a.b=c` in a plain value; `c` is read as YAML.

    Raises:
        ConfigError: it is not of that form, or `a` is no map of keys.
    """
    from ruamel.yaml import YAML
    from ruamel.yaml.error import YAMLError

    keys, equals, text = override.partition("=")
    if not equals or not keys:
        raise ConfigError(f"--set {override}: not of the form a.b=value", hint="for example --set arms.lora.lr=1e-4")
    try:
        parsed = YAML(typ="safe", pure=True).load(text)
    except YAMLError as error:
        raise ConfigError(f"--set {override}: the value is not YAML", hint="quote it: --set 'a.b=\"text\"'") from error
    node: Any = value
    *parents, last = keys.split(".")
    for key in parents:
        if isinstance(node, dict) and node.get(key) is None:
            node[key] = {}
        node = node.get(key) if isinstance(node, dict) else None
        if not isinstance(node, dict):
            raise ConfigError(
                f"--set {override}: '{key}' is not a map of keys", hint="only maps can be entered with a dot"
            )
    node[last] = parsed


def _describe(error: ErrorDetails, value: Any, source: str, lines: Mapping[Location, int]) -> str:
    ends_in_key = error["type"] == "missing"
    location = _strip_union_tags(error["loc"], value, ends_in_key=ends_in_key)
    if error["type"] == "unknown_key":
        location = (*location, error["ctx"]["key"])
    line = next((lines[location[:end]] for end in range(len(location), 0, -1) if location[:end] in lines), None)
    where = source if line is None else f"{source}, line {line}"
    key = ".".join(map(str, location))
    message = error["msg"].removeprefix("Value error, ")
    if error["type"] == "union_tag_not_found":
        message = "`kind` is missing: it says what this is"
    seen = ""
    if error["type"] not in ("unknown_key", "missing", "value_error") and not isinstance(error["input"], (dict, list)):
        seen = f" (seen: {error['input']!r})"
    return f"{where}: {key}: {message}{seen}" if key else f"{where}: {message}{seen}"


def _strip_union_tags(location: Location, value: Any, *, ends_in_key: bool) -> Location:
    """Pydantic puts a union's tag into the location; the user's file has no such key.

    Args:
        ends_in_key: the last part is a key that should be there, and is not.
    """
    path: list[str | int] = []
    for index, part in enumerate(location):
        last = index == len(location) - 1
        in_list = isinstance(value, list) and isinstance(part, int) and part < len(value)
        if in_list or (isinstance(value, Mapping) and part in value):
            value = value[part]
        elif not last or not ends_in_key:
            continue
        path.append(part)
    return tuple(path)


class Key(typing.NamedTuple):
    """One documented key of a config class."""

    name: str
    type: str
    default: str
    doc: str


def explain(config_class: type[Config]) -> Iterator[Key]:
    """The keys of a config class in order, for the generated reference."""
    for name, field in config_class.model_fields.items():
        if field.is_required():
            default = "required"
        else:
            value = field.get_default(call_default_factory=True)
            default = "see its own table" if isinstance(value, Config) else yaml_scalar(value)
        yield Key(
            name, _type_name(field.annotation) + _bounds(field), default, " ".join((field.description or "").split())
        )


_SIGNS = {"gt": ">", "ge": "≥", "lt": "<", "le": "≤"}


def _bounds(field: FieldInfo) -> str:
    """The limits of a number, e.g. ", ≥ 0, < 1"."""
    limits = ((sign, getattr(rule, name, None)) for name, sign in _SIGNS.items() for rule in field.metadata)
    return "".join(f", {sign} {limit}" for sign, limit in limits if limit is not None)


def yaml_scalar(value: Any) -> str:
    """How a default looks in a recipe."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, dict) and not value:
        return "{}"
    return repr(value) if isinstance(value, str) else str(value)


def _type_name(annotation: Any) -> str:
    origin = typing.get_origin(annotation)
    arguments = typing.get_args(annotation)
    if annotation is type(None):
        return "null"
    if origin is typing.Annotated:
        return _type_name(arguments[0])
    if origin is typing.Literal:
        return " \\| ".join(map(str, arguments))
    if origin in (typing.Union, types.UnionType):
        return " or ".join(_type_name(a) for a in arguments)
    if origin is list:
        inner = _type_name(arguments[0])
        return f"list of ({inner})" if " or " in inner else f"list of {inner}"
    if origin is dict:
        return f"map of {_type_name(arguments[1])}"
    return {"str": "text", "int": "integer", "float": "number", "bool": "true or false"}.get(
        getattr(annotation, "__name__", str(annotation)), getattr(annotation, "__name__", str(annotation))
    )


__all__ = ["Config", "Key", "apply_override", "explain", "load", "validate", "yaml_scalar"]
