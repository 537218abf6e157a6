"""`benchmarks/contention.py`: which stages it measures, and real ones in slices of their steps."""

import json
import sys
from pathlib import Path

import pytest

from components.errors import DataError, ParameterError
from pipelines import graph, presets
from pipelines.scratch.folder import folder_stem
from pipelines.scratch.manifest import MANIFEST_FILE
from pipelines.workspace import Workspace

FOLDER = Path(__file__).resolve().parents[2] / "benchmarks"


@pytest.fixture
def contention(monkeypatch):
    monkeypatch.syspath_prepend(str(FOLDER))
    import contention

    yield contention
    del sys.modules["contention"]


def finish(home: Path, address: str, seconds: float) -> None:
    folder = home / f"{folder_stem(address)}-{'0' * 16}"
    folder.mkdir(parents=True)
    (folder / MANIFEST_FILE).write_text(
        json.dumps({"cost": {"cost/seconds": seconds}, "provenance": {"parameters": {}}})
    )


def test_the_longest_stages_are_those_of_the_manifests_one_arm_each(contention, tmp_path):
    (tmp_path / "params.yaml").write_text((FOLDER.parent / "params.yaml").read_text())
    place = Workspace(tmp_path, tmp_path / "home")
    with pytest.raises(DataError, match="no stage has finished yet: run `make repro`"):
        contention.longest(place)
    times = {"probe": 20.0, "gadms_finetune@gadms": 19.0, "gadms_finetune@random": 21.0, "taca_generate@lora": 3.0}
    for address, seconds in {**times, "curate": 2.0, "prepare": 90.0}.items():
        finish(place.home, address, seconds)
    assert [run.address for run in contention.longest(place)] == [
        "gadms_finetune@random",
        "probe",
        "taca_generate@lora",
    ]


@pytest.mark.parametrize("given", [[1], [2, 1], [1, 2, 4], [2, 3], [0, 2], [2, 2]])
def test_numbers_of_threads_that_cannot_be_compared_are_refused(contention, given):
    assert contention.two_numbers([2, 4]) == (2, 4)
    with pytest.raises(ParameterError, match="--threads"):
        contention.two_numbers(given)


@pytest.mark.heavy
def test_a_slice_takes_as_many_steps_as_asked_and_results_do_not_depend_on_how_threads_wait(
    contention, drawn_people, tmp_path, monkeypatch
):
    monkeypatch.setattr(contention, "ROUNDS", 1)
    training = {"training": {"steps": 1000, "batch": 64, "report_every": 100, "checkpoint_every": 100}}
    (tmp_path / "data").symlink_to(drawn_people.root / "data")
    (tmp_path / "params.yaml").write_text((drawn_people.root / "params.yaml").read_text())
    presets.edit(tmp_path / "params.yaml", {"probe": training})
    run = graph.find("probe")
    ours = contention.measure(tmp_path, run, 2, steps=4)
    again = contention.measure(tmp_path, run, 2, steps=4, copies=2, spinning=True)
    longer = contention.measure(tmp_path, run, 2, steps=5)
    assert (ours.steps, longer.steps) == (4, 5)
    assert ours.digest == again.digest != longer.digest
    assert min(ours.alone, ours.beside) > 0
