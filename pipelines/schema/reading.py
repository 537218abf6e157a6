"""Reads a YAML file against a schema, and writes one.

YAML 1.2, by the library and with the settings that DVC reads params.yaml with: so 1e-05 is a number here as there, and both refuse
a key that is written twice.
"""

import io
from collections.abc import Iterator
from pathlib import Path
from typing import Any, TypeVar

from pydantic import TypeAdapter, ValidationError
from pydantic_core import ErrorDetails, InitErrorDetails, PydanticCustomError
from ruamel.yaml import YAML, YAMLError
from ruamel.yaml.constructor import DuplicateKeyError
from ruamel.yaml.nodes import MappingNode, Node, SequenceNode

from components.errors import ParameterError
from components.settings import first_mistake

Checked = TypeVar("Checked")

MISSING = ("missing", "missing_argument")
"""Pydantic's types of the mistake that a key is not there."""
PATTERNS = {"^[0-9a-f]{64}$": "must be the 64 hexadecimal digits (0-9, a-f) of a SHA-256"}
"""What the patterns of `components/settings.py` stand for, in words."""


def read(file: Path, schema: type[Checked], name: str) -> Checked:
    """Read and validate a YAML file; `name` stands for it in messages. Raises ParameterError with a line per mistake."""
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
    """Validate `value` against `schema`. Raises ParameterError with a line per mistake: `where: key = value: what is allowed`."""
    try:
        return TypeAdapter(schema).validate_python(value)
    except ValidationError as error:
        lines = [f"{where}: {line}" for line in mistakes(error, schema, value)]
        raise ParameterError("\n".join(lines)) from error


def mistakes(error: ValidationError, schema: Any, value: object) -> list[str]:
    """Return a line per key of `value` that is wrong, as `first_mistake` writes it: misspelt keys first, then by place.

    The key that a misspelt one leaves missing is not named again.
    """
    lines: dict[tuple[int | str, ...], str] = {}
    missing = set()
    for mistake in error.errors():
        place = _place(mistake, value)
        alone = ValidationError.from_exception_data(error.title, [_in_words(mistake, place)])
        lines.setdefault(place, first_mistake(alone, schema))
        if mistake["type"] in MISSING:
            missing.add(place)
    # (section, key that is meant) of each misspelt key
    meant = {(place[:-1], line.rpartition("did you mean ")[2]) for place, line in lines.items()}
    named = [line for place, line in lines.items() if not (place in missing and (place[:-1], f"{place[-1]}?") in meant)]
    return sorted(named, key=lambda line: ": unknown key" not in line)


def _in_words(mistake: ErrorDetails, place: tuple[int | str, ...]) -> InitErrorDetails:
    """Return the mistake at `place`, with words for a pattern."""
    context = mistake.get("ctx", {})
    words = PATTERNS.get(str(context.get("pattern")))
    kind = PydanticCustomError("pattern", words) if words else mistake["type"]
    return InitErrorDetails(type=kind, loc=place, input=mistake["input"], ctx=context)


def _place(mistake: ErrorDetails, value: Any) -> tuple[int | str, ...]:
    """Return the keys that lead to the mistake, without the alternative of a type that pydantic names last."""
    found = True
    for key in mistake["loc"]:
        try:
            value, found = value[key], True
        except (KeyError, IndexError, TypeError):  # an alternative, or what is missing
            found = False
    return mistake["loc"] if found or mistake["type"] in MISSING else mistake["loc"][:-1]


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
