"""Presets: files in `presets/` that hold only the keys that differ, in params.yaml's shape.

`extends` names other files that a preset begins with: presets, or published recipes in `presets/recipes` that several share. The
name `default` stands for the project's own values: those of params.yaml in the last commit.
"""

import copy
import io
import itertools
import re
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from components.errors import ParameterError
from components.files import write_atomically
from pipelines import params
from pipelines.errors import did_you_mean
from pipelines.schema.overrides import with_overrides
from pipelines.schema.reading import parse_yaml, read_yaml, to_yaml
from pipelines.workspace import git_output

DEFAULT = "default"
"""In place of a preset's name."""
_NAME = re.compile(r"[A-Za-z_][\w./@:%+-]*", re.ASCII)
"""Texts that Hydra takes as they are."""
_SAFE = re.compile(r"[\w./@:%+=,\[\]-]+", re.ASCII)
"""Flags that mean the same with and without a shell."""


def read(name: str, root: Path) -> dict[str, Any]:
    """Return the values of a preset and of what it extends. Of a key that is given twice the last counts, its own after all others.

    Raises ParameterError that names the existing presets, or the file that extends what is not there, or itself.
    """
    if name != DEFAULT:
        return _read(name, root / "presets", ())
    values = own_values(root)
    if values is None:
        raise ParameterError(
            f"preset {DEFAULT}: git has no params.yaml in the last commit here, so its values are not known"
        )
    return values


def read_all(names: Sequence[str], root: Path) -> dict[str, Any]:
    """Return the values of several presets, each over those before it. Raises as `read`."""
    if DEFAULT in names[1:]:
        raise ParameterError(f"preset {DEFAULT}: others are laid over it, so it must be the first")
    values: dict[str, Any] = {}
    for name in names:
        values = with_overrides(values, read(name, root), new_keys=True)
    return values


def own_values(root: Path) -> dict[str, Any] | None:
    """Return the project's own values, those of params.yaml in the last commit; None where git does not know them."""
    text = _committed(root)
    return parse_yaml(text, "params.yaml of the last commit") if text else None


def known(root: Path) -> dict[str, str]:
    """Return by name the first sentence of each preset's comment."""
    found = {DEFAULT: "The project's own values: those of params.yaml in the last commit."}
    for file in sorted((root / "presets").glob("*.yaml")):
        lines = file.read_text(encoding="utf-8").splitlines()
        comment = [line.lstrip("# ") for line in itertools.takewhile(lambda line: line.startswith("#"), lines)]
        found[file.stem] = re.split(r"(?<=\.) ", " ".join(comment))[0]
    return found


def _read(name: str, folder: Path, readers: tuple[str, ...]) -> dict[str, Any]:
    """`readers`: the files that extend this one, the first outermost."""
    path = folder / f"{name}.yaml"
    by = f"presets/{readers[-1]}.yaml: extends: " if readers else ""
    if name in readers:
        raise ParameterError(f"{by}{name} extends itself")
    if not path.is_file() or not path.resolve().is_relative_to(folder.resolve()):
        names = sorted(file.stem for file in folder.glob("*.yaml"))
        names += sorted(f"recipes/{file.stem}" for file in folder.glob("recipes/*.yaml")) if readers else [DEFAULT]
        listed = f"one of {', '.join(names)}{did_you_mean(name, names)}"
        raise ParameterError(f"{by}preset {name!r} does not exist: {listed}")
    own = read_yaml(path) or {}
    extended = own.pop("extends", [])
    bases = [extended] if isinstance(extended, str) else extended
    if not isinstance(bases, list) or not all(isinstance(each, str) for each in bases):
        raise ParameterError(f"presets/{name}.yaml: extends: {extended!r} is no name of a preset, and no list of names")
    values: dict[str, Any] = {}
    for part in [*(_read(each, folder, (*readers, name)) for each in bases), own]:
        values = with_overrides(values, part, new_keys=True)
    return values


