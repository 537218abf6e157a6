"""`python -m pipelines verify [PATH...]`: checks that results, `dvc.lock`, manifests and MLflow runs still agree.

From each target back to the raw input, every stage is checked: the files in the workspace, `dvc.lock`, the manifest of the stage
and its run in MLflow against each other. Each disagreement is printed as one line.
"""

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

from components.errors import DataError
from pipelines import params
from pipelines.dvc_files.dvc_lock import LOCK_FILE, dvc_md5, read_entries
from pipelines.dvc_files.dvc_yaml import THREADS
from pipelines.errors import REPRO_COMMAND
from pipelines.graph import StageRun, all_runs, find_default, producers, with_upstream
from pipelines.identity.closure import COUNTED, ROOT, stage_sources
from pipelines.identity.fingerprint import LOCK, digest, present_fingerprint, tree_digests
from pipelines.provenance.lineage import find_stage
from pipelines.provenance.run_checks import check_run
from pipelines.records.manifests import download_manifest, find_by_content, find_by_fingerprint, find_maker
from pipelines.records.stage_record import fingerprinted_now
from pipelines.schema.reading import read_yaml
from pipelines.scratch.folder import folder_name
from pipelines.scratch.manifest import InputRecord, Manifest
from pipelines.tracking.runs import Tracker, connect
from pipelines.workspace import Workspace


def verify(targets: Sequence[str], workspace: Workspace) -> None:
    """Check `targets` (paths or stages; default: all) and everything they were made from; print one line per disagreement.

    Raises DataError when there is one, a target is unknown or nothing has been run, InfrastructureError when the tracking server
    does not answer.
    """
    stages = upstream(targets, workspace)
    # Metrics are in git: a fresh clone has those.
    if not any(workspace.path(path).exists() for run in stages for path in run.outputs.values()):
        raise DataError(
            f"verify: nothing has been run here: no output of {_count(len(stages), 'stage')} is there: run "
            f"`{REPRO_COMMAND}`, or `dvc pull`"
        )
    problems = list(Verification(workspace, connect(workspace)).check(stages))
    for line in problems:
        print(line)
    if problems:
        raise DataError(f"verify: {_count(len(problems), 'problem')} in {_count(len(stages), 'stage')}")
    print(f"verified: {_count(len(stages), 'stage')}, back to the raw input")


def _count(number: int, name: str) -> str:
    return f"{number} {name}{'' if number == 1 else 's'}"


def upstream(targets: Sequence[str], workspace: Workspace) -> list[StageRun]:
    """Return the stages that made `targets` and all before them, in the graph's order.

    Raises DataError for an unknown target, ParameterError for a stage of pre-training, which dvc.lock knows nothing of.
    """
    named = []
    for target in targets:
        run = find_stage(target, workspace.root)
        if run is None:
            raise DataError(f"verify: {target}: no stage writes it; give a path from dvc.yaml, or a stage")
        named.append(find_default(run.address))
    return with_upstream(named) if named else all_runs()


