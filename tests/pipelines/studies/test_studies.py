"""The engine of studies, with a study whose cells add numbers."""

import io
import json
import shutil
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from rich.console import Console

from components.errors import DataError, ParameterError
from pipelines import presets
from pipelines.__main__ import main
from pipelines.errors import InfrastructureError, StageFailedError, exit_code
from pipelines.identity import fingerprint
from pipelines.identity.closure import ROOT, sources_behind
from pipelines.params import load
from pipelines.schema.section import Section
from pipelines.studies import identity
from pipelines.studies.cells import Cell, Study
from pipelines.studies.engine import list_cells, open_study, run_study
from pipelines.studies.progress import StudyProgress
from pipelines.studies.results import write_results
from pipelines.workspace import Workspace

INPUTS = {"numbers": "data/numbers.txt"}


class Plan(Section):
    numbers: list[int]


def cells(plan: Plan, params: Any) -> list[Cell]:
    first = Cell("base", "keep", {"number": 100}, ("seed",), INPUTS)
    added = [
        Cell(f"add/{number}", "add", {"number": number}, ("seed",), INPUTS, needs=("base",)) for number in plan.numbers
    ]
    return [first, *added, Cell("alone", "alone", {"number": 7}, ("index",), INPUTS)]


def summarise(plan: Plan, params: Any, results: Any) -> dict[str, Any]:
    return {"total": sum(result["sum"] for result in results.values()), "third": 1 / 3}


STUDY = Study(Plan, cells, summarise, code="toy_study_cells")


class Toy:
    """The cells' functions; counts what was measured, and fails or is interrupted where it is told to."""

    def __init__(self) -> None:
        self.measured: list[str] = []
        self.failing: dict[str, BaseException] = {}

    def begin(self, cell: Cell) -> None:
        if error := self.failing.pop(cell.key, None):
            raise error
        self.measured.append(cell.key)

    def keep(self, cell: Cell, context: Any) -> dict[str, Any]:
        context.files.mkdir(parents=True)
        (context.files / "kept.txt").write_text(str(cell.settings["number"]))
        self.begin(cell)
        return {"sum": cell.settings["number"], "parts": [1, 2, 3]}

    def add(self, cell: Cell, context: Any) -> dict[str, Any]:
        self.begin(cell)
        kept = int((context.needs["base"] / "kept.txt").read_text())
        given = int(context.inputs["numbers"].read_text())
        return {"sum": kept + given + cell.settings["number"] + context.params().seed}

    def alone(self, cell: Cell, context: Any) -> dict[str, Any]:
        self.begin(cell)
        return {"sum": cell.settings["number"]}


@pytest.fixture
def toy(monkeypatch: pytest.MonkeyPatch) -> Toy:
    toy, module = Toy(), ModuleType("toy_study_cells")
    for name in ("keep", "add", "alone"):
        setattr(module, name, getattr(toy, name))
    monkeypatch.setitem(sys.modules, "toy_study_cells", module)
    return toy


@pytest.fixture
def workspace(tmp_path: Path) -> Workspace:
    root = tmp_path / "workspace"
    (root / "studies").mkdir(parents=True)
    (root / "data").mkdir()
    presets.edit(shutil.copy(ROOT / "params.yaml", root / "params.yaml"), {"compute": {"threads": 1}})
    (root / "studies/toy.yaml").write_text("numbers: [1, 2, 3]\n")
    (root / "data/numbers.txt").write_text("10")
    return Workspace(root, tmp_path / "home")


def run(workspace: Workspace, only: str | None = None) -> dict[str, Any]:
    return json.loads(run_study(open_study("toy", workspace, STUDY), only).read_text())


def results(workspace: Workspace) -> dict[str, Any]:
    return json.loads((workspace.root / "studies/results/toy.json").read_text())


EVERY = ["base", "add/1", "add/2", "add/3", "alone"]
TOTAL = 100 + 111 + 112 + 113 + 7


