"""The error of training workers that broke off, and whether they are started again."""

import errno
from contextlib import nullcontext

import pytest
from ray.exceptions import ActorDiedError, OutOfMemoryError, RayTaskError
from ray.train import ControllerError, WorkerGroupError
from ray.train.v2._internal.exceptions import WorkerHealthCheckFailedError

from components.errors import DataError, ParameterError
from components.training.loop import NonFiniteLossError
from pipelines import graph
from pipelines.engine import execution
from pipelines.engine.execution import RankFolders, _cause, require_even_batches
from pipelines.errors import InfrastructureError, exit_code
from pipelines.identity.closure import ROOT
from pipelines.locks.retrying import Decision, RetryPolicy
from pipelines.params import load
from pipelines.schema.running import Compute
from pipelines.scratch.folder import Scratch


def test_half_outputs_of_workers_that_were_lost_are_no_outputs_of_the_next_ones(tmp_path, monkeypatch):
    scratch = Scratch(tmp_path)
    scratch.begin()
    left = scratch.writing / "data" / "people" / "shards" / "train-00000.parquet"
    left.parent.mkdir(parents=True)
    left.write_bytes(b"half")
    monkeypatch.setattr(execution, "stage_function", lambda run: lambda params, inputs, outputs, context: {})
    folders = nullcontext(RankFolders(tmp_path, scratch))
    execution.execute(graph.find("prepare"), lambda rank: folders, None, Compute(workers=0, device="cpu"), tmp_path)
    assert not [path for path in scratch.writing.rglob("*") if path.is_file()]


def raised(error):
    """As Ray gives what an actor's constructor raises."""
    try:
        raise error
    except Exception as seen:
        text = f'ray::TrainController.__init__()\n  File "storage.py", line 438, in open\n{type(seen).__name__}: {seen}'
        return ActorDiedError(RayTaskError("TrainController.__init__", text, seen))


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (
            WorkerGroupError("", {1: WorkerHealthCheckFailedError("", OutOfMemoryError("2 worker(s) were killed"))}),
            "a process of the training was lost: 2 worker(s) were killed",
        ),
        (
            ActorDiedError(),
            "a process of the training was lost: The actor died unexpectedly before finishing this task.",
        ),
        (raised(OSError("no such bucket")), "a process of the training was lost: OSError: no such bucket"),
        (ControllerError(TimeoutError("after 60 s")), "the workers could not start: after 60 s"),
    ],
)
def test_lost_processes_are_one_line_and_may_be_started_again(error, said):
    cause = _cause(error)
    assert isinstance(cause, InfrastructureError)
    assert str(cause) == said
    assert again(cause)


def test_a_users_mistake_is_reported_though_other_ranks_fail_because_of_it_and_is_not_retried():
    mistake = DataError("people: no picture")
    failures = {0: RuntimeError("connection closed by peer"), 1: mistake}
    assert _cause(WorkerGroupError("", failures)) is mistake
    assert not again(mistake)


def test_a_bug_is_not_retried_though_the_other_ranks_miss_their_peer_because_of_it():
    bug, missed = TypeError("a bug"), RuntimeError("[gloo/transport/tcp/pair.cc:534] Connection closed by peer [::1]:1")
    assert _cause(WorkerGroupError("", {0: missed, 1: bug})) is bug
    assert not again(bug)
    unstable = NonFiniteLossError("loss is nan at step 3")
    assert _cause(WorkerGroupError("", {0: missed, 1: unstable})) is unstable
    assert not again(unstable)


def test_lost_storage_is_retried_and_so_is_a_peer_that_has_gone():
    lost, missed = OSError(errno.ESTALE, "Stale file handle"), RuntimeError("gloo: Connection closed by peer")
    assert _cause(WorkerGroupError("", {0: missed, 1: lost, 2: TypeError("because of it")})) is lost
    assert again(lost)
    assert again(_cause(WorkerGroupError("", {0: missed})))
    died = WorkerHealthCheckFailedError("", ActorDiedError())
    assert again(_cause(WorkerGroupError("", {0: TypeError("because of it"), 1: died})))


def again(error):
    return RetryPolicy(1).decide(exit_code(error), 1) is Decision.AGAIN


@pytest.mark.parametrize(
    ("section", "workers", "message"),
    [
        ("probe", 3, "probe.training.batch = 64: must be a multiple of compute.workers = 3 x accumulate = 1"),
        ("base_model", 3, "base_model.autoencoder.batch = 8: must be a multiple of compute.workers = 3"),
        ("curate", 5, "curate.matcher.batch = 64"),
        ("gadms_finetune", 6, "gadms_finetune.training.batch = 64"),
        ("taca_train", 32, "taca_train.training.batch = 16"),
    ],
)
def test_a_batch_that_does_not_divide_among_the_workers_is_refused_before_they_start(section, workers, message):
    settings = load(ROOT / "params.yaml")
    require_even_batches(getattr(settings, section), section, 0)
    require_even_batches(getattr(settings, section), section, 4)
    with pytest.raises(ParameterError, match=message):
        require_even_batches(getattr(settings, section), section, workers)
