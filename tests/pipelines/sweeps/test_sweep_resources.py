"""What a trial takes of a cluster, how many fit, and which GPUs count towards a budget."""

import shutil
import sys
from functools import cache
from types import SimpleNamespace

import pytest
import yaml

from components.errors import ParameterError
from pipelines import graph, params
from pipelines.identity.closure import ROOT
from pipelines.jobs.dashboard import Node
from pipelines.sweeps import resources
from pipelines.sweeps.options import SweepOptions
from pipelines.sweeps.resources import budgeted_gpus, needs, require_gpu, slots
from pipelines.sweeps.spaces import Resources
from pipelines.sweeps.sweep import limits_of, open_sweep, sweep
from pipelines.workspace import Workspace


@cache
def own_compute():
    return params.load(ROOT / "params.yaml").compute


def compute_of(**changes):
    return own_compute().model_copy(update={"threads": 2, "workers": 0, "device": "auto", **changes})


def test_a_trial_that_can_never_fit_is_refused_and_no_more_run_than_fit():
    compute = compute_of()
    there = {"CPU": 8.0, "GPU": 1.0}
    assert slots(needs(compute, Resources(), False), there, 16) == 4
    assert slots(needs(compute, Resources(cpus=1.0, gpus=0.5), True), there, 16) == 2
    assert slots(needs(compute, Resources(), False), there, 3) == 3
    several = compute_of(workers=3)
    assert slots(needs(several, Resources(), False), there, 16) == 1
    with pytest.raises(ParameterError, match="needs 3 GPU, the cluster has 1"):
        slots(needs(several, Resources(), True), there, 16)
    with pytest.raises(ParameterError, match="needs 16 CPU, the cluster has 8"):
        slots(needs(compute_of(workers=8), Resources(), False), there, 1)
    assert slots(needs(compute_of(backend="job", workers=64), Resources(), True), there, 5) == 5


def gpus_of(stages, gpus=0.0, **changes):
    return budgeted_gpus(2, compute_of(**changes), Resources(gpus=gpus), map(graph.find, stages))


@pytest.fixture
def job_cluster(monkeypatch):
    """A function that sets the GPUs of the only node of the cluster that jobs go to."""

    def set_gpus(count):
        node = Node("n", "a", {"CPU": 8.0, **({"GPU": count} if count else {})})
        monkeypatch.setattr(resources, "Cluster", lambda address: SimpleNamespace(nodes=lambda: [node]))

    return set_gpus


def test_a_budget_counts_the_gpus_of_a_trials_process_of_its_workers_or_of_its_largest_job(job_cluster):
    stages = ("gadms_finetune@gadms", "gadms_evaluate@gadms")
    assert gpus_of(stages, 0.5) == 0.5
    assert gpus_of(stages, 0.5, workers=8) == 8
    assert gpus_of(stages, backend="job", device="cuda", workers=8) == 8
    assert gpus_of(["taca_generate@taca"], backend="job", device="cuda", workers=8) == 1  # it has no training workers
    job_cluster(4.0)
    assert gpus_of(stages, backend="job", workers=4) == 4
    assert gpus_of(stages, backend="job") == 1


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({}, "set resources.gpus in the search space, or compute.workers"),
        ({"gpus": 1.0, "workers": 2, "device": "cpu"}, "compute.device is cpu"),
        ({"backend": "job", "workers": 2}, "none of its stages is a job on a GPU of the cluster"),
    ],
)
def test_a_budget_of_gpu_hours_without_a_gpu_is_refused(changes, reason, job_cluster):
    job_cluster(0.0)
    with pytest.raises(ParameterError) as refused:
        gpus_of(["gadms_finetune@gadms"], **changes)
    assert str(refused.value) == f"--budget-gpu-hours 2: a trial takes no GPU: {reason}"


def test_a_cluster_without_gpus_is_refused_when_ray_has_started(monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", SimpleNamespace(cluster_resources=lambda: {"CPU": 2.0}))
    with pytest.raises(ParameterError, match="--budget-gpu-hours 2: a trial takes no GPU: the Ray cluster has none"):
        require_gpu(2, compute_of())
    require_gpu(None, compute_of())
    require_gpu(2, compute_of(backend="job"))
    monkeypatch.setitem(sys.modules, "ray", SimpleNamespace(cluster_resources=lambda: {"CPU": 2.0, "GPU": 1.0}))
    require_gpu(2, compute_of())


def test_a_sweep_knows_its_gpus_before_anything_starts(tmp_path):
    shutil.copy(ROOT / "params.yaml", tmp_path)
    space = yaml.safe_load((ROOT / "pipelines/sweeps/gadms.yaml").read_text())
    (tmp_path / "without.yaml").write_text(yaml.safe_dump(space, sort_keys=False))
    (tmp_path / "with.yaml").write_text(yaml.safe_dump({**space, "resources": {"gpus": 0.25}}, sort_keys=False))
    workspace = Workspace(tmp_path, tmp_path / "home")
    plain = SweepOptions("with", 2, 1, 1, None, 3.0, False, None, False, tmp_path)
    limits = limits_of(plain, open_sweep(plain, workspace))
    assert (limits.samples, limits.gpu_hours, limits.gpus) == (2, 3.0, 0.25)
    with pytest.raises(ParameterError, match="--budget-gpu-hours 3: a trial takes no GPU: set resources"):
        sweep(SweepOptions("without", 2, 1, 1, None, 3.0, False, None, False, tmp_path), workspace)
    assert not (tmp_path / "home/sweeps").exists()
