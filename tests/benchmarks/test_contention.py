"""`benchmarks/contention.py`: which stages it measures, and real ones in slices of their steps."""

import json
import shutil
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


@pytest.mark.parametrize(("slower", "code"), [(1.5, 0), (2.5, 1)])
def test_the_table_the_gain_and_the_exit_code(contention, tmp_path, monkeypatch, capsys, slower, code):
    """With times that are made up: a slice of one thread takes 1 s, of two 0.8 s, and two of one thread at once 1.25 s."""

    def measure(root, run, threads, *, steps=0, copies=1, spinning=False):
        assert steps == (0 if threads == 1 and copies == 1 else 10)
        alone = 1.25 if copies > 1 else {1: 1.0, 2: 0.8}[threads]
        return contention.Measured(10, alone, alone * (9.0 if spinning else slower), str(threads))

    monkeypatch.setattr(contention, "measure", measure)
    monkeypatch.setattr(contention, "usable_cores", lambda: 2)
    shutil.copy(FOLDER.parent / "params.yaml", tmp_path)
    presets.edit(tmp_path / "params.yaml", {"compute": {"threads": 1}})
    (tmp_path / "data" / "people").mkdir(parents=True)
    words = ["--stages", "probe", "--threads", "1", "2", "--spinning", "--json", str(tmp_path / "found.json")]
    monkeypatch.setattr(sys, "argv", ["contention.py", "--workspace", str(tmp_path), *words])
    assert contention.main() == code
    printed = capsys.readouterr().out
    assert ("NOT HELD" in printed) == bool(code)
    assert f"({slower:.2f})" in printed  # and not the 9 of threads that spin
    (gains,) = (line for line in printed.splitlines() if "1.28" in line)
    assert [cell.strip() for cell in gains.strip("│ ").split("│")][1:4] == ["1.60", "1.25", "1.28"]
    found = json.loads((tmp_path / "found.json").read_text())
    assert found["slices"]["probe"]["2, waiting as OpenMP does"]["beside"] == pytest.approx(7.2)
    assert found["at_once"]["probe"]["alone"] == 1.25


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
