"""The scratch folder of one fingerprint: checkpoints while it runs, outputs when it has finished.

<home>/<stage>-<arm>-<fingerprint>/
    lock            held by the one runner that works on it and by its worker (the kernel releases it when both are dead)
    lease.json      the same for other machines; see pipelines.locks.lease
    claims.json     the workspaces that use it; see pipelines.scratch.claims
    leave           asks the worker, on any machine, to save a checkpoint at its next step and exit
    until.json      {"metric", "step"}: the report after which the worker does so by itself
    checkpoints/    by phase; see components.training.checkpoint
    metrics.jsonl   every reported metric, in order
    figures/        pictures for the tracking server
    result.json     the metrics that the stage function returned
    ran.json        facts about remote execution, where the stage ran as a job
    cost.json       the cost of all attempts so far; with group.json, see pipelines.scratch.spent
    group.json      the workers that compute, written by rank 0
    writing/        outputs being written
    outputs/        finished outputs, at the paths they have in the workspace
    DONE.json       the manifest: digests of the outputs, metrics, provenance; written last
"""

import os
import shutil
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from components.files import TEMPORARY, remove, remove_temporaries, temporary_beside, write_atomically
from pipelines.errors import InfrastructureError
from pipelines.identity.fingerprint import tree_digests
from pipelines.locks.file_lock import acquire
from pipelines.locks.lease import HOW_TO_WAIT, Holder, Lease, read_lease
from pipelines.locks.waiting import lock_timeout
from pipelines.scratch.manifest import MANIFEST_FILE, Manifest, RemoteExecution
from pipelines.scratch.metric_log import MetricLog
from pipelines.scratch.spent import COST_FILE, GROUP_FILE, WorkerGroup

LINK_FROM_BYTES = 1 << 16
"""Outputs below this size are copied, so that editing a small file in place cannot change the stored one."""
LOCK_FILE, LEASE_FILE = "lock", "lease.json"


def folder_stem(address: str) -> str:
    """Return the prefix of the scratch folders of a stage run."""
    return address.replace("@", "-")


def folder_name(address: str, identity: str) -> str:
    """Return the name of the scratch folder of a stage run with this fingerprint."""
    return f"{folder_stem(address)}-{identity[:16]}"


