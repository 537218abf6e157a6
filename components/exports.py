"""Names that a package offers from its modules, imported on use: `import components.taca` does not import torch."""

from collections.abc import Mapping, Sequence
from importlib import import_module
from typing import Any

Exports = Mapping[str, Sequence[str]]
"""Module, relative to the package, -> its public names."""


def all_names(exports: Exports) -> list[str]:
    """Return the public names, sorted."""
    return sorted(name for names in exports.values() for name in names)


def find(package: str, exports: Exports, name: str) -> Any:
    """Import and return a public name of `package`. Raises AttributeError for any other."""
    for module, names in exports.items():
        if name in names:
            return getattr(import_module(f"{package}.{module}"), name)
    raise AttributeError(f"module {package!r} has no attribute {name!r}")