def flags(names: Sequence[str], root: Path) -> list[str]:
    """Return presets, each over those before it, as `-S key=value` flags for `dvc exp run`, which reads values in Hydra's words.

    A key that params.yaml does not state gets a plus. A mapping in place of a plain value is given key by key, as braces mean
    something to a shell. A flag with a text of other characters than those of names and paths is quoted for a shell.
    """
    if DEFAULT in names:
        raise ParameterError(f"preset {DEFAULT}: flags cannot take back what params.yaml states; give the others alone")
    document = read_yaml(root / "params.yaml")
    leaves = [leaf for key, value in leaves_of(read_all(names, root), document) for leaf in _in_single_keys(key, value)]
    texts = [f"{'' if _is_written(key, document) else '+'}{key}={_in_hydra(value)}" for key, value in leaves]
    return [f"-S {text if _SAFE.fullmatch(text) else shlex.quote(text)}" for text in texts]


def _in_single_keys(key: str, value: Any) -> list[tuple[str, Any]]:
    if not isinstance(value, Mapping) or not value:
        return [(key, value)]
    return [leaf for name, item in value.items() for leaf in _in_single_keys(f"{key}.{name}", item)]


def _in_hydra(value: Any) -> str:
    """Return a value in the grammar of Hydra's overrides, without spaces."""
    match value:
        case None:
            return "null"
        case bool():
            return str(value).lower()
        case str():
            plain = _NAME.fullmatch(value) and value.lower() not in ("null", "true", "false", "nan", "inf")
            escaped = re.sub(r"(\\*)'", r"\1\1\\'", value)  # and the backslashes before a quote
            return value if plain else "'" + re.sub(r"(\\+)$", r"\1\1", escaped) + "'"
        case Mapping():
            return "{" + ",".join(f"{name}:{_in_hydra(item)}" for name, item in value.items()) + "}"
        case list() | tuple():
            return "[" + ",".join(map(_in_hydra, value)) + "]"
    return repr(value)


def apply(names: Sequence[str], root: Path) -> list[str]:
    """Write presets into params.yaml, each over those before it, and keep its comments; returns a line per changed value.

    What no preset states stays as it is, a value of an earlier preset too. With `default` among the names, params.yaml begins as it
    is in the last commit. Raises as `read`, and as `edit`.
    """
    file = root / "params.yaml"
    return _write(file, _edited(_begun(file, names), read_all(names, root), file.name))


def left_over(names: Sequence[str], root: Path) -> list[str]:
    """Return `seed 3 (0)` for each value of params.yaml that is neither of these presets nor the project's own, in brackets.

    An earlier preset, `promote` or the user has written it. Without git, nothing is known of them. Raises as `read`.
    """
    own = own_values(root)
    if own is None:
        return []
    stated, before = dict(leaves_of(read_all(names, root), own)), dict(leaves_of(own, own))
    return [
        f"{key} {value} ({before.get(key, 'default')})"
        for key, value in leaves_of(read_yaml(root / "params.yaml"), own)
        if key not in stated and value != before.get(key, "default")
    ]


def resolve(root: Path, preset: str | None) -> params.Parameters:
    """Return the parameters of a workspace with a preset applied; nothing is written."""
    file = root / "params.yaml"
    if preset is None:
        return params.load(file)
    return _parameters(_edited(_begun(file, [preset]), read(preset, root), file.name), file.name)


def edit(path: Path, values: Mapping[str, Any]) -> list[str]:
    """Set `values` (nested) in a params.yaml, keeping its comments and order. Nothing is written if the result is not valid.

    A key that the file leaves to its default is added to its section, before the last (which the blank line behind belongs to).
    """
    return _write(path, _edited(path.read_text(encoding="utf-8"), values, path.name))


def _begun(file: Path, names: Sequence[str]) -> str:
    """Return the text that presets are laid over: that of the last commit for `default`."""
    return (DEFAULT in names and _committed(file.parent)) or file.read_text(encoding="utf-8")


def _committed(root: Path) -> str:
    """Return the text of params.yaml in the last commit, "" where git does not know it."""
    return git_output(root, "show", "HEAD:./params.yaml")


def _write(path: Path, text: str) -> list[str]:
    """Write a valid params.yaml; returns a line per value that differs from before."""
    _parameters(text, path.name)
    try:
        before = parse_yaml(path.read_text(encoding="utf-8"), path.name)
    except ParameterError:  # what was no YAML is replaced as a whole
        before = {}
    write_atomically(path, text)
    return _changes(before, parse_yaml(text, path.name))


def _parameters(text: str, name: str) -> params.Parameters:
    return params.from_document(parse_yaml(text, name), name)


