"""`python -m pipelines lineage RUN_ID|PATH|STAGE`: from a result back to the raw input, with every run and digest."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from components.errors import DataError, ParameterError
from pipelines import graph
from pipelines.identity.fingerprint import digest, tree_digests
from pipelines.records.manifests import Manifest, by_fingerprint, by_run, from_server, maker_of, producers
from pipelines.workspace import Workspace

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from rich.tree import Tree

SHORT, WIDE = 8, 200


@dataclass(frozen=True)
class Source:
    """One input of a step: its path, the SHA-256 of its tree, and the step that made it (None for raw data, or when unknown)."""

    path: str
    sha256: str
    step: "Step | None"
    unknown: bool
    """Whether a stage made it, but no record says which run."""


@dataclass(frozen=True)
class Step:
    """A finished stage run, its outputs' SHA-256 by path, and what it read."""

    manifest: Manifest
    outputs: dict[str, str]
    sources: tuple[Source, ...]

    @property
    def address(self) -> str:
        return str(self.manifest["stage"])

    @property
    def run(self) -> str:
        return str(self.manifest.get("run") or "")


def trace(manifest: Manifest, find: Callable[[dict[str, Any]], Manifest | None]) -> Step:
    """The step of `manifest` and all before it. `find` gives the manifest that an input's record names."""
    known: dict[str, Step] = {}

    def walk(done: Manifest) -> Step:
        if done["fingerprint"] not in known:
            sources = []
            for path, record in done.get("provenance", {}).get("inputs", {}).items():
                upstream = find({**record, "path": path})
                unknown = upstream is None and path in producers()
                sources.append(Source(path, record["sha256"], walk(upstream) if upstream else None, unknown))
            outputs = {path: digest(files) for path, files in done["outputs"].items()}
            known[done["fingerprint"]] = Step(done, outputs, tuple(sources))
        return known[done["fingerprint"]]

    return walk(manifest)


def finder(home: Path, client: "MlflowClient | None") -> Callable[[dict[str, Any]], Manifest | None]:
    """Finds an input's maker in `home`, else by its run on the server."""

    def find(record: dict[str, Any]) -> Manifest | None:
        if not record.get("fingerprint"):
            return None
        stored = by_fingerprint(record["stage"], record["fingerprint"], home)
        if stored or client is None or not record.get("run"):
            return stored
        return from_server(record["run"], client)

    return find


def stage_of(target: str) -> graph.StageRun | None:
    """The stage that writes `target` (a path, or one below it), or is called so; None when no stage does."""
    path = target.strip("/").removeprefix("./")
    if path == "reports/index.html":  # rendered from the report's output
        return graph.find("report")
    for output, run in producers().items():
        if path == output or path.startswith(f"{output}/"):
            return run
    try:
        return graph.find(target)
    except ParameterError:
        return None


def manifest_of(target: str, workspace: Workspace, client: "MlflowClient") -> Manifest:
    """What made `target`: a run id, a path in the workspace, or a stage. Raises DataError when nothing is known."""
    from mlflow.exceptions import MlflowException

    run = stage_of(relative(target, workspace))
    if run is None:
        try:
            found = by_run(target, client, workspace.home)
        except MlflowException:
            raise DataError(
                f"{target}: neither a run of this MLflow store, nor a path that a stage writes, nor a stage"
            ) from None
        if found is None:
            raise DataError(
                f"run {target}: has no manifest: it did not finish, or was made before provenance was stored"
            )
        return found
    for path in run.all_outputs:
        here = workspace.path(path)
        if here.exists() and (made := maker_of(path, tree_digests(here), workspace.home)):
            return made
    raise DataError(f"{target}: no finished result of {run.address} has these bytes: run `dvc repro {run.address}`")


def relative(target: str, workspace: Workspace) -> str:
    """A path as the graph writes it: relative to the workspace; anything else as it is."""
    path = Path(target)
    if path.is_absolute() and path.is_relative_to(workspace.root):
        return path.relative_to(workspace.root).as_posix()
    return target


def lineage(target: str, workspace: Workspace) -> None:
    """Print the tree. Raises DataError when nothing is known of `target`."""
    from rich.console import Console

    from pipelines.tracking.runs import connect

    client = connect(workspace).client
    manifest = manifest_of(target, workspace, client)
    console = Console()
    if not console.is_terminal:
        console = Console(width=WIDE)  # into a file or a pipe: a line for each step
    console.print(tree(trace(manifest, finder(workspace.home, client))))


def tree(step: Step) -> "Tree":
    """As rich draws it. A step that stands in several places is spelt out once."""
    from rich.tree import Tree

    seen: set[str] = set()
    root = Tree(_label(step))

    def grow(branch: "Tree", step: Step) -> None:
        seen.add(step.manifest["fingerprint"])
        for path, content in step.outputs.items():
            branch.add(f"[dim]→ {path} {content[:SHORT]}[/dim]")
        for source in step.sources:
            leaf = branch.add(f"← {source.path} {source.sha256[:SHORT]}{_origin(source)}")
            if source.step and source.step.manifest["fingerprint"] in seen:
                leaf.add(f"{_label(source.step)} [dim](above)[/dim]")
            elif source.step:
                grow(leaf.add(_label(source.step)), source.step)

    grow(root, step)
    return root


def _origin(source: Source) -> str:
    if source.step:
        return ""
    return " [red]made by an unknown run[/red]" if source.unknown else " [green]raw[/green]"


def _label(step: Step) -> str:
    revision = step.manifest.get("provenance", {}).get("revision", {})
    commit = revision.get("commit", "")[:SHORT]
    code = f"code {commit}{' + patch' if revision.get('dirty') else ''}" if commit else "code unknown"
    return f"[bold]{step.address}[/bold] {step.manifest['fingerprint'][:SHORT]} run {step.run or 'none'}, {code}"
