"""`reproduce` for real: a run of a dirty checkout made again from its commit, its patch and DVC's cache; and the same on S3."""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from processes import clean_environment
from repositories import AUTHOR
from servers import BUCKET, Store, s3_store
from workspaces import FROM_NOTHING

from pipelines import presets

pytestmark = [pytest.mark.faults, pytest.mark.timeout(900)]

TINY = {
    "prepare": {"identities": {"train": 12, "val": 4, "test": 4}, "caption_noise": 0.0},
    **FROM_NOTHING,
    "probe": {**FROM_NOTHING["probe"], "training": {"steps": 6, "batch": 8, "report_every": 2, "checkpoint_every": 2}},
    "compute": {"threads": 1, "device": "cpu"},
}


class Checkout:
    """A repository of ours in which `dvc` and `python -m pipelines` run as its user would run them."""

    def __init__(self, root: Path, **environment: str) -> None:
        self.root = root
        self.extra = environment

    def call(self, *command: str) -> "subprocess.CompletedProcess[str]":
        path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
        environment = clean_environment(**{"PATH": path, "DVC_NO_ANALYTICS": "1", "COLUMNS": "200", **self.extra})
        return subprocess.run(command, cwd=self.root, env=environment, capture_output=True, text=True, check=False)

    def must(self, *command: str) -> str:
        done = self.call(*command)
        assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
        return done.stdout

    def pipelines(self, *arguments: str) -> "subprocess.CompletedProcess[str]":
        return self.call(sys.executable, "-m", "pipelines", *arguments)

    def commit(self, message: str) -> None:
        self.must("git", *AUTHOR, "commit", "--quiet", "--all", "--message", message)

    def manifest(self, stage: str) -> Path:
        (file,) = (self.root / ".runs").glob(f"{stage}-*/DONE.json")
        return file


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Store]:
    with s3_store(tmp_path_factory.mktemp("s3") / "objects") as found:
        yield found


@pytest.fixture(scope="module")
def checkout(
    copy_of_the_checkout: Callable[[Path], Path], tmp_path_factory: pytest.TempPathFactory, store: Store
) -> Checkout:
    """`dvc repro probe` has run at tiny sizes, with a change in the code that is in no commit."""
    made = Checkout(copy_of_the_checkout(tmp_path_factory.mktemp("checkout") / "code"), **store.environment)
    (made.root / "dvc.lock").unlink(missing_ok=True)
    presets.edit(made.root / "params.yaml", TINY)
    made.must("dvc", "remote", "add", "--default", "storage", f"s3://{BUCKET}/dvc")
    made.must("dvc", "remote", "modify", "storage", "endpointurl", store.url)
    made.commit("tiny")
    with open(made.root / "components/persons/shards.py", "a") as file:
        file.write("\n# in no commit\n")
    made.must("dvc", "repro", "probe")
    return made


def test_a_run_of_a_dirty_checkout_is_made_again_number_by_number_with_inputs_from_the_dvc_cache(checkout, tmp_path):
    done = json.loads(checkout.manifest("probe").read_text())
    assert done["provenance"]["revision"]["dirty"]
    changed = (checkout.root / "components/persons/shards.py").read_bytes()
    checkout.must("git", "checkout", "--quiet", "components/persons/shards.py")  # only the run's patch has it now
    people = checkout.root / "data/people"
    stored = checkout.manifest("prepare").parent / "outputs"
    shutil.move(people, tmp_path / "people")
    shutil.move(stored, tmp_path / "outputs")
    kept = checkout.manifest("probe").read_text()
    known = json.loads(kept)
    name = next(key for key, value in known["metrics"].items() if isinstance(value, float))
    known["metrics"][name] += 0.25  # as if the run had given another number: it is found, with its size
    checkout.manifest("probe").write_text(json.dumps(known))
    try:
        again = checkout.pipelines("reproduce", done["run"])
    finally:
        checkout.manifest("probe").write_text(kept)
        shutil.move(tmp_path / "people", people)
        shutil.move(tmp_path / "outputs", stored)
        (checkout.root / "components/persons/shards.py").write_bytes(changed)
    assert again.returncode == 3, again.stdout + again.stderr
    assert "the results of probe differ" in again.stderr
    (line,) = [line for line in again.stdout.splitlines() if "-0.25" in line]
    assert name in line
    numbers = [line for line in again.stdout.splitlines() if "numbers and" in line]
    total = int(numbers[0].split(" of ")[1].split()[0])
    assert numbers[0].startswith(f"probe: {total - 1} of {total} numbers and ")
    files = numbers[0].split("numbers and ")[1].split()
    assert files[0] == files[2]  # every file has the same bytes
    assert "the fingerprint differs" not in again.stdout
    assert len(checkout.must("git", "worktree", "list").splitlines()) == 1


def test_a_patch_that_was_changed_is_one_line_and_leaves_nothing_behind(checkout):
    run = json.loads(checkout.manifest("probe").read_text())["run"]
    (patch,) = (checkout.root / "mlartifacts").glob(f"**/{run}/artifacts/provenance/code.patch")
    kept = patch.read_bytes()
    patch.write_bytes(kept + b"\n")
    try:
        again = checkout.pipelines("reproduce", run)
    finally:
        patch.write_bytes(kept)
    assert again.returncode == 3
    assert again.stderr.count("\n") == 1
    assert "the run's patch is missing, or not the one" in again.stderr
    assert len(checkout.must("git", "worktree", "list").splitlines()) == 1


def test_a_clean_clone_that_pulls_from_s3_is_up_to_date_and_makes_the_same_bytes_when_forced(checkout, store, tmp_path):
    checkout.must("dvc", "push", "probe", "prepare")
    assert sum(path.is_file() for path in (store.folder / "dvc").rglob("*")) > 3
    checkout.must("git", "add", "dvc.lock", "metrics")
    checkout.commit("results")
    checkout.must("git", "clone", "--quiet", str(checkout.root), str(tmp_path / "clone"))
    clone = Checkout(tmp_path / "clone", **store.environment)
    assert not (clone.root / "data/people").exists()
    clone.must("dvc", "pull", "probe", "prepare")
    assert "up to date" in clone.must("dvc", "status", "probe", "prepare")
    before = outs(clone.root)
    clone.must("dvc", "repro", "--force", "--single-item", "probe")
    assert outs(clone.root) == before
    config = (clone.root / ".dvc/config").read_text() + (clone.root / "dvc.lock").read_text()
    for name in ("AWS_SECRET_ACCESS_KEY", "AWS_ACCESS_KEY_ID"):
        assert store.environment[name] not in config


def outs(root: Path) -> dict[str, Any]:
    stages = yaml.safe_load((root / "dvc.lock").read_text())["stages"]
    return {out["path"]: out["md5"] for stage in ("prepare", "probe") for out in stages[stage]["outs"]}