def _changes(before: Mapping[str, Any], after: Mapping[str, Any], prefix: str = "") -> list[str]:
    lines: list[str] = []
    for key in {**before, **after}:
        old, new = before.get(key, {}), after.get(key, {})
        if isinstance(old, Mapping) and isinstance(new, Mapping):
            lines += _changes(old, new, f"{prefix}{key}.")
        elif old != new:
            words = [str(side[key]) if key in side else "default" for side in (before, after)]
            lines.append(f"{prefix}{key}: {words[0]} -> {words[1]}")
    return lines


def _edited(text: str, values: Mapping[str, Any], name: str) -> str:
    """Return the text of a params.yaml with `values` set; `name` stands for it in messages."""
    from ruamel.yaml import YAML
    from ruamel.yaml.comments import CommentedMap
    from ruamel.yaml.representer import RoundTripRepresenter

    class Representer(RoundTripRepresenter):
        """Writes null as `null`, and a small number with a point, without which YAML 1.1 reads it as text."""

    Representer.add_representer(type(None), lambda self, _: self.represent_scalar("tag:yaml.org,2002:null", "null"))
    Representer.add_representer(float, lambda self, x: self.represent_scalar("tag:yaml.org,2002:float", _decimal(x)))
    editor = YAML()
    editor.Representer = Representer
    editor.preserve_quotes = True
    editor.width = 120
    parse_yaml(text, name)  # refuses what the editor would not explain
    document = editor.load(text)
    shared = _shared(document)
    for key, value in leaves_of(values, document):
        *sections, last = key.split(".")
        target = document
        for section in sections:
            if section not in target:
                _add(target, section, CommentedMap())
            elif id(target[section]) in shared:  # an alias: what it stands for is written out before it is changed
                target[section] = _copy(target[section])
            target = target[section]
        if last not in target:
            _add(target, last, value)
        elif target[last] != value:
            target[last] = _in_same_style(value, target[last])
    edited = io.StringIO()
    editor.dump(document, edited)
    return edited.getvalue()


def _shared(document: Any) -> set[int]:
    """Return the ids of the mappings that stand in several places of a ruamel document, by an anchor and its aliases."""
    seen: set[int] = set()
    shared: set[int] = set()

    def visit(node: Any) -> None:
        if isinstance(node, Mapping):
            (shared if id(node) in seen else seen).add(id(node))
        for item in node.values() if isinstance(node, Mapping) else node if isinstance(node, list) else ():
            visit(item)

    visit(document)
    return shared


def _copy(section: Any) -> Any:
    """Return a copy of a ruamel mapping without its anchor; the mappings in it are still shared."""
    made = copy.copy(section)
    made.yaml_set_anchor(None)
    return made


def _in_same_style(value: Any, before: Any) -> Any:
    """Keep a list in brackets that was in brackets."""
    from ruamel.yaml.comments import CommentedSeq

    if isinstance(value, list) and isinstance(before, CommentedSeq) and before.fa.flow_style():
        value = CommentedSeq(value)
        value.fa.set_flow_style()
    return value


def _add(section: Any, key: str, value: Any) -> None:
    """Insert a key of a ruamel mapping before its last one."""
    section.insert(max(0, len(section) - 1), key, value)


def leaves_of(values: Mapping[str, Any], document: Any, prefix: str = "") -> list[tuple[str, Any]]:
    """Return `values` by dotted key. A mapping in place of a plain value (a threshold given as a rule) is itself a value."""
    leaves: list[tuple[str, Any]] = []
    for key, value in values.items():
        here = document.get(key, {})
        if isinstance(value, Mapping) and isinstance(here, Mapping):
            leaves += leaves_of(value, here, f"{prefix}{key}.")
        else:
            leaves.append((f"{prefix}{key}", value))
    return leaves


def _is_written(key: str, document: Any) -> bool:
    """Return whether the file states a value for a dotted key."""
    for part in key.split("."):
        if not isinstance(document, Mapping) or part not in document:
            return False
        document = document[part]
    return True


def _decimal(number: float) -> str:
    """Return a number as YAML 1.1 reads it too: 0.00001 is 1.0e-05, because 1e-05 is text there."""
    text = to_yaml(number).split("\n")[0]
    return text if "." in text or "e" not in text else text.replace("e", ".0e")
