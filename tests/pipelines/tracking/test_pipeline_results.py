"""What the run of a pipeline execution says of it: against the files of stages whose work is pretended, in MLflow's own store."""

import json
import re
import shutil
from pathlib import Path

import pretended_stages
import pytest
from pretended_stages import make_chain, pretend

from pipelines import graph, params, presets
from pipelines.dvc_files.dvc_lock import dvc_md5
from pipelines.engine.runner import run_stage
from pipelines.identity.closure import ROOT
from pipelines.identity.fingerprint import digest
from pipelines.provenance.run_checks import check_run
from pipelines.records.manifests import parameters_behind
from pipelines.scratch.manifest import Manifest
from pipelines.tracking.pipeline_results import results_in_place
from pipelines.tracking.pipeline_run import pipeline_execution
from pipelines.tracking.runs import flatten
from pipelines.workspace import Workspace

pytestmark = pytest.mark.slow

MEASURED = {"R@1": 44.5, "guidance_2.5": {"alignment": {"mean": 57.5, "low": 50.0}}}
LAST = graph.find("taca_evaluate@taca_lora")
ADDRESSES = [run.address for run in graph.with_upstream([LAST])]


@pytest.fixture(scope="module")
def executed(tmp_path_factory, empty_store):
    """Two executions, the second with another gamma: (chain, ids of the pipeline's runs)."""
    with pytest.MonkeyPatch.context() as patch:
        chain = make_chain(tmp_path_factory.mktemp("executions") / "workspace", empty_store)
        pretend(patch, chain.store)
        patch.setattr(pretended_stages, "METRICS", MEASURED)
        ids = []
        for gamma in (1.2, 1.3):
            presets.edit(chain.root / "params.yaml", {"taca": {"gamma": gamma}})
            patch.setattr(pretended_stages, "digest", lambda value, gamma=gamma: digest([value, gamma]))
            with pipeline_execution(chain.workspace) as execution:
                for address in ADDRESSES:
                    run_stage(address, chain.workspace, execution.id)
                chain.write_lock(ADDRESSES)
            ids.append(execution.id)
        yield chain, ids


@pytest.fixture(scope="module")
def client(executed):
    from mlflow import MlflowClient

    return MlflowClient(executed[0].store)


def of_files(chain):
    """The headline numbers, read from the files in metrics/ by hand."""
    drawn = json.loads((chain.root / "metrics/taca_evaluate/taca_lora.json").read_text())
    return {"alignment.taca_lora.guidance_2.5": drawn["guidance_2.5"]["alignment"]["mean"]}


def stage_runs(client, parent):
    experiment = client.get_run(parent).info.experiment_id
    return client.search_runs([experiment], f"tags.`mlflow.parentRunId` = '{parent}' and tags.level = 'stage'")


def test_the_pipelines_run_has_the_headline_numbers_by_arm_and_the_cost_in_all(executed, client):
    chain, ids = executed
    results = results_in_place(chain.workspace, params.load(chain.root / "params.yaml"))
    assert list(results) == ADDRESSES
    found = client.get_run(ids[1]).data.metrics
    costs = [Manifest.read(chain.manifest_file("probe")).cost["cost/seconds"]]
    costs += [result.cost["cost/seconds"] for address, result in results.items() if address != "probe"]
    assert {key: value for key, value in found.items() if not key.startswith("cost/")} == of_files(chain)
    assert found["cost/seconds"] == pytest.approx(sum(costs))
    for key in found:  # written once, though three stages were found finished
        assert len(client.get_metric_history(ids[1], key)) == 1


def test_its_description_says_what_differs_from_the_execution_before(executed, client):
    _, (first, second) = executed
    notes = [client.get_run(run).data.tags["mlflow.note.content"] for run in (first, second)]
    assert "first execution" in notes[0]
    assert "- `taca.gamma`: 1.2 → **1.3**" in notes[1]
    assert "`taca.threshold`" not in notes[1]
    assert "code" not in notes[1]
    assert first[:8] in notes[1]


def test_its_artifacts_are_the_lock_file_and_its_tags_name_the_runs_of_stages_that_were_found_finished(
    executed, client
):
    chain, (first, second) = executed
    (lock,) = [file for file in client.list_artifacts(second) if file.path == "dvc.lock"]
    assert Path(client.download_artifacts(second, lock.path)).read_text() == (chain.root / "dvc.lock").read_text()
    before, now = (client.get_run(run).data.tags for run in (first, second))
    assert now["stage.prepare"] == before["stage.prepare"]
    assert now["stage.taca_train.taca"] != before["stage.taca_train.taca"]


