"""Presets: files in `presets/` that hold only the keys that differ, in params.yaml's shape."""

import io
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from components.errors import ParameterError
from components.files import write_atomically
from pipelines import params


def read(name: str, root: Path) -> dict[str, Any]:
    """A preset's values. Raises ParameterError naming what there is."""
    path = root / "presets" / f"{name}.yaml"
    if not path.is_file():
        known = sorted(file.stem for file in (root / "presets").glob("*.yaml"))
        raise ParameterError(f"preset {name!r} does not exist: one of {', '.join(known)}")
    return yaml.safe_load(path.read_text(encoding="utf-8")) or {}


def flags(name: str, root: Path) -> list[str]:
    """The preset as `-S key=value` flags for `dvc exp run`."""
    document = yaml.safe_load((root / "params.yaml").read_text(encoding="utf-8"))
    return [f"-S {key}={value}" for key, value in _leaves(read(name, root), document)]


def apply(name: str, root: Path) -> list[str]:
    """Write the preset into params.yaml, comments kept; returns a line for each value that changed."""
    return edit(root / "params.yaml", read(name, root))


def edit(path: Path, values: Mapping[str, Any]) -> list[str]:
    """Set `values` (nested) in a params.yaml, keeping its comments and order. Nothing is written if the result is not valid."""
    from ruamel.yaml import YAML
    from ruamel.yaml.representer import RoundTripRepresenter

    class Representer(RoundTripRepresenter):
        """Writes null as it was written, not as nothing."""

    Representer.add_representer(type(None), lambda self, _: self.represent_scalar("tag:yaml.org,2002:null", "null"))
    editor = YAML()
    editor.Representer = Representer
    editor.preserve_quotes = True
    editor.width = 120
    document = editor.load(path.read_text(encoding="utf-8"))
    changes = []
    for key, value in _leaves(values, document):
        *sections, last = key.split(".")
        target = document
        for section in sections:
            target = target[section] if isinstance(target, dict) and section in target else {}
        if not isinstance(target, dict) or last not in target:
            raise ParameterError(f"{key}: not a key of {path.name}")
        if target[last] != value:
            changes.append(f"{key}: {target[last]} -> {value}")
            target[last] = value
    text = io.StringIO()
    editor.dump(document, text)
    trial = path.with_name(f".{path.name}.trial")
    try:
        trial.write_text(text.getvalue(), encoding="utf-8")
        params.load(trial)
    finally:
        trial.unlink(missing_ok=True)
    write_atomically(path, text.getvalue())
    return changes


def _leaves(values: Mapping[str, Any], document: Any, prefix: str = "") -> list[tuple[str, Any]]:
    """`values` by dotted key. A mapping in place of a plain value (a threshold given as a rule) is itself a value."""
    leaves: list[tuple[str, Any]] = []
    for key, value in values.items():
        here = document.get(key) if isinstance(document, Mapping) else None
        if isinstance(value, Mapping) and (here is None or isinstance(here, Mapping)):
            leaves += _leaves(value, here, f"{prefix}{key}.")
        else:
            leaves.append((f"{prefix}{key}", value))
    return leaves
