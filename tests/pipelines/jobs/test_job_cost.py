"""The cost and the machine of a stage that runs as a job: of all its attempts, and of the workers, wherever they are."""

import json
import time
import uuid

import pytest

from pipelines.engine import cost, execution
from pipelines.errors import InfrastructureError
from pipelines.jobs.stage_job import _run
from pipelines.jobs.task import JobTask, read_manifest
from pipelines.records.stage_record import hardware
from pipelines.schema.running import Compute
from pipelines.scratch.spent import WorkerGroup
from pipelines.scratch.storage import Storage

KEY = "probe-0123456789abcdef"
MACHINE = {"cpu": "of a node", "cores": 64, "memory_gb": 512.0, "gpu": "2 x NVIDIA H100"}


@pytest.fixture(params=["a shared folder", "a bucket"])
def storage(request, tmp_path):
    if request.param == "a shared folder":
        yield Storage(str(tmp_path))
        return
    made = Storage(f"memory://bucket-{uuid.uuid4().hex}")
    yield made
    made.delete("")


@pytest.fixture
def attempt(storage, monkeypatch):
    """A function that runs an attempt at a job of some seconds with this group, which may be lost at the end."""
    monkeypatch.setattr(cost, "NOTE_SECONDS", 0.05)

    def attempt(seconds, group, compute, lost=False):
        def execute(run, open_folders, params, compute, own):
            with open_folders(0) as folders:
                if group:
                    folders.begun(group)
                time.sleep(seconds)
                if lost:
                    raise InfrastructureError("lost")
            return {"accuracy": 1.0}

        monkeypatch.setattr(execution, "execute", execute)
        _run(storage, JobTask(KEY, "probe", {}, {}, {}), compute, None)
        return read_manifest(storage, KEY).ran

    return attempt


def test_a_job_that_was_lost_and_started_again_costs_what_both_attempts_have(attempt, storage):
    """The driver has no GPU; two of four workers were to be had, then all."""
    compute = Compute(workers=4, min_workers=2, threads=1)
    with pytest.raises(InfrastructureError):
        attempt(0.6, WorkerGroup(workers=4, device="cuda", hardware=MACHINE), compute, lost=True)
    first = json.loads(storage.read(f"runs/{KEY}/cost.json"))
    assert first["cost/gpu_seconds"] == pytest.approx(4 * first["cost/seconds"], rel=0.3)
    ran = attempt(0.4, WorkerGroup(workers=2, device="cuda", hardware=MACHINE), compute)
    assert ran.where.hardware == MACHINE
    assert set(ran.cost) == {"cost/seconds", "cost/worker_seconds", "cost/gpu_seconds"}
    second = {name: value - first[name] for name, value in ran.cost.items()}
    assert 0.4 <= second["cost/seconds"] < 30
    assert second["cost/gpu_seconds"] == pytest.approx(2 * second["cost/seconds"], rel=0.3)
    assert storage.names(f"runs/{KEY}") == (["writer"] if storage.folder is None else [])


def test_a_job_without_workers_is_measured_where_it_runs(attempt):
    ran = attempt(0.1, WorkerGroup(workers=1, device="cpu", hardware={}), Compute(workers=0, threads=1))
    assert ran.where.hardware == hardware()
    assert ran.cost["cost/gpu_seconds"] == 0
    assert ran.cost["cost/worker_seconds"] == pytest.approx(ran.cost["cost/seconds"])
    assert min(ran.cost["cost/cpu_seconds"], ran.cost["cost/peak_memory_mb"]) > 0
