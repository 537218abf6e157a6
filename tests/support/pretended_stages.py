"""Stages run by the real runner, with real manifests and real MLflow runs, whose work is pretended: no process, no torch."""

import io
import json
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml

from pipelines import graph, params
from pipelines.dvc_files.dvc_lock import dvc_md5
from pipelines.engine import attempt, runner
from pipelines.identity.closure import ROOT, stage_sources
from pipelines.identity.fingerprint import LOCK, digest, tree_digests
from pipelines.records.code_state import CodeState
from pipelines.scratch.metric_log import MetricLog
from pipelines.workspace import Workspace

CODE = CodeState("a" * 40, True, "diff --git a/a.py b/a.py\n", ())
METRICS = {"accuracy": 0.5, "parts": {"R@1": 12.5, "kept": 7}}


class Finished:
    """A child process that has done its work."""

    returncode = 0

    def __init__(self) -> None:
        self.stdin = io.StringIO()

    def wait(self, timeout: float | None = None) -> int:
        return 0

    poll = wait


@contextmanager
def _pretend(run: Any, params: Any, scratch: Any, workspace: Workspace, held: Any) -> Iterator[Finished]:
    """Outputs that depend on the inputs' bytes, as a stage's do."""
    read = {path: tree_digests(workspace.path(path)) for path in run.inputs.values()}
    text = digest([run.address, read])
    for path in run.outputs.values():
        file = scratch.writing / path if "." in Path(path).name else scratch.writing / path / "part.json"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(json.dumps({"of": path, "from": text}))
    if run.curves:
        for step in (1, 2, 3):
            MetricLog(scratch.metrics_file).append("main", step, {"train/loss": 1 / step})
    scratch.result_file.write_text(json.dumps(METRICS))
    yield Finished()


@dataclass(frozen=True)
class Chain:
    """A workspace, its scratch root, and the tracking store."""

    workspace: Workspace
    store: str

    @property
    def root(self) -> Path:
        return self.workspace.root

    def run(self, address: str) -> Mapping[str, Any]:
        """Run a stage; returns its DONE manifest."""
        identity = runner.run_stage(address, self.workspace).fingerprint
        return json.loads((self.scratch(address, identity) / "DONE.json").read_text())

    def scratch(self, address: str, identity: str) -> Path:
        return self.workspace.home / f"{address.replace('@', '-')}-{identity[:16]}"

    def manifest_file(self, address: str) -> Path:
        (file,) = self.workspace.home.glob(f"{address.replace('@', '-')}-*/DONE.json")
        return file

    def copy(self, folder: Path) -> "Chain":
        """The same results elsewhere; the tracking store is shared."""
        shutil.copytree(self.root, folder)
        return Chain(Workspace(folder, folder / ".home"), self.store)

    def write_lock(self, addresses: list[str]) -> None:
        """The dvc.lock that `dvc repro` would have left."""
        document = yaml.safe_load((self.root / "params.yaml").read_text())
        entries = {}
        for run in map(graph.find, addresses):
            code = [*stage_sources(run.stage), LOCK]
            entries[run.address] = {
                "cmd": f"python -m pipelines run {run.address}",
                "deps": [
                    *({"path": path, "md5": dvc_md5(self.root / path)} for path in run.inputs.values()),
                    *({"path": path, "md5": dvc_md5(ROOT / path)} for path in code),
                ],
                "params": {
                    "params.yaml": {
                        **{key: document[key] for key in run.stage.reads},
                        "compute.threads": document["compute"]["threads"],
                    }
                },
                "outs": [{"path": path, "md5": dvc_md5(self.root / path)} for path in run.all_outputs],
            }
        (self.root / "dvc.lock").write_text(yaml.safe_dump({"schema": "2.0", "stages": entries}))


def pretend(patch: pytest.MonkeyPatch, store: str) -> None:
    """From now on the runner of this process pretends to work, and tracks in `store`."""
    patch.setattr(runner, "stage_process", _pretend)
    patch.setattr(attempt, "code_state", lambda root: CODE)
    patch.setenv("MLFLOW_TRACKING_URI", store)
    patch.delenv("PIPELINES_HOME", raising=False)


def make_chain(folder: Path, empty_store: Path) -> Chain:
    """An empty workspace in `folder`."""
    (folder / "data/raw").mkdir(parents=True)
    (folder / "data/raw/README.md").write_text("raw\n")
    shutil.copy(ROOT / "params.yaml", folder / "params.yaml")
    store = folder.parent / "mlflow.db"
    shutil.copy(empty_store, store)
    assert params.load(folder / "params.yaml")
    return Chain(Workspace(folder, folder / ".home"), f"sqlite:///{store}")
