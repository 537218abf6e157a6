"""The metrics of a running job: the submitter's copy is the job's log, and what is sent is what is new."""

import uuid

import pytest

from pipelines.errors import InfrastructureError
from pipelines.jobs import metrics
from pipelines.jobs.metrics import MetricsCopy, MetricsSender, sent_metrics
from pipelines.scratch.metric_log import MetricLog
from pipelines.scratch.storage import Storage

KEY = "probe-1"


@pytest.fixture
def bucket():
    made = Storage(f"memory://bucket-{uuid.uuid4().hex}", timeout=0)
    yield made
    made.delete("")


@pytest.fixture
def log(tmp_path):
    return MetricLog(tmp_path / "job.jsonl")


@pytest.fixture
def copy(tmp_path):
    return tmp_path / "here" / "metrics.jsonl"


def sender(bucket, log, writer="writer-a"):
    return MetricsSender(bucket, KEY, log.path, writer, lambda: None)


def report(log, *steps):
    for step in steps:
        log.append("main", step, {"loss": 1 / step})


@pytest.mark.parametrize("part_bytes", [10, 100, 1 << 16])
def test_the_copy_follows_a_log_in_parts_through_a_resumed_run_and_a_new_submitter(
    bucket, log, copy, part_bytes, monkeypatch
):
    monkeypatch.setattr(metrics, "PART_BYTES", part_bytes)
    copy.parent.mkdir()
    sending, following = sender(bucket, log), MetricsCopy(bucket, KEY, copy)
    following.update()  # before the job has reported anything
    for steps in ([1], [2, 3], [], [4, 5, 6, 7]):
        report(log, *steps)
        with open(log.path, "a") as file:
            file.write('{"phase"')  # being written
        sending.send()
        following.update()
        whole = log.path.read_bytes().removesuffix(b'{"phase"')
        log.path.write_bytes(whole)
        assert copy.read_bytes() == whole
    log.take_back("main", 3)
    report(log, 4, 5, 6, 7, 8)  # as long as before, and more
    sending.send()
    following.update()
    assert copy.read_bytes() == log.path.read_bytes()
    report(log, 9)
    sending.send()
    MetricsCopy(bucket, KEY, copy).update()
    assert copy.read_bytes() == log.path.read_bytes() == sent_metrics(bucket, KEY)
    assert len({name.split("/")[0] for name in bucket.names(f"runs/{KEY}/metrics") if "/" in name}) == 1


def test_what_is_sent_and_read_is_in_proportion_to_what_is_new(bucket, log, copy, monkeypatch):
    monkeypatch.setattr(metrics, "PART_BYTES", 1000)
    copy.parent.mkdir()
    sending, following = sender(bucket, log), MetricsCopy(bucket, KEY, copy)
    counted = []
    write, read = Storage.write, Storage.read_bytes

    def counting_write(self, name, data):
        counted.append(len(data))
        write(self, name, data)

    def counting_read(self, name, start=0):
        found = read(self, name, start)
        counted.append(len(found or b""))
        return found

    monkeypatch.setattr(Storage, "write", counting_write)
    monkeypatch.setattr(Storage, "read_bytes", counting_read)
    costs = []
    for step in range(1, 301):
        report(log, step)
        counted.clear()
        sending.send()
        following.update()
        costs.append(sum(counted))
    assert len(log.path.read_bytes()) > 20_000
    assert max(costs) < 6000
    counted.clear()
    sending.send()
    assert counted == []


def test_what_could_not_be_sent_is_sent_with_the_next(bucket, log, monkeypatch):
    sending = sender(bucket, log)
    report(log, 1)
    with monkeypatch.context() as patched:
        patched.setattr(Storage, "write", lambda *_: (_ for _ in ()).throw(InfrastructureError("away")))
        with pytest.raises(InfrastructureError):
            sending.send()
    sending.send()
    assert sent_metrics(bucket, KEY) == log.path.read_bytes()
    log.take_back("main", 0)
    with monkeypatch.context() as patched:
        patched.setattr(Storage, "write", lambda *_: (_ for _ in ()).throw(InfrastructureError("away")))
        with pytest.raises(InfrastructureError):
            sending.send()
    report(log, 1, 2)
    sending.send()
    assert sent_metrics(bucket, KEY) == log.path.read_bytes()


def test_the_log_of_the_present_writer_counts(bucket, log, tmp_path):
    successor_log = MetricLog(tmp_path / "successor.jsonl")
    cut_off, successor = sender(bucket, log), sender(bucket, successor_log, "writer-b")
    report(log, 1, 2)
    cut_off.send()
    successor_log.path.write_bytes(sent_metrics(bucket, KEY))
    report(successor_log, 3)
    successor.send()
    report(log, 30)
    cut_off.send()  # it had looked who the writer is before its successor began
    report(successor_log, 4)
    successor.send()
    assert sent_metrics(bucket, KEY) == successor_log.path.read_bytes()


def test_in_a_shared_folder_the_log_itself_is_read_from_where_it_was_read_last(tmp_path, copy):
    storage = Storage(str(tmp_path / "storage"), timeout=0)
    job = MetricLog(tmp_path / "storage/runs" / KEY / "metrics.jsonl")
    for folder in (job.path.parent, copy.parent):
        folder.mkdir(parents=True)
    following = MetricsCopy(storage, KEY, copy)
    for steps in ([], [1, 2], [3]):
        report(job, *steps)
        following.update()
        assert copy.exists() is job.path.exists()
    assert len(sent_metrics(storage, KEY, following._log.offset - 10)) == 10
    job.take_back("main", 1)
    report(job, 2, 3, 4)
    following.update()
    assert copy.read_bytes() == job.path.read_bytes()
