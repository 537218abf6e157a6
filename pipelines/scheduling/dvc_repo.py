"""DVC's side of `python -m pipelines repro`: what `dvc repro` does around a command, for many stages in one process.

decide         unchanged? in DVC's cache? in its run cache? finished in scratch? to run?
put_in_place   check out of the cache, or out of scratch
before_run     remove the outs
record         save, check against the manifest, commit, and write dvc.lock
"""

import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from components.files import remove
from pipelines.dvc_files.dvc_lock import LOCK_FILE, dvc_md5
from pipelines.errors import InfrastructureError, one_line
from pipelines.graph import StageRun
from pipelines.identity.fingerprint import fingerprint, stage_inputs
from pipelines.identity.known_digests import KnownDigests
from pipelines.scheduling.differences import Definition, changed_inputs, changed_parameters, recorded_md5
from pipelines.scheduling.dvc_project import DvcProject, one_line_errors
from pipelines.scheduling.lock_writer import LockWriter
from pipelines.scheduling.needs import Decision, Need
from pipelines.scheduling.recording import Recorder
from pipelines.scratch.claims import claim
from pipelines.scratch.folder import Scratch, folder_name, put_in_place
from pipelines.scratch.manifest import Manifest
from pipelines.tracking.run_state import RunState
from pipelines.workspace import Workspace


@dataclass(frozen=True)
class Foreseen:
    """What will be at a path when the stage run `writer` is done: the md5, where it is known, and a copy, where there is one."""

    writer: str
    md5: str | None = None
    copy: Path | None = None


