"""Runs by the beginning of their ids, and the list of them, in a real tracking store."""

import argparse
import shutil

import pytest

from components.errors import DataError, ParameterError
from pipelines.commands import runs
from pipelines.comparing.listing import list_runs
from pipelines.comparing.runs import read_runs
from pipelines.identity.closure import ROOT
from pipelines.tracking.pretraining_run import open_pretraining_run
from pipelines.tracking.run_ids import find_run
from pipelines.tracking.runs import connect
from pipelines.workspace import Workspace


@pytest.fixture(scope="module")
def listed(tmp_path_factory, empty_store):
    """(workspace, tracker, ids oldest first): two executions, a sweep, and a trial below it."""
    root = tmp_path_factory.mktemp("listed")
    shutil.copy(empty_store, root / "mlflow.db")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{root / 'mlflow.db'}")
        workspace = Workspace(root, root / ".home")
        tracker, ids = connect(workspace), []
        made = (("pipeline", "R_1.gadms"), ("pipeline", "R_1.gadms"), ("sweep", "best/R_1"), ("trial", "objective/R_1"))
        for place, (level, metric) in enumerate(made):
            tags = {"level": level, "mlflow.runName": f"{level} {place}"}
            tags |= {"mlflow.parentRunId": ids[-1]} if level == "trial" else {}
            start = 1_700_000_000_000 + 60_000 * place
            run = tracker.client.create_run(tracker.experiment, start, tags).info.run_id
            tracker.client.log_metric(run, metric, 40.0 + place)
            tracker.client.log_metric(run, "cost/seconds", 7.0)
            ids.append(run)
        yield workspace, tracker, ids


def test_a_run_is_found_by_its_id_and_by_a_beginning_that_no_other_has(listed):
    _, tracker, ids = listed
    for run in ids:
        unique = next(run[:n] for n in range(4, 33) if sum(other.startswith(run[:n]) for other in ids) == 1)
        assert find_run(tracker, run).info.run_id == find_run(tracker, unique).info.run_id == run


@pytest.mark.parametrize("text", ["0" * 32, "fff", "zzzz", "%%%%", "' or 1", ""])
def test_what_is_no_id_is_one_line_with_the_verb_that_lists_them(listed, text):
    with pytest.raises(DataError, match=r"no run .*pipelines runs"):
        find_run(listed[1], text)


def test_a_beginning_that_several_ids_have_is_refused_with_these_ids(listed, monkeypatch):
    _, tracker, ids = listed
    alike = [tracker.client.get_run(run) for run in ids[:2]]
    monkeypatch.setattr(tracker.client, "search_runs", lambda _, chosen, **__: alike if "run_id" in chosen else [])
    with pytest.raises(ParameterError, match=f"{ids[0]}, {ids[1]}"):
        find_run(tracker, "abcd")


def test_executions_and_sweeps_are_listed_newest_first_with_their_numbers(listed, capsys):
    workspace, _, ids = listed
    list_runs(workspace, ("pipeline", "sweep"), 20)
    lines = [line for line in capsys.readouterr().out.splitlines() if "2023" in line]
    assert [next(run for run in ids if run[:8] in line) for line in lines] == ids[2::-1]
    assert "best/R_1 42" in lines[0]
    assert "R_1.gadms 41" in lines[1]
    assert "cost" not in "".join(lines)
    list_runs(workspace, ("pipeline", "sweep"), 1)
    assert capsys.readouterr().out.count("2023") == 1


def test_a_store_that_is_not_there_or_empty_is_one_line_and_none_is_made(tmp_path, empty_store, monkeypatch, capsys):
    file = tmp_path / "mlflow.db"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{file}")
    workspace = Workspace(tmp_path, tmp_path / ".home")
    list_runs(workspace, ("pipeline",), 20)
    with pytest.raises(DataError, match=r"no MLflow store at .*: nothing has been run here"):
        read_runs(workspace, ["aaaa", "bbbb"])
    assert list(tmp_path.iterdir()) == []
    shutil.copy(empty_store, file)
    list_runs(workspace, ("pipeline",), 20)
    assert capsys.readouterr().out == "no runs yet: `python -m pipelines repro` makes the first\nno runs of pipeline\n"


def test_the_runs_below_a_run_are_listed_by_the_beginning_of_its_id(listed, capsys):
    workspace, _, ids = listed
    list_runs(workspace, ("pipeline", "sweep", "trial", "stage"), 20, ids[2][:12])
    (line,) = [line for line in capsys.readouterr().out.splitlines() if "2023" in line]
    assert ids[3][:8] in line


def test_the_verb_lists_a_pre_training_that_was_made_by_the_project(listed, capsys):
    workspace, tracker, ids = listed
    (workspace.root / "pretraining").mkdir()
    shutil.copy(ROOT / "pretraining/recipe.yaml", workspace.root / "pretraining")
    made = open_pretraining_run(tracker)
    parser = argparse.ArgumentParser()
    runs.add_options(parser)
    options = parser.parse_args([], argparse.Namespace(workspace=workspace.root))
    runs.run(options)
    shown = capsys.readouterr().out
    assert made[:8] in shown
    assert ids[3][:8] not in shown


def test_sweeps_of_older_code_are_listed_and_found(listed, capsys):
    workspace, tracker, ids = listed
    for run in ids[2:]:
        tracker.client.set_tag(run, "pipelines.role", tracker.client.get_run(run).data.tags["level"])
        tracker.client.delete_tag(run, "level")
    list_runs(workspace, ("sweep",), 20)
    assert ids[2][:8] in capsys.readouterr().out
    found = find_run(tracker, ids[3])
    assert found.data.tags["level"] == "trial"
    assert "pipelines.role" not in found.data.tags
