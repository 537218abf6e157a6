"""`python -m pipelines reproduce RUN_ID`: runs the same code with the same parameters and inputs again, and compares all results.

A git worktree gets the run's commit with its stored patch, params.yaml with the run's values, and the inputs that it read, found by
digest in the workspace, in scratch, in DVC's cache or a DVC remote. The stages run there with a scratch root, a tracking store and,
as jobs, a storage prefix of their own, so that nothing is taken from a cache and nothing of the user's is overwritten.
"""

import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from components.errors import DataError, ParameterError
from pipelines.dvc_files.dvc_lock import LOCK_FILE
from pipelines.errors import InfrastructureError
from pipelines.graph import find_default, producers
from pipelines.identity.closure import ROOT
from pipelines.identity.fingerprint import digest, tree_digests
from pipelines.params import PREFIX, as_environment, load
from pipelines.provenance.lineage import Step, find_manifest, trace
from pipelines.provenance.result_differences import ResultComparison, compare, show
from pipelines.provenance.run_checks import download_patch
from pipelines.records import stage_record
from pipelines.schema.reading import read_yaml, to_yaml
from pipelines.scratch.folder import folder_stem, put_in_place
from pipelines.scratch.manifest import MANIFEST_FILE, Manifest, StageRecord
from pipelines.scratch.storage import Storage
from pipelines.tracking.addresses import sqlite_uri
from pipelines.workspace import Workspace, run_dvc, run_git

if TYPE_CHECKING:
    from mlflow import MlflowClient


def reproduce(
    target: str,
    workspace: Workspace,
    *,
    first: str | None = None,
    whole: bool = False,
    keep: bool = False,
    as_jobs: bool = False,
) -> None:
    """Repeat the stage of `target` (a run id, or a path that it wrote) and compare; from stage `first` on, or the `whole` chain.

    Each step has the parameters, workers, strategy and device of its own run. Stages run here, or `as_jobs` on the cluster of
    params.yaml, with a prefix in its storage that is deleted at the end. Raises DataError when a metric or a byte differs or
    something needed is missing, InfrastructureError when a stage fails, ParameterError for a stage of pre-training.
    """
    from pipelines.tracking.runs import connect

    tracker = connect(workspace, create=False)
    client = tracker.client
    manifest = find_manifest(target, workspace, tracker)
    find_default(manifest.stage)  # raises for a stage of pre-training, whose parameters are not in params.yaml
    record = _record(manifest)
    steps = _steps(trace(manifest, workspace.home, client), first, whole)
    print(f"{manifest.stage} {manifest.fingerprint[:8]}: commit {record.revision.commit[:8]}", flush=True)
    for line in _environment_differences(record):
        print(f"note: {line}", flush=True)
    with _worktree(manifest, client, keep) as root, _job_storage(workspace, as_jobs, root.parent.name) as storage:
        _place_inputs(root, steps, workspace)
        comparisons = []
        for step in steps:
            _write_params(root, _record(step.manifest))
            _run(step, root, storage)
            comparisons.append(_compare(step, root))
        for comparison in comparisons:
            show(comparison)
    different = [comparison.address for comparison in comparisons if not comparison.same]
    if different:
        raise DataError(f"reproduce: the results of {', '.join(different)} differ")


def _record(manifest: Manifest) -> StageRecord:
    if manifest.provenance is None:
        raise DataError(f"reproduce: run {manifest.run} has no provenance: run its stage again first")
    return manifest.provenance


def _steps(last: Step, first: str | None, whole: bool) -> list[Step]:
    """Return the steps to repeat, each after those that make its inputs."""
    order: list[Step] = []

    def visit(step: Step) -> None:
        for used in step.inputs:
            if used.step:
                visit(used.step)
        if step not in order:
            order.append(step)

    visit(last)
    if whole:
        return order
    if first is None:
        return [last]
    find_default(first)  # raises, with the names that there are, for an unknown stage
    begin = next((step for step in order if step.address == first), None)
    if begin is None:
        before = ", ".join(step.address for step in order)
        raise ParameterError(f"reproduce: --from {first}: {last.address} does not depend on it; choose one of {before}")
    return [step for step in order if step is begin or _depends_on(step, begin)]


def _depends_on(step: Step, origin: Step) -> bool:
    return any(used.step and (used.step is origin or _depends_on(used.step, origin)) for used in step.inputs)


def _environment_differences(record: StageRecord) -> Iterator[str]:
    """Yield what differs in packages and hardware: possible reasons for different bytes."""
    now = {**stage_record.environment(), **stage_record.hardware()}
    for name, value in {**record.environment, **record.hardware}.items():
        if now.get(name) != value:
            yield f"{name} was {value}, here it is {now.get(name, 'none')}"


@contextmanager
def _worktree(manifest: Manifest, client: "MlflowClient", keep: bool) -> Iterator[Path]:
    """A git worktree of the run's commit, with its patch applied."""
    revision = _record(manifest).revision
    if not revision.commit or run_git(ROOT, "cat-file", "-e", f"{revision.commit}^{{commit}}").returncode:
        commit = revision.commit or "unknown"
        raise DataError(f"reproduce: commit {commit} is not here: `git fetch` it, or use the clone that has it")
    if revision.left_out:
        missing = ", ".join(revision.left_out)
        raise DataError(f"reproduce: the run's patch does not hold {missing}: its code cannot be restored")
    folder = Path(tempfile.mkdtemp(prefix="reproduce-"))
    root = folder / "code"
    try:
        made = run_git(ROOT, "worktree", "add", "--detach", str(root), revision.commit)
        if made.returncode:
            raise InfrastructureError(f"reproduce: git worktree add failed: {made.stderr.strip().splitlines()[-1]}")
        if revision.patch:
            _apply(root, download_patch(manifest, client))
        yield root
    finally:
        if keep:
            print(f"kept: {root} (remove it with `git worktree remove --force {root}`)")
        else:
            run_git(ROOT, "worktree", "remove", "--force", str(root))
            shutil.rmtree(folder, ignore_errors=True)


