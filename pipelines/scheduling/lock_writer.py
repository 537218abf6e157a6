"""Writes entries into `dvc.lock` as DVC does, but many at once, and in one rename.

A sequential `dvc repro` appends entries that were not there in the order of its plan. Stages that run at the same time finish in
another order and in several batches, and a command may be interrupted between two. So a new entry is put in DVC's order among
those that this command, and an unfinished one before it, have appended (`.dvc/tmp/repro.appended`).
"""

import json
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from components.files import remove_temporaries, write_atomically, written_atomically
from pipelines.dvc_files.dvc_lock import LOCK_FILE

if TYPE_CHECKING:
    from dvc.repo import Repo
    from dvc.stage import PipelineStage


class LockWriter:
    """Writes `dvc.lock` of a repository. `order` returns the names of stages in the order of DVC's plan; it is slow."""

    def __init__(self, repo: "Repo", order: Callable[[], Sequence[str]]) -> None:
        self._repo = repo
        self._order = order
        self.file = Path(repo.root_dir, LOCK_FILE)
        self._appended_file = Path(repo.root_dir, ".dvc", "tmp", "repro.appended")

    def write(self, stages: Sequence["PipelineStage"]) -> None:
        """Write the entries of `stages`, which hold what DVC saved. All else in the file stays; the file is old or new, never torn.

        The caller holds DVC's lock of the repository.
        """
        from dvc.stage.serialize import to_lockfile
        from dvc.utils.serialize import modify_yaml

        remove_temporaries(self.file.parent, self.file.name)
        before = self.file.read_bytes() if self.file.exists() else b""
        with written_atomically(self.file) as temporary:
            if before:
                shutil.copy(self.file, temporary)  # with its mode
            with modify_yaml(temporary, fs=self._repo.fs) as data:
                if not data:
                    data["schema"] = "2.0"
                entries = data.setdefault("stages", {})
                new = [stage.name for stage in stages if stage.name not in entries]
                last = self._appended(list(entries))
                for stage in stages:
                    entries.update(to_lockfile(stage))
                if new:
                    appended = {*last, *new}
                    order = [name for name in self._order() if name in appended]
                    for name in order:
                        entries[name] = entries.pop(name)
                    write_atomically(self._appended_file, json.dumps(order))
                complete = bool(new) and all(name in entries for name in self._order())
        if complete:  # this command can append nothing more
            self._appended_file.unlink(missing_ok=True)
        if before != self.file.read_bytes():
            self._repo.scm_context.track_file(LOCK_FILE)

    def _appended(self, names: Sequence[str]) -> list[str]:
        """Return the last of the present entries that an unfinished command has appended."""
        try:
            appended = json.loads(self._appended_file.read_text())
        except (OSError, ValueError):
            return []
        return appended if appended and list(names[-len(appended) :]) == appended else []