def test_every_cell_is_measured_once_and_a_second_run_measures_nothing(toy, workspace):
    first = run(workspace)
    assert toy.measured == EVERY
    assert first["summary"] == {"total": TOTAL, "third": 0.333333}
    assert (first["done"], first["of"]) == (5, 5)
    before = (workspace.root / "studies/results/toy.json").read_bytes()
    run(workspace)
    assert toy.measured == EVERY
    assert (workspace.root / "studies/results/toy.json").read_bytes() == before


def test_the_results_name_what_they_come_from_and_leave_out_the_long_lists(toy, workspace):
    found = run(workspace)
    assert [cell["key"] for cell in found["cells"]] == sorted(EVERY)
    (base,) = (cell for cell in found["cells"] if cell["key"] == "base")
    assert base["result"] == {"sum": 100}
    assert base["settings"] == {"number": 100}
    assert found["plan"] == {"numbers": [1, 2, 3]}
    assert set(found["parameters"]) == {"seed", "index"}
    assert set(found["inputs"]) == {"data/numbers.txt"}
    assert set(found) == {
        *("study", "revision", "dirty", "done", "of", "phases", "planned", "cost"),
        *("plan", "parameters", "inputs", "cells", "summary"),
    }


def test_an_interrupted_study_is_summed_up_as_far_as_it_is_and_goes_on_where_it_was(toy, workspace):
    toy.failing["add/2"] = KeyboardInterrupt()
    with pytest.raises(KeyboardInterrupt):
        run(workspace)
    assert (results(workspace)["done"], results(workspace)["of"]) == (2, 5)
    assert results(workspace)["summary"]["total"] == 100 + 111
    assert run(workspace)["summary"]["total"] == TOTAL
    assert toy.measured == EVERY  # each once: nothing was measured again


def test_files_of_a_cell_that_was_killed_are_cleared_before_it_is_measured_again(toy, workspace):
    toy.failing["base"] = KeyboardInterrupt()
    with pytest.raises(KeyboardInterrupt):
        run(workspace)
    assert run(workspace)["done"] == 5  # `mkdir` would have failed


def test_a_cell_that_fails_is_named_and_does_not_stop_the_others(toy, workspace, capsys):
    toy.failing["add/1"] = DataError("no such number")
    with pytest.raises(StageFailedError) as failed:
        run(workspace)
    assert exit_code(failed.value) == 1
    assert toy.measured == ["base", "add/2", "add/3", "alone"]
    assert "add/1: failed: no such number" in capsys.readouterr().out
    assert results(workspace)["done"] == 4
    assert run(workspace)["done"] == 5


def test_cells_that_need_a_failed_one_are_not_tried(toy, workspace, capsys):
    toy.failing["base"] = RuntimeError("out of luck")
    with pytest.raises(StageFailedError, match="4 of 5"):
        run(workspace)
    told = capsys.readouterr()
    assert toy.measured == ["alone"]
    assert "add/3: failed: needs base" in told.out
    assert "Traceback" in told.err  # a bug of ours deserves one


def test_a_result_without_a_json_form_is_a_failure_and_not_a_file(toy, workspace):
    sys.modules["toy_study_cells"].alone = lambda cell, context: {"sum": float("nan")}
    with pytest.raises(StageFailedError):
        run(workspace)
    assert results(workspace)["done"] == 4


def test_a_pattern_chooses_cells_and_what_they_need(toy, workspace):
    found = run(workspace, only="add/[23]")
    assert toy.measured == ["base", "add/2", "add/3"]
    assert (found["done"], found["of"]) == (3, 5)
    with pytest.raises(ParameterError, match="no cell matches 'ad/"):
        run(workspace, only="ad/*")


def test_listing_and_summing_up_measure_nothing(toy, workspace, capsys):
    run(workspace, only="base")
    toy.measured.clear()
    opened = open_study("toy", workspace, STUDY)
    list_cells(opened)
    write_results(opened)
    assert toy.measured == []
    told = capsys.readouterr().out
    assert "done   base\nto do  add/1\n" in told
    assert "1 of 5 done" in told
    assert results(workspace)["done"] == 1


