"""`verify` on an unchanged chain, and with each kind of record changed."""

import json
import os
import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from mlflow.exceptions import MlflowException
from mlflow.protos.databricks_pb2 import TEMPORARILY_UNAVAILABLE
from pretended_stages import Chain, make_chain, pretend

from components.errors import DataError, ParameterError
from pipelines import presets
from pipelines.errors import InfrastructureError
from pipelines.identity.closure import ROOT
from pipelines.provenance.lineage import find_manifest, lineage, trace
from pipelines.provenance.verification import Verification, upstream, verify
from pipelines.tracking import runs as tracking

STAGES = ["prepare", "probe", "base_model", "taca_cache"]


@pytest.fixture(scope="module")
def chain(tmp_path_factory: pytest.TempPathFactory, empty_store: Path) -> Iterator[Chain]:
    """Four stages, each of which was run."""
    with pytest.MonkeyPatch.context() as patch:
        made = make_chain(tmp_path_factory.mktemp("chain") / "workspace", empty_store)
        pretend(patch, made.store)
        for address in STAGES:
            made.run(address)
        made.write_lock(STAGES)
        yield made


@pytest.fixture(scope="module")
def tracker(chain: Chain) -> Any:
    return tracking.connect(chain.workspace)


@pytest.fixture
def place(chain: Chain, tmp_path: Path) -> Chain:
    return chain.copy(tmp_path / "workspace")


def broken(place: Chain, tracker: Any, *targets: str) -> list[str]:
    stages = upstream(targets or STAGES, place.workspace)
    return list(Verification(place.workspace, tracker).check(stages))


def edit_json(file: Path, change: Callable[[dict[str, Any]], None]) -> None:
    document = json.loads(file.read_text())
    change(document)
    file.write_text(json.dumps(document))


def edit_lock(place: Chain, change: Callable[[dict[str, Any]], None]) -> None:
    file = place.root / "dvc.lock"
    document = yaml.safe_load(file.read_text())
    change(document["stages"])
    file.write_text(yaml.safe_dump(document))


def test_an_unchanged_chain_has_no_disagreement(chain, tracker, capsys):
    assert broken(chain, tracker) == []
    verify(["data/taca_cache", str(chain.root / "models/base/part.json")], chain.workspace)
    assert "verified: 3 stages" in capsys.readouterr().out  # not the probe: neither comes from it


def test_a_path_that_no_stage_writes_is_one_line(chain):
    with pytest.raises(DataError, match=r"readme\.txt: no stage writes it"):
        verify(["readme.txt"], chain.workspace)


def test_where_nothing_has_been_run_is_one_line_and_no_store_is_made(place, monkeypatch, capsys):
    for folder in ("data/people", "models", "data/taca_cache"):
        shutil.rmtree(place.root / folder)
    store = place.root / "none.db"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{store}")
    with pytest.raises(DataError, match="nothing has been run here: no output of 29 stages is there: run `python -m"):
        verify([], place.workspace)
    assert capsys.readouterr().out == ""
    assert not store.exists()


def test_a_stage_of_pre_training_is_refused(chain):
    with pytest.raises(ParameterError, match="pretrain_probe: a stage of pre-training"):
        verify(["pretrain_probe"], chain.workspace)


def test_a_result_is_traced_to_the_run_of_its_parameters_and_not_to_a_trial_with_the_same_bytes(place, tracker):
    """Pretended outputs depend on the inputs alone: runs with other parameters write the same bytes."""
    first = find_manifest("models/probe", place.workspace, tracker)
    presets.edit(place.root / "params.yaml", {"probe": {"training": {"steps": 7}}})
    trial = place.run("probe")
    assert find_manifest("models/probe", place.workspace, tracker).run == trial["run"]
    presets.edit(
        place.root / "params.yaml", {"probe": {"training": {"steps": 8}}}
    )  # of neither; dvc.lock is of the first
    assert find_manifest("models/probe", place.workspace, tracker).run == first.run
    (place.root / "dvc.lock").unlink()
    assert find_manifest("models/probe", place.workspace, tracker).run == trial["run"]  # the newest
    shutil.copyfile(ROOT / "params.yaml", place.root / "params.yaml")
    assert find_manifest("models/probe", place.workspace, tracker).run == first.run


def test_what_reads_a_result_names_the_run_of_its_parameters(place):
    first = json.loads(place.manifest_file("prepare").read_text())
    presets.edit(place.root / "params.yaml", {"prepare": {"max_bad_fraction": 0.5}})
    assert place.run("prepare")["fingerprint"] != first["fingerprint"]
    shutil.copyfile(ROOT / "params.yaml", place.root / "params.yaml")
    presets.edit(place.root / "params.yaml", {"probe": {"training": {"steps": 7}}})
    read = place.run("probe")["provenance"]["inputs"]["data/people"]
    assert (read["fingerprint"], read["run"]) == (first["fingerprint"], first["run"])


def test_a_run_without_a_commit_is_a_disagreement(place, tracker):
    edit_json(place.manifest_file("probe"), lambda done: done["provenance"]["revision"].update(commit=""))
    assert any("names no commit" in line for line in broken(place, tracker, "probe"))


