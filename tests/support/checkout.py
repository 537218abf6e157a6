"""A copy of this checkout in which DVC runs, with a scratch root and tracking of its own."""

import contextlib
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import yaml
from processes import clean_environment
from workspaces import FROM_NOTHING

OFTEN = {"report_every": 2, "checkpoint_every": 2}
LONGER = {
    **FROM_NOTHING,
    "probe": {**FROM_NOTHING["probe"], "training": {"steps": 60, **OFTEN}},
    "base_model": {
        **FROM_NOTHING["base_model"],
        "autoencoder": {"steps": 30, **OFTEN},
        "training": {"steps": 30, **OFTEN},
    },
    "taca_train": {"training": {"steps": 40, **OFTEN}},
    "taca_generate": {"prompts": 16, "corpus": 48, "batch": 4},
    "curate": {"matcher": {"steps": 60, **OFTEN}},
    "gadms_pretrain": {"training": {"steps": 60, **OFTEN}},
    "gadms_finetune": {"training": {"steps": 60, **OFTEN}},
    "compute": {"threads": 1, "device": "cpu"},
}
"""Smoke sizes, with training long enough to be killed in the middle."""


class Checkout:
    """A copy of this checkout, with a scratch root and tracking of its own."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.home = root / ".runs"

    def copy(self, folder: Path) -> "Checkout":
        """The same files and outputs, and nothing of scratch folders or runs."""
        shutil.copytree(self.root, folder, symlinks=True, ignore=shutil.ignore_patterns(".runs", "mlflow.db*"))
        return Checkout(folder)

    def start(self, *arguments: str, output: str = ".output", command: str = "dvc") -> subprocess.Popen[str]:
        """`dvc repro`, or `python -m pipelines repro`; what it prints goes into the file `output`."""
        path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
        with open(self.root / output, "w") as file:
            return subprocess.Popen(
                [sys.executable, "-m", command, "repro", *arguments],
                cwd=self.root,
                env=clean_environment(PATH=path, DVC_NO_ANALYTICS="1", PYTHONUNBUFFERED="1"),
                stdout=file,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                text=True,
            )

    def printed(self, output: str = ".output") -> str:
        return (self.root / output).read_text()

    def repro(self, *arguments: str, timeout: float = 280) -> str:
        """Runs to the end; returns what was printed."""
        process = self.start(*arguments)
        try:
            process.wait(timeout)
        finally:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
        assert process.returncode == 0, self.printed()[-3000:]
        return self.printed()

    def progress(self, stage: str) -> int:
        """Steps in checkpoints, summed over phases."""
        newest: dict[Path, int] = {}
        for path in self.checkpoints(stage):
            newest[path.parent] = max(newest.get(path.parent, 0), int(path.name.removeprefix("step-")))
        return sum(newest.values())

    def checkpoints(self, stage: str) -> dict[Path, int]:
        """Folder -> when it was written, in nanoseconds."""
        found = {}
        for folder in self.home.glob(f"{stage.replace('@', '-')}-*/checkpoints"):
            for parent, names, _ in os.walk(folder):  # unlike glob, it minds nothing that goes meanwhile
                for path in (Path(parent, name) for name in names if name.startswith("step-")):
                    with contextlib.suppress(FileNotFoundError):
                        found[path] = path.stat().st_mtime_ns
        return found

    def hashes(self, stage: str) -> dict[str, str]:
        lock = yaml.safe_load((self.root / "dvc.lock").read_text())
        return {out["path"]: out["md5"] for out in lock["stages"][stage]["outs"]}

    def runs(self, stage: str) -> list[Any]:
        """MLflow runs of a stage."""
        from mlflow import MlflowClient

        client = MlflowClient(f"sqlite:///{self.root / 'mlflow.db'}")
        experiment = client.get_experiment_by_name("crossmodal-pipelines")
        assert experiment is not None
        return list(client.search_runs([experiment.experiment_id], f"tags.`pipelines.stage` = '{stage.split('@')[0]}'"))
