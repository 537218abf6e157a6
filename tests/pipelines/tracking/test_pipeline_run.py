"""The run of a pipeline execution, in MLflow's own SQLite store; its stages are run by the real runner, their work is pretended."""

import multiprocessing
import os

import pytest
import yaml
from pretended_stages import make_chain, pretend

from pipelines import presets
from pipelines.engine.runner import run_stage
from pipelines.params import load
from pipelines.scratch.metric_log import MetricLog
from pipelines.tracking import pipeline_run
from pipelines.tracking.pipeline_run import PipelineExecution, pipeline_execution, pipeline_identity
from pipelines.tracking.runs import RunFacts, connect, flatten

pytestmark = pytest.mark.slow


@pytest.fixture
def chain(tmp_path, empty_store, monkeypatch):
    chain = make_chain(tmp_path / "workspace", empty_store)
    pretend(monkeypatch, chain.store)
    return chain


@pytest.fixture
def client(chain):
    from mlflow import MlflowClient

    return MlflowClient(chain.store)


def test_the_status_and_the_owner_of_a_given_run_are_not_touched_by_its_stages(chain, client):
    with pipeline_execution(chain.workspace) as execution:
        for key in ("pipelines.visible_from", "pipelines.machine"):
            client.set_tag(execution.id, key, "another machine")
        before = client.get_run(execution.id)
        run_stage("prepare", chain.workspace, execution.id)
        after = client.get_run(execution.id)
        assert (after.info.status, after.data.tags) == (before.info.status, before.data.tags)
        assert after.info.status == "RUNNING"
        (stage,) = client.search_runs([after.info.experiment_id], "tags.level = 'stage'")
        assert (stage.data.tags["mlflow.parentRunId"], stage.info.status) == (execution.id, "FINISHED")
    assert client.get_run(execution.id).info.status == "FINISHED"


@pytest.mark.parametrize(
    ("error", "code", "status"),
    [
        (None, 0, "FINISHED"),
        (None, 3, "FAILED"),
        (None, 130, "KILLED"),
        (KeyboardInterrupt, 0, "KILLED"),
        (OSError, 0, "FAILED"),
    ],
)
def test_the_status_is_that_of_the_command(chain, client, error, code, status):
    def execute():
        with pipeline_execution(chain.workspace) as execution:
            opened.append(execution.id)
            execution.exit_code = code
            if error:
                raise error

    opened = []
    if error:
        with pytest.raises(error):
            execute()
    else:
        execute()
    assert client.get_run(opened[0]).info.status == status


def test_the_same_execution_goes_on_in_its_run_and_a_command_that_runs_nothing_opens_no_store(chain, monkeypatch):
    ids = []
    for _ in range(2):
        with pipeline_execution(chain.workspace) as execution:
            ids.append(execution.id)
    assert ids[0] == ids[1]
    monkeypatch.setattr(pipeline_run, "connect", None)  # raises when it is called
    with pipeline_execution(chain.workspace):
        pass


def find_pipelines(client):
    experiments = [experiment.experiment_id for experiment in client.search_experiments()]
    return client.search_runs(experiments, "tags.level = 'pipeline'")


def killed_before_its_end(workspace):
    execution = PipelineExecution(workspace)
    assert execution.id
    os._exit(9)


def test_a_run_whose_execution_was_killed_after_its_last_stage_is_finished_by_the_next(chain, client, monkeypatch):
    killed = multiprocessing.get_context("fork").Process(target=killed_before_its_end, args=(chain.workspace,))
    killed.start()
    killed.join()
    assert killed.exitcode == 9
    (run,) = find_pipelines(client)
    assert run.info.status == "RUNNING"
    with pipeline_execution(chain.workspace) as failing:
        failing.exit_code = 2  # it did not come as far as the stages
    assert find_pipelines(client)[0].info.status == "RUNNING"
    with pipeline_execution(chain.workspace):
        pass  # every stage is recorded, so none asks for the run
    assert [(found.info.run_id, found.info.status) for found in find_pipelines(client)] == [
        (run.info.run_id, "FINISHED")
    ]
    monkeypatch.setattr(pipeline_run, "connect", None)  # raises when it is called
    with pipeline_execution(chain.workspace):
        pass


