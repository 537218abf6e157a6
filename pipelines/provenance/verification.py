"""`python -m pipelines verify [PATH...]`: is every number still what it says it is?

From each target the walk goes back to the raw input, and at every stage on the way holds four accounts of the same result against
each other: the files in the workspace, `dvc.lock`, the DONE manifest of the stage, and its run in MLflow. Each disagreement is a
broken link, and one line.
"""

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from components.errors import DataError
from components.files import file_digest
from pipelines import graph, params
from pipelines.dvc_files.dvc_lock import LOCK_FILE, dvc_md5, read_entries
from pipelines.graph import StageRun
from pipelines.identity.closure import COUNTED, ROOT, stage_sources
from pipelines.identity.fingerprint import LOCK, digest, fingerprint, tree_digests
from pipelines.provenance.lineage import relative, stage_of
from pipelines.provenance.run_checks import run_links
from pipelines.records.manifests import Manifest, by_fingerprint, from_server, maker_of, producers
from pipelines.records.provenance import sources_digest
from pipelines.scratch.folder import folder_name
from pipelines.workspace import Workspace

if TYPE_CHECKING:
    from mlflow import MlflowClient


def verify(targets: Sequence[str], workspace: Workspace) -> None:
    """Check `targets` (paths, stages; all without any) and what they were made from; print one line per broken link.

    Raises DataError when a link is broken or a target is unknown, InfrastructureError when the tracking server does not answer.
    """
    from pipelines.tracking.runs import connect

    stages = _behind(targets, workspace)
    tracker = connect(workspace)
    broken = list(Verification(workspace, tracker.client, tracker.experiment).walk(stages))
    for line in broken:
        print(line)
    if broken:
        raise DataError(f"verify: {_count(len(broken), 'broken link')} in {_count(len(stages), 'stage')}")
    print(f"whole: {_count(len(stages), 'stage')}, back to the raw input")


def _count(number: int, name: str) -> str:
    return f"{number} {name}{'' if number == 1 else 's'}"


def _behind(targets: Sequence[str], workspace: Workspace) -> list[StageRun]:
    """The stages that made `targets`, and all before them, each after what it reads."""
    everything = [run for stage in graph.all_stages() for run in graph.runs_of(stage)]
    todo: list[StageRun] = []
    for target in targets:
        run = stage_of(relative(target, workspace))
        if run is None:
            raise DataError(f"verify: {target}: no stage writes it; give a path from dvc.yaml, or a stage")
        todo.append(run)
    wanted: set[str] = set()
    while todo:
        run = todo.pop()
        if run.address not in wanted:
            wanted.add(run.address)
            todo += [producers()[path] for path in run.inputs.values() if path in producers()]
    return [run for run in everything if run.address in wanted or not targets]


