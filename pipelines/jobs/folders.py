"""The folders of a job's ranks: inputs, checkpoints and outputs.

With a shared folder they are in the storage itself: every node sees one scratch folder, `runs/<key>`. With a bucket each rank has
its own temporary folder; the checkpoints are downloaded when it begins, and those of rank 0 uploaded at each save. So all ranks
begin with the same checkpoints, on any node.

A bucket has no lock, and a process that was cut off may come back beside its successor. So every rank 0 writes its checkpoints
below a name of its own, `checkpoints/writer-<token>/`, deletes none of others', and stops when the object `writer` names a later
process.
"""

import json
import os
import shutil
import tempfile
import threading
import uuid
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path

from components.files import file_digest
from components.training.checkpoint import CHECKPOINT_MANIFEST, STATE
from pipelines.engine.execution import RankFolders
from pipelines.errors import InfrastructureError
from pipelines.jobs.metrics import MetricsSender, sent_metrics
from pipelines.jobs.task import METRICS, JobTask, output_folder, place_inputs, run_folder
from pipelines.scratch.folder import Scratch
from pipelines.scratch.spent import GROUP_FILE, WorkerGroup
from pipelines.scratch.storage import Storage, files_below
from pipelines.threads.repeating import repeated

FOLLOW_SECONDS = 2.0
WRITER = "writer"
"""The object that names the present writer of a run in a bucket, and the beginning of that name."""
FileState = tuple[int, int, int]
"""Time of the last change in ns, size and inode: at least one differs after a file was written again."""


@dataclass(frozen=True)
class JobFolders:
    """Opens the folders of one job's ranks."""

    storage: Storage
    task: JobTask
    holder: str | None = None
    """Token of the job's lease on a shared folder."""

    @contextmanager
    def open(self, rank: int) -> Iterator[RankFolders]:
        """Open a rank's folders; when the block ends without an error, publish what rank 0 wrote."""
        shared = self.storage.folder
        with tempfile.TemporaryDirectory(prefix="job-rank-", ignore_cleanup_errors=True) as folder:
            if shared:
                scratch = Scratch(shared / run_folder(self.task.key), self.holder)
                yield RankFolders(scratch.folder / "root", scratch, begun=self._begun)
                scratch.require_holder()
            else:
                bucket = _BucketRun(self.storage, self.task.key, Scratch(Path(folder)))
                place_inputs(self.storage, self.task.inputs, Path(folder) / "root")
                if rank == 0:
                    bucket.take_over()
                bucket.download()
                with bucket.metrics_sent() if rank == 0 else nullcontext():
                    root = Path(folder) / "root"
                    yield RankFolders(root, bucket.scratch, bucket.upload_checkpoints, self._begun)
                if rank == 0:
                    bucket.require_writer()
                scratch = bucket.scratch
            if rank == 0:
                written = {**_named("writing", scratch.writing), **_named("figures", scratch.figures)}
                if scratch.metrics_file.exists():
                    written[METRICS] = scratch.metrics_file
                self.storage.publish(written, output_folder(self.task.key))

    def _begun(self, group: WorkerGroup) -> None:
        self.storage.write(f"{run_folder(self.task.key)}/{GROUP_FILE}", group.to_json())

    def begin(self) -> None:
        """Once per job, before any rank: delete old outputs, and in a shared folder place the inputs for all ranks."""
        self.storage.delete(output_folder(self.task.key))
        self.storage.delete(f"{run_folder(self.task.key)}/{GROUP_FILE}")
        if self.storage.folder:
            scratch = Scratch(self.storage.folder / run_folder(self.task.key))
            scratch.begin()
            shutil.rmtree(scratch.folder / "root", ignore_errors=True)
            place_inputs(self.storage, self.task.inputs, scratch.folder / "root")


