"""A job's folders in a bucket: a process that was cut off comes back beside its successor, and harms nothing."""

import errno
import uuid

import pytest

from components.training.checkpoint import CheckpointStore
from pipelines.errors import InfrastructureError
from pipelines.jobs.folders import JobFolders
from pipelines.jobs.task import JobTask
from pipelines.scratch.storage import Storage


@pytest.fixture
def storage():
    """An object store in memory, which like a bucket has no locks."""
    made = Storage(f"memory://bucket-{uuid.uuid4().hex}")
    yield made
    made.delete("")


@pytest.fixture
def folders(storage):
    return JobFolders(storage, JobTask("probe-1", "probe", {}, {}, {}))


def save(rank_folders, step, value):
    """A checkpoint as training saves it, with its point of a curve."""
    CheckpointStore(rank_folders.scratch.checkpoints / "main").save({"value": value}, step)
    with open(rank_folders.scratch.metrics_file, "a") as file:
        file.write(f"{value}\n")
    rank_folders.after_save()


def newest(folders):
    """(step, value) that another group would resume from, and the curve."""
    with folders.open(rank=1) as found:
        step, state = CheckpointStore(found.scratch.checkpoints / "main").load()
        return (step, state["value"]), found.scratch.metrics_file.read_text().split()


def test_a_successor_resumes_from_the_checkpoints_and_metrics_of_the_writer_before(folders):
    with folders.open(rank=0) as first:
        save(first, 1, "a")
        save(first, 2, "b")
    assert newest(folders) == ((2, "b"), ["a", "b"])
    with folders.open(rank=0) as second:
        assert CheckpointStore(second.scratch.checkpoints / "main").steps() == [1, 2]
        save(second, 3, "c")
    assert newest(folders) == ((3, "c"), ["a", "b", "c"])


def test_one_that_comes_back_stops_and_no_checkpoint_of_its_successor_is_lost(folders, storage):
    opened = folders.open(rank=0)
    cut_off = opened.__enter__()
    save(cut_off, 1, "a")
    with folders.open(rank=0) as successor:
        save(successor, 2, "b")
        save(successor, 3, "c")
        before = {name: storage.read(name) for name in storage.names("runs") if not name.endswith(".pt")}
        for step in (2, 3, 4):  # it computes on, and would delete what it does not know
            with pytest.raises(InfrastructureError, match="has taken over"):
                save(cut_off, step, "of the cut-off")
        assert {name: storage.read(name) for name in storage.names("runs") if not name.endswith(".pt")} == before
        save(successor, 4, "d")
    with pytest.raises(InfrastructureError, match="has taken over"):
        opened.__exit__(None, None, None)  # it publishes no outputs either
    assert newest(folders) == ((4, "d"), ["a", "b", "c", "d"])
    assert [name for name in storage.names("outputs") if name.endswith("metrics.jsonl")] == ["probe-1/metrics.jsonl"]


def test_one_that_was_cut_off_in_the_middle_of_an_upload_overwrites_and_deletes_nothing_of_others(folders, storage):
    opened = folders.open(rank=0)
    cut_off = opened.__enter__()
    save(cut_off, 1, "a")
    bucket = cut_off.after_save.__self__
    with folders.open(rank=0) as successor:
        save(successor, 2, "b")
        bucket.require_writer = lambda: None  # it looked before its successor began
        save(cut_off, 2, "torn")
        save(cut_off, 3, "of the cut-off")
        del bucket.require_writer
        save(successor, 3, "c")
        own = f"runs/probe-1/checkpoints/{successor.after_save.__self__.writer}/main"
        assert len([name for name in storage.names(own) if name.endswith("state.pt")]) == 2
    with pytest.raises(InfrastructureError, match="has taken over"):
        opened.__exit__(None, None, None)  # it publishes no outputs either
    (step, _), curve = newest(folders)
    assert (step, curve) == (3, ["a", "b", "c"])


def test_a_damaged_copy_in_the_bucket_is_left_out_and_the_one_computed_again_takes_its_place(folders, storage):
    with folders.open(rank=0) as first:
        save(first, 1, "a")
        save(first, 2, "b")
    (damaged,) = [name for name in storage.names("runs") if name.endswith("step-00000002/state.pt")]
    storage.write(f"runs/{damaged}", "torn")
    with folders.open(rank=0) as second:
        assert CheckpointStore(second.scratch.checkpoints / "main").steps() == [1]
        save(second, 2, "b")
    assert len([name for name in storage.names("runs") if name.endswith("step-00000002/state.pt")]) == 2
    assert newest(folders)[0] == (2, "b")


def test_a_full_disk_here_is_no_damage_of_the_copy(folders, storage, monkeypatch):
    with folders.open(rank=0) as first:
        save(first, 1, "a")

    def full(self, name, file):
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(type(storage._files), "get_file", full)
        error = r"step-00000001/\S+: No space left on device: make room"
        with pytest.raises(InfrastructureError, match=error), folders.open(rank=1):
            pass
    assert newest(folders)[0] == (1, "a")


def test_a_checkpoint_that_was_written_again_is_sent_again(folders, storage):
    with folders.open(rank=0) as first:
        save(first, 1, "a")
    with folders.open(rank=0) as second:
        save(second, 1, "computed again")
    copies = [name for name in storage.names("runs") if name.endswith("step-00000001/manifest.json")]
    assert len({storage.read(f"runs/{name}") for name in copies}) == 2


def test_saving_lists_nothing_however_much_the_bucket_holds(folders, storage, monkeypatch):
    with folders.open(rank=0) as first:
        monkeypatch.setattr(Storage, "names", lambda *_: pytest.fail("the bucket was listed"))
        for step in range(1, 5):
            save(first, step, "a")
        monkeypatch.undo()
    assert len([name for name in storage.names("runs") if name.endswith("state.pt")]) == 2  # the store keeps two


def test_checkpoints_of_a_job_that_older_code_began_are_found(folders, storage, tmp_path):
    CheckpointStore(tmp_path).save({"value": "a"}, 7)
    for file in (tmp_path / "step-00000007").iterdir():
        storage.put(file, f"runs/probe-1/checkpoints/main/step-00000007/{file.name}")
    storage.write("runs/probe-1/metrics.jsonl", "a\n")
    assert newest(folders) == ((7, "a"), ["a"])
