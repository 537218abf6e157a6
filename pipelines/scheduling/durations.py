"""How long a stage run will take: as long as it took before."""

import json
import re
from collections import defaultdict
from functools import cached_property
from pathlib import Path
from typing import Any

from pipelines.graph import StageRun, runs_of
from pipelines.params import ParameterFile
from pipelines.scratch.folder import folder_stem
from pipelines.scratch.manifest import MANIFEST_FILE

UNKNOWN_SECONDS = 60.0
"""Expected of a stage that has not finished here before."""
LOOKED_AT = 5
"""Manifests of a stage run that are read, newest first; sweeps leave hundreds."""


class Durations:
    """Expected seconds of stage runs, from the manifests below the scratch root `home`."""

    def __init__(self, home: Path, params: ParameterFile) -> None:
        self.home = home
        self.params = params
        self._known: dict[str, float | None] = {}

    def __call__(self, run: StageRun) -> float:
        """Return the seconds that the run took last, with the present parameters where it has run with them; else another arm."""
        known = (self.known(arm) for arm in (run, *runs_of(run.stage)))
        return next((seconds for seconds in known if seconds is not None), UNKNOWN_SECONDS)

    def is_assumed(self, run: StageRun) -> bool:
        """Return whether no arm of the stage has finished here before."""
        return all(self.known(arm) is None for arm in runs_of(run.stage))

    def known(self, run: StageRun) -> float | None:
        """Return the seconds that this very run took, or None."""
        if run.address not in self._known:
            self._known[run.address] = self._read(run)
        return self._known[run.address]

    def _read(self, run: StageRun) -> float | None:
        newest = None
        for file in self._manifests.get(folder_stem(run.address), [])[:LOOKED_AT]:
            seconds, parameters = _cost(file)
            if seconds is not None and parameters == self.params.only(run.stage.reads):
                return seconds
            newest = seconds if newest is None else newest
        return newest

    @cached_property
    def _manifests(self) -> dict[str, list[Path]]:
        """Manifests by the stem of their folders, newest first."""
        found: dict[str, list[tuple[float, Path]]] = defaultdict(list)
        for folder in self.home.iterdir() if self.home.is_dir() else ():
            named = re.fullmatch(r"(.+)-[0-9a-f]{16}", folder.name)
            file = folder / MANIFEST_FILE
            if named and file.is_file():
                found[named[1]].append((file.stat().st_mtime, file))
        return {stem: [file for _, file in sorted(files, reverse=True)] for stem, files in found.items()}


def _cost(file: Path) -> tuple[float | None, Any]:
    """Return seconds and parameters in a manifest; read without its schema, which takes longer."""
    try:
        document = json.loads(file.read_text(encoding="utf-8"))
        return float(document["cost"]["cost/seconds"]), (document["provenance"] or {}).get("parameters")
    except (OSError, ValueError, KeyError, TypeError):
        return None, None
