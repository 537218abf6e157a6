"""A project of a few of the stages, whose commands are shell scripts: for DVC itself, and for the scheduler's side of it."""

import os
import shutil
import subprocess
from collections.abc import Callable, Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml
from repositories import make_repository

from pipelines import params
from pipelines.dvc_files.dvc_yaml import dvc_document
from pipelines.graph import StageRun, all_runs
from pipelines.identity import fingerprint as identity
from pipelines.identity.closure import ROOT
from pipelines.records import stage_record
from pipelines.scheduling.dvc_repo import DvcRepo
from pipelines.scheduling.needs import Decision, Need
from pipelines.scheduling.plan import Plan
from pipelines.scratch.folder import Scratch, folder_name
from pipelines.scratch.manifest import Manifest
from pipelines.workspace import Workspace

STAGES = ("prepare", "probe", "base_model", "taca_cache", "taca_train")
RUNS = [run for run in all_runs() if run.stage.name in STAGES]
CODE = "code/all.txt"


def first(ready: list[StageRun]) -> StageRun:
    return ready[0]


RATE = ("learning_rate: 0.006", "learning_rate: 0.0065")
"""Of the base model, which taca_cache and taca_train read."""
RATE_OF_THE_PROBE = ("learning_rate: 0.004", "learning_rate: 0.0045")
CONFIG = "[core]\n    analytics = false\n    check_update = false\n"


@dataclass(frozen=True)
class SmallProject:
    """Its root is the current folder."""

    root: Path

    @property
    def workspace(self) -> Workspace:
        return Workspace(self.root, self.root / ".runs")

    @property
    def lock(self) -> bytes:
        return (self.root / "dvc.lock").read_bytes()

    def edit(self, before: str, after: str) -> None:
        """Change a text in params.yaml."""
        text = (self.root / "params.yaml").read_text()
        assert before in text
        (self.root / "params.yaml").write_text(text.replace(before, after, 1))

    def dvc(self, *targets: str, **options: Any) -> DvcRepo:
        return DvcRepo(self.workspace, targets, **options)

    def work(self, run: StageRun) -> None:
        """What a runner does: the stage's outputs in scratch with a manifest, and in place."""
        before = identity.present_fingerprint(run, params.load(self.root / "params.yaml"), self.root)
        scratch = Scratch(self.workspace.home / folder_name(run.address, before))
        scratch.begin()
        subprocess.run(["sh", f"work/{run.address}.sh"], cwd=self.root, check=True)
        for path in run.all_outputs:
            (scratch.writing / path).parent.mkdir(parents=True, exist_ok=True)
            source = self.root / path
            (shutil.copytree if source.is_dir() else shutil.copy)(source, scratch.writing / path)
        scratch.finish(run.all_outputs, Manifest(stage=run.address, fingerprint=before))

    def bring_up_to_date(
        self, dvc: DvcRepo, runs: Collection[StageRun] = RUNS, choose: Callable[[list[StageRun]], StageRun] = first
    ) -> dict[str, Decision]:
        """Run what is stale, each time the ready run that `choose` takes, and leave it unrecorded. Returns the decisions."""
        found: dict[str, Decision] = {}
        plan = Plan(list(runs))
        while ready := plan.ready(found):
            run = choose(ready)
            decision = found[run.address] = dvc.decide(run)
            placed = decision.need not in (Need.UNCHANGED, Need.RUN) and dvc.put_in_place(run, decision)
            if decision.need is not Need.UNCHANGED and not placed:
                dvc.before_run(run)
                self.work(run)
        return found

    def stale(self, found: dict[str, Decision]) -> list[StageRun]:
        return [run for run in RUNS if run.address in found and found[run.address].need is not Need.UNCHANGED]

    def sequential(self, *targets: str) -> None:
        """The real `dvc repro`."""
        from dvc.repo import Repo

        Repo(str(self.root)).reproduce(list(targets))

    def status(self) -> Any:
        from dvc.repo import Repo

        return Repo(str(self.root)).status(["dvc.yaml"])


def make_small_project(root: Path, cache_type: str = "") -> None:
    """Write the project into the new folder `root`, committed, with nothing run."""
    for folder in (".dvc", "code", "work", "data/raw"):
        (root / folder).mkdir(parents=True)
    shutil.copy(ROOT / "params.yaml", root)
    shutil.copy(ROOT / ".gitignore", root)
    shutil.copy(ROOT / ".dvcignore", root)
    (root / ".dvc" / "config").write_text(CONFIG + cache_type)
    (root / ".dvc" / ".gitignore").write_text("/config.local\n/tmp\n/cache\n")
    (root / "requirements.lock").write_text("none\n")
    (root / CODE).write_text("1\n")
    (root / "data/raw/README.md").write_text("raw\n")
    document = dvc_document()
    stages = {name: _shortened(document["stages"][name]) for name in STAGES}
    (root / "dvc.yaml").write_text(yaml.safe_dump({"stages": stages}, sort_keys=False))
    for run in RUNS:
        (root / "work" / f"{run.address}.sh").write_text(_script(run))
    make_repository(root)


def _shortened(stage: dict[str, Any]) -> dict[str, Any]:
    """The stage with one file of code, and a command of the shell."""
    body = stage.get("do", stage)
    body["cmd"] = body["cmd"].replace("python -m pipelines run ", "sh work/") + ".sh"
    own = [path for path in body["deps"] if not path.startswith(("components/", "pipelines/", "requirements"))]
    body["deps"] = [*own, CODE, "requirements.lock"]
    return stage


def _script(run: StageRun) -> str:
    """Outputs that depend on the bytes of the inputs, the code and the learning rates."""
    read = " ".join(["data/raw/README.md" if path == "data/raw" else _file(path) for path in run.inputs.values()])
    lines = [f"sum=$( (cat {read} {CODE}; grep learning_rate params.yaml) | cksum | cut -d' ' -f1)"]
    for path in run.all_outputs:
        lines.append(f"mkdir -p {os.path.dirname(_file(path))}; rm -f {_file(path)}")
        text = '{\\"sum\\": $sum}' if path.endswith(".json") else f"of,{path}\\n$sum,1"
        lines.append(f'printf "{text}\\n" > {_file(path)}')
    return "set -e\n" + "\n".join(lines) + "\n"


def _file(path: str) -> str:
    return path if "." in Path(path).name else f"{path}/part.csv"


def count_the_code_of(project: SmallProject, patch: pytest.MonkeyPatch) -> None:
    """From now on fingerprints count the project's one file of code."""
    for module in (identity, stage_record):
        patch.setattr(module, "ROOT", project.root)
        patch.setattr(module, "stage_sources", lambda stage: [CODE])
