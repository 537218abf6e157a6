"""What DVC takes for stale, in a copy of this checkout whose stages do no work.

Deps, params and outs are those of our dvc.yaml, less the files of `components/`, which are most of DVC's lock file. (That they are
listed is tested beside the graph.) The command is another: it writes outputs that are new every time, so that whatever can reach a
later stage does.
"""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import chdir, contextmanager
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest
import yaml

from pipelines import presets
from pipelines.graph import all_runs, all_stages
from pipelines.identity.closure import stage_sources

pytestmark = pytest.mark.slow

WRITE_OUTPUTS = """
import json, os, sys
address = sys.argv[1]
for path in json.load(open("outputs.json"))[address]:
    if "." not in os.path.basename(path):
        path += "/content"
    os.makedirs(os.path.dirname(path), exist_ok=True)
    with open(path, "w") as file:
        json.dump({"value": os.urandom(8).hex()}, file)
with open("executed", "a") as file:
    file.write(address + "\\n")
"""
RUNS = all_runs()


@contextmanager
def lock_written_once() -> Iterator[None]:
    """DVC reads and writes its whole lock again for every stage that it has run, in most of its time; here at the end alone."""
    from dvc.dvcfile import Lockfile

    write = Lockfile.dump_stages
    held: list[tuple[Any, list[Any]]] = []
    with patch.object(Lockfile, "dump_stages", lambda lock, stages, **options: held.append((lock, stages))):
        yield
    if held:
        write(held[0][0], [stage for _, stages in held for stage in stages])


class Checkout:
    def __init__(self, root: Path) -> None:
        self.root = root
        self.sources = {stage.name: set(stage_sources(stage, root)) for stage in all_stages()}

    def repro(self) -> list[str]:
        """What `dvc repro` does, in this process; returns what it executed."""
        from dvc.repo import Repo

        (self.root / "executed").unlink(missing_ok=True)
        with chdir(self.root), lock_written_once(), Repo() as repo:
            repo.reproduce()
        executed = self.root / "executed"
        return sorted(executed.read_text().split()) if executed.exists() else []

    def set(self, key: str, value: object) -> None:
        for name in reversed(key.split(".")):
            value = {name: value}
        assert isinstance(value, dict)
        assert presets.edit(self.root / "params.yaml", value)

    def changes(self) -> str:
        command = ["git", "status", "--porcelain", "--untracked-files=all"]
        return subprocess.run(command, cwd=self.root, capture_output=True, text=True, check=True).stdout


def at_or_below(addresses):
    """These stages and all that read, directly or not, what they write."""
    reached = set(addresses)
    for run in RUNS:  # in order: what it reads was decided before
        made = {path for other in RUNS if other.address in reached for path in other.all_outputs}
        if made & set(run.inputs.values()):
            reached.add(run.address)
    return sorted(reached)


@pytest.fixture(scope="module")
def checkout(copy_of_the_checkout, tmp_path_factory):
    root = copy_of_the_checkout(tmp_path_factory.mktemp("dvc") / "checkout")
    (root / "write_outputs.py").write_text(WRITE_OUTPUTS)
    (root / "outputs.json").write_text(json.dumps({run.address: run.all_outputs for run in RUNS}))
    file = root / "dvc.yaml"
    document = yaml.safe_load(file.read_text())
    for stage in document["stages"].values():
        body = stage.get("do", stage)
        body["cmd"] = body["cmd"].replace("python -m pipelines run", f"{sys.executable} -I -S write_outputs.py")
        body["deps"] = [path for path in body["deps"] if not path.startswith("components/")]
    file.write_text(yaml.safe_dump(document, sort_keys=False))
    (root / "dvc.lock").unlink()  # which lists every file of `components/`
    checkout = Checkout(root)
    assert checkout.repro() == sorted(run.address for run in RUNS)
    return checkout


def test_a_second_repro_does_nothing(checkout):
    assert checkout.repro() == []


def test_outputs_add_nothing_to_what_git_ignores(checkout):
    """DVC adds an output that git would track to a .gitignore, and may lose that entry when a later stage fails."""
    assert ".gitignore" not in checkout.changes()
    changed = {line[3:] for line in checkout.changes().splitlines()}
    known = {"dvc.lock", "dvc.yaml", "params.yaml", "write_outputs.py", "outputs.json", "executed"}
    assert not {path for path in changed - known if not path.startswith("metrics/")}


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("index.batch", 7),
        pytest.param("report.queries", 3, marks=pytest.mark.heavy),
        pytest.param("taca_evaluate.resamples", 333, marks=pytest.mark.heavy),
        pytest.param("gadms_finetune.training.steps", 17, marks=pytest.mark.heavy),
        pytest.param("taca.gamma", 1.3, marks=pytest.mark.heavy),
    ],
)
def test_a_parameter_runs_exactly_the_stages_that_read_it_and_those_below(checkout, key, value):
    section = key.split(".")[0]
    expected = at_or_below(run.address for run in RUNS if section in run.stage.reads)
    assert len(expected) < len(RUNS)
    checkout.set(key, value)
    assert checkout.repro() == expected


def test_the_stages_below_one_are_those_of_the_design():
    """The set that the tests above compare with, once by hand."""
    assert at_or_below(["index"]) == ["index", "report"]
    assert "gadms_pretrain@gadms" in at_or_below(["taca_train@taca"])
    assert "gadms_pretrain@gadms" not in at_or_below(["taca_train@lora"])


@pytest.mark.parametrize(
    "source", ["pipelines/stages/taca_evaluate.py", pytest.param("pipelines/stages/index.py", marks=pytest.mark.heavy)]
)
def test_a_source_file_runs_exactly_the_stages_whose_closure_has_it_and_those_below(checkout, source):
    expected = at_or_below(run.address for run in RUNS if source in checkout.sources[run.stage.name])
    file = checkout.root / source
    file.write_text(file.read_text() + "\n# changed\n")
    assert checkout.repro() == expected


def test_what_no_result_depends_on_makes_nothing_stale(checkout):
    """Where it runs, how it is orchestrated, bytecode, and times."""
    checkout.set("compute.workers", 7)
    runner = checkout.root / "pipelines" / "engine" / "runner.py"
    runner.write_text(runner.read_text() + "\n# changed\n")
    for path in (checkout.root / "components").rglob("*.py*"):
        os.utime(path)
    for package in ("components/gadms", "pipelines/stages"):
        bytecode = checkout.root / package / "__pycache__" / "more.pyc"
        bytecode.parent.mkdir(exist_ok=True)
        bytecode.write_bytes(b"")
    assert checkout.repro() == []