def test_results_of_fewer_cells_or_other_settings_replace_the_committed_ones_only_when_told_so(
    toy, workspace, tmp_path, capsys
):
    run(workspace)
    committed = workspace.path("studies/results/toy.json")
    before = committed.read_bytes()

    def lead(reason: str) -> dict[str, Any]:
        """Results of a scratch root without any, which stand beside the committed ones."""
        newcomer = Workspace(workspace.root, tmp_path / reason.replace(" ", "-"))
        found = run(newcomer, "alone" if "cells" in reason else None)
        assert committed.read_bytes() == before
        told = capsys.readouterr().out
        assert f"{committed}: stays, as it {reason}; `study toy --summary` replaces it" in told
        assert f"wrote {workspace.path('results/studies/toy.json')}" in told
        assert json.loads(workspace.path("results/studies/toy.json").read_text()) == found
        return found

    assert lead("has 4 cells that these results lack")["done"] == 1
    presets.edit(workspace.path("params.yaml"), {"index": {"batch": 7}})
    assert lead("is of other parameters")["done"] == 5
    workspace.path("studies/toy.yaml").write_text("numbers: [1, 2, 3, 4]\n")
    assert lead("is of other plan and parameters")["of"] == 6
    write_results(open_study("toy", workspace, STUDY))  # as --summary
    assert results(workspace)["of"] == 6


@pytest.mark.parametrize("only", ["alone", None])
def test_results_that_cannot_be_read_are_replaced_only_when_told_so(toy, workspace, capsys, only):
    run(workspace)
    committed = workspace.path("studies/results/toy.json")
    conflict = f"<<<<<<< ours\n{committed.read_text()}=======\n>>>>>>> theirs\n"
    for text in (conflict, "[]", "{}"):
        committed.write_text(text)
        found = run(workspace, only)
        assert committed.read_text() == text
        assert f"{committed}: stays, as it cannot be read (" in capsys.readouterr().out
        assert json.loads(workspace.path("results/studies/toy.json").read_text()) == found
    committed.unlink()
    assert run(workspace, only) == results(workspace)


def test_cells_that_ask_for_the_same_share_a_result(toy, workspace):
    both = [Cell(key, "alone", {"number": 5}, ("seed",), {}) for key in ("one", "other")]
    study = Study(Plan, lambda plan, params: both, summarise, code="toy_study_cells")
    path = run_study(open_study("toy", workspace, study))
    assert toy.measured == ["one"]
    assert json.loads(path.read_text())["done"] == 2


def test_what_a_cell_reads_changes_its_identity_and_that_of_cells_that_need_it(toy, workspace):
    before = open_study("toy", workspace, STUDY).identities
    text = (workspace.root / "params.yaml").read_text()
    (workspace.root / "params.yaml").write_text(text.replace("\nseed: 0", "\nseed: 1"))
    after = open_study("toy", workspace, STUDY).identities
    assert {key for key in before if before[key] != after[key]} == {"base", "add/1", "add/2", "add/3"}
    (workspace.root / "data/numbers.txt").write_text("11")
    changed = open_study("toy", workspace, STUDY).identities
    assert all(changed[key] != after[key] for key in after)


@pytest.mark.parametrize(
    ("kind", "through"),
    [
        ("chain", ["pipelines/stages/taca_train.py", "components/evaluation/retrieval.py"]),
        ("gadms", ["components/gadms/objectives.py", "components/evaluation/retrieval.py"]),
    ],
)
def test_what_cells_of_another_kind_do_for_a_cell_counts_too(kind, through):
    behind = identity.measuring_sources(f"pipelines.studies.{kind}_cells")
    assert {"pipelines/studies/retrieval_cells.py", "components/training/loop.py", *through} <= set(behind)
    assert not {"pipelines/studies/engine.py", f"pipelines/studies/{kind}.py"} & set(behind)