class Scratch:
    """One scratch folder: its files by name, its lock, and how an attempt begins and finishes.

    holder: token of the lease under which a worker writes here (`lease_token`); it stops when another has taken the lease over.
    """

    def __init__(self, folder: Path, holder: str | None = None) -> None:
        self.folder = folder
        self.holder = holder
        self.checkpoints = folder / "checkpoints"
        self.figures = folder / "figures"
        self.writing = folder / "writing"
        self.outputs = folder / "outputs"
        self.metrics_file = folder / "metrics.jsonl"
        self.result_file = folder / "result.json"
        self.remote_file = folder / "ran.json"
        self.cost_file = folder / COST_FILE
        self.group_file = folder / GROUP_FILE
        self.stop_file = folder / "leave"
        self.stop_after_file = folder / "until.json"
        self.manifest_file = folder / MANIFEST_FILE

    def remote_execution(self) -> RemoteExecution | None:
        """Return facts about remote execution, or None where the stage ran here."""
        return RemoteExecution.read(self.remote_file)

    def worker_group(self) -> WorkerGroup | None:
        """Return the workers of the present attempt, or None before rank 0 has begun."""
        return WorkerGroup.read(self.group_file)

    def checkpoint_at(self, metric: str, step: int) -> Path | None:
        """Return the checkpoint after `step` of the phase that has reported `metric` at that step; None without both."""
        for line in MetricLog(self.metrics_file).read():
            if line["step"] == step and metric in line["metrics"]:
                checkpoint = self.checkpoints / line["phase"] / f"step-{step:08d}"
                return checkpoint if checkpoint.is_dir() else None
        return None

    def lease_token(self) -> str | None:
        """Return the token of the present lease, None without one."""
        found = read_lease(self.folder / LEASE_FILE)
        return found.token if found else None

    def taken_over_by(self) -> Holder | None:
        """Return who has taken over the lease of `holder`, whose process was suspended; None where nobody has."""
        found = read_lease(self.folder / LEASE_FILE) if self.holder else None
        return found if found and found.token != self.holder else None

    def require_holder(self) -> None:
        """Raise InfrastructureError when another process has taken over the lease."""
        if found := self.taken_over_by():
            raise InfrastructureError(f"{found} has taken over {self.folder}: run again, to wait for its result")

    @contextmanager
    def lock(self, timeout: float | None = None) -> Iterator["FolderLock"]:
        """Hold the folder, after waiting for any other holder, here or on another machine: it computes the same result.

        Raises InfrastructureError after `timeout` seconds, PIPELINES_LOCK_TIMEOUT (a day by default) where it is None.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        timeout = lock_timeout() if timeout is None else timeout
        lease = Lease(self.folder / LEASE_FILE)
        with open(self.folder / LOCK_FILE, "a+") as file:
            waited = self._flock(file.fileno(), timeout)
            lease.acquire(timeout - waited)
            try:
                yield FolderLock(file.fileno(), lease)
            finally:
                lease.release()

    def _flock(self, descriptor: int, timeout: float) -> float:
        """Return the seconds waited."""

        def who() -> object:
            return read_lease(self.folder / LEASE_FILE) or "another process"

        def say() -> None:
            print(f"waiting: {who()} computes the same result in {self.folder}", file=sys.stderr, flush=True)

        waited = acquire(descriptor, timeout, say)
        if waited is None:
            raise InfrastructureError(f"{who()} still works in {self.folder}: {HOW_TO_WAIT}")
        return waited

    def begin(self) -> None:
        """Prepare for an attempt: remove partial outputs of an earlier one, keep checkpoints, metrics and cost."""
        for folder in (self.writing, self.outputs, self.figures):
            shutil.rmtree(folder, ignore_errors=True)
        for file in (
            self.result_file,
            self.stop_file,
            self.stop_after_file,
            self.remote_file,
            self.group_file,
            self.manifest_file,
        ):
            file.unlink(missing_ok=True)
        self.writing.mkdir(parents=True)
        self.figures.mkdir()

    def finish(self, paths: Iterable[str], manifest: Manifest) -> Manifest:
        """Make the outputs at `paths` final, then write and return `manifest` with their digests."""
        paths = list(paths)
        missing = sorted(path for path in paths if not (self.writing / path).exists())
        if missing:
            raise RuntimeError(f"the stage did not write {', '.join(missing)}")
        os.rename(self.writing, self.outputs)
        done = manifest.model_copy(update={"outputs": {path: tree_digests(self.outputs / path) for path in paths}})
        write_atomically(self.manifest_file, done.to_json(indent=1))
        return done

    def done(self) -> Manifest | None:
        """Return the manifest if there is one and every output still has its digest."""
        done = Manifest.read(self.manifest_file)
        if done and all(tree_digests(self.outputs / path) == digests for path, digests in done.outputs.items()):
            return done
        return None


@dataclass(frozen=True)
class FolderLock:
    """The lock on a scratch folder. A process that inherits `descriptor` holds it too, for as long as it lives."""

    descriptor: int
    lease: Lease

    def require(self) -> None:
        """Raise InfrastructureError when another machine has taken the folder over."""
        self.lease.require()


def put_in_place(source: Path, target: Path) -> None:
    """Replace `target` by a copy of `source` in one rename; large files are hard links where the file system allows."""
    target.parent.mkdir(parents=True, exist_ok=True)
    remove_temporaries(target.parent, target.name)
    temporary = temporary_beside(target)
    if source.is_dir():
        # A shared folder may hold temporary files of a process that was killed there.
        unwanted = shutil.ignore_patterns(TEMPORARY)
        shutil.copytree(source, temporary, copy_function=_link_or_copy, ignore=unwanted)
    else:
        _link_or_copy(str(source), str(temporary))
    remove(target)
    os.rename(temporary, target)


def _link_or_copy(source: str, target: str) -> None:
    if os.path.getsize(source) >= LINK_FROM_BYTES:
        try:
            os.link(source, target)
            return
        except OSError:
            pass  # another file system, or one without links: copy
    shutil.copyfile(source, target)