def test_runs_that_could_not_be_closed_are_finished_by_the_next_execution_though_nothing_is_left_to_run(
    chain, client, monkeypatch, capsys
):
    with monkeypatch.context() as patch, pipeline_execution(chain.workspace) as execution:
        run_id = execution.id
        patch.setattr("mlflow.MlflowClient.set_terminated", None)
        run_stage("prepare", chain.workspace, run_id)
    assert capsys.readouterr().err.count("could not be closed as FINISHED") == 2
    runs = client.search_runs([client.get_run(run_id).info.experiment_id])
    assert [run.info.status for run in runs] == ["RUNNING"] * 2
    with pipeline_execution(chain.workspace):
        pass
    assert [client.get_run(run.info.run_id).info.status for run in runs] == ["FINISHED"] * 2


def test_results_that_a_cache_gave_open_the_run_at_the_end(chain, client):
    with pipeline_execution(chain.workspace) as execution:
        execution.took_results = True
    assert client.get_run(execution.id).info.status == "FINISHED"


def test_the_run_holds_every_parameter_and_the_name_of_the_dvc_experiment(chain, client, monkeypatch):
    monkeypatch.setenv("DVC_EXP_NAME", "sunny-fork")
    with pipeline_execution(chain.workspace) as execution:
        run = client.get_run(execution.id)
    written = flatten(yaml.safe_load((chain.root / "params.yaml").read_text()))
    assert set(written) <= set(run.data.params)
    assert run.data.params["taca.gamma"] == str(written["taca.gamma"])
    assert run.data.params == {
        key: str(value) for key, value in flatten(load(chain.root / "params.yaml").model_dump(mode="json")).items()
    }
    assert run.data.tags["dvc.exp_name"] == "sunny-fork"
    assert run.data.tags["level"] == "pipeline"


def test_stages_that_open_log_and_end_at_once_in_one_sqlite_file_lose_no_point(chain, client):
    """Processes forked before any of them has connected, as the scheduler forks runners."""
    with pipeline_execution(chain.workspace) as execution:
        fork = multiprocessing.get_context("fork")
        stages = [fork.Process(target=track_a_stage, args=(chain.workspace, n, execution.id)) for n in range(STAGES)]
        for stage in stages:
            stage.start()
        for stage in stages:
            stage.join()
    assert [stage.exitcode for stage in stages] == [0] * STAGES
    experiment = client.get_run(execution.id).info.experiment_id
    runs = client.search_runs([experiment], "tags.level = 'stage'")
    assert {run.info.status for run in runs} == {"FINISHED"}
    assert sorted(run.data.metrics["number"] for run in runs) == list(range(STAGES))
    for run in runs:
        points = client.get_metric_history(run.info.run_id, "loss")
        assert [(point.step, point.value) for point in points] == [(step, 1 / step) for step in range(1, POINTS + 1)]


STAGES, POINTS = 6, 40


def track_a_stage(workspace, number, parent):
    folder = workspace.home / f"stage-{number}"
    folder.mkdir(parents=True)
    log = MetricLog(folder / "metrics.jsonl")
    tracked = connect(workspace).open(folder, RunFacts(f"stage {number}", {}, {"seed": number}, {}), parent)
    for step in range(1, POINTS + 1):
        log.append("main", step, {"loss": 1 / step})
        if step % 10 == 0:
            assert tracked.deliver()
    tracked.end("FINISHED", {"number": number})
    tracked.close()


def test_an_execution_is_known_by_parameters_code_and_raw_data(chain, monkeypatch):
    params, raw = chain.root / "params.yaml", chain.root / "data/raw"
    before = pipeline_identity(chain.workspace)
    params.write_text(params.read_text() + "# a remark\n")
    presets.edit(params, {"compute": {"workers": 2}})
    assert pipeline_identity(chain.workspace) == before
    presets.edit(params, {"taca": {"gamma": 1.3}})
    other_gamma = pipeline_identity(chain.workspace)
    (raw / "more.json").write_text("{}")
    other_data = pipeline_identity(chain.workspace)
    monkeypatch.setattr(pipeline_run, "file_digest", lambda path: "0")
    assert len({before, other_gamma, other_data, pipeline_identity(chain.workspace)}) == 4