class _BucketRun:
    """A scratch folder whose checkpoints and metrics are kept in a bucket."""

    def __init__(self, storage: Storage, key: str, scratch: Scratch) -> None:
        self.storage = storage
        self.key = key
        self.scratch = scratch
        self.remote = run_folder(key)
        self.writer = f"{WRITER}-{uuid.uuid4().hex}"
        # By path in `scratch.checkpoints`: the state of files that the bucket has too, and those that this process put there.
        self._kept: dict[str, FileState] = {}
        self._uploaded: set[str] = set()
        self._metrics = MetricsSender(storage, key, scratch.metrics_file, self.writer, lambda: self.require_writer())
        self._sending = threading.Lock()
        scratch.begin()

    def take_over(self) -> None:
        """Become the one writer of this run."""
        self.storage.write(f"{self.remote}/{WRITER}", self.writer)

    def require_writer(self) -> None:
        """Raise InfrastructureError when another process has taken this run over."""
        if self.storage.read(f"{self.remote}/{WRITER}") != self.writer:
            raise InfrastructureError(
                f"another process has taken over {self.storage.path(self.remote)}: run again, to wait for its result"
            )

    def download(self) -> None:
        """Download the metrics, and of every checkpoint a copy that matches its digest, where there is one."""
        names = self.storage.names(f"{self.remote}/checkpoints")
        for local, copies in copies_of_checkpoints(names).items():
            if not any(self._download_checkpoint(local, copy, names) for copy in copies):
                print(f"warning: {self.storage.path(self.remote)}: checkpoint {local} is damaged", flush=True)
        if text := sent_metrics(self.storage, self.key):
            self.scratch.metrics_file.write_bytes(text)

    def _download_checkpoint(self, local: str, copy: str, names: Iterable[str]) -> bool:
        """Download one copy of a checkpoint and return whether it is whole; else remove it here."""
        folder = self.scratch.checkpoints / local
        files = [os.path.basename(name) for name in names if os.path.dirname(name) == copy]
        try:
            for file in files:
                self.storage.get(f"{self.remote}/checkpoints/{copy}/{file}", folder / file)
            digest = json.loads((folder / CHECKPOINT_MANIFEST).read_text())["sha256"]
            whole = file_digest(folder / STATE) == digest
        except (FileNotFoundError, ValueError, KeyError, TypeError):  # its writer has just deleted it, or it is torn
            whole = False
        if whole:
            self._kept |= {f"{local}/{file}": _state(folder / file) for file in files}
        else:
            shutil.rmtree(folder, ignore_errors=True)
        return whole

    def upload_checkpoints(self) -> None:
        """Upload new files, each checkpoint's manifest after its state; then delete what the store has deleted of them."""
        self.require_writer()
        own = f"{self.remote}/checkpoints/{self.writer}"
        here = _named("", self.scratch.checkpoints)
        states = {name: _state(file) for name, file in here.items()}
        new = [name for name, state in states.items() if self._kept.get(name) != state]
        for name in sorted(new, key=lambda n: (os.path.dirname(n), n.endswith(CHECKPOINT_MANIFEST))):
            self.storage.put(here[name], f"{own}/{name}")
            self._kept[name] = states[name]
            self._uploaded.add(name)
        self.send_metrics()
        for name in sorted(self._uploaded - here.keys()):
            self.storage.delete(f"{own}/{name}")
            self._uploaded.remove(name)

    def send_metrics(self) -> None:
        with self._sending:
            self._metrics.send()

    @contextmanager
    def metrics_sent(self) -> Iterator[None]:
        """Send metrics every few seconds, and at the end."""

        def send() -> None:
            try:
                self.send_metrics()
            except Exception as error:  # the metrics are on disk and sent again; training continues
                print(f"warning: metrics could not be sent yet: {error}", flush=True)

        with repeated(send, FOLLOW_SECONDS):
            yield
        self.send_metrics()


def copies_of_checkpoints(names: Iterable[str]) -> dict[str, list[str]]:
    """Return the folders of checkpoints that have a manifest: path without the writer -> its copies, with their writers.

    `names` are those of files, relative to the folder of all checkpoints; checkpoints of older code have no writer.
    """
    found: dict[str, list[str]] = {}
    for copy in (os.path.dirname(name) for name in names if name.endswith(f"/{CHECKPOINT_MANIFEST}")):
        writer, _, local = copy.partition("/")
        found.setdefault(local if writer.startswith(f"{WRITER}-") else copy, []).append(copy)
    return found


def _state(file: Path) -> FileState:
    found = file.stat()
    return found.st_mtime_ns, found.st_size, found.st_ino


def _named(prefix: str, folder: Path) -> dict[str, Path]:
    """Return the files below `folder`, by `prefix` and their path in it."""
    if not folder.is_dir():
        return {}
    files = files_below(folder)
    return {str(Path(prefix, *Path(name).parts[1:])): file for name, file in files.items()}