class Verification:
    """The checks of one `verify`. Files are read once; a wrong file is reported where it was made, not again where it is read."""

    def __init__(self, workspace: Workspace, tracker: Tracker) -> None:
        self.workspace = workspace
        self.tracker = tracker
        self.params = params.load(workspace.path("params.yaml"))
        self.document: dict[str, Any] = read_yaml(workspace.path("params.yaml"))
        self.entries = read_entries(workspace.root)
        self.reported: set[str] = set()
        """Paths that were reported where they were made."""
        self.md5 = cache(lambda path: dvc_md5(ROOT / path if _is_code(path) else workspace.path(path)))
        self.digests = cache(lambda path: tree_digests(workspace.path(path)))

    def check(self, stages: Iterable[StageRun]) -> Iterator[str]:
        """Yield one line per disagreement."""
        for run in stages:
            for line in self._check_stage(run):
                yield f"{run.address}: {line}"

    def _check_stage(self, run: StageRun) -> Iterator[str]:
        missing = [path for path in [*run.inputs.values(), *run.all_outputs] if not self.workspace.path(path).exists()]
        for path in missing:
            if path in run.all_outputs or path not in producers():
                self.reported.add(path)
                yield f"{path} is not there: run `{REPRO_COMMAND} {run.address}`, or `dvc pull` it"
        yield from self._check_lock(run)
        if any(path in missing for path in run.inputs.values()):
            return  # reported at the stage that makes it
        manifest = self._find_manifest(run)
        if manifest is None:
            yield f"no record of a run that made these outputs: run `{REPRO_COMMAND} --force {run.address}`"
            return
        yield from self._check_manifest(run, manifest)
        yield from self._check_inputs(run, manifest)
        yield from check_run(manifest, self.tracker.client, self.workspace.path(run.curves) if run.curves else None)

    # -- dvc.lock against the files ------------------------------------------------------------------------------------

    def _check_lock(self, run: StageRun) -> Iterator[str]:
        entry = self.entries.get(run.address)
        if entry is None:
            yield f"{LOCK_FILE} has no entry for it: run `{REPRO_COMMAND} {run.address}`"
            return
        if entry["cmd"] != f"python -m pipelines run {run.address}":
            yield f"{LOCK_FILE} has another command: {entry['cmd']}"
        deps = {dep["path"]: dep.get("md5") for dep in entry.get("deps", [])}
        if missing := sorted({*run.inputs.values(), *stage_sources(run.stage, ROOT), LOCK} - set(deps)):
            yield f"{LOCK_FILE} does not list {_shorten(missing)} among the inputs: run `{REPRO_COMMAND} {run.address}`"
        for path, md5 in deps.items():
            if path not in self.reported and self.md5(path) != md5:
                hint = "edited by hand, or of another run" if path in producers() else "changed since"
                yield f"{path} is not what {LOCK_FILE} says was read: {hint}"
        for out in entry.get("outs", []):
            if out["path"] not in self.reported and self.md5(out["path"]) != out.get("md5"):
                self.reported.add(out["path"])
                yield f"{out['path']} is not what {LOCK_FILE} says was written: edited by hand, or of another run"
        if missing := sorted(set(run.all_outputs) - {out["path"] for out in entry.get("outs", [])}):
            yield f"{LOCK_FILE} does not list {_shorten(missing)} among the outputs: run `{REPRO_COMMAND} {run.address}`"
        written = entry.get("params", {}).get("params.yaml", {})
        read = {key: self.document.get(key) for key in run.stage.reads}
        for key, value in {**read, THREADS: (self.document.get("compute") or {}).get("threads")}.items():
            if written.get(key) != value:
                yield f"params.yaml: {key} is not what {LOCK_FILE} says was read: `dvc params diff` shows how"

    # -- the manifest against the files and the code --------------------------------------------------------------------

    def _find_manifest(self, run: StageRun) -> Manifest | None:
        """Return the manifest of the current fingerprint, else one with the same output bytes, else the copy on the server."""
        identity = present_fingerprint(run, self.params, self.workspace.root)
        if stored := find_by_fingerprint(run.address, identity, self.workspace.home):
            return stored
        for path in run.all_outputs:
            if found := find_by_content(path, self.digests(path), self.workspace, self.params):
                return found
        finished = self.tracker.find_finished_run(identity)
        return download_manifest(finished.info.run_id, self.tracker.client) if finished else None

    def _check_manifest(self, run: StageRun, manifest: Manifest) -> Iterator[str]:
        name = folder_name(run.address, manifest.fingerprint)
        stored = self.workspace.home / name / "outputs"
        for path, files in manifest.outputs.items():
            if (stored / path).exists() and tree_digests(stored / path) != files:
                yield f"{path} as stored in {name} is not what its manifest says: the stored copy is damaged"
            if self.workspace.path(path).exists() and self.digests(path) != files:
                self.reported.add(path)
                yield f"{path} is not what the manifest {name} says: {_differing(self.digests(path), files)} was edited by hand"
        if _metrics(self.workspace.path(run.metrics)) != manifest.metrics:
            yield f"{run.metrics} has other numbers than the manifest {name}"
        record = manifest.provenance
        if record is None:
            yield f"the manifest {name} has no provenance: run `{REPRO_COMMAND} --force {run.address}`"
            return
        if not record.revision.commit:
            yield f"the manifest {name} names no commit: it was made where git could not be read, and its code cannot be found"
        now = fingerprinted_now(run, self.params)
        for part, then in record.fingerprinted.items():
            if then != now[part]:
                yield f"the manifest {name} is of other {part} than are here"

    def _check_inputs(self, run: StageRun, manifest: Manifest) -> Iterator[str]:
        """Check the inputs in the manifest against the files, and against the manifests of the stages that made them."""
        for path in run.inputs.values():
            record = manifest.inputs.get(path)
            if record is None:
                if manifest.inputs:
                    yield f"its manifest does not list {path} among the inputs"
                continue
            if path not in self.reported and digest(dict(self.digests(path))) != record.sha256:
                yield f"{path} is not what its run read"
            if path in producers():
                yield from self._check_maker(path, record)

    def _check_maker(self, path: str, record: InputRecord) -> Iterator[str]:
        if not record.fingerprint:
            yield f"no record of the run that made {path}: run `{REPRO_COMMAND} {producers()[path].address}` and this stage again"
            return
        made = find_maker(record, self.workspace.home, self.tracker.client)
        if made is None:  # removed since; another run may have made the same bytes
            made = find_by_content(path, self.digests(path), self.workspace, self.params)
        if made is None:
            yield f"the run that made {path} ({record.run or 'unknown'}) has no manifest"
        elif digest(made.outputs.get(path)) != record.sha256:
            yield f"{path}: the manifest of {record.stage} lists other bytes than were read"


def _is_code(path: str) -> bool:
    """Return whether `path` is read from the running checkout, as by the fingerprint, and not from the workspace."""
    return path == LOCK or path.startswith(tuple(f"{package.split('.')[0]}/" for package in COUNTED))


def _metrics(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None


def _differing(now: Mapping[str, str], then: Mapping[str, str]) -> str:
    return _shorten(sorted(name for name in {*now, *then} if now.get(name) != then.get(name)))


def _shorten(names: Sequence[str]) -> str:
    """Return the first of `names` and how many more; "it" for a plain file, which has no name in its tree."""
    first = names[0] or "it"
    return first if len(names) == 1 else f"{first} (and {len(names) - 1} more)"
