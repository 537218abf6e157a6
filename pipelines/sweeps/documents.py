"""params.yaml as plain values, read and changed by dotted path."""

import copy
from collections.abc import Mapping
from typing import Any

from components.errors import ParameterError


def value_at(document: Mapping[str, Any], path: str) -> Any:
    """Return the value at a dotted path. Raises ParameterError when there is none."""
    here: Any = document
    for key in path.split("."):
        if not isinstance(here, Mapping) or key not in here:
            raise ParameterError(f"{path}: not a key of params.yaml")
        here = here[key]
    return here


def with_values(document: Mapping[str, Any], values: Mapping[str, Any]) -> dict[str, Any]:
    """Return a copy of `document` with each value of `values` set at its path."""
    whole: dict[str, Any] = copy.deepcopy(dict(document))
    for path, value in values.items():
        *sections, last = path.split(".")
        here = whole
        for section in sections:
            here = here[section]
        here[last] = copy.deepcopy(value)
    return whole


def nested(values: Mapping[str, Any]) -> dict[str, Any]:
    """Return the nested mapping for values by dotted path."""
    whole: dict[str, Any] = {}
    for path, value in values.items():
        *sections, last = path.split(".")
        here = whole
        for section in sections:
            here = here.setdefault(section, {})
        here[last] = value
    return whole
