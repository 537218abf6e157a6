"""Workspaces of a few pictures, in which stages are run as a person would run them: by the command line."""

import json
import os
import shlex
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TextIO
from unittest.mock import patch

import psutil
import pytest
from processes import clean_environment, output_of, wait_until
from shared_folders import made_once

from pipelines import presets
from pipelines.engine.forked import RUNNER, WARM, WORKER, ForkedProcess, fork
from pipelines.engine.warm import start_warm_process
from pipelines.identity.closure import ROOT

FROM_NOTHING = {
    "probe": {"source": None, "sha256": None},
    "base_model": {"source": "tiny", "sha256": None},
    "retrieval": {"pretrained": None, "pretrained_sha256": None},
}
"""No published checkpoint: a workspace of tests has none."""
TINY = {
    **FROM_NOTHING,
    "prepare": {"identities": {"train": 12, "val": 4, "test": 4}, "caption_noise": 0.0},
    "probe": {**FROM_NOTHING["probe"], "training": {"steps": 6, "batch": 8, "report_every": 2, "checkpoint_every": 2}},
    "compute": {"threads": 1, "device": "cpu"},
}

SUPPORT = Path(__file__).parent
SHARED_WARM = pytest.StashKey[tuple[str, int]]()
"""Of the process that starts test processes: a warm process's address, and the descriptor that keeps it alive."""

COMMAND_LINE = "import sys; from pipelines.__main__ import main; sys.exit(main(sys.argv[1:]))"
"""`python -m pipelines` as code for `forked`."""