def _apply(root: Path, patch: str | None) -> None:
    if patch is None:
        raise DataError("reproduce: the run's patch is missing, or not the one in its manifest")
    applied = run_git(root, "apply", "--binary", "--whitespace=nowarn", stdin=patch)
    if applied.returncode:
        reason = applied.stderr.strip().splitlines()[0]
        raise DataError(f"reproduce: the run's patch does not apply to its commit: {reason}")


@contextmanager
def _job_storage(workspace: Workspace, as_jobs: bool, name: str) -> Iterator[str | None]:
    """The URL of a new prefix in the storage of params.yaml, which is deleted afterwards; None unless `as_jobs`."""
    if not as_jobs:
        yield None
        return
    storage = load(workspace.path("params.yaml")).compute.storage
    if storage is None:
        raise ParameterError("--jobs needs compute.storage: a folder that every node sees, or s3://bucket/prefix")
    prefix = f"{storage.rstrip('/')}/{name}"
    try:
        yield prefix
    finally:
        Storage(prefix).delete("")


def _write_params(root: Path, record: StageRecord) -> None:
    """Write the values that a run read into params.yaml."""
    path = root / "params.yaml"
    path.write_text(to_yaml(read_yaml(path) | record.parameters), encoding="utf-8")


def _place_inputs(root: Path, steps: list[Step], workspace: Workspace) -> None:
    """Copy the inputs that no step writes, checked by digest."""
    written = {path for step in steps for path in step.outputs}
    needed = {used.path: used.sha256 for step in steps for used in step.inputs if used.path not in written}
    for path, sha256 in needed.items():
        copies = _possible_copies(path, root, workspace)
        found = next((copy for copy in copies if digest(tree_digests(copy)) == sha256), None)
        if found is None:
            raise DataError(
                f"reproduce: {path} with SHA-256 {sha256[:8]} is neither in the workspace nor in scratch, and DVC cannot pull it"
            )
        if found != root / path:
            put_in_place(found, root / path)


def _possible_copies(path: str, root: Path, workspace: Workspace) -> Iterator[Path]:
    """Yield places where the bytes of `path` may be, the nearest first; DVC is asked last."""
    yield root / path
    yield workspace.path(path)
    if path in producers():
        stem = folder_stem(producers()[path].address)
        yield from (folder / "outputs" / path for folder in sorted(workspace.home.glob(f"{stem}-*")))
    locks = [lock.read_bytes() for lock in (root / LOCK_FILE, workspace.path(LOCK_FILE)) if lock.is_file()]
    _share_cache(workspace.root, root)
    for text in locks:
        (root / LOCK_FILE).write_bytes(text)
        for verb in ("checkout", "pull"):
            run_dvc(root, verb, "--force", path)
            yield root / path


def _share_cache(theirs: Path, ours: Path) -> None:
    """Let DVC in `ours` use the cache and the remotes of `theirs`, also those configured outside of git."""
    for name in ("config", "config.local"):
        if (theirs / ".dvc" / name).is_file():
            shutil.copyfile(theirs / ".dvc" / name, ours / ".dvc" / name)
    cache = run_dvc(theirs, "cache", "dir").stdout.strip()
    run_dvc(ours, "config", "--local", "cache.dir", cache)


def _environment(record: StageRecord, root: Path, storage: str | None) -> dict[str, str]:
    """The environment of a repeated stage. The user's own variables for `compute` replace what was recorded, but not the threads:
    results depend on them."""
    environ = {name: value for name, value in os.environ.items() if not name.startswith(("PIPELINES_", "DVC_"))}
    chosen = {name: value for name, value in os.environ.items() if name.startswith(PREFIX)}
    compute: dict[str, object] = {"backend": "local", "threads": record.threads}
    if storage:
        compute |= {"backend": "job", "storage": storage}
    return {
        **environ,
        **as_environment(record.compute),
        **chosen,
        **as_environment(compute),
        "PYTHONPATH": str(root),
        "PIPELINES_HOME": str(_home(root)),
        "MLFLOW_TRACKING_URI": sqlite_uri(root.parent / "mlflow.db"),
    }


def _run(step: Step, root: Path, storage: str | None) -> None:
    command = [sys.executable, "-m", "pipelines", "--workspace", str(root), "run", step.address]
    environment = _environment(_record(step.manifest), root, storage)
    finished = subprocess.run(command, cwd=root, env=environment, check=False)
    if finished.returncode:
        raise InfrastructureError(f"reproduce: {step.address} failed with exit code {finished.returncode}")


def _home(root: Path) -> Path:
    return root.parent / "runs"


def _compare(step: Step, root: Path) -> ResultComparison:
    pattern = f"{folder_stem(step.address)}-*/{MANIFEST_FILE}"
    again = next((done for done in map(Manifest.read, _home(root).glob(pattern)) if done), None)
    if again is None:
        raise InfrastructureError(f"reproduce: {step.address} left no manifest")
    return compare(step.manifest, again)
