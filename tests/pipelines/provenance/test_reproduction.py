"""`reproduce`: which stages are repeated, and what is said of their numbers. tests/faults/test_reproduce.py does it for real."""

import math
import shutil
from typing import Any

import pytest

from components.errors import ParameterError
from pipelines import presets
from pipelines.identity.closure import ROOT
from pipelines.params import load
from pipelines.provenance import reproduction
from pipelines.provenance.lineage import Step, StepInput
from pipelines.provenance.reproduction import _steps
from pipelines.provenance.result_differences import compare, show
from pipelines.scratch.manifest import Manifest, StageRecord
from pipelines.workspace import Workspace


def step(address: str, *inputs: StepInput) -> Step:
    return Step(Manifest(stage=address, fingerprint=address), {}, inputs)


@pytest.fixture
def last() -> Step:
    """prepare -> base_model -> taca_cache -> taca_train@lora, which reads base_model too; prepare reads raw data."""
    prepare = step("prepare", StepInput("data/raw", "0", None, False))
    base = step("base_model", StepInput("data/people", "1", prepare, False))
    cache = step(
        "taca_cache", StepInput("data/people", "1", prepare, False), StepInput("models/base", "2", base, False)
    )
    return step(
        "taca_train@lora", StepInput("models/base", "2", base, False), StepInput("data/taca_cache", "3", cache, False)
    )


@pytest.mark.parametrize(
    ("first", "whole", "expected"),
    [
        (None, False, ["taca_train@lora"]),
        (None, True, ["prepare", "base_model", "taca_cache", "taca_train@lora"]),
        ("taca_cache", False, ["taca_cache", "taca_train@lora"]),
        ("base_model", False, ["base_model", "taca_cache", "taca_train@lora"]),
        ("prepare", False, ["prepare", "base_model", "taca_cache", "taca_train@lora"]),
    ],
)
def test_stages_are_repeated_in_the_order_of_the_graph_from_the_given_stage(last, first, whole, expected):
    assert [one.address for one in _steps(last, first, whole)] == expected


def test_a_first_stage_that_the_target_does_not_depend_on_is_refused_in_one_line(last):
    with pytest.raises(
        ParameterError, match="--from index: taca_train@lora does not depend on it; choose one of prepare"
    ):
        _steps(last, "index", False)
    with pytest.raises(ParameterError, match="stage 'indexx' does not exist"):
        _steps(last, "indexx", False)


def record(**changed: Any) -> StageRecord:
    return StageRecord(
        **{
            "revision": {"commit": "c", "dirty": False, "patch": "", "left_out": []},
            "sources": "s",
            "parameters": {"seed": 0},
            "lock": "l",
            "threads": 2,
            "seed": 0,
            "environment": {},
            "hardware": {},
            "ray": {},
            "inputs": {"data/people": {"sha256": "1"}},
            **changed,
        }
    )


def test_each_step_has_the_parameters_of_its_own_run(tmp_path):
    """Two steps of trials with other seeds: each reads `seed`."""
    shutil.copyfile(ROOT / "params.yaml", tmp_path / "params.yaml")
    seeds = []
    for seed in (3, 4):
        reproduction._write_params(
            tmp_path, record(parameters={"seed": seed, "index": {"split": "test", "batch": seed}})
        )
        found = load(tmp_path / "params.yaml")
        seeds.append((found.seed, found.index.batch))
    assert seeds == [(3, 3), (4, 4)]


def settings_of_a_step(tmp_path, monkeypatch, kept: StageRecord, storage: str | None = None, **variables: str) -> Any:
    """The section `compute` that the repeated stage reads, where params.yaml says that stages run as jobs."""
    shutil.copyfile(ROOT / "params.yaml", tmp_path / "params.yaml")
    presets.edit(tmp_path / "params.yaml", {"compute": {"backend": "job", "storage": "/shared", "workers": 1}})
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    environment = reproduction._environment(kept, tmp_path, storage)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    return load(tmp_path / "params.yaml").compute


