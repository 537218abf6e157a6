"""What differs between `dvc.lock` and the workspace, in the words of a person: by parameter, file and input."""

import json
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipelines.errors import first_of
from pipelines.graph import producers
from pipelines.schema.reading import read_yaml

if TYPE_CHECKING:
    from dvc.repo import Repo

PARAMETERS = "params.yaml"
NONE = object()
"""In place of a value that is not there."""
VALUE_LETTERS = 40
NAMED_WRITERS = 2
"""Stages that are named of those that one waits for; the rest is counted."""


@dataclass(frozen=True)
class Definition:
    """A stage of `dvc.yaml`, with its arm filled in: the command, and what it reads and writes by path, as DVC resolves them."""

    cmd: str
    deps: Sequence[str]
    params: Sequence[str]
    outs: Sequence[str]
    uncached: frozenset[str]
    """Outputs that git keeps, and DVC's cache only beside its record of runs."""

    @classmethod
    def of(cls, resolved: Mapping[str, Any]) -> "Definition":
        """Read what DVC's resolver returns for one stage."""
        flags: dict[str, Mapping[str, Any]] = {}
        for kind in ("outs", "metrics", "plots"):
            for out in resolved.get(kind, ()):
                flags.update(out if isinstance(out, Mapping) else {out: {}})
        return cls(
            resolved["cmd"],
            tuple(dict.fromkeys(map(str, resolved.get("deps", ())))),
            tuple(resolved.get("params", ())),
            tuple(flags),
            frozenset(path for path, flag in flags.items() if (flag or {}).get("cache", True) is False),
        )


def file_state(path: Path | str) -> tuple[int, ...] | None:
    """Return times, size and inode, by which a file that was read before counts as unchanged; None without one."""
    try:
        now = os.stat(path)
    except (FileNotFoundError, NotADirectoryError):
        return None
    return (now.st_mtime_ns, now.st_ctime_ns, now.st_size, now.st_ino)


class PresentFiles:
    """DVC's md5 of what is in the workspace now. Stages share most of their files: one that has not changed is hashed once."""

    def __init__(self, repo: "Repo") -> None:
        self._repo = repo
        self._files: dict[str, tuple[tuple[int, ...], str]] = {}

    def md5(self, path: str) -> str | None:
        """Return the md5 of a file or a folder as dvc.lock has it, None where nothing is."""
        from dvc_data.hashfile.build import build

        full = os.path.join(self._repo.root_dir, path)
        state = file_state(full)
        if state is None or (path in self._files and self._files[path][0] == state):
            return self._files[path][1] if state else None
        try:
            cache, fs = self._repo.cache.local, self._repo.fs
            _, _, found = build(cache, full, fs, "md5", ignore=self._repo.dvcignore, dry_run=True)
        except FileNotFoundError:
            return None
        if not os.path.isdir(full):
            self._files[path] = (state, str(found.hash_info.value))
        return str(found.hash_info.value)


class PresentParameters:
    """The plain values of params.yaml, read again when the file has changed."""

    def __init__(self, root: Path) -> None:
        self._file = root / PARAMETERS
        self._read: tuple[object, Any] = (None, {})

    def value(self, key: str) -> Any:
        """Return the value at a dotted key, NONE where there is none. Raises ParameterError for a file that is not YAML."""
        state = file_state(self._file)
        if self._read[0] != state:
            self._read = (state, read_yaml(self._file))
        found = self._read[1]
        for part in key.split("."):
            found = found.get(part, NONE) if isinstance(found, Mapping) else NONE
        return found


def changed_parameters(definition: Definition, entry: Mapping[str, Any], present: PresentParameters) -> list[str]:
    """Return `taca.gamma: 1.2 -> 1.3` for each value that is not that of the stage's entry in dvc.lock."""
    recorded = entry.get("params", {}).get(PARAMETERS, {})
    return [
        line for key in definition.params for line in _differences(key, recorded.get(key, NONE), present.value(key))
    ]


def changed_inputs(
    definition: Definition, entry: Mapping[str, Any], now: Mapping[str, str | None], unknown: Mapping[str, str]
) -> list[str]:
    """Return what differs among the dependencies, whose md5 is `now`, None for one that is missing.

    `unknown` holds those of which nobody knows yet what they will be, with the stage run that will write them.
    """
    recorded = recorded_md5(entry, "deps")
    writers = list(dict.fromkeys(unknown.values()))
    waiting = [f"after {first_of(writers, NAMED_WRITERS)}"] if writers else []
    lines = []
    for path in definition.deps:
        if path in unknown:
            continue
        if now[path] is None:
            lines.append(f"{path} is missing")
        elif path not in recorded:
            lines.append(f"{path} is new")
        elif now[path] != recorded[path]:
            writer = producers().get(path)
            lines.append(f"{path} changed" + (f" (from {writer.address})" if writer else ""))
    return [*lines, *waiting]


def recorded_md5(entry: Mapping[str, Any], kind: str) -> dict[str, str | None]:
    """Return the md5 of `deps` or `outs` by path. One that DVC 2 wrote, by another rule, counts as none."""
    return {item["path"]: item.get("md5") if item.get("hash") == "md5" else None for item in entry.get(kind, ())}


def _differences(key: str, old: Any, new: Any) -> Iterator[str]:
    if isinstance(old, Mapping) and isinstance(new, Mapping):
        for name in {**old, **new}:
            yield from _differences(f"{key}.{name}", old.get(name, NONE), new.get(name, NONE))
    elif old != new:
        yield f"{key}: {_shown(old)} -> {_shown(new)}"


def _shown(value: Any) -> str:
    text = "none" if value is NONE else json.dumps(value, default=str)
    return text if len(text) <= VALUE_LETTERS else f"{text[: VALUE_LETTERS - 3]}..."
