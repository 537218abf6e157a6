"""Reads a YAML file against a schema."""

from pathlib import Path
from typing import Any, TypeVar

import yaml
from pydantic import TypeAdapter, ValidationError

from components.errors import ParameterError
from components.settings import first_mistake

Checked = TypeVar("Checked")


def read(file: Path, schema: type[Checked], name: str) -> Checked:
    """Read and validate a YAML file; `name` stands for it in messages. Raises ParameterError with one line."""
    return checked(read_yaml(file), schema, name)


def read_yaml(file: Path) -> Any:
    """Read a YAML file. Raises ParameterError when it cannot be read or is not YAML."""
    try:
        return yaml.safe_load(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise ParameterError(f"{file}: cannot be read ({error.strerror})") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ParameterError(f"{file}: not YAML ({' '.join(str(error).split())})") from error


def checked(value: object, schema: type[Checked], where: str) -> Checked:
    """Validate `value` against `schema`. Raises ParameterError for the first mistake: `where: key = value: what is allowed`."""
    try:
        return TypeAdapter(schema).validate_python(value)
    except ValidationError as error:
        raise ParameterError(f"{where}: {first_mistake(error, schema)}") from error