# -- each kind of link, broken by hand ---------------------------------------------------------------------------------


def edited_output(place: Chain) -> None:
    file = place.root / "models/base/part.json"
    stat = file.stat()
    file.write_text(file.read_text()[::-1])  # the same size, and the same time: only the bytes tell
    os.utime(file, ns=(stat.st_atime_ns, stat.st_mtime_ns))


def removed_output(place: Chain) -> None:
    (place.root / "models/probe/part.json").unlink()
    (place.root / "models/probe").rmdir()


def edited_metrics(place: Chain) -> None:
    edit_json(place.root / "metrics/probe/all.json", lambda m: m.update(accuracy=0.9))


def edited_curve(place: Chain) -> None:
    file = place.root / "curves/probe/all.csv"
    file.write_text(file.read_text().replace("3,0.3333333333333333", "3,0.1"))


def edited_raw(place: Chain) -> None:
    (place.root / "data/raw/README.md").write_text("other raw data\n")


def edited_params(place: Chain) -> None:
    presets.edit(place.root / "params.yaml", {"probe": {"training": {"steps": 7}}})


def edited_lock_out(place: Chain) -> None:
    edit_lock(place, lambda s: s["base_model"]["outs"][0].update(md5="0" * 32))


def edited_lock_dep(place: Chain) -> None:
    edit_lock(
        place, lambda s: next(d for d in s["probe"]["deps"] if d["path"].endswith("loop.py")).update(md5="0" * 32)
    )


def edited_lock_params(place: Chain) -> None:
    edit_lock(place, lambda s: s["probe"]["params"]["params.yaml"].update(seed=5))


def edited_lock_command(place: Chain) -> None:
    edit_lock(place, lambda s: s["probe"].update(cmd="python train.py"))


def lock_without_stage(place: Chain) -> None:
    edit_lock(place, lambda s: s.pop("probe"))


def lock_without_dep(place: Chain) -> None:
    edit_lock(place, lambda s: s["probe"].update(deps=[d for d in s["probe"]["deps"] if d["path"] != "data/people"]))


def edited_manifest_digest(place: Chain) -> None:
    edit_json(place.manifest_file("probe"), lambda d: d["outputs"]["models/probe"].update({"part.json": "0" * 64}))


def edited_manifest_metrics(place: Chain) -> None:
    edit_json(place.manifest_file("probe"), lambda d: d["metrics"].update(accuracy=0.9))


def edited_manifest_origin(place: Chain) -> None:
    edit_json(place.manifest_file("probe"), lambda d: d["provenance"]["revision"].update(commit="b" * 40))


def edited_manifest_input(place: Chain) -> None:
    edit_json(place.manifest_file("probe"), lambda d: d["provenance"]["inputs"]["data/people"].update(sha256="0" * 64))


def damaged_stored_output(place: Chain) -> None:
    (place.manifest_file("probe").parent / "outputs/models/probe/part.json").write_text("damaged")


def other_maker(place: Chain) -> None:
    """The manifest of what made an input says that it wrote something else."""
    edit_json(place.manifest_file("prepare"), lambda d: d["outputs"]["data/people"].update({"part.json": "0" * 64}))


def lost_manifests(place: Chain) -> None:
    """Gone from scratch; the run on the server has a copy, but of another result."""
    place.manifest_file("probe").unlink()
    (place.root / "models/probe/part.json").write_text("by hand")


TAMPERED: dict[Callable[[Chain], None], tuple[str, ...]] = {
    edited_output: ("base_model: models/base is not what dvc.lock says was written", "part.json was edited by hand"),
    removed_output: ("probe: models/probe is not there",),
    edited_metrics: ("metrics/probe/all.json has other numbers", "metrics/probe/all.json is not what dvc.lock"),
    edited_curve: ("curves/probe/all.csv is not what dvc.lock", "metric train/loss is 0.3333333333333333"),
    edited_raw: ("prepare: data/raw is not what dvc.lock says was read", "prepare: data/raw is not what its run read"),
    edited_params: ("probe: params.yaml: probe is not what dvc.lock", "is of other parameters"),
    edited_lock_out: ("base_model: models/base.json is not what dvc.lock says was written",),
    edited_lock_dep: ("components/training/loop.py is not what dvc.lock says was read",),
    edited_lock_params: ("probe: params.yaml: seed is not what dvc.lock says",),
    edited_lock_command: ("dvc.lock has another command: python train.py",),
    lock_without_stage: ("probe: dvc.lock has no entry",),
    lock_without_dep: ("dvc.lock does not list data/people",),
    edited_manifest_digest: ("models/probe as stored", "models/probe is not what the manifest", "copy of the manifest"),
    edited_manifest_metrics: ("other numbers than the manifest", "metric accuracy is 0.5", "copy of the manifest"),
    edited_manifest_origin: ("tag git.revision", "copy of the manifest"),
    edited_manifest_input: ("data/people is not what its run read", "dataset input data/people", "lists other bytes"),
    damaged_stored_output: ("the stored copy is damaged",),
    other_maker: ("the manifest of prepare lists other bytes than were read",),
    lost_manifests: ("probe: models/probe is not what the manifest",),
}


