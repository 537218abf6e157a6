"""Reads a YAML file against a schema, and writes one.

YAML 1.2, by the library and with the settings that DVC reads params.yaml with: so 1e-05 is a number here as there, and both refuse
a key that is written twice.
"""

import io
from collections.abc import Iterator
from pathlib import Path
from typing import Any, TypeVar

from pydantic import TypeAdapter, ValidationError
from ruamel.yaml import YAML, YAMLError
from ruamel.yaml.constructor import DuplicateKeyError
from ruamel.yaml.nodes import MappingNode, Node, SequenceNode

from components.errors import ParameterError
from components.settings import first_mistake

Checked = TypeVar("Checked")


def read(file: Path, schema: type[Checked], name: str) -> Checked:
    """Read and validate a YAML file; `name` stands for it in messages. Raises ParameterError with one line."""
    return checked(read_yaml(file), schema, name)


def read_yaml(file: Path) -> Any:
    """Read a YAML file. Raises ParameterError when it cannot be read or is not YAML."""
    try:
        return parse_yaml(file.read_text(encoding="utf-8"), str(file))
    except OSError as error:
        raise ParameterError(f"{file}: cannot be read ({error.strerror})") from error
    except UnicodeDecodeError as error:
        raise ParameterError(f"{file}: not YAML ({error})") from error


def parse_yaml(text: str, where: str) -> Any:
    """Return the value of a YAML text; `where` stands for it in messages. Raises ParameterError with one line."""
    try:
        return YAML(typ="safe").load(text)
    except DuplicateKeyError as error:
        key, first, second = next(_written_twice(YAML(typ="safe", pure=True).compose(text)))
        raise ParameterError(f"{where}: {key} is written twice, in lines {first} and {second}: keep one") from error
    except (YAMLError, ValueError) as error:  # ValueError: a date that does not exist
        raise ParameterError(f"{where}: not YAML ({' '.join(str(error).split())})") from error


def to_yaml(document: Any) -> str:
    """Return a document of plain values as YAML that `parse_yaml` reads back as the same values; keys stay in their order."""
    writer = YAML(typ="safe")
    writer.default_flow_style = False
    writer.sort_base_mapping_type_on_output = False  # type: ignore[assignment]
    text = io.StringIO()
    writer.dump(document, text)
    return text.getvalue()


def checked(value: object, schema: type[Checked], where: str) -> Checked:
    """Validate `value` against `schema`. Raises ParameterError for the first mistake: `where: key = value: what is allowed`."""
    try:
        return TypeAdapter(schema).validate_python(value)
    except ValidationError as error:
        raise ParameterError(f"{where}: {first_mistake(error, schema)}") from error


def _written_twice(node: Node, prefix: str = "") -> Iterator[tuple[str, int, int]]:
    """Yield each key that a mapping has twice, dotted, with its two lines from 1."""
    if isinstance(node, SequenceNode):
        for item in node.value:
            yield from _written_twice(item, prefix)
    if isinstance(node, MappingNode):
        lines: dict[str, int] = {}
        for key, value in node.value:
            name, line = f"{prefix}{key.value}", key.start_mark.line + 1
            if name in lines:
                yield name, lines[name], line
            lines[name] = line
            yield from _written_twice(value, f"{name}.")
