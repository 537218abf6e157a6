"""What DVC knows of a project, read once for all stages: dvc.yaml, dvc.lock, git, settings, the hashes of files.

DVC's own objects of a stage are made only where they are needed: for the whole pipeline they cost a second.
"""

import logging
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from components.errors import DataError, ParameterError
from pipelines.dvc_files.dvc_lock import LOCK_FILE, read_entries
from pipelines.errors import InfrastructureError, one_line
from pipelines.graph import StageRun
from pipelines.locks.waiting import lock_timeout
from pipelines.params import Parameters, load
from pipelines.scheduling.differences import PARAMETERS, Definition, PresentFiles, PresentParameters, file_state
from pipelines.workspace import Workspace

if TYPE_CHECKING:
    from dvc.stage import PipelineStage


@contextmanager
def one_line_errors() -> Iterator[None]:
    """Turn an error of DVC inside the block into a DataError, whose one line is DVC's reason."""
    from dvc.exceptions import DvcException

    try:
        yield
    except DvcException as error:
        raise DataError(f"DVC: {one_line(error)}") from error


def silence_progress_bars() -> None:
    """Turn DVC's bars off, one for each file that is hashed: they would run through the view of the stages."""
    for name in ("dvc.progress", "dvc_data.callbacks"):  # whose level they ask
        logging.getLogger(name).setLevel(logging.CRITICAL)


class DvcProject:
    """The project in the workspace's root, which is the current folder. Raises DataError or ParameterError where there is none."""

    def __init__(self, workspace: Workspace) -> None:
        from dvc.dvcfile import load_file
        from dvc.exceptions import DvcException, NotDvcRepoError
        from dvc.repo import Repo

        silence_progress_bars()
        self.workspace = workspace
        try:
            self.repo = Repo(str(workspace.root))
            self._file: Any = load_file(self.repo, str(workspace.path("dvc.yaml")))
            self._names = set(self._file.resolver.get_keys())
            if Path(self.repo.root_dir) != workspace.root:
                raise NotDvcRepoError
        except NotDvcRepoError:
            raise DataError(f"{workspace.root} is not a DVC repository: run in a checkout of the project") from None
        except DvcException as error:
            raise ParameterError(f"dvc.yaml: {one_line(error)}: `python -m pipelines dag` writes it") from error
        self.files = PresentFiles(self.repo)
        self.parameters = PresentParameters(workspace.root)
        self._definitions: dict[str, tuple[Definition, Any]] = {}
        self._lock_read: tuple[object, dict[str, dict[str, Any]]] = (None, {})
        self._params_read: tuple[object, Parameters | None] = (None, None)

    def definition(self, run: StageRun) -> Definition:
        """Return the stage as dvc.yaml defines it. Raises ParameterError where that is not what the graph says."""
        return self._resolved(run)[0]

    def stage(self, run: StageRun) -> "PipelineStage":
        """Return a new object of DVC for the stage, with what dvc.lock holds of it."""
        from dvc.stage.loader import StageLoader

        stage: PipelineStage = StageLoader.load_stage(
            self._file, run.address, self._resolved(run)[1], self.entries().get(run.address, {})
        )
        return stage

    def stage_of_entry(self, entry: Mapping[str, Any]) -> "PipelineStage":
        """Return DVC's object for an entry of dvc.lock or of the run cache; it can check out every out, also what git keeps."""
        stage: PipelineStage = self.repo.stage_cache._create_stage(entry, wdir=str(self.workspace.root))
        return stage

    def entries(self) -> dict[str, dict[str, Any]]:
        """Return the entries of dvc.lock by address, {} without the file. Raises DataError when it cannot be read."""
        state = file_state(self.workspace.path(LOCK_FILE))
        if self._lock_read[0] != state:
            self._lock_read = (state, read_entries(self.workspace.root) if state else {})
        return self._lock_read[1]

    def params(self) -> Parameters:
        """Return params.yaml as it is now. Raises ParameterError."""
        file = self.workspace.path(PARAMETERS)
        state, (known, params) = file_state(file), self._params_read
        if params is None or known != state:
            params = load(file, for_dvc=True)
            self._params_read = (state, params)
        return params

    def is_cached(self, md5: str) -> bool:
        """Return whether DVC's cache holds a file or a folder, with all that is in it."""
        from dvc_data.hashfile import check, load
        from dvc_data.hashfile.hash_info import HashInfo
        from dvc_objects.errors import ObjectFormatError

        cache = self.repo.cache.local
        try:
            check(cache, load(cache, HashInfo("md5", md5)))
        except (FileNotFoundError, ObjectFormatError):
            return False
        return True

    def order(self, targets: list[str], *, single_item: bool, downstream: bool) -> list[str]:
        """Return the names of stages in the order in which `dvc repro` with these options runs them. Takes a second."""
        from dvc.repo.reproduce import collect_stages, get_active_graph, plan_repro

        stages: list[Any] = collect_stages(self.repo, targets or ["dvc.yaml"])
        if not single_item:
            stages = plan_repro(get_active_graph(self.repo.index.graph), stages, downstream=downstream)
        return [stage.name for stage in stages if stage.path == self._file.path]

    @contextmanager
    def held(self) -> Iterator[None]:
        """Hold DVC's lock of the repository. Commands that only read hold it for a moment, `dvc push` for as long as it takes.

        Raises InfrastructureError after PIPELINES_LOCK_TIMEOUT seconds.
        """
        from dvc.lock import LockError

        started = time.monotonic()
        while True:
            try:
                self.repo.lock.lock()
                break
            except LockError:
                if time.monotonic() - started > lock_timeout():
                    raise InfrastructureError("another DVC command holds the repository's lock: run again") from None
        try:
            yield
        finally:
            self.repo.lock.unlock()

    def _resolved(self, run: StageRun) -> tuple[Definition, Any]:
        address = run.address
        if address not in self._definitions:
            resolved = self._file.resolver.resolve_one(address)[address] if address in self._names else {"cmd": ""}
            definition = Definition.of(resolved)
            reads, writes = set(run.inputs.values()), set(run.all_outputs)
            if not reads <= set(definition.deps) or writes != set(definition.outs):
                raise ParameterError(
                    f"dvc.yaml: {address} is not as in pipelines/graph.py: run `python -m pipelines dag`"
                )
            self._definitions[address] = definition, resolved
        return self._definitions[address]