class Verification:
    """One walk. Files are read once; what is wrong with a file is said where it was made, not again where it is read."""

    def __init__(self, workspace: Workspace, client: "MlflowClient", experiment: str) -> None:
        self.workspace = workspace
        self.client = client
        self.experiment = experiment
        self.params = params.load(workspace.path("params.yaml"))
        self.document: dict[str, Any] = yaml.safe_load(workspace.path("params.yaml").read_text(encoding="utf-8"))
        self.entries = read_entries(workspace.root)
        self.spoilt: set[str] = set()
        """Paths whose content was found wrong where they were made."""
        self.md5 = cache(lambda path: dvc_md5(ROOT / path if _is_code(path) else workspace.path(path)))
        self.digests = cache(lambda path: tree_digests(workspace.path(path)))

    def walk(self, stages: Iterable[StageRun]) -> Iterator[str]:
        for run in stages:
            for line in self._stage(run):
                yield f"{run.address}: {line}"

    def _stage(self, run: StageRun) -> Iterator[str]:
        missing = [path for path in [*run.inputs.values(), *run.all_outputs] if not self.workspace.path(path).exists()]
        for path in missing:
            if path in run.all_outputs or path not in producers():
                self.spoilt.add(path)
                yield f"{path} is not there: run `dvc repro {run.address}`, or `dvc pull` it"
        yield from self._lock_links(run)
        if any(path in missing for path in run.inputs.values()):
            return  # its maker has been named
        manifest = self._manifest(run)
        if manifest is None:
            yield f"no record of a run that made these outputs: run `dvc repro --force {run.address}`"
            return
        yield from self._manifest_links(run, manifest)
        yield from self._input_links(run, manifest)
        yield from run_links(manifest, self.client, self.workspace.path(run.curves) if run.curves else None)

    # -- dvc.lock against the files ------------------------------------------------------------------------------------

    def _lock_links(self, run: StageRun) -> Iterator[str]:
        entry = self.entries.get(run.address)
        if entry is None:
            yield f"{LOCK_FILE} has no entry of it: run `dvc repro {run.address}`"
            return
        if entry["cmd"] != f"python -m pipelines run {run.address}":
            yield f"{LOCK_FILE} has another command: {entry['cmd']}"
        deps = {dep["path"]: dep.get("md5") for dep in entry.get("deps", [])}
        if unnamed := sorted({*run.inputs.values(), *stage_sources(run.stage, ROOT), LOCK} - set(deps)):
            yield f"{LOCK_FILE} does not name {_few(unnamed)} among what it read: run `dvc repro {run.address}`"
        for path, md5 in deps.items():
            if path not in self.spoilt and self.md5(path) != md5:
                yield f"{path} is not what {LOCK_FILE} says it read{self._hint(path)}"
        for out in entry.get("outs", []):
            if out["path"] not in self.spoilt and self.md5(out["path"]) != out.get("md5"):
                self.spoilt.add(out["path"])
                yield f"{out['path']} is not what {LOCK_FILE} says it wrote{self._hint(out['path'])}"
        if unnamed := sorted(set(run.all_outputs) - {out["path"] for out in entry.get("outs", [])}):
            yield f"{LOCK_FILE} does not name {_few(unnamed)} among what it wrote: run `dvc repro {run.address}`"
        written = entry.get("params", {}).get("params.yaml", {})
        for key in run.stage.reads:
            if written.get(key) != self.document.get(key):
                yield f"params.yaml: {key} is not what {LOCK_FILE} says it read: `dvc params diff` shows how"

    def _hint(self, path: str) -> str:
        if path in producers():
            return ": edited by hand, or of another run"
        return ": changed since"

    # -- the manifest against the files and the code --------------------------------------------------------------------

    def _manifest(self, run: StageRun) -> Manifest | None:
        """That of the present fingerprint; else one that made these very bytes; here, else on the server."""
        inputs = {name: self.workspace.path(path) for name, path in run.inputs.items()}
        identity = fingerprint(run, self.params.only(run.stage.reads), inputs, self.params.compute.threads)
        stored = by_fingerprint(run.address, identity, self.workspace.home)
        if stored:
            return stored
        for path in run.all_outputs:
            if found := maker_of(path, self.digests(path), self.workspace.home):
                return found
        found_runs = self.client.search_runs(
            [self.experiment],
            f"tags.`pipelines.fingerprint` = '{identity}' and attributes.status = 'FINISHED'",
            order_by=["attributes.start_time DESC"],
            max_results=1,
        )
        return from_server(found_runs[0].info.run_id, self.client) if found_runs else None

    def _manifest_links(self, run: StageRun, manifest: Manifest) -> Iterator[str]:
        name = folder_name(run.address, manifest["fingerprint"])
        stored = self.workspace.home / name / "outputs"
        for path, files in manifest["outputs"].items():
            if (stored / path).exists() and tree_digests(stored / path) != files:
                yield f"{path} as stored in {name} is not what its manifest says: the copy was damaged"
            if self.workspace.path(path).exists() and self.digests(path) != files:
                self.spoilt.add(path)
                yield f"{path} is not what the manifest {name} says: {_differing(self.digests(path), files)} was edited by hand"
        if _metrics(self.workspace.path(run.metrics)) != manifest["metrics"]:
            yield f"{run.metrics} has other numbers than the manifest {name}"
        known = manifest.get("provenance")
        if known is None:
            yield f"the manifest {name} says nothing of where it comes from: run `dvc repro --force {run.address}`"
            return
        now = {
            "sources": sources_digest(run),
            "lock": file_digest(ROOT / LOCK),
            "parameters": self.params.only(run.stage.reads),
            "threads": self.params.compute.threads,
        }
        words = {"sources": "code", "lock": LOCK, "parameters": "parameters", "threads": "compute.threads"}
        for key, value in now.items():
            if known[key] != value:
                yield f"the manifest {name} is of other {words[key]} than are here"

    def _input_links(self, run: StageRun, manifest: Manifest) -> Iterator[str]:
        """What it read against what is there, and against what its maker says it wrote."""
        known = manifest.get("provenance", {}).get("inputs", {})
        for path in run.inputs.values():
            record = known.get(path)
            if record is None:
                if known:
                    yield f"its manifest does not name {path} among what it read"
                continue
            if path not in self.spoilt and digest(dict(self.digests(path))) != record["sha256"]:
                yield f"{path} is not what its run read"
            if path in producers():
                yield from self._upstream_links(path, record)

    def _upstream_links(self, path: str, record: Mapping[str, Any]) -> Iterator[str]:
        if not record.get("fingerprint"):
            yield f"no record of the run that made {path}: run `dvc repro {producers()[path].address}` and this stage again"
            return
        made = by_fingerprint(record["stage"], record["fingerprint"], self.workspace.home)
        if made is None and record.get("run"):
            made = from_server(record["run"], self.client)
        if made is None:  # freed since; another run may have made the same bytes
            made = maker_of(path, self.digests(path), self.workspace.home)
        if made is None:
            yield f"the run that made {path} ({record.get('run') or 'unknown'}) left no manifest"
        elif digest(made["outputs"].get(path)) != record["sha256"]:
            yield f"{path}: {record['stage']} says that it wrote other bytes than were read"


def _is_code(path: str) -> bool:
    """Whether it is read from the checkout that runs, as the fingerprint does, and not from the workspace."""
    return path == LOCK or path.startswith(tuple(f"{package.split('.')[0]}/" for package in COUNTED))


def _metrics(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None


def _differing(now: Mapping[str, str], then: Mapping[str, str]) -> str:
    return _few(sorted(name for name in {*now, *then} if now.get(name) != then.get(name)))


def _few(names: Sequence[str]) -> str:
    """The first of `names`, and how many more; "it" for a plain file, which has no name in its tree."""
    first = names[0] or "it"
    return first if len(names) == 1 else f"{first} (and {len(names) - 1} more)"
