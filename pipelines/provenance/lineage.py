"""`python -m pipelines lineage RUN_ID|PATH|STAGE`: from a result back to the raw input, with every run and digest."""

import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from components.errors import DataError, ParameterError
from pipelines import graph
from pipelines.identity.fingerprint import digest, tree_digests
from pipelines.params import load
from pipelines.records.manifests import find_by_content, find_by_run, find_maker
from pipelines.scratch.manifest import Manifest
from pipelines.tracking.run_ids import find_run
from pipelines.tracking.runs import Tracker, connect
from pipelines.workspace import Workspace

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from rich.tree import Tree

SHORT = 8


@dataclass(frozen=True)
class StepInput:
    """One input of a step: its path, the SHA-256 of its tree, and the step that made it (None for raw data, or when unknown)."""

    path: str
    sha256: str
    step: "Step | None"
    unknown: bool
    """Whether a stage made it, but no record names the run."""


@dataclass(frozen=True)
class Step:
    """A finished stage run, its outputs' SHA-256 by path, and its inputs."""

    manifest: Manifest
    outputs: dict[str, str]
    inputs: tuple[StepInput, ...]

    @property
    def address(self) -> str:
        return self.manifest.stage


def trace(manifest: Manifest, home: Path, client: "MlflowClient | None") -> Step:
    """Return the step of `manifest`, linked to all steps before it, whose manifests are in `home` or on the server."""
    steps: dict[str, Step] = {}

    def visit(done: Manifest) -> Step:
        if done.fingerprint not in steps:
            inputs = []
            for path, record in done.inputs.items():
                maker = find_maker(record, home, client)
                unknown = maker is None and path in graph.producers()
                inputs.append(StepInput(path, record.sha256, visit(maker) if maker else None, unknown))
            outputs = {path: digest(files) for path, files in done.outputs.items()}
            steps[done.fingerprint] = Step(done, outputs, tuple(inputs))
        return steps[done.fingerprint]

    return visit(manifest)


def find_stage(target: str, root: Path) -> graph.StageRun | None:
    """Return the stage that writes `target` (a path, or one below it) or has this name; None when no stage does.

    A path is relative to the workspace at `root` or, where no stage writes that, to the current folder; or it is absolute.
    """
    return _find_stage(target) or _find_stage(_path_in(root, target))


def _find_stage(target: str) -> graph.StageRun | None:
    path = target.strip("/").removeprefix("./")
    if path == "reports/index.html":  # rendered from the report's output
        return graph.find("report")
    for output, run in graph.producers().items():
        if path == output or path.startswith(f"{output}/"):
            return run
    try:
        return graph.find(target)
    except ParameterError:
        return None


def find_manifest(target: str, workspace: Workspace, tracker: Tracker) -> Manifest:
    """Return the manifest behind `target`: a run id or its beginning, a path in the workspace, or a stage.

    Raises DataError without one, ParameterError where several ids begin so.
    """
    run = find_stage(target, workspace.root)
    if run is None:
        try:
            made_by = find_run(tracker, target)
        except DataError:
            raise DataError(
                f"{target}: neither a run of this MLflow store, nor a path that a stage writes, nor a stage"
            ) from None
        found = find_by_run(made_by, tracker.client, workspace.home)
        if found is None:
            raise DataError(f"run {target}: has no manifest: it did not finish, or is of code that stored none")
        return found
    params = load(workspace.path("params.yaml"))
    for path in run.all_outputs:
        here = workspace.path(path)
        if here.exists() and (made := find_by_content(path, tree_digests(here), workspace, params)):
            return made
    raise DataError(f"{target}: no finished result of {run.address} has these bytes: run `{graph.command_for(run)}`")


def _path_in(root: Path, target: str) -> str:
    """Return a path that was typed in the current folder as the graph writes it, relative to `root`; anything else unchanged."""
    path = Path(os.path.abspath(target))
    if not (path.exists() or "/" in target):  # a run id, say, typed in the folder of an output
        return target
    # The path itself is not resolved: an output may be a link into DVC's cache.
    path, root = path.parent.resolve() / path.name, root.resolve()
    return path.relative_to(root).as_posix() if path.is_relative_to(root) else target


def lineage(target: str, workspace: Workspace) -> None:
    """Print the tree of steps behind `target`. Raises DataError when nothing is known of it."""
    from pipelines.terminal.console import TableConsole

    tracker = connect(workspace, create=False)
    manifest = find_manifest(target, workspace, tracker)
    TableConsole().print(tree(trace(manifest, workspace.home, tracker.client)))


def tree(step: Step) -> "Tree":
    """Return the steps as a rich tree. A step that occurs several times is expanded once."""
    from rich.tree import Tree

    seen: set[str] = set()
    root = Tree(_label(step))

    def grow(branch: "Tree", step: Step) -> None:
        seen.add(step.manifest.fingerprint)
        for path, content in step.outputs.items():
            branch.add(f"[dim]→ {path} {content[:SHORT]}[/dim]")
        for used in step.inputs:
            leaf = branch.add(f"← {used.path} {used.sha256[:SHORT]}{_origin(used)}")
            if used.step and used.step.manifest.fingerprint in seen:
                leaf.add(f"{_label(used.step)} [dim](above)[/dim]")
            elif used.step:
                grow(leaf.add(_label(used.step)), used.step)

    grow(root, step)
    return root


def _origin(used: StepInput) -> str:
    if used.step:
        return ""
    return " [red]made by an unknown run[/red]" if used.unknown else " [green]raw[/green]"


def _label(step: Step) -> str:
    manifest = step.manifest
    code = "code unknown"
    if manifest.provenance and (revision := manifest.provenance.revision).commit:
        code = f"code {revision.commit[:SHORT]}{' + patch' if revision.dirty else ''}"
    return f"[bold]{step.address}[/bold] {manifest.fingerprint[:SHORT]} run {manifest.run or 'none'}, {code}"
