"""Workspaces of a few pictures, in which stages are run as a person would run them: by the command line."""

import fcntl
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil
import pytest

from pipelines import presets
from pipelines.identity.closure import ROOT

TINY = {
    "prepare": {"identities": {"train": 12, "val": 4, "test": 4}, "caption_noise": 0.0},
    "probe": {"training": {"steps": 6, "batch": 8, "report_every": 2, "checkpoint_every": 2}},
    "compute": {"threads": 1, "device": "cpu"},
}


@dataclass
class Place:
    """A workspace with a scratch root and a tracking store of its own."""

    root: Path
    extra: dict[str, str] = field(default_factory=dict)

    @property
    def home(self) -> Path:
        return self.root / ".home"

    @property
    def store(self) -> str:
        return f"sqlite:///{self.root / 'mlflow.db'}"

    def edit(self, values: dict[str, Any]) -> None:
        presets.edit(self.root / "params.yaml", values)

    def start(self, stage: str, **environment: str) -> subprocess.Popen[str]:
        """`python -m pipelines run <stage>` in this workspace, in a session of its own."""
        return subprocess.Popen(
            [sys.executable, "-m", "pipelines", "--workspace", str(self.root), "run", stage],
            cwd=ROOT,
            env=self._environment(environment),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )

    def run(self, stage: str, **environment: str) -> subprocess.CompletedProcess[str]:
        process = self.start(stage, **environment)
        try:
            out, err = process.communicate(timeout=120)
        except subprocess.TimeoutExpired:
            for one in [psutil.Process(process.pid), *psutil.Process(process.pid).children(recursive=True)]:
                one.kill()
            raise
        return subprocess.CompletedProcess(process.args, process.returncode, out, err)

    def _environment(self, extra: dict[str, str]) -> dict[str, str]:
        kept = {k: v for k, v in os.environ.items() if not k.startswith(("PIPELINES_", "MLFLOW_", "DVC_", "RAY_"))}
        return {**kept, "PIPELINES_HOME": str(self.home), "MLFLOW_TRACKING_URI": self.store, **self.extra, **extra}

    def scratch(self, stage: str) -> list[Path]:
        return sorted(path for path in self.home.glob(f"{stage}-*") if path.is_dir())

    def steps(self, stage: str) -> list[int]:
        """Steps that have a checkpoint, of the newest phase."""
        found = self.home.glob(f"{stage}-*/checkpoints/*/step-*")
        return sorted(int(path.name.removeprefix("step-")) for path in found)

    def tracked(self, stage: str | None = None) -> list[Any]:
        """MLflow runs, oldest first."""
        from mlflow import MlflowClient

        client = MlflowClient(self.store)
        experiment = client.get_experiment_by_name("crossmodal-pipelines")
        if experiment is None:
            return []
        chosen = f"tags.`pipelines.stage` = '{stage}'" if stage else ""
        return client.search_runs([experiment.experiment_id], chosen, order_by=["attributes.start_time ASC"])


def wait_for(condition: Callable[[], Any], process: subprocess.Popen[str], timeout: float = 60) -> Any:
    """What `condition` gives once it is true; fails when the process ends or time runs out before."""
    deadline = time.monotonic() + timeout
    while not (found := condition()):
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.05)
    return found


def workers_of(process: subprocess.Popen[str]) -> list[psutil.Process]:
    return [child for child in psutil.Process(process.pid).children() if "pipelines.engine.worker" in child.cmdline()]


@pytest.fixture(scope="session")
def waiting() -> Callable[..., Any]:
    return wait_for


@pytest.fixture(scope="session")
def workers() -> Callable[..., list[psutil.Process]]:
    return workers_of


@pytest.fixture(scope="session")
def empty_store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An MLflow database with tables and no runs: making one takes seconds, so that all test processes share it."""
    shared = tmp_path_factory.getbasetemp()
    if os.environ.get("PYTEST_XDIST_WORKER"):
        shared = shared.parent
    store = shared / "empty-mlflow.db"
    with open(shared / "empty-mlflow.lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not store.exists():
            code = "import sys; from mlflow import MlflowClient; MlflowClient(sys.argv[1]).search_experiments()"
            subprocess.run([sys.executable, "-c", code, f"sqlite:///{store}.new"], check=True, capture_output=True)
            os.rename(f"{store}.new", store)
    return store


@pytest.fixture(scope="session")
def place_at(empty_store: Path) -> Callable[[Path], Place]:
    """Makes a workspace in a folder."""

    def make(folder: Path) -> Place:
        (folder / "data" / "raw").mkdir(parents=True)
        for name in ("params.yaml", "data/raw/README.md"):
            shutil.copy(ROOT / name, folder / name)
        shutil.copytree(ROOT / "presets", folder / "presets")
        shutil.copy(empty_store, folder / "mlflow.db")
        place = Place(folder)
        place.edit(TINY)
        return place

    return make


@pytest.fixture
def place(place_at: Callable[[Path], Place], tmp_path: Path) -> Place:
    return place_at(tmp_path / "workspace")


@pytest.fixture(scope="session")
def drawn_people(place_at: Callable[[Path], Place], tmp_path_factory: pytest.TempPathFactory) -> Place:
    """A workspace in which `prepare` has run, once. Look, do not touch."""
    place = place_at(tmp_path_factory.mktemp("drawn") / "workspace")
    finished = place.run("prepare")
    assert finished.returncode == 0, finished.stderr
    return place


@pytest.fixture
def with_people(place: Place, drawn_people: Place) -> Place:
    """A workspace with prepared people and nothing else."""
    shutil.copytree(drawn_people.root / "data" / "people", place.root / "data" / "people")
    return place
