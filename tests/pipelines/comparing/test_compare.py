"""Comparison of runs in a real tracking store, against numbers worked out by hand."""

import shutil
from dataclasses import replace

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from components.errors import DataError, ParameterError
from components.persons.drawn.config import DrawnConfig
from components.persons.drawn.dataset import write_drawn_dataset
from components.persons.pixels import encode_png
from components.persons.published.readers import find_dataset
from components.persons.published.validation import ValidatedRecords
from components.persons.shards import CaptionRow, DatasetWriter, PersonDataset, write_records
from pipelines import graph
from pipelines.comparing.comparison import compare
from pipelines.comparing.differences import metric_table, paired_tests, parameter_differences, without_people
from pipelines.comparing.examples import disputed_queries, picture_grid
from pipelines.comparing.people import people_here
from pipelines.comparing.runs import ComparedRun, StageResult, people_behind, read_runs
from pipelines.identity.fingerprint import digest, tree_digests
from pipelines.scratch.folder import Scratch
from pipelines.scratch.manifest import CodeRecord, InputRecord, Manifest, StageRecord
from pipelines.tracking.runs import connect
from pipelines.workspace import Workspace

RANKS = {"gadms": [1, 1, 2, 7, 1, 1], "random": [1, 3, 1, 7, 4, 1]}
SEARCHED = "5" * 64
"""The digest of the people."""


def write_manifest(scratch, stage, identity, **inputs):
    """DONE.json of a stage run with these inputs, by path with `_` for `/`."""
    record = StageRecord(
        revision=CodeRecord(commit="c", dirty=False, patch="", left_out=[]),
        parameters={},
        inputs={path.replace("_", "/"): used for path, used in inputs.items()},
        sources="",
        lock="",
        threads=1,
        seed=0,
        environment={},
        hardware={},
        ray={},
    )
    scratch.folder.mkdir(parents=True, exist_ok=True)
    scratch.manifest_file.write_text(Manifest(stage=stage, fingerprint=identity, provenance=record).to_json())


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
            people = InputRecord(sha256=SEARCHED, name="people")
            write_manifest(scratch, f"gadms_evaluate@{arm}", identity, data_people=people)
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


def test_a_run_that_a_tag_names_counts_before_other_runs_of_its_stage(store):
    workspace, runs = store
    tracker = connect(workspace)

    def add(parent, resamples, **tags):
        level = {"pipelines.stage": "gadms_evaluate", "pipelines.arm": "gadms"} if parent else {}
        above = {"mlflow.parentRunId": parent} if parent else {}
        run = tracker.client.create_run(tracker.experiment, tags={**level, **above, **tags}).info.run_id
        tracker.client.log_param(run, "gadms_evaluate.resamples", resamples)
        return run

    def stage_of(run):
        found, _ = read_runs(workspace, [run, runs["gadms pipeline"]])
        return {address: (each.run_id, each.params) for address, each in found.stages.items()}

    trial = add(None, 0)
    first, later = add(trial, 1), add(trial, 2)
    assert stage_of(trial) == {"gadms_evaluate": (later, {"gadms_evaluate.resamples": "2"})}  # no tag: the last
    tracker.client.set_tag(trial, "stage.gadms_evaluate.gadms", first)
    assert stage_of(trial) == {"gadms_evaluate": (first, {"gadms_evaluate.resamples": "1"})}
    tracker.client.set_tag(trial, "stage.gadms_evaluate.gadms", runs["gadms"])  # restored: below another run
    assert stage_of(trial)["gadms_evaluate"][0] == runs["gadms"]
    probe = tracker.client.create_run(
        tracker.experiment, tags={"pipelines.stage": "probe", "mlflow.parentRunId": trial}
    ).info.run_id
    found, _ = read_runs(workspace, [trial, runs["gadms"]])
    assert {address: each.run_id for address, each in found.stages.items()} == {
        "gadms_evaluate@gadms": runs["gadms"],
        "probe": probe,
    }


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


# -- the people of the runs ---------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def two_seeds(tmp_path_factory):
    """The people that `prepare` draws with seed 0 and with seed 1: the same ids, other captions."""
    found = []
    for seed in (0, 1):
        folder = tmp_path_factory.mktemp("seeds")
        config = DrawnConfig(train_identities=4, val_identities=2, test_identities=6)
        write_drawn_dataset(folder / "raw" / "CUHK-PEDES", config, seed)
        records = ValidatedRecords(find_dataset("cuhk-pedes", folder / "raw"), max_bad_fraction=0.0)
        write_records(records, folder / "data/people")
        found.append(folder / "data/people")
    return found


@pytest.fixture
def retrieval(tmp_path, two_seeds):
    """A function of (arm, seed): that arm's run, which has searched the test split of the people of that seed."""

    def run(arm, seed):
        rows = list(PersonDataset(two_seeds[seed]).rows(split="test", form="long"))
        ranks = [1 + (RANKS[arm][row["caption_id"] % 6] - 1) for row in rows]
        table = tmp_path / f"{arm}-{seed}" / f"results/retrieval/{arm}.parquet"
        table.parent.mkdir(parents=True)
        columns = {name: [row[name] for row in rows] for name in ("caption_id", "image_id")}
        pq.write_table(
            pa.table({**columns, "first_rank": ranks, "average_precision": [1 / rank for rank in ranks]}), table
        )
        stage, sha256 = graph.find(f"gadms_evaluate@{arm}"), digest(tree_digests(two_seeds[seed]))
        result = StageResult(stage, arm * 8, {}, {}, tmp_path / f"{arm}-{seed}", sha256)
        return ComparedRun(arm * 8, f"{arm} {seed}", {"gadms_evaluate": result}, {}, {})

    return run