OF_BASE = (edited_output, edited_lock_out)
"""The others are found from the probe."""


@pytest.mark.parametrize("tamper", TAMPERED, ids=lambda tamper: tamper.__name__)
def test_a_broken_link_is_found_and_named(tamper, place, tracker):
    tamper(place)
    lines = broken(place, tracker, "base_model" if tamper in OF_BASE else "probe")
    for expected in TAMPERED[tamper]:
        assert any(expected in line for line in lines), lines


def test_a_wrong_file_is_reported_at_the_stage_that_made_it_and_not_at_every_reader(place, tracker):
    edited_output(place)
    edited_raw(place)
    named = {line.split(":")[0] for line in broken(place, tracker)}
    assert named == {"base_model", "prepare"}


# -- the run in MLflow -------------------------------------------------------------------------------------------------


@pytest.fixture
def probe_run(chain: Chain) -> str:
    return str(json.loads(chain.manifest_file("probe").read_text())["run"])


def test_a_deleted_run_is_found(chain, tracker, probe_run):
    tracker.client.delete_run(probe_run)
    try:
        assert [line for line in broken(chain, tracker, "probe") if f"run {probe_run} was deleted" in line]
    finally:
        tracker.client.restore_run(probe_run)


def test_a_run_of_another_store_is_found(place, tracker):
    edit_json(place.manifest_file("probe"), lambda d: d.update(run="0" * 32))
    assert [line for line in broken(place, tracker, "probe") if f"run {'0' * 32} is not in the MLflow store" in line]


def test_a_server_that_fails_does_not_make_a_run_missing(place, tracker, monkeypatch):
    def fail(run_id: str) -> None:
        raise MlflowException("the database is away", TEMPORARILY_UNAVAILABLE)

    monkeypatch.setattr(tracker.client, "get_run", fail)
    with pytest.raises(InfrastructureError, match="the database is away"):
        broken(place, tracker, "probe")


def test_another_metric_in_the_run_is_found(chain, tracker, probe_run):
    before = tracker.client.get_run(probe_run).data.metrics["parts.R_1"]
    tracker.client.log_metric(probe_run, "parts.R_1", 99.0, step=0)
    try:
        assert [
            line for line in broken(chain, tracker, "probe") if "metric parts.R_1 is 99.0, the files say 12.5" in line
        ]
    finally:
        tracker.client.log_metric(probe_run, "parts.R_1", before, timestamp=int(time.time() * 1000) + 1000, step=0)


def test_another_tag_and_a_parameter_too_many_in_the_run_are_found(chain, tracker, probe_run):
    tracker.client.set_tag(probe_run, "env.torch", "0.1")
    try:
        assert [line for line in broken(chain, tracker, "probe") if "tag env.torch is '0.1'" in line]
    finally:
        version = json.loads(chain.manifest_file("probe").read_text())["provenance"]["environment"]["torch"]
        tracker.client.set_tag(probe_run, "env.torch", version)
    assert broken(chain, tracker, "probe") == []


def test_another_status_and_another_patch_in_the_run_are_found(chain, tracker, probe_run):
    tracker.client.log_text(probe_run, "another\n", tracking.PATCH_ARTIFACT)
    tracker.client.set_terminated(probe_run, "FAILED")
    try:
        lines = broken(chain, tracker, "probe")
        assert [line for line in lines if f"run {probe_run} is FAILED, but its result is complete" in line]
        assert [line for line in lines if "artifact provenance/code.patch is missing or differs" in line]
    finally:
        tracker.client.log_text(probe_run, "diff --git a/a.py b/a.py\n", tracking.PATCH_ARTIFACT)
        tracker.client.set_terminated(probe_run, "FINISHED")
    assert broken(chain, tracker, "probe") == []


# -- lineage -----------------------------------------------------------------------------------------------------------


def test_lineage_goes_back_to_the_raw_input_with_the_runs_and_digests_of_the_manifests(chain, tracker, capsys):
    lineage("data/taca_cache", chain.workspace)
    text = capsys.readouterr().out
    done = {stage: json.loads(chain.manifest_file(stage).read_text()) for stage in STAGES}
    for stage in ("taca_cache", "base_model", "prepare"):
        assert done[stage]["run"] in text
        assert done[stage]["fingerprint"][:8] in text
    assert done["probe"]["run"] not in text
    assert "data/raw" in text
    assert "raw" in text.splitlines()[-1] or "(above)" in text


def test_lineage_survives_the_scratch_folders_by_the_copies_that_the_runs_hold(chain, tracker, tmp_path):
    run = json.loads(chain.manifest_file("taca_cache").read_text())["run"]
    empty = tmp_path / "no-scratch"
    bare = type(chain.workspace)(chain.root, empty)
    step = trace(find_manifest(run[:10], bare, tracker), empty, tracker.client)
    by_path = {source.path: source for source in step.inputs}
    base = by_path["models/base"].step
    assert base is not None
    assert base.address == "base_model"
    assert [source.path for source in base.inputs[0].step.inputs] == ["data/raw"]
    assert base is by_path["models/base.json"].step
