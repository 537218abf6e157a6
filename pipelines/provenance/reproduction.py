"""`python -m pipelines reproduce RUN_ID`: the same code, parameters and inputs once more, and every number compared.

The worktree holds the run's commit with its stored patch, params.yaml with the run's values, and the inputs that it read, found by
digest in the workspace, in scratch, in DVC's cache or a DVC remote. The stages run there with a scratch root and a tracking store
of their own, so that nothing is taken from a cache and nothing of the user's is written.
"""

import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from components.errors import DataError, ParameterError
from pipelines.dvc_files.dvc_lock import LOCK_FILE
from pipelines.errors import InfrastructureError
from pipelines.graph import find
from pipelines.identity.closure import ROOT
from pipelines.identity.fingerprint import digest, tree_digests
from pipelines.provenance.lineage import Step, finder, manifest_of, trace
from pipelines.provenance.result_differences import Comparison, compare, show
from pipelines.provenance.run_checks import patch_text
from pipelines.records.manifests import Manifest, producers, read_manifest
from pipelines.records.provenance import environment, hardware
from pipelines.scratch.folder import folder_stem, put_in_place
from pipelines.workspace import Workspace

if TYPE_CHECKING:
    from mlflow import MlflowClient


def reproduce(
    target: str, workspace: Workspace, *, first: str | None = None, whole: bool = False, keep: bool = False
) -> None:
    """Run the stage of `target` (a run id, or a path that it wrote) again and compare; from stage `first` on, or the `whole` chain.

    Raises DataError when a number or a byte differs or something needed is not there, StageFailedError when the stage fails.
    """
    from pipelines.tracking.runs import connect

    client = connect(workspace).client
    manifest = manifest_of(target, workspace, client)
    if "provenance" not in manifest:
        raise DataError(
            f"reproduce: run {manifest.get('run')} does not say where it comes from: run its stage again first"
        )
    steps = _steps(trace(manifest, finder(workspace.home, client)), first, whole)
    known = manifest["provenance"]
    print(f"{manifest['stage']} {manifest['fingerprint'][:8]}: commit {known['revision']['commit'][:8]}", flush=True)
    for line in _unlike(known):
        print(f"note: {line}", flush=True)
    with _worktree(manifest, client, keep) as root:
        _write_params(root, steps)
        _bring_inputs(root, steps, workspace)
        comparisons = []
        for step in steps:
            _run(step, root)
            comparisons.append(_compared(step, root))
        for comparison in comparisons:
            show(comparison)
    unlike = [comparison for comparison in comparisons if not comparison.same]
    if unlike:
        raise DataError(f"reproduce: {', '.join(one.address for one in unlike)} came out differently")


def _steps(last: Step, first: str | None, whole: bool) -> list[Step]:
    """The stage runs to repeat, each after what it reads."""
    order: list[Step] = []

    def visit(step: Step) -> None:
        for source in step.sources:
            if source.step:
                visit(source.step)
        if step not in order:
            order.append(step)

    visit(last)
    if whole:
        return order
    if first is None:
        return [last]
    find(first)  # says what there is when there is no such stage
    begin = next((step for step in order if step.address == first), None)
    if begin is None:
        before = ", ".join(step.address for step in order)
        raise ParameterError(f"reproduce: --from {first}: {last.address} does not come from it; one of {before}")
    return [step for step in order if step is begin or _comes_from(step, begin)]


def _comes_from(step: Step, origin: Step) -> bool:
    return any(source.step and (source.step is origin or _comes_from(source.step, origin)) for source in step.sources)


def _unlike(known: Mapping[str, Any]) -> Iterator[str]:
    """What of the surroundings differs from the run's: reasons for which bytes may differ."""
    now = {**environment(), **hardware()}
    for name, value in {**known["environment"], **known["hardware"]}.items():
        if now.get(name) != value:
            yield f"{name} was {value}, here it is {now.get(name, 'none')}"


@contextmanager
def _worktree(manifest: Manifest, client: "MlflowClient", keep: bool) -> Iterator[Path]:
    """The run's code in a folder of its own: its commit, and its patch."""
    revision = manifest["provenance"]["revision"]
    if not revision["commit"] or _git(ROOT, "cat-file", "-e", f"{revision['commit']}^{{commit}}").returncode:
        commit = revision["commit"] or "unknown"
        raise DataError(
            f"reproduce: commit {commit} is not in this repository: `git fetch` it, or use the clone that has it"
        )
    if revision["left_out"]:
        missing = ", ".join(revision["left_out"])
        raise DataError(f"reproduce: the run's patch does not hold {missing}: its code cannot be made again")
    folder = Path(tempfile.mkdtemp(prefix="reproduce-"))
    root = folder / "code"
    try:
        made = _git(ROOT, "worktree", "add", "--detach", str(root), revision["commit"])
        if made.returncode:
            raise InfrastructureError(f"reproduce: git worktree add failed: {made.stderr.strip().splitlines()[-1]}")
        if revision["patch"]:
            _apply(root, patch_text(manifest["run"], client), revision["patch"])
        yield root
    finally:
        if keep:
            print(f"kept: {root} (remove it with `git worktree remove --force {root}`)")
        else:
            _git(ROOT, "worktree", "remove", "--force", str(root))
            shutil.rmtree(folder, ignore_errors=True)