class DvcRepo:
    """The DVC repository of a workspace, which is the current folder. For one command, in one thread.

    `targets`, `single_item` and `downstream` are those of the command: they decide the order in which DVC would append to dvc.lock.
    `pull`: what is missing is fetched from the remote. Raises DataError or ParameterError where there is no project.
    """

    def __init__(
        self,
        workspace: Workspace,
        targets: Sequence[str] = (),
        *,
        single_item: bool = False,
        downstream: bool = False,
        pull: bool = False,
    ) -> None:
        self.workspace = workspace
        self._pull = pull
        self._project = DvcProject(workspace)
        self._known = KnownDigests(workspace.home)
        self._recorder = Recorder(self._project.repo, workspace, self._known)
        self._order = lambda: self._project.order(list(targets), single_item=single_item, downstream=downstream)
        self._cached: dict[str, dict[str, Any]] = {}
        """By address the entry of dvc.lock or of the run cache whose outs `decide` has found."""
        if pull:
            self._fetch(self._project.repo.stage_cache.pull, None)

    @one_line_errors()
    def decide(self, run: StageRun, *, force: bool = False, foreseen: Mapping[str, Foreseen] | None = None) -> Decision:
        """Return what `run` needs now that its inputs are in place.

        `foreseen`: for a plan, what paths will hold when the stages before it are done. Raises ParameterError for a params.yaml or
        dvc.yaml that cannot be used, DataError for a dvc.lock.
        """
        foreseen = foreseen or {}
        self._recorder.expected.pop(run.address, None)
        definition, entry = self._project.definition(run), self._project.entries().get(run.address, {})
        if self._pull and not foreseen:
            self._pull_inputs(run)
        now = {
            path: foreseen[path].md5 if path in foreseen else self._project.files.md5(path) for path in definition.deps
        }
        unknown = {path: foreseen[path].writer for path in now if path in foreseen and not now[path]}
        changed = self._changes(definition, entry, now, unknown)
        if force:
            return Decision(self._found_or_run(run, foreseen), ("--force", *changed))
        outs = self._changed_outs(definition, entry) if entry else []
        if not changed and not outs:
            return Decision(Need.UNCHANGED)
        reasons = tuple(changed or outs)
        if all(now.values()):
            cached = self._run_cache(run, now, foreseen) if changed else entry
            if cached and self._is_available(definition, cached):
                self._cached[run.address] = cached
                return Decision(Need.RESTORE if changed else Need.CHECK_OUT, reasons)
        return Decision(self._found_or_run(run, foreseen), reasons)

    def outcome(self, run: StageRun, decision: Decision) -> dict[str, Foreseen]:
        """Return by path what outs of `run` will change to, after `decide` has returned `decision`. For a plan."""
        if decision.need is Need.UNCHANGED:
            return {}
        if decision.need in (Need.CHECK_OUT, Need.RESTORE):
            md5 = recorded_md5(self._cached[run.address], "outs")
            changing = [path for path in run.all_outputs if self._project.files.md5(path) != md5[path]]
            return {path: Foreseen(run.address, md5[path]) for path in changing}
        if decision.need is Need.FOUND:
            outputs = self._scratch(run).outputs
            return {path: Foreseen(run.address, dvc_md5(outputs / path), outputs / path) for path in run.all_outputs}
        return {path: Foreseen(run.address) for path in run.all_outputs}

    @one_line_errors()
    def put_in_place(self, run: StageRun, decision: Decision) -> bool:
        """Put the outs in place that `decide` has found. Return False where the stage has to be run for it.

        That is so for one finished in scratch whose copy there is damaged, whose folder another process holds, or whose MLflow run
        is still open: the runner closes it.
        """
        if decision.need is Need.FOUND:
            return self._from_scratch(run)
        cached, definition = self._cached.pop(run.address), self._project.definition(run)
        with self._project.held():
            for out in self._project.stage_of_entry(cached).outs:
                if self._project.files.md5(out.def_path) == out.hash_info.value:
                    continue
                remove(self.workspace.path(out.def_path))
                # What git keeps is a file of its own, and no link into the cache.
                copied = out.def_path in definition.uncached
                with self._project.repo.stage_cache._cache_type_copy() if copied else nullcontext():
                    out.checkout()
        self._recorder.expected[run.address] = cached
        return True

    def before_run(self, run: StageRun) -> None:
        """Remove the outs, as DVC does before a command: they may be links into its cache, which a stage must not write through."""
        for path in self._project.definition(run).outs:
            remove(self.workspace.path(path))

    @one_line_errors()
    def record(self, runs: Sequence[StageRun]) -> dict[str, str]:
        """Write the entries of these finished runs into dvc.lock, all at once. Return why a run was not recorded, by address."""
        saved, problems = [], {}
        with self._project.held(), self._project.repo.scm_context(quiet=True):
            for run in runs:
                stage = self._project.stage(run)
                if problem := self._recorder.save(run, stage, self._project.params):
                    problems[run.address] = problem
                else:
                    saved.append(stage)
            if saved:
                self._writer.write(saved)
        return problems

    @contextmanager
    def reserved(self, runs: Sequence[StageRun]) -> Iterator[None]:
        """Keep other DVC commands from writing what these runs read and write, as DVC does for the stage that it runs.

        They may read it, so that `dvc status` and `dvc exp show` work. Raises InfrastructureError when one writes it now.
        """
        from dvc.lock import LockError
        from dvc.rwlock import rwlock

        paths = {path for run in runs for path in (*self._project.definition(run).deps, *run.all_outputs)}
        repo = self._project.repo
        hardlink = repo.config["core"].get("hardlink_lock", False)
        # The same text as DVC's own functions write beside the process id, which take these entries for theirs.
        command = " ".join(sys.argv)
        full = [str(self.workspace.path(path)) for path in sorted(paths)]
        held = rwlock(repo.tmp_dir, repo.fs, command, full, [], hardlink)
        try:
            held.__enter__()
        except LockError as error:
            busy = one_line(str(error).partition("\n\n")[0])
            raise InfrastructureError(f"{busy}: wait for it, run again") from None
        try:
            yield
        finally:
            held.__exit__(None, None, None)

    @cached_property
    def _writer(self) -> LockWriter:
        return LockWriter(self._project.repo, self._order)

    def _changes(
        self,
        definition: Definition,
        entry: Mapping[str, Any],
        now: Mapping[str, str | None],
        unknown: Mapping[str, str],
    ) -> list[str]:
        if not entry:
            missing = [f"{path} is missing" for path, md5 in now.items() if md5 is None and path not in unknown]
            return [f"not in {LOCK_FILE}", *missing]
        command = [] if entry.get("cmd") == definition.cmd else ["its command changed"]
        parameters = changed_parameters(definition, entry, self._project.parameters)
        return [*parameters, *command, *changed_inputs(definition, entry, now, unknown)]

    def _changed_outs(self, definition: Definition, entry: Mapping[str, Any]) -> list[str]:
        recorded = recorded_md5(entry, "outs")
        lines = []
        for path in definition.outs:
            now = self._project.files.md5(path)
            if path not in recorded:
                lines.append(f"{path} is not in {LOCK_FILE}")
            elif now is None:
                lines.append(f"{path} is missing")
            elif now != recorded[path]:
                lines.append(f"{path} changed")
            elif path not in definition.uncached and not self._project.is_cached(now):
                lines.append(f"{path} is not in DVC's cache")
        return lines

    def _run_cache(
        self, run: StageRun, now: Mapping[str, str | None], foreseen: Mapping[str, Foreseen]
    ) -> dict[str, Any] | None:
        """Return the newest entry of DVC's run cache for these inputs."""
        from dvc_data.hashfile.hash_info import HashInfo
        from dvc_data.hashfile.meta import Meta

        stage = self._project.stage(run)
        for dep in stage.deps:
            if dep.def_path in foreseen:
                dep.hash_info, dep.meta = HashInfo("md5", now[dep.def_path]), Meta()
            else:
                dep.save()
        found: dict[str, Any] | None = self._project.repo.stage_cache._load(stage)
        return found

    def _is_available(self, definition: Definition, cached: Mapping[str, Any]) -> bool:
        """Return whether every out of this entry is in DVC's cache, or in place; with `pull` it is fetched."""
        project, md5 = self._project, recorded_md5(cached, "outs")
        if not all(md5.get(path) for path in definition.outs):
            return False
        # What git keeps is in the cache only where a stage ran on this machine.
        wanted = [
            path for path in definition.outs if path not in definition.uncached or project.files.md5(path) != md5[path]
        ]

        def missing() -> bool:
            return not all(project.is_cached(str(md5[path])) for path in wanted)

        if self._pull and missing():
            for objects in project.stage_of_entry(cached).get_used_objs().values():
                self._fetch(project.repo.cloud.pull, objects)
        return not missing()

    def _found_or_run(self, run: StageRun, foreseen: Mapping[str, Foreseen]) -> Need:
        params, root = self._project.params(), self.workspace.root
        inputs: dict[str, Path] = {}
        for name, path in stage_inputs(run, params, root).items():
            place = foreseen[path].copy if path in foreseen else self.workspace.path(path)
            if place is None or not place.exists():
                return Need.RUN  # the runner says what is missing
            inputs[name] = place
        identity = fingerprint(run, params.only(run.stage.reads), inputs, params.compute.threads, self._known)
        self._recorder.fingerprints[run.address] = identity
        scratch = self._scratch(run)
        done = Manifest.read(scratch.manifest_file)
        return Need.FOUND if done and all((scratch.outputs / path).exists() for path in done.outputs) else Need.RUN

    def _from_scratch(self, run: StageRun) -> bool:
        scratch = self._scratch(run)
        state = RunState.find(scratch.folder)
        if state is not None and not state.closed:
            return False
        try:
            with scratch.lock(timeout=0.0):
                claim(scratch.folder, self.workspace.root)
                done = scratch.done()
                for path in done.outputs if done else ():
                    put_in_place(scratch.outputs / path, self.workspace.path(path))
        except InfrastructureError:
            return False
        return done is not None

    def _scratch(self, run: StageRun) -> Scratch:
        return Scratch(self.workspace.home / folder_name(run.address, self._recorder.fingerprints[run.address]))

    def _pull_inputs(self, run: StageRun) -> None:
        for path in run.inputs.values():
            if not self.workspace.path(path).exists():
                self._fetch(self._project.repo.pull, path)

    def _fetch(self, pull: Callable[[Any], object], what: Any) -> None:
        """Fetch from the remote. What it lacks is made here, as DVC does."""
        from dvc.exceptions import DvcException

        try:
            pull(what)
        except DvcException as error:
            print(f"warning: --pull: {one_line(error)}", file=sys.stderr, flush=True)
