"""Comparison of runs in a real tracking store, against numbers worked out by hand."""

import json
import shutil

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from components.errors import DataError, ParameterError
from pipelines.comparing.comparison import compare
from pipelines.comparing.differences import metric_table, paired_tests, parameter_differences
from pipelines.comparing.examples import disputed_queries
from pipelines.comparing.runs import read_runs
from pipelines.scratch.folder import Scratch
from pipelines.tracking.runs import connect
from pipelines.workspace import Workspace

RANKS = {"gadms": [1, 1, 2, 7, 1, 1], "random": [1, 3, 1, 7, 4, 1]}


@pytest.fixture(scope="module")
def store(tmp_path_factory, empty_store):
    """A workspace with a pipeline's run, two arms of gadms_evaluate below it, and a run of another stage."""
    root = tmp_path_factory.mktemp("compared")
    shutil.copy(empty_store, root / "mlflow.db")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{root / 'mlflow.db'}")
        workspace = Workspace(root, root / ".home")
        tracker = connect(workspace)

        def add(name, parent=None, params=None, metrics=None, **tags):
            tags = {key.replace("_", ".", 1): value for key, value in tags.items()}
            tags |= {"mlflow.runName": name} | ({"mlflow.parentRunId": parent} if parent else {})
            run = tracker.client.create_run(tracker.experiment, tags=tags).info.run_id
            for key, value in (params or {}).items():
                tracker.client.log_param(run, key, value)
            for key, value in (metrics or {}).items():
                tracker.client.log_metric(run, key, value)
            return run

        runs = {}
        for arm, ranks in RANKS.items():
            runs[f"{arm} pipeline"] = add(f"pipeline of {arm}")
            identity = (arm * 64)[:64]
            runs[arm] = add(
                f"gadms_evaluate@{arm}",
                runs[f"{arm} pipeline"],
                {"seed": "0", "gadms_evaluate.resamples": {"gadms": 2000, "random": 1000}[arm]},
                {"R_1": 100 * ranks.count(1) / 6, "gallery": 6, "cost/seconds": 3.0 + len(arm), "train/loss": 1.5},
                pipelines_stage="gadms_evaluate",
                pipelines_arm=arm,
                pipelines_fingerprint=identity,
            )
            scratch = Scratch(workspace.home / f"gadms_evaluate-{arm}-{identity[:16]}")
            table = scratch.outputs / f"results/retrieval/{arm}.parquet"
            table.parent.mkdir(parents=True)
            columns = {
                "caption_id": [10, 11, 12, 13, 14, 15],
                "image_id": [0, 0, 1, 1, 2, 2],
                "first_rank": ranks,
                "average_precision": [1 / rank for rank in ranks],
            }
            pq.write_table(pa.table(columns), table)
            (scratch.folder / "DONE.json").write_text(json.dumps({}))
        runs["probe"] = add("probe", pipelines_stage="probe", pipelines_fingerprint="f" * 64)
        yield workspace, runs


def test_only_what_differs_is_listed(store):
    workspace, runs = store
    found = read_runs(workspace, [runs["gadms"], runs["random"]])
    assert parameter_differences(found) == [("gadms_evaluate.resamples", ["2000", "1000"])]
    assert metric_table(found, cost=False) == [("gadms_evaluate", "R_1", [400 / 6, 300 / 6])]
    assert metric_table(found, cost=True) == [("gadms_evaluate", "cost/seconds", [8.0, 9.0])]


def test_paired_differences_are_those_of_the_single_queries(store):
    workspace, runs = store
    found, not_paired = paired_tests(read_runs(workspace, [runs["gadms"], runs["random"]]), None)
    by_measure = {row.measure: row for row in found}
    gadms, random = (np.array(RANKS[arm]) for arm in RANKS)
    for k in (1, 5, 10):
        row = by_measure[f"R@{k}"]
        assert row.means == pytest.approx([100 * (gadms <= k).mean(), 100 * (random <= k).mean()])
        assert row.differences[0] is None
        assert row.differences[1].mean == pytest.approx(row.means[1] - row.means[0])
        assert row.differences[1].low <= row.differences[1].mean <= row.differences[1].high
        assert (row.items, row.unit) == (6, "picture")
    assert by_measure["mAP"].differences[1].mean == pytest.approx(100 * (1 / random - 1 / gadms).mean())
    assert not_paired == []


def test_queries_that_one_answers_and_the_other_does_not_come_worst_first(store):
    workspace, runs = store
    found = disputed_queries(read_runs(workspace, [runs["gadms"], runs["random"]]), None, 10)
    assert [(query["caption_id"], query["ranks"]) for query in found] == [(14, [1, 4]), (11, [1, 3]), (12, [2, 1])]


def test_the_page_and_the_terminal_say_it(store, capsys):
    workspace, runs = store
    page = compare(workspace, [runs["gadms"], runs["random"]])
    text, told = page.read_text(), capsys.readouterr().out
    assert page == workspace.path("reports/compare.html")
    for said in (text, told):
        assert "gadms_evaluate@random" in said
        assert "resamples" in said
        assert "R@1" in said
    assert runs["random"] in text
    assert "-16.67 [" in told


def test_pipelines_are_compared_stage_by_stage(store):
    workspace, runs = store
    with pytest.raises(ParameterError, match="no stage in common"):  # their arms differ
        read_runs(workspace, [runs["gadms pipeline"], runs["probe"]])
    (run, other) = read_runs(workspace, [runs["gadms pipeline"], runs["random pipeline"]])
    assert list(run.stages) == list(other.stages) == ["gadms_evaluate"]
    assert run.stages["gadms_evaluate"].run_id == runs["gadms"]


def test_outputs_that_are_gone_cost_a_line(store):
    workspace, runs = store
    before = read_runs(workspace, [runs["gadms"], runs["random"]])
    done = workspace.home / f"gadms_evaluate-random-{('random' * 64)[:16]}" / "DONE.json"
    done.rename(done.with_suffix(".away"))
    try:
        found, not_paired = paired_tests(read_runs(workspace, [runs["gadms"], runs["random"]]), None)
    finally:
        done.with_suffix(".away").rename(done)
    assert found == []
    assert "no longer in the scratch root" in not_paired[0]
    assert len(before) == 2


def test_too_few_runs_are_refused(store):
    workspace, runs = store[:2]
    with pytest.raises(ParameterError, match="at least two"):
        read_runs(workspace, [runs["gadms"]])
    with pytest.raises(ParameterError, match="given twice"):
        read_runs(workspace, [runs["gadms"], runs["gadms"][:12]])


def test_an_unknown_run_is_named(store):
    with pytest.raises(DataError, match="no run 'nothing'"):
        read_runs(store[0], [store[1]["gadms"], "nothing"])