def test_a_stages_run_holds_its_arm_and_the_parameters_behind_its_inputs(executed, client):
    chain, (_, second) = executed
    written = params.load(chain.root / "params.yaml")
    (run,) = [run for run in stage_runs(client, second) if run.data.tags["pipelines.stage"] == "taca_evaluate"]
    assert run.data.params["arm"] == "taca_lora"
    assert run.data.params["taca.gamma"] == "1.3"
    assert run.data.params["taca_train.training.steps"] == str(written.taca_train.training.steps)
    sections = {key.partition(".")[0] for key in run.data.params}
    upstream = {key for each in graph.with_upstream([LAST]) for key in each.stage.reads}
    assert sections == {*upstream, "arm"}
    manifest = Manifest.read(next(chain.workspace.home.glob(f"{LAST.stage.name}-*/DONE.json")))
    assert [line for line in check_run(manifest, client, None) if "parameter" in line] == []


def test_adapters_and_encoders_are_models_of_their_run_without_a_copy_of_their_bytes(executed, client):
    _, (_, second) = executed
    run = next(run for run in stage_runs(client, second) if run.data.tags["pipelines.stage"] == "taca_train")
    (model,) = client.search_logged_models([run.info.experiment_id], f"source_run_id = '{run.info.run_id}'")
    assert (model.name, model.model_type, str(model.status)) == ("adapters-taca", "adapters", "READY")
    assert model.tags["dvc.path"] == "models/adapters/taca"
    assert model.tags["upstream.taca_cache"] == client.get_run(second).data.tags["stage.taca_cache"]
    assert model.params["taca.gamma"] == "1.3"
    assert {metric.dataset_name for metric in model.metrics} == {"data/taca_cache"}
    assert {metric.key: metric.value for metric in model.metrics}["R_1"] == 44.5
    assert [output.model_id for output in client.get_run(run.info.run_id).outputs.model_outputs] == [model.model_id]
    assert not Path(model.artifact_location.removeprefix("file://")).exists()


def test_the_recipes_of_the_documentation_give_what_the_executions_gave(executed, monkeypatch):
    import mlflow

    chain, (first, second) = executed
    monkeypatch.setenv("MLFLOW_TRACKING_URI", chain.store)
    mlflow.set_tracking_uri(chain.store)  # what another test may have set
    blocks = re.findall(r"```python\n(.*?)```", (ROOT / "docs/tracking.md").read_text(), re.S)
    names = {}
    for block in blocks:
        exec(block, names)
    executions = names["executions"]
    assert list(executions["run_id"]) == [second, first]
    assert list(executions[names["gamma"]]) == ["1.3", "1.2"]
    assert list(executions[names["alignment"]]) == [57.5, 57.5]
    assert names["by_arm"].to_dict() == {"taca_lora": {"1.2": 57.5, "1.3": 57.5}}
    assert set(names["runs_of_stages"]) == {address.replace("@", ".") for address in ADDRESSES}
    assert {model.name for model in names["adapters"]} == {"adapters-taca"}
    assert names["runs_of_stages"]["taca_train.taca"] in {model.source_run_id for model in names["adapters"]}


def test_numbers_of_earlier_parameters_are_no_result_of_the_present_ones(executed):
    chain, _ = executed
    stale = params.from_document(
        {**_document(chain), "prepare": {**_document(chain)["prepare"], "caption_noise": 0.5}}, ""
    )
    assert results_in_place(chain.workspace, stale) == {}
    elsewhere = params.from_document({**_document(chain), "probe": _changed_probe(chain)}, "")
    assert set(ADDRESSES) - set(results_in_place(chain.workspace, elsewhere)) == {"probe", "taca_evaluate@taca_lora"}


def test_results_of_dvcs_cache_are_read_from_the_metrics_files_that_dvc_lock_vouches_for(executed, tmp_path):
    chain, _ = executed
    shutil.copytree(chain.root, tmp_path / "clone", ignore=shutil.ignore_patterns(".home"))
    clone = Workspace(tmp_path / "clone", tmp_path / "empty")
    settings = params.load(clone.path("params.yaml"))
    found = results_in_place(clone, settings)
    assert list(found) == ADDRESSES
    assert found[LAST.address].metrics["R@1"] == 44.5
    behind = parameters_behind("data/generated/taca_lora", None, dvc_md5(clone.path("data/generated/taca_lora")), clone)
    written = flatten(_document(chain))
    stages = graph.with_upstream([graph.find("taca_generate@taca_lora")])
    read = {key for stage in stages for key in stage.stage.reads}
    assert behind == {key: value for key, value in written.items() if key.partition(".")[0] in read}
    assert parameters_behind("data/generated/taca_lora", None, "0" * 32 + ".dir", clone) == {}
    file = clone.path("metrics/taca_train/taca.json")
    file.write_text(file.read_text() + " ")
    left = results_in_place(clone, settings)
    assert "taca_train@taca" not in left
    assert LAST.address not in left
    assert "probe" in left


def _document(chain):
    return params.load(chain.root / "params.yaml").model_dump(mode="json")


def _changed_probe(chain):
    probe = _document(chain)["probe"]
    return {**probe, "training": {**probe["training"], "steps": 7}}
