"""The scratch folder of one fingerprint: checkpoints while it runs, finished outputs when it is done.

<home>/<stage>-<arm>-<fingerprint>/
    lock            held by the one runner that works on it and by its worker (the kernel lets go when both are dead)
    lease.json      the same for other machines; see pipelines.locks.lease
    leave           there while the worker is asked to save and go
    until.json      the report after which it is to do so by itself
    checkpoints/    by phase; see components.training.checkpoint
    metrics.jsonl   every reported metric, in order
    figures/        pictures for the tracking server
    ran.json        of work that was done elsewhere: where, and what it took there
    writing/        outputs being written
    outputs/        finished outputs, at the paths they have in the workspace
    DONE.json       their digests, the metrics and the run that made them; written last
"""

import json
import os
import shutil
import sys
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from components.files import write_atomically
from pipelines.errors import InfrastructureError
from pipelines.identity.fingerprint import tree_digests
from pipelines.locks.file_lock import acquire
from pipelines.locks.lease import TOO_LONG, Lease, describe, holder
from pipelines.locks.waiting import lock_timeout
from pipelines.scratch.metric_log import MetricLog

LINK_FROM_BYTES = 1 << 16
"""Outputs below this size are copied, so that editing a small file in place cannot reach the stored one."""


LOCKS = ("lock", "lease.json")
"""Files with which a folder is held."""


def folder_stem(address: str) -> str:
    """What the scratch folders of a stage run begin with."""
    return address.replace("@", "-")


def folder_name(address: str, identity: str) -> str:
    """Of the scratch folder of a stage run with this fingerprint, below the scratch root."""
    return f"{folder_stem(address)}-{identity[:16]}"


@dataclass(frozen=True)
class Scratch:
    """Paths and life of one scratch folder."""

    folder: Path

    @property
    def checkpoints(self) -> Path:
        return self.folder / "checkpoints"

    @property
    def reported(self) -> Path:
        return self.folder / "metrics.jsonl"

    @property
    def figures(self) -> Path:
        return self.folder / "figures"

    @property
    def writing(self) -> Path:
        return self.folder / "writing"

    @property
    def outputs(self) -> Path:
        return self.folder / "outputs"

    @property
    def result(self) -> Path:
        """What the stage function returned: its metrics, as JSON."""
        return self.folder / "result.json"

    @property
    def ran_file(self) -> Path:
        return self.folder / "ran.json"

    def ran(self) -> dict[str, Any] | None:
        """Of work that was done elsewhere (a job): `where`, as keys of a provenance record, and `cost`; else None."""
        return json.loads(self.ran_file.read_text()) if self.ran_file.is_file() else None

    @property
    def leave(self) -> Path:
        """A file that asks the worker, on whatever machine, to save a checkpoint at its next step and go."""
        return self.folder / "leave"

    @property
    def until(self) -> Path:
        """{"metric", "step"}: once it is reported there, the worker saves a checkpoint at its next step and goes."""
        return self.folder / "until.json"

    def checkpoint_at(self, metric: str, step: int) -> Path | None:
        """The checkpoint after `step` of the phase that has reported `metric` there; None when one of the two is missing."""
        for line in MetricLog(self.reported).read():
            if line["step"] == step and metric in line["metrics"]:
                checkpoint = self.checkpoints / line["phase"] / f"step-{step:08d}"
                return checkpoint if checkpoint.is_dir() else None
        return None

    @contextmanager
    def lock(self) -> Iterator["FolderLock"]:
        """Hold the folder. Another holder, here or on another machine, is waited for: it computes the very result that we want.

        Raises InfrastructureError after PIPELINES_LOCK_TIMEOUT seconds (a day by default).
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        timeout = lock_timeout()
        lease = Lease(self.folder / "lease.json")
        with open(self.folder / "lock", "a+") as file:
            waited = self._flock(file.fileno(), timeout)
            lease.acquire(timeout - waited)
            try:
                yield FolderLock(file.fileno(), lease)
            finally:
                lease.release()

    def _flock(self, descriptor: int, timeout: float) -> float:
        """Returns the seconds waited."""

        def who() -> str:
            return describe(holder(self.folder / "lease.json"))

        def say() -> None:
            print(f"waiting: {who()} computes the same result in {self.folder}", file=sys.stderr, flush=True)

        waited = acquire(descriptor, timeout, say)
        if waited is None:
            raise InfrastructureError(f"{who()} still works in {self.folder}: {TOO_LONG}")
        return waited

    def begin(self) -> None:
        """Make room for an attempt: no half outputs of an earlier one, checkpoints and metrics kept."""
        for folder in (self.writing, self.outputs, self.figures):
            shutil.rmtree(folder, ignore_errors=True)
        for file in (self.result, self.leave, self.until, self.ran_file, self.folder / "DONE.json"):
            file.unlink(missing_ok=True)
        self.writing.mkdir(parents=True)
        self.figures.mkdir()

    def finish(self, paths: Iterable[str], facts: Mapping[str, Any]) -> dict[str, Any]:
        """Make the written outputs final and say so. `facts` go into the DONE manifest, which is returned."""
        paths = list(paths)
        missing = sorted(path for path in paths if not (self.writing / path).exists())
        if missing:
            raise RuntimeError(f"the stage did not write {', '.join(missing)}")
        os.rename(self.writing, self.outputs)
        done = {**facts, "outputs": {path: tree_digests(self.outputs / path) for path in paths}}
        write_atomically(self.folder / "DONE.json", json.dumps(done, indent=1, sort_keys=True) + "\n")
        return done

    def done(self) -> dict[str, Any] | None:
        """The DONE manifest if it is there and every output still has its digest."""
        try:
            done = json.loads((self.folder / "DONE.json").read_text())
        except (OSError, ValueError):
            return None
        whole = all(tree_digests(self.outputs / path) == digests for path, digests in done["outputs"].items())
        return done if whole else None


@dataclass(frozen=True)
class FolderLock:
    """A scratch folder that is ours. A process that inherits `descriptor` holds it too, for as long as it lives."""

    descriptor: int
    lease: Lease

    def require(self) -> None:
        """Raises InfrastructureError when another machine has taken the folder over."""
        self.lease.require()


def put_in_place(source: Path, target: Path) -> None:
    """Make `target` the same as `source`, in one rename; large files are hard links where the file system allows."""
    target.parent.mkdir(parents=True, exist_ok=True)
    temporary = target.with_name(f".{target.name}.{os.getpid()}.tmp")
    for left in target.parent.glob(f".{target.name}.*.tmp"):  # by a process that was killed
        _remove(left)
    if source.is_dir():
        shutil.copytree(source, temporary, copy_function=_link_or_copy)
    else:
        _link_or_copy(str(source), str(temporary))
    _remove(target)
    os.rename(temporary, target)


def _link_or_copy(source: str, target: str) -> None:
    if os.path.getsize(source) >= LINK_FROM_BYTES:
        try:
            os.link(source, target)
            return
        except OSError:
            pass  # another file system, or one without links: copy
    shutil.copyfile(source, target)


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
