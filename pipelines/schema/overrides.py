"""Mappings in params.yaml's shape, laid over one another."""

from collections.abc import Mapping
from typing import Any

from components.errors import ParameterError


def with_overrides(document: Mapping[str, Any], over: Mapping[str, Any], *, new_keys: bool = False) -> dict[str, Any]:
    """Return `document` with the sections of `over` merged into it; neither is changed.

    Raises ParameterError for a key that `document` does not have, unless `new_keys`.
    """
    whole = dict(document)
    for key, value in over.items():
        if key not in whole and not new_keys:
            raise ParameterError(f"{key}: not a key of params.yaml")
        here = whole.get(key)
        if isinstance(value, Mapping) and isinstance(here, Mapping):
            whole[key] = with_overrides(here, value, new_keys=new_keys)
        else:
            whole[key] = value
    return whole
