"""`studies/<name>.yaml`: read, and its mistakes told in one line."""

from pathlib import Path
from typing import TypeVar

import yaml
from pydantic import BaseModel, ValidationError

from components.errors import ParameterError

Checked = TypeVar("Checked", bound=BaseModel)


def read_plan(file: Path, schema: type[Checked]) -> Checked:
    """Read and validate a plan. Raises ParameterError with one line."""
    try:
        document = yaml.safe_load(file.read_text(encoding="utf-8"))
    except (OSError, yaml.YAMLError) as error:
        raise ParameterError(f"{file}: not YAML ({' '.join(str(error).split())})") from error
    return checked(document, schema, f"studies/{file.name}")


def checked(value: object, schema: type[Checked], where: str) -> Checked:
    """`value` as the schema has it. Raises ParameterError for the first mistake: `where: key = value: what is wrong`."""
    try:
        return schema.model_validate(value)
    except ValidationError as error:
        first = error.errors()[0]
        key, found = ".".join(map(str, first["loc"])), first["input"]
        said = "" if isinstance(found, dict | list) or first["type"] == "missing" else f" = {found!r}"
        subject = f"{key or 'all of it'}{said}: " if key or said else ""  # else keys contradict: the message names them
        message = first["msg"].removeprefix("Value error, ")
        raise ParameterError(f"{where}: {subject}{message[0].lower()}{message[1:]}") from error
