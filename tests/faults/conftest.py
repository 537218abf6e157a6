"""Stages long enough to be disturbed in the middle."""

import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
from checkout import LONGER, Checkout

from pipelines import presets

LONG = {"probe": {"training": {"steps": 150, "batch": 32, "report_every": 7, "checkpoint_every": 5}}}
OUTPUTS = ("models/probe", "metrics/probe", "curves/probe")


@pytest.fixture
def place(place: Any) -> Any:
    """A workspace whose stages have processes of their own, as a user's have."""
    place.warm = ""
    return place


@pytest.fixture
def long() -> dict[str, Any]:
    """What makes a probe long enough."""
    return LONG


@pytest.fixture
def started(with_people: Any, waiting: Any) -> Iterator[Callable[..., tuple[Any, Any]]]:
    """Starts a probe and gives (workspace, process) once it is in mid-training; whatever is left of it is ended."""
    family: list[psutil.Process] = []

    def start(steps: int = 10, **environment: str) -> tuple[Any, Any]:
        with_people.edit(LONG)
        process = with_people.start("probe", **environment)
        family.append(psutil.Process(process.pid))
        waiting(lambda: max(with_people.steps("probe"), default=0) >= steps, process, 200)
        family.extend(family[0].children(recursive=True))
        return with_people, process

    yield start
    for one in family:
        if one.is_running():
            one.kill()


@pytest.fixture(scope="session")
def calm(place_at: Any, drawn_people: Any, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """The same probe, undisturbed. Look, do not touch."""
    place = place_at(tmp_path_factory.mktemp("calm") / "workspace")
    shutil.copytree(drawn_people.root / "data" / "people", place.root / "data" / "people")
    place.edit(LONG)
    finished = place.run("probe")
    assert finished.returncode == 0, finished.stderr
    return place


@pytest.fixture(scope="session")
def same_results(calm: Any) -> Callable[[Any], None]:
    """Asserts that a workspace has the undisturbed outputs, and a run with each point of its curves once."""
    from mlflow import MlflowClient

    from pipelines.identity.fingerprint import tree_digests

    def curves(place: Any) -> dict[str, list[tuple[int, float]]]:
        (run,) = place.tracked("probe")
        assert run.info.status == "FINISHED"
        client = MlflowClient(place.store)
        names = [name for name in run.data.metrics if name.startswith("probe/")]
        return {name: [(p.step, p.value) for p in client.get_metric_history(run.info.run_id, name)] for name in names}

    def check(place: Any) -> None:
        for path in OUTPUTS:
            assert tree_digests(place.root / path) == tree_digests(calm.root / path), path
        assert curves(place) == curves(calm)
        assert [step for step, _ in curves(place)["probe/loss"]] == [*range(7, 150, 7), 150]

    return check


@pytest.fixture(scope="session")
def prepared(copy_of_the_checkout: Callable[[Path], Path], tmp_path_factory: pytest.TempPathFactory) -> Checkout:
    """A checkout at smoke sizes, with training long enough to be killed in the middle; nothing but `prepare` has run."""
    checkout = Checkout(copy_of_the_checkout(tmp_path_factory.mktemp("faults") / "checkout"))
    presets.apply(["smoke"], checkout.root)
    presets.edit(checkout.root / "params.yaml", LONGER)
    checkout.repro("prepare")
    return checkout


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Callable[[object], Path]]:
    """Mounts a disk of so many MiB; called again, makes it larger."""
    folder = tmp_path / "disk"
    folder.mkdir()

    def mount(mebibytes: object) -> Path:
        option = f"size={mebibytes}m" + (",remount" if folder.is_mount() else "")
        done = subprocess.run(
            ["mount", "-t", "tmpfs", "-o", option, "tmpfs", str(folder)], capture_output=True, text=True
        )
        if done.returncode:
            pytest.skip(f"cannot mount a file system here ({done.stderr.strip()}): needs root")
        return folder

    yield mount
    if folder.is_mount():
        subprocess.run(["umount", str(folder)], check=True)
