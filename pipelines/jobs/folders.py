"""The folders of a job's ranks: inputs, checkpoints and outputs.

With a shared folder they are in the storage itself: every node sees one scratch folder, `runs/<key>`. With a bucket each rank has
its own temporary folder; the checkpoints are downloaded when it begins, and those of rank 0 uploaded at each save. So all ranks
begin with the same checkpoints, on any node.

A bucket has no lock, and a process that was cut off may come back beside its successor. So every rank 0 writes its checkpoints
below a name of its own, `checkpoints/writer-<token>/`, deletes none of others', and stops when the object `writer` names a later
process.
"""

import os
import shutil
import tempfile
import threading
import uuid
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path

from pipelines.engine.execution import RankFolders
from pipelines.errors import InfrastructureError
from pipelines.jobs.task import METRICS, JobTask, output_folder, run_folder
from pipelines.scratch.folder import Scratch, put_in_place
from pipelines.scratch.storage import Storage, files_below

FOLLOW_SECONDS = 2.0
WRITER = "writer"
"""The object that names the present writer of a run in a bucket, and the beginning of that name."""


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
                yield RankFolders(scratch.folder / "root", scratch)
                scratch.require_holder()
            else:
                bucket = _BucketRun(self.storage, self.task.key, Scratch(Path(folder)))
                self.place_inputs(Path(folder) / "root")
                if rank == 0:
                    bucket.take_over()
                bucket.download()
                with bucket.metrics_sent() if rank == 0 else nullcontext():
                    yield RankFolders(Path(folder) / "root", bucket.scratch, bucket.upload_checkpoints)
                if rank == 0:
                    bucket.require_writer()
                scratch = bucket.scratch
            if rank == 0:
                written = {**_named("writing", scratch.writing), **_named("figures", scratch.figures)}
                if scratch.metrics_file.exists():
                    written[METRICS] = scratch.metrics_file
                self.storage.publish(written, output_folder(self.task.key))

    def place_inputs(self, root: Path) -> None:
        """Put the inputs below `root`, at their paths in the workspace."""
        for path, name in self.task.inputs.items():
            if self.storage.folder:
                self.storage.require_whole(name, self.storage.folder / name)
                put_in_place(self.storage.folder / name / Path(path).name, root / path)
                continue
            with tempfile.TemporaryDirectory(prefix="job-input-") as folder:
                self.storage.fetch(name, Path(folder))
                (root / path).parent.mkdir(parents=True, exist_ok=True)
                shutil.move(Path(folder) / Path(path).name, root / path)

    def begin(self) -> None:
        """Once per job, before any rank: delete old outputs, and in a shared folder place the inputs for all ranks."""
        self.storage.delete(output_folder(self.task.key))
        if self.storage.folder:
            scratch = Scratch(self.storage.folder / run_folder(self.task.key))
            scratch.begin()
            shutil.rmtree(scratch.folder / "root", ignore_errors=True)
            self.place_inputs(scratch.folder / "root")


class _BucketRun:
    """A scratch folder whose checkpoints and metrics are kept in a bucket."""

    def __init__(self, storage: Storage, key: str, scratch: Scratch) -> None:
        self.storage = storage
        self.scratch = scratch
        self.remote = run_folder(key)
        self.writer = f"{WRITER}-{uuid.uuid4().hex}"
        self._kept: set[str] = set()  # files that the bucket has, by their paths in `scratch.checkpoints`
        self._uploaded: set[str] = set()  # those that this process put there
        self._sent = ""
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
        """Download the metrics and the checkpoints with a manifest. The checkpoint store checks digests and skips torn ones."""
        names = self.storage.names(self.remote)
        for local, remote in whole_checkpoints(names).items():
            for name in names:
                if os.path.dirname(name) == remote:
                    file = f"{local}/{os.path.basename(name)}"
                    self.storage.get(f"{self.remote}/{name}", self.scratch.checkpoints / file)
                    self._kept.add(file)
        if METRICS in names:
            self.storage.get(f"{self.remote}/{METRICS}", self.scratch.metrics_file)

    def upload_checkpoints(self) -> None:
        """Upload new files, each checkpoint's manifest after its state; then delete what the store has deleted of them."""
        self.require_writer()
        own = f"{self.remote}/checkpoints/{self.writer}"
        here = _named("", self.scratch.checkpoints)
        for name in sorted(here.keys() - self._kept, key=lambda n: (os.path.dirname(n), n.endswith("manifest.json"))):
            self.storage.put(here[name], f"{own}/{name}")
            self._uploaded.add(name)
        self._kept |= self._uploaded
        self.send_metrics()
        for name in sorted(self._uploaded - here.keys()):
            self.storage.delete(f"{own}/{name}")
            self._uploaded.remove(name)

    def send_metrics(self) -> None:
        with self._sending:
            text = self.scratch.metrics_file.read_text(encoding="utf-8") if self.scratch.metrics_file.exists() else ""
            if text != self._sent:
                self.require_writer()
                self.storage.write(f"{self.remote}/{METRICS}", text)
                self._sent = text

    @contextmanager
    def metrics_sent(self) -> Iterator[None]:
        """Send metrics every few seconds, and at the end."""
        ended = threading.Event()

        def follow() -> None:
            while not ended.wait(FOLLOW_SECONDS):
                try:
                    self.send_metrics()
                except Exception as error:  # the metrics are on disk and sent again; training continues
                    print(f"warning: metrics could not be sent yet: {error}", flush=True)

        thread = threading.Thread(target=follow, daemon=True)
        thread.start()
        try:
            yield
        finally:
            ended.set()
            thread.join()
        self.send_metrics()


def whole_checkpoints(names: Iterable[str]) -> dict[str, str]:
    """Return the folders of checkpoints that have a manifest: path without the writer -> path below the run's folder.

    Of a checkpoint that several writers have left, any will do: they are of one computation.
    """
    found = {}
    for folder in (os.path.dirname(name) for name in names if name.endswith("/manifest.json")):
        parts = Path(folder).parts[1:]  # without "checkpoints"; those of older code have no writer
        found["/".join(parts[1:] if parts[0].startswith(f"{WRITER}-") else parts)] = folder
    return found


def _named(prefix: str, folder: Path) -> dict[str, Path]:
    """Return the files below `folder`, by `prefix` and their path in it."""
    if not folder.is_dir():
        return {}
    files = files_below(folder)
    return {str(Path(prefix, *Path(name).parts[1:])): file for name, file in files.items()}