@dataclass
class Place:
    """A workspace with a scratch root and a tracking store of its own."""

    root: Path
    extra: dict[str, str] = field(default_factory=dict)
    warm: str = ""
    """Address of a warm process, which forks the workers of `run`."""

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
        """The same command to its end: by the runner in this process, with a worker from the warm process, where there is one."""
        if self.warm:
            return self.call("run", stage, **environment)
        process = self.start(stage, **environment)
        out, errors = output_of(process)
        return subprocess.CompletedProcess(process.args, process.returncode, out, errors)

    def call(self, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
        """`python -m pipelines <arguments>` in this process."""
        from pipelines.__main__ import main

        values = self._environment({WARM: self.warm, **environment})
        with patch.dict(os.environ, values, clear=True), printed() as texts:
            code = main(["--workspace", str(self.root), *arguments])
        return subprocess.CompletedProcess(arguments, code, *texts)

    def fork(self, *arguments: str, **environment: str) -> ForkedProcess:
        """`python -m pipelines <arguments>` in a process of its own that has the libraries loaded."""
        given = ["--workspace", str(self.root), *arguments]
        return forked(COMMAND_LINE, *given, **self._environment({WARM: self.warm, **environment}))

    def start_forked(self, stage: str) -> "Piped":
        """What `start` starts, without its two seconds of imports; its worker is forked from the same warm process."""
        pipes = os.pipe(), os.pipe()
        arguments, ends = ["--workspace", str(self.root), "run", stage], (pipes[0][1], pipes[1][1])
        environment = self._environment({WARM: self.warm})
        process = forked(COMMAND_LINE, *arguments, name=RUNNER, output=ends, **environment)
        for end in ends:
            os.close(end)
        return Piped(process, *(os.fdopen(end) for end, _ in pipes))

    def _environment(self, extra: dict[str, str]) -> dict[str, str]:
        own = {"PIPELINES_HOME": str(self.home), "MLFLOW_TRACKING_URI": self.store}
        return clean_environment(**{**own, **self.extra, **extra})

    def scratch(self, stage: str) -> list[Path]:
        return sorted(path for path in self.home.glob(f"{stage}-*") if path.is_dir())

    def steps(self, stage: str) -> list[int]:
        """Steps that have a checkpoint, of the newest phase."""
        found = self.home.glob(f"{stage}-*/checkpoints/*/step-*")
        return sorted(int(path.name.removeprefix("step-")) for path in found)

    def is_open_in(self, process: psutil.Process) -> bool:
        """Whether the process holds a file of the scratch root open."""
        with suppress(psutil.NoSuchProcess, psutil.AccessDenied):
            return any(Path(file.path).is_relative_to(self.home) for file in process.open_files())
        return False

    def tracked(self, stage: str | None = None) -> list[Any]:
        """MLflow runs, oldest first."""
        from mlflow import MlflowClient

        client = MlflowClient(self.store)
        experiment = client.get_experiment_by_name("crossmodal-pipelines")
        if experiment is None:
            return []
        chosen = f"tags.`pipelines.stage` = '{stage}'" if stage else ""
        return client.search_runs([experiment.experiment_id], chosen, order_by=["attributes.start_time ASC"])


@dataclass
class Piped:
    """A forked process and the ends of its pipes, with those members of `subprocess.Popen` that tests use."""

    process: ForkedProcess
    stdout: TextIO
    stderr: TextIO

    @property
    def pid(self) -> int:
        return self.process.pid

    @property
    def returncode(self) -> int | None:
        return self.process.returncode

    def poll(self) -> int | None:
        return self.process.poll()

    def send_signal(self, number: int) -> None:
        self.process.send_signal(number)

    def wait(self, timeout: float) -> int:
        return self.process.wait(timeout)

    def communicate(self, timeout: float) -> tuple[str, str]:
        """For what fits into a pipe."""
        self.wait(timeout)
        with self.stdout, self.stderr:
            return self.stdout.read(), self.stderr.read()


def forked(
    code: str, *arguments: str, name: str = WORKER, output: tuple[int, int] = (1, 2), **environment: str
) -> ForkedProcess:
    """`python -c code arguments`, forked from the warm process that the environment names: the libraries are loaded."""
    address = environment[WARM].partition(":")[2]
    with patch.object(sys, "path", ["", *sys.path]):  # `fork` leaves the first out, as the folder of a script
        process = fork(address, "forked_code", name, environment, output)
    assert process is not None, "the warm process does not answer"
    process.stdin.write(json.dumps({"code": code, "arguments": arguments}) + "\n")
    process.stdin.flush()
    return process


def output_of_new(code: str, *arguments: str, **environment: str) -> tuple[int, str]:
    """Exit code and output of `python -c code arguments`, ended as in `output_of`.

    For code that starts Ray, as no process that a warm process forked may: Ray does not survive a fork.
    """
    environment["PYTHONPATH"] = os.pathsep.join(filter(None, sys.path))
    command = [sys.executable, "-c", code, *arguments]
    process = subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    printed, _ = output_of(process)
    return process.returncode, printed


@contextmanager
def printed() -> Iterator[list[str]]:
    """Keep what this process and its children write; at the end the list holds standard output and standard error."""
    texts: list[str] = []
    with tempfile.TemporaryDirectory() as folder:
        names = Path(folder, "out"), Path(folder, "err")
        with open(names[0], "w", buffering=1) as out, open(names[1], "w", buffering=1) as err:
            kept = os.dup(1), os.dup(2)
            try:
                os.dup2(out.fileno(), 1)
                os.dup2(err.fileno(), 2)
                with redirect_stdout(out), redirect_stderr(err):
                    yield texts
            finally:
                for number, descriptor in enumerate(kept, start=1):
                    os.dup2(descriptor, number)
                    os.close(descriptor)
        texts.extend(name.read_text() for name in names)


def workers_of(process: subprocess.Popen[str]) -> list[psutil.Process]:
    return [child for child in psutil.Process(process.pid).children() if "pipelines.engine.worker" in child.cmdline()]


@pytest.fixture(scope="session")
def waiting() -> Callable[..., Any]:
    return wait_until


@pytest.fixture(scope="session")
def workers() -> Callable[..., list[psutil.Process]]:
    return workers_of


@pytest.fixture(scope="session")
def empty_store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An MLflow database with tables and no runs: making one takes seconds."""

    def make(folder: Path) -> None:
        from mlflow import MlflowClient

        MlflowClient(f"sqlite:///{folder / 'mlflow.db'}").search_experiments()

    return made_once(tmp_path_factory, "empty-store", make) / "mlflow.db"


def _start_warm_process() -> tuple[str, int]:
    with patch.dict(os.environ, PYTHONPATH=os.pathsep.join(filter(None, [str(SUPPORT), os.getenv("PYTHONPATH")]))):
        return start_warm_process("workers", 1, also=["preloaded"])


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_setupnodes(config: pytest.Config, specs: list[Any]) -> None:
    """Of several test processes, the one that starts the others starts a warm process for all, and has it fork them.

    It does not where coverage is measured, which counts what a module runs when it is imported, nor for tests of faults: they start
    Ray in their own process, and Ray does not survive a fork.
    """
    address, _ = config.stash[SHARED_WARM] = _start_warm_process()
    if config.getoption("cov_source", None) or "not faults" not in config.getoption("markexpr"):
        return
    for spec in specs:
        spec.python = shlex.join([sys.executable, str(SUPPORT / "forked_pytest.py"), address])


@pytest.hookimpl(optionalhook=True)
def pytest_configure_node(node: Any) -> None:
    node.workerinput["warm_address"] = node.config.stash[SHARED_WARM][0]


@pytest.fixture(scope="session")
def warm_address(request: pytest.FixtureRequest) -> Iterator[str]:
    """Address of a warm process, whose workers have one thread."""
    shared = getattr(request.config, "workerinput", {}).get("warm_address")
    if shared:
        yield f"1:{shared}"
        return
    address, held = _start_warm_process()
    yield f"1:{address}"
    os.close(held)


@pytest.fixture(scope="session")
def place_at(empty_store: Path, warm_address: str) -> Callable[[Path], Place]:
    """Makes a workspace in a folder."""

    def make(folder: Path) -> Place:
        (folder / "data" / "raw").mkdir(parents=True)
        for name in ("params.yaml", "data/raw/README.md"):
            shutil.copy(ROOT / name, folder / name)
        shutil.copytree(ROOT / "presets", folder / "presets")
        shutil.copy(empty_store, folder / "mlflow.db")
        place = Place(folder, warm=warm_address)
        place.edit(TINY)
        return place

    return make


@pytest.fixture
def place(place_at: Callable[[Path], Place], tmp_path: Path) -> Place:
    return place_at(tmp_path / "workspace")


@pytest.fixture(scope="session")
def drawn_people(place_at: Callable[[Path], Place], tmp_path_factory: pytest.TempPathFactory) -> Place:
    """A workspace in which `prepare` has run, once for all test processes. Look, do not touch."""

    def make(folder: Path) -> None:
        finished = place_at(folder / "workspace").run("prepare")
        assert finished.returncode == 0, finished.stderr

    return Place(made_once(tmp_path_factory, "drawn-people", make) / "workspace")


@pytest.fixture
def with_people(place: Place, drawn_people: Place) -> Place:
    """A workspace with prepared people and nothing else."""
    shutil.copytree(drawn_people.root / "data" / "people", place.root / "data" / "people")
    return place