def _apply(root: Path, patch: str | None, expected: str) -> None:
    if patch is None or hashlib.sha256(patch.encode()).hexdigest() != expected:
        raise DataError("reproduce: the run's patch is missing or not the one that it was stamped with")
    applied = subprocess.run(
        ["git", "-C", str(root), "apply", "--binary", "--whitespace=nowarn"],
        input=patch.encode(),
        capture_output=True,
        check=False,
    )
    if applied.returncode:
        reason = applied.stderr.decode().strip().splitlines()[0]
        raise DataError(f"reproduce: the run's patch does not fit its commit: {reason}")


def _write_params(root: Path, steps: list[Step]) -> None:
    """params.yaml of the commit with the values that the runs read."""
    path = root / "params.yaml"
    document = yaml.safe_load(path.read_text(encoding="utf-8"))
    for step in steps:
        document |= step.manifest["provenance"]["parameters"]
    path.write_text(yaml.safe_dump(document, sort_keys=False), encoding="utf-8")


def _bring_inputs(root: Path, steps: list[Step], workspace: Workspace) -> None:
    """What the steps read and none of them writes, checked by digest."""
    written = {path for step in steps for path in step.outputs}
    for path, sha256 in {s.path: s.sha256 for step in steps for s in step.sources if s.path not in written}.items():
        found = next((place for place in _places(path, root, workspace) if digest(tree_digests(place)) == sha256), None)
        if found is None:
            raise DataError(
                f"reproduce: {path} with SHA-256 {sha256[:8]} is neither in the workspace nor in scratch, and DVC cannot pull it"
            )
        if found != root / path:
            put_in_place(found, root / path)


def _places(path: str, root: Path, workspace: Workspace) -> Iterator[Path]:
    """Where the bytes of `path` may be, the nearest first; asks DVC last."""
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
            _dvc(root, verb, "--force", path)
            yield root / path


def _share_cache(theirs: Path, ours: Path) -> None:
    """DVC in `ours` uses the cache and the remotes of `theirs`, and its configuration that is in no commit."""
    for name in ("config", "config.local"):
        if (theirs / ".dvc" / name).is_file():
            shutil.copyfile(theirs / ".dvc" / name, ours / ".dvc" / name)
    cache = _dvc(theirs, "cache", "dir").stdout.strip()
    _dvc(ours, "config", "--local", "cache.dir", cache)


def _run(step: Step, root: Path) -> None:
    known = step.manifest["provenance"]
    environ = {name: value for name, value in os.environ.items() if not name.startswith(("PIPELINES_", "DVC_"))}
    compute = {key: value for key, value in os.environ.items() if key.startswith("PIPELINES_COMPUTE__")}
    command = [sys.executable, "-m", "pipelines", "--workspace", str(root), "run", step.address]
    finished = subprocess.run(
        command,
        cwd=root,
        env={
            **environ,
            **compute,
            "PYTHONPATH": str(root),
            "PIPELINES_HOME": str(_home(root)),
            "PIPELINES_COMPUTE__THREADS": str(known["threads"]),
            "MLFLOW_TRACKING_URI": f"sqlite:///{root.parent / 'mlflow.db'}",
        },
        check=False,
    )
    if finished.returncode:
        raise InfrastructureError(f"reproduce: {step.address} failed with exit code {finished.returncode}")


def _home(root: Path) -> Path:
    return root.parent / "runs"


def _compared(step: Step, root: Path) -> Comparison:
    pattern = f"{folder_stem(step.address)}-*/DONE.json"
    again = next((done for done in map(read_manifest, _home(root).glob(pattern)) if done), None)
    if again is None:
        raise InfrastructureError(f"reproduce: {step.address} left no manifest")
    return compare(step.manifest, again)


def _git(root: Path, *arguments: str) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(["git", "-C", str(root), *arguments], capture_output=True, text=True, check=False)


def _dvc(root: Path, *arguments: str) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        [sys.executable, "-m", "dvc", *arguments], cwd=root, capture_output=True, text=True, check=False
    )