def test_a_step_runs_here_with_the_workers_strategy_device_and_threads_of_its_run(tmp_path, monkeypatch):
    kept = record(threads=5, compute={"workers": 4, "strategy": "fsdp", "device": "cpu"})
    found = settings_of_a_step(tmp_path, monkeypatch, kept)
    assert (found.backend, found.threads) == ("local", 5)
    assert (found.workers, found.strategy, found.device) == (4, "fsdp", "cpu")


def test_the_users_own_variables_replace_all_but_the_threads_and_the_place(tmp_path, monkeypatch):
    kept = record(threads=5, compute={"workers": 4, "strategy": "fsdp", "device": "cuda"})
    own = {"WORKERS": "0", "DEVICE": "cpu", "THREADS": "1", "BACKEND": "job"}
    own = {f"PIPELINES_COMPUTE__{key}": value for key, value in own.items()}
    found = settings_of_a_step(tmp_path, monkeypatch, kept, **own)
    assert (found.backend, found.workers, found.device, found.threads) == ("local", 0, "cpu", 5)


def test_as_a_job_a_step_has_a_storage_prefix_of_its_own_which_is_deleted(tmp_path, monkeypatch):
    workspace = Workspace(tmp_path, tmp_path / "home")
    shutil.copyfile(ROOT / "params.yaml", tmp_path / "params.yaml")
    presets.edit(tmp_path / "params.yaml", {"compute": {"backend": "job", "storage": str(tmp_path / "shared")}})
    kept = tmp_path / "shared" / "outputs"
    kept.mkdir(parents=True)
    with reproduction._job_storage(workspace, True, "reproduce-1") as storage:
        found = settings_of_a_step(tmp_path, monkeypatch, record(), storage)
        assert (found.backend, found.storage) == ("job", str(tmp_path / "shared" / "reproduce-1"))
        (tmp_path / "shared" / "reproduce-1" / "outputs").mkdir(parents=True)
    assert [path.name for path in (tmp_path / "shared").iterdir()] == ["outputs"]


def done(metrics: dict[str, Any], **outputs: str) -> Manifest:
    return Manifest(stage="probe", fingerprint="f", metrics=metrics, outputs={"models/probe": outputs})


def test_equal_results_are_the_same_number_by_number_and_byte_by_byte():
    metrics = {"a": 0.1 + 0.2, "b": {"c": 3, "d": math.nan, "e": "word"}}
    comparison = compare(done(metrics, x="1"), done(metrics, x="1"))
    assert comparison.same
    assert [number.name for number in comparison.numbers] == ["a", "b.c", "b.d", "b.e"]
    assert comparison.files == {"models/probe/x": True}
    assert comparison.causes == ()


def test_a_difference_is_given_with_its_size_and_its_sign(capsys):
    comparison = compare(done({"a": 1.0, "gone": 2}, x="1", y="2"), done({"a": 0.75, "new": 3}, x="1", y="3"))
    assert not comparison.same
    assert {number.name: number.difference for number in comparison.numbers} == {"a": -0.25, "gone": None, "new": None}
    assert comparison.files == {"models/probe/x": True, "models/probe/y": False}
    show(comparison)
    said = capsys.readouterr().out
    assert "-0.25" in said
    assert "0 of 3 numbers and 1 of 2 files are the same" in said


def test_one_last_bit_is_a_difference():
    assert not compare(done({"a": 0.3}), done({"a": 0.1 + 0.2})).same


def test_another_fingerprint_is_explained_by_what_differs():
    def known(identity: str, **changed: Any) -> Manifest:
        return Manifest(stage="probe", fingerprint=identity, provenance=record(**changed))

    then = known("f")
    now = known("g", parameters={"seed": 1}, inputs={"data/people": {"sha256": "2"}})
    assert compare(then, now).causes == ("parameters", "data/people")
    assert compare(then, then).causes == ()