def test_a_source_behind_the_cells_changes_every_identity_and_another_file_does_not(tmp_path, monkeypatch):
    code = "pipelines.studies.taca_cells"
    behind = sources_behind([code])
    assert {f"{code.replace('.', '/')}.py", "pipelines/stages/taca_train.py", "components/taca/attention.py"} <= set(
        behind
    )
    assert not {"pipelines/studies/engine.py", "pipelines/studies/taca.py", "components/gadms/model.py"} & set(behind)
    (tmp_path / "input").write_text("")
    for source in [*behind, fingerprint.LOCK, "README.md"]:
        (tmp_path / source).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / source, tmp_path / source)
    monkeypatch.setattr(fingerprint, "ROOT", tmp_path)
    params, here = load(ROOT / "params.yaml"), Workspace(tmp_path, tmp_path)
    every = [Cell("one", "draw", {}, ("seed",), {"it": "input"})]

    def current() -> str:
        return identity.fingerprints(every, code, params, here, threads=1)["one"]

    before = current()
    (tmp_path / "README.md").write_text("changed")
    assert current() == before
    for source in ("components/taca/attention.py", fingerprint.LOCK):
        (tmp_path / source).write_text((tmp_path / source).read_text() + "\n# changed\n")
        assert current() != before
        before = current()


@pytest.mark.parametrize("harm", ["torn", "foreign", "file"])
def test_a_result_that_is_not_whole_is_measured_again(toy, workspace, harm):
    run(workspace)
    opened = open_study("toy", workspace, STUDY)
    folder = opened.store.root
    identity = opened.identities["base"]
    record = folder / f"{identity[:16]}.json"
    if harm == "torn":
        record.write_text(record.read_text()[:40])
    elif harm == "foreign":
        record.write_text(record.read_text().replace(identity, "0" * 64))
    else:
        (folder / identity[:16] / "files/kept.txt").write_text("200")
    toy.measured.clear()
    assert run(workspace)["summary"]["total"] == TOTAL
    assert toy.measured == ["base"]


def test_a_result_that_cannot_be_read_now_is_not_measured_again(toy, workspace):
    run(workspace)
    opened = open_study("toy", workspace, STUDY)
    record = opened.store.root / f"{opened.identities['base'][:16]}.json"
    record.unlink()
    record.mkdir()  # an error of reading for every user, root too
    toy.measured.clear()
    with pytest.raises(IsADirectoryError):
        run(workspace)
    assert toy.measured == []


def test_a_second_process_is_turned_away_while_one_measures(toy, workspace):
    opened = open_study("toy", workspace, STUDY)
    with opened.store.lock(), pytest.raises(InfrastructureError, match="another process"):
        run(workspace)
    assert run(workspace)["done"] == 5


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("numbers: [1, many]", "studies/toy.yaml: numbers.1 = 'many'"),
        ("number: [1]", "studies/toy.yaml: number"),
        ("numbers: [", "not YAML"),
        ("", "studies/toy.yaml: all of it = None"),
    ],
)
def test_a_mistake_in_the_plan_costs_one_line(toy, workspace, text, message):
    (workspace.root / "studies/toy.yaml").write_text(text)
    with pytest.raises(ParameterError) as caught:
        open_study("toy", workspace, STUDY)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_an_unknown_study_and_a_missing_input_say_what_to_do(toy, workspace, capsys):
    assert main(["--workspace", str(workspace.root), "study", "toyy"]) == 2
    assert "one of toy" in capsys.readouterr().err
    (workspace.root / "data/numbers.txt").unlink()
    with pytest.raises(DataError, match=r"data/numbers\.txt not there: run `python -m pipelines repro`"):
        open_study("toy", workspace, STUDY)


def test_on_a_terminal_there_is_a_bar_and_elsewhere_a_line_a_cell():
    told = {}
    for terminal in (True, False):
        console = Console(file=io.StringIO(), force_terminal=terminal, width=80, highlight=False)
        with StudyProgress(2, console) as progress:
            for key in ("map/gamma-1", "map/gamma-2"):
                progress.begin(key)
                progress.done(key, {"alignment": 55.5, "many": [1, 2]})
        told[terminal] = console.file.getvalue()
    assert "[2/2] map/gamma-2: alignment 55.5 (" in told[False]
    assert "2/2" in told[True]
    assert "[2/2]" not in told[True]
