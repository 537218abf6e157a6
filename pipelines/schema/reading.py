"""A YAML file read against a schema, and its first mistake told in one line."""

import difflib
from pathlib import Path
from typing import Any, TypeVar

import yaml
from pydantic import BaseModel, ValidationError

from components.errors import ParameterError

Checked = TypeVar("Checked", bound=BaseModel)


def read(file: Path, schema: type[Checked], name: str) -> Checked:
    """The file as `schema` has it; `name` is what a message calls it. Raises ParameterError with one line."""
    return checked(read_yaml(file), schema, name)


def read_yaml(file: Path) -> Any:
    """What the file holds. Raises ParameterError when it cannot be read or is not YAML."""
    try:
        return yaml.safe_load(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise ParameterError(f"{file}: cannot be read ({error.strerror})") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ParameterError(f"{file}: not YAML ({' '.join(str(error).split())})") from error


def checked(value: object, schema: type[Checked], where: str) -> Checked:
    """`value` as the schema has it. Raises ParameterError for the first mistake: `where: key = value: what is allowed`."""
    try:
        return schema.model_validate(value)
    except ValidationError as error:
        raise ParameterError(f"{where}: {_one_line(error, schema)}") from error


def _one_line(error: ValidationError, schema: type[BaseModel]) -> str:
    """The first mistake, with a suggestion for a misspelt key."""
    # A misspelt key comes before the one that it leaves missing: it is the cause.
    first, *others = sorted(error.errors(), key=lambda mistake: mistake["type"] != "extra_forbidden")
    location, found = first["loc"], first["input"]
    key = ".".join(map(str, location))
    more = f" (and {len(others)} more)" if others else ""
    if first["type"] == "extra_forbidden":
        known = _keys_at(schema, location[:-1])
        close = difflib.get_close_matches(str(location[-1]), known, n=1)
        hint = f", did you mean {close[0]}?" if close else f", known: {', '.join(known)}" if known else ""
        return f"{key}: unknown key{hint}{more}"
    if first["type"] == "missing":
        return f"{key}: missing{more}"
    message = first["msg"].removeprefix("Value error, ")
    said = "" if isinstance(found, dict | list) else f" = {found!r}"
    if not key and not said:  # keys that contradict each other: the message names them
        return f"{message}{more}"
    return f"{key or 'all of it'}{said}: {message[0].lower()}{message[1:]}{more}"


def _keys_at(schema: type[BaseModel], location: tuple[int | str, ...]) -> list[str]:
    section: Any = schema
    for key in location:
        field = section.model_fields.get(key)
        section = field.annotation if field else None
        if not (isinstance(section, type) and issubclass(section, BaseModel)):
            return []
    return list(section.model_fields)