def people_of(folder):
    return people_here(Workspace(folder.parents[1], folder.parents[1] / ".home"))


def test_runs_of_two_seeds_have_the_same_ids_and_are_not_paired(retrieval, two_seeds):
    runs = [retrieval("gadms", 0), retrieval("random", 1)]
    captions = [{row["caption_id"]: row["caption"] for row in PersonDataset(each).rows()} for each in two_seeds]
    assert captions[0].keys() == captions[1].keys()
    assert captions[0] != captions[1]
    found, not_paired = paired_tests(runs, people_of(two_seeds[0]))
    assert found == []
    assert not_paired == [
        "gadms_evaluate: not paired: run randomra was evaluated on other data/people than run gadmsgad: the same ids are other "
        "queries or prompts"
    ]
    assert disputed_queries(runs, people_of(two_seeds[0]), 10) == []
    assert without_people(runs, people_of(two_seeds[0])) == []


def test_the_people_of_the_workspace_are_shown_if_they_were_searched(retrieval, two_seeds):
    runs = [retrieval("gadms", 1), retrieval("random", 1)]
    here = PersonDataset(two_seeds[1])
    found, not_paired = paired_tests(runs, people_of(two_seeds[1]))
    assert ({row.unit for row in found}, not_paired) == ({"identity"}, [])
    assert without_people(runs, people_of(two_seeds[1])) == []
    captions = {row["caption_id"]: row["caption"] for row in here.rows(form="long")}
    disputed = disputed_queries(runs, people_of(two_seeds[1]), 3)
    assert len(disputed) == 3
    for query in disputed:
        assert query["caption"] == captions[query["caption_id"]]
        assert query["picture"].tobytes() == here.picture(query["image_id"]).tobytes()


@pytest.mark.parametrize("people", ["of another seed", "none"])
def test_other_people_in_the_workspace_are_not_shown_as_those_that_were_searched(retrieval, two_seeds, people):
    runs = [retrieval("gadms", 1), retrieval("random", 1)]
    here = people_of(two_seeds[0]) if people == "of another seed" else None
    found, not_paired = paired_tests(runs, here)
    assert ({row.unit for row in found}, not_paired) == ({"picture"}, [])
    disputed = disputed_queries(runs, here, 3)
    assert [(query["caption"], query["picture"]) for query in disputed] == [(None, None)] * 3
    (line,) = without_people(runs, here)
    assert line.startswith("gadms_evaluate: data/people of this workspace is not what these runs searched")


def test_runs_whose_people_are_not_known_are_not_paired(retrieval, two_seeds):
    known = retrieval("random", 1)
    unknown = retrieval("gadms", 1)
    unknown = replace(unknown, stages={key: replace(each, people=None) for key, each in unknown.stages.items()})
    found, not_paired = paired_tests([unknown, known], people_of(two_seeds[1]))
    assert found == []
    assert "no record is left of the data/people that run gadmsgad was evaluated on" in not_paired[0]


def test_the_people_of_generated_pictures_are_those_of_their_prompts(store):
    workspace = store[0]
    tracker = connect(workspace)
    identity = "9" * 64
    drawn = InputRecord(sha256="d", stage="taca_generate@taca", fingerprint=identity)
    evaluated = Scratch(workspace.home / "taca_evaluate-taca-x")
    write_manifest(evaluated, "taca_evaluate@taca", "x" * 64, data_generated_taca=drawn)
    done = Manifest.read(evaluated.manifest_file)
    assert people_behind(done, tracker) is None  # what has drawn them is gone
    drawing = Scratch(workspace.home / f"taca_generate-taca-{identity[:16]}")
    write_manifest(drawing, "taca_generate@taca", identity, data_people=InputRecord(sha256=SEARCHED))
    assert people_behind(done, tracker) == SEARCHED
    assert people_behind(None, tracker) is None


def generated(folder, captions):
    """Pictures for prompts 0, 1, ... with these texts."""
    with DatasetWriter(folder) as writer:
        for prompt, caption in enumerate(captions):
            picture = encode_png(torch.full((3, 16, 8), 40 * prompt, dtype=torch.uint8))
            writer.add(picture, [CaptionRow(caption, "short")], identity=prompt, split="val", source="guidance 1")


def test_pictures_are_side_by_side_only_where_the_prompts_have_the_same_text(tmp_path):
    stage = graph.find("taca_generate@base")
    texts = {"a": ["red coat", "blue coat"], "b": ["red coat", "green coat"], "c": ["a", "b"]}
    runs = {}
    for name, captions in texts.items():
        generated(tmp_path / name / stage.outputs["generated"], captions)
        result = StageResult(stage, name, {}, {}, tmp_path / name)
        runs[name] = ComparedRun(name, name, {stage.address: result}, {}, {})
    both, one = (picture_grid([runs["a"], runs[other]], 8) for other in ("a", "b"))
    assert both.height > one.height
    assert picture_grid([runs["a"], runs["c"]], 8) is None
