"""Frozen settings whose allowed values are written in their types, and checked however they are made.

A class of settings is both an argument of a component and a section of `params.yaml`. Its module does not import torch, so that
`params.yaml` is read fast.
"""

import difflib
from collections.abc import Callable
from dataclasses import fields, is_dataclass
from typing import Annotated, Any, TypeVar, dataclass_transform, get_args

from pydantic import BaseModel, ConfigDict, Field, Strict, TypeAdapter, ValidationError
from pydantic.dataclasses import dataclass
from pydantic_core import ArgsKwargs

from components.errors import ParameterError

STRICT = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)

Count = Annotated[int, Field(ge=0)]
Positive = Annotated[int, Field(ge=1)]
Fraction = Annotated[float, Field(ge=0, le=1)]
Rate = Annotated[float, Field(gt=0, le=1)]
NotNegative = Annotated[float, Field(ge=0)]
Sha256 = Annotated[str, Field(pattern="^[0-9a-f]{64}$")]
AboveZero = Annotated[float, Field(gt=0)]
FromList = Strict(False)
"""For a tuple, which YAML and JSON write as a list."""

Settings = TypeVar("Settings")


@dataclass_transform(frozen_default=True)
def settings(cls: type[Settings]) -> type[Settings]:
    """Make `cls` a frozen dataclass that raises ParameterError for an unknown field, a wrong type or a value out of range."""
    cls.__get_pydantic_core_schema__ = classmethod(_from_mapping)  # type: ignore[attr-defined]
    made: Any = dataclass(config=STRICT, frozen=True)(cls)
    made.__init__ = _refusing(made, made.__init__)
    return made


def to_json(values: Any) -> dict[str, Any]:
    """Settings as a JSON mapping, by field name."""
    mapping: dict[str, Any] = TypeAdapter(type(values)).dump_python(values, mode="json")
    return mapping


def _from_mapping(cls: type, source: Any, handler: Any) -> Any:
    """A section may be given as a mapping; its values are still strict."""
    return {**handler(source), "strict": False}


def _refusing(cls: type, init: Callable[..., None]) -> Callable[..., None]:
    def __init__(self: Any, *args: Any, **values: Any) -> None:
        try:
            init(self, *map(_plain, args), **{name: _plain(value) for name, value in values.items()})
        except ValidationError as error:
            raise ParameterError(f"{cls.__name__}: {first_mistake(error, cls)}") from error

    return __init__


def _plain(value: Any) -> Any:
    """Numbers and arrays of NumPy or PyTorch as Python's own, also inside tuples, lists and dictionaries."""
    if hasattr(value, "tolist") and hasattr(value, "ndim"):
        return value.tolist()
    if type(value) in (list, tuple):
        return type(value)(map(_plain, value))
    if type(value) is dict:
        return {key: _plain(item) for key, item in value.items()}
    return value


def first_mistake(error: ValidationError, schema: type) -> str:
    """The first mistake in a line, `key = value: what is allowed`, with a suggestion for a misspelt key of `schema`."""
    # A misspelt key comes before the one that it leaves missing: it is the cause.
    first, *others = sorted(error.errors(), key=lambda mistake: mistake["type"] not in _UNKNOWN)
    location, found = first["loc"], first["input"]
    key = ".".join(map(str, location))
    more = f" (and {len(others)} more)" if others else ""
    if first["type"] in _UNKNOWN:
        known = _keys_at(schema, location[:-1])
        close = difflib.get_close_matches(str(location[-1]), known, n=1)
        hint = f", did you mean {close[0]}?" if close else f", known: {', '.join(known)}" if known else ""
        return f"{key}: unknown key{hint}{more}"
    if first["type"] in ("missing", "missing_argument"):
        return f"{key}: missing{more}"
    message = first["msg"].removeprefix("Value error, ")
    value = "" if isinstance(found, dict | list | ArgsKwargs) else f" = {found!r}"
    if not key and not value:  # keys that contradict each other: the message names them
        return f"{message}{more}"
    return f"{key or 'all of it'}{value}: {message[0].lower()}{message[1:]}{more}"


_UNKNOWN = ("extra_forbidden", "unexpected_keyword_argument")


def _keys_at(schema: type, location: tuple[int | str, ...]) -> list[str]:
    """The keys of the section at `location` of a schema, [] where there is none."""
    section: Any = schema
    for key in location:
        field = _fields(section).get(key)
        section = next((kind for kind in (field, *get_args(field)) if _fields(kind)), None)
    return list(_fields(section))


def _fields(section: Any) -> dict[Any, Any]:
    """The annotation of each field of a section, {} for anything else."""
    if is_dataclass(section):
        return {field.name: field.type for field in fields(section)}
    if isinstance(section, type) and issubclass(section, BaseModel):
        return {name: field.annotation for name, field in section.model_fields.items()}
    return {}
