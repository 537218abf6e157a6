"""Every point that a stage reports arrives at the tracking server once, whatever is killed or away in between.

The server is MLflow's own SQLite store, read back point by point; only its answers are tampered with.
"""

import json
import shutil
import time

import pytest

from pipelines.locks import machine
from pipelines.scratch.metric_log import MetricLog
from pipelines.tracking.run_state import RunState
from pipelines.workspace import Workspace

pytestmark = pytest.mark.slow


class Flaky:
    """A client whose server may be away, or whose answers may be lost on the way back."""

    def __init__(self, client):
        self._client = client
        self.away = self.answers_lost = False

    def __getattr__(self, name):
        method = getattr(self._client, name)

        def call(*arguments, **options):
            if self.away:
                raise ConnectionError("refused")
            result = method(*arguments, **options)
            if self.answers_lost:
                raise ConnectionError("reset")
            return result

        return call


@pytest.fixture
def workspace(tmp_path, empty_store, monkeypatch):
    shutil.copy(empty_store, tmp_path / "mlflow.db")
    shutil.copy("params.yaml", tmp_path / "params.yaml")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path / 'mlflow.db'}")
    monkeypatch.setattr("pipelines.tracking.pipeline_run.pipeline_identity", lambda workspace: "0" * 64)
    return Workspace(tmp_path, tmp_path / "home")


@pytest.fixture
def folder(workspace):
    folder = workspace.home / "probe-0123"
    folder.mkdir(parents=True)
    return folder


@pytest.fixture
def tracker(workspace):
    from pipelines.tracking.runs import connect

    tracker = connect(workspace)
    tracker.client = Flaky(tracker.client)
    return tracker


@pytest.fixture
def facts():
    from pipelines.tracking.runs import RunFacts

    return RunFacts("probe/0123", {"pipelines.stage": "probe"}, {"seed": 0}, {})


@pytest.fixture
def log(folder):
    return MetricLog(folder / "metrics.jsonl")


def points(tracked, key):
    return [(point.step, point.value) for point in tracked.client.get_metric_history(tracked.run_id, key)]


def no_pause(tracked):
    tracked._away_until = 0.0


def test_two_lines_of_one_step_arrive_even_with_a_delivery_between_them(tracker, folder, facts, log):
    tracked = tracker.open(folder, facts)
    log.append("main", 5, {"loss": 0.5})
    assert tracked.deliver()
    log.append("main", 5, {"R@1": 40.0})
    assert tracked.deliver()
    assert points(tracked, "loss") == [(5, 0.5)]
    assert points(tracked, "R_1") == [(5, 40.0)]


def test_two_stages_that_record_the_same_new_input_at_once_both_begin(workspace, tracker, folder):
    """The second looks for the data set, the first writes it, then the second does: MLflow refuses the second."""
    from sqlalchemy import Engine, event

    from pipelines.scratch.manifest import InputRecord
    from pipelines.tracking.runs import RunFacts, connect

    facts = RunFacts("x", {"pipelines.stage": "x"}, {}, {"data/curated": InputRecord(sha256="0" * 64, name="corpus")})
    other = connect(workspace)
    between = []

    def first_comes_in_between(_connection, _cursor, statement, *_rest):
        if statement.startswith("INSERT INTO datasets") and not between:
            between.append(statement)
            other.open(workspace.home / "first", facts)

    (workspace.home / "first").mkdir()
    event.listen(Engine, "before_cursor_execute", first_comes_in_between)
    try:
        tracked = tracker.open(folder, facts)
    finally:
        event.remove(Engine, "before_cursor_execute", first_comes_in_between)
    assert between
    runs = other.client.search_runs([other.experiment])
    assert tracked.run_id in {run.info.run_id for run in runs}
    assert [[one.dataset.name for one in run.inputs.dataset_inputs] for run in runs] == [["data/curated"]] * 2


def test_a_batch_whose_answer_was_lost_is_not_sent_twice(tracker, folder, facts, log):
    tracked = tracker.open(folder, facts)
    log.append("main", 5, {"loss": 0.5})
    tracker.client.answers_lost = True
    assert not tracked.deliver()
    tracker.client.answers_lost = False
    log.append("main", 10, {"loss": 0.25})
    no_pause(tracked)
    assert tracked.deliver()
    assert points(tracked, "loss") == [(5, 0.5), (10, 0.25)]


def test_a_kill_between_delivery_and_its_record_doubles_nothing_though_the_step_is_reported_again(
    tracker, folder, facts, log
):
    tracked = tracker.open(folder, facts)
    log.append("main", 5, {"loss": 0.5})
    before = (folder / "mlflow.json").read_text()
    assert tracked.deliver()
    (folder / "mlflow.json").write_text(before)  # killed before it was written
    log.take_back("main", 0)
    time.sleep(0.01)
    log.append("main", 5, {"loss": 0.5})  # computed again, at another time
    log.append("main", 10, {"loss": 0.25})
    again = tracker.open(folder, facts)
    assert again.run_id == tracked.run_id
    assert again.deliver()
    assert points(again, "loss") == [(5, 0.5), (10, 0.25)]


def test_what_is_reported_while_the_server_is_away_arrives_later_in_order(tracker, folder, facts, log, capsys):
    tracked = tracker.open(folder, facts)
    tracker.client.away = True
    for step in range(1, 5):
        log.append("main", step, {"loss": 1 / step})
        assert not tracked.deliver()
        no_pause(tracked)
    assert capsys.readouterr().err.count("metrics wait on disk") == 1
    tracker.client.away = False
    assert tracked.deliver()
    assert points(tracked, "loss") == [(step, 1 / step) for step in range(1, 5)]


def test_a_run_that_ended_while_the_server_was_away_is_closed_by_the_next_that_reaches_it(
    tracker, folder, facts, log, workspace
):
    tracked = tracker.open(folder, facts)
    log.append("main", 5, {"loss": 0.5})
    tracker.client.away = True
    tracked.end("FINISHED", {"accuracy": 0.75})
    with pytest.raises(ConnectionError):
        tracked.close()
    tracker.client.away = False
    other = workspace.home / "index-4567"
    other.mkdir()
    tracker.open(other, facts)
    run = tracker.client.get_run(tracked.run_id)
    assert run.info.status == "FINISHED"
    assert points(tracked, "loss") == [(5, 0.5)]
    assert points(tracked, "accuracy") == [(0, 0.75)]
    ended = json.loads((folder / "mlflow.json").read_text())["ended"]["time"]
    assert run.info.end_time == ended  # when it ended, and not when that became known


def test_a_run_that_cannot_be_closed_does_not_stop_the_next_stage(tracker, folder, facts, workspace, capsys):
    tracked = tracker.open(folder, facts)
    tracked.end("FINISHED", {"accuracy": 0.75})
    (folder / "figures").mkdir()
    (folder / "figures" / "a.png").symlink_to(folder / "gone")
    other = workspace.home / "index-4567"
    other.mkdir()
    assert tracker.open(other, facts).run_id != tracked.run_id
    assert f"warning: run {tracked.run_id} still cannot be closed" in capsys.readouterr().err


def test_an_end_whose_answer_was_lost_is_told_again_and_counts_once(tracker, folder, facts):
    tracked = tracker.open(folder, facts)
    tracked.end("FINISHED", {"accuracy": 0.75})
    tracker.client.answers_lost = True
    with pytest.raises(ConnectionError):
        tracked.close()
    tracker.client.answers_lost = False
    tracker.close_finished()
    assert points(tracked, "accuracy") == [(0, 0.75)]
    assert tracker.client.get_run(tracked.run_id).info.status == "FINISHED"


def test_a_run_created_by_a_process_that_was_killed_before_it_knew_is_found_again(tracker, folder, facts):
    tracked = tracker.open(folder, facts)
    known = json.loads((folder / "mlflow.json").read_text())
    (folder / "mlflow.json").write_text(json.dumps({**known, "run": None, "described": False}))
    again = tracker.open(folder, facts)
    assert again.run_id == tracked.run_id
    assert tracker.client.get_run(again.run_id).data.params == {"seed": "0"}


def test_a_killed_process_leaves_neither_its_run_nor_its_pipelines_as_running(tracker, folder, facts, workspace):
    from pipelines.tracking.pipeline_run import open_pipeline_run

    tracked = tracker.open(folder, facts)
    parent = open_pipeline_run(tracker)
    for run in (tracked.run_id, parent):
        tracker.client.set_tag(run, "pipelines.started", "1000.0")  # this number belongs to another process by now
    tracker.end_orphans()
    assert [tracker.client.get_run(run).info.status for run in (tracked.run_id, parent)] == ["KILLED", "KILLED"]


@pytest.fixture
def elsewhere(tracker, folder, facts, monkeypatch):
    """A function that gives the status of a run that another process began, on a system of these files and process numbers."""

    def status(boot="this boot", numbers=machine.HOST_PROCESSES, known="this machine"):
        with monkeypatch.context() as there:
            there.setattr(machine, "_text", {machine.BOOT_FILE: boot, machine.MACHINE_FILE: known}.__getitem__)
            there.setattr(machine, "process_numbers", lambda: numbers)
            run = tracker.open(folder, facts).run_id
            tracker.client.set_tag(run, "pipelines.started", "1000.0")  # its number belongs to another process by now
        own = {machine.BOOT_FILE: "this boot", machine.MACHINE_FILE: "this machine"}
        monkeypatch.setattr(machine, "_text", own.__getitem__)
        monkeypatch.setattr(machine, "process_numbers", lambda: machine.HOST_PROCESSES)
        tracker.end_orphans()
        return tracker.client.get_run(run).info.status

    return status


def test_what_a_machine_left_running_before_its_last_start_is_dead(elsewhere):
    assert elsewhere(boot="the boot before") == "KILLED"


@pytest.mark.parametrize(
    "other",
    [
        {"boot": "another kernel", "known": "another machine"},
        {"boot": "another kernel", "known": ""},
        {"numbers": "pid:[1]"},
        {"numbers": "pid:[1]", "boot": "the boot before, or another kernel"},
    ],
    ids=["another machine", "a system without an id", "a container here", "a container somewhere"],
)
def test_runs_of_processes_that_cannot_be_seen_from_here_are_not_called_dead(elsewhere, other):
    """With the same host name and process number."""
    assert elsewhere(**other) == "RUNNING"


def test_a_container_takes_no_id_of_the_image_for_its_own(monkeypatch):
    monkeypatch.setattr(machine, "_text", {machine.BOOT_FILE: "boot", machine.MACHINE_FILE: "of the image"}.__getitem__)
    monkeypatch.setattr(machine, "process_numbers", lambda: "pid:[7]")
    assert machine.installation() is None
    assert machine.place().endswith(" boot pid:[7]")


def test_a_state_of_older_code_is_read_and_one_that_cannot_be_read_is_a_new_run(tracker, folder, facts):
    older = {
        "uri": "u",
        "token": "t",
        "run": "r",
        "parent": None,
        "described": True,
        "delivered": {"main": {"loss": 5}},
    }
    ended = {"status": "FINISHED", "metrics": {"accuracy": 0.75}, "time": 1}
    (folder / "mlflow.json").write_text(json.dumps({**older, "ended": ended, "closed": False}))
    assert RunState.load(folder).must_be_closed("u")
    for text in ("{", "[]", '{"run": "r"}'):
        (folder / "mlflow.json").write_text(text)
        assert RunState.find(folder) is None
    assert tracker.client.get_run(tracker.open(folder, facts).run_id).info.status == "RUNNING"


def test_a_run_that_ends_while_another_process_looks_for_orphans_stays_finished(tracker, folder, facts, monkeypatch):
    tracked = tracker.open(folder, facts)
    tracker.client.set_tag(tracked.run_id, "pipelines.started", "1000.0")
    search = tracker.client._client.search_runs

    def found_and_then_ended(*arguments, **options):
        found = search(*arguments, **options)
        tracker.client.set_terminated(tracked.run_id, "FINISHED")
        return found

    monkeypatch.setattr(tracker.client._client, "search_runs", found_and_then_ended)
    tracker.end_orphans()
    assert tracker.client.get_run(tracked.run_id).info.status == "FINISHED"


def test_a_living_process_keeps_its_runs(tracker, folder, facts):
    tracked = tracker.open(folder, facts)
    tracker.end_orphans()
    assert tracker.client.get_run(tracked.run_id).info.status == "RUNNING"


def test_a_server_that_fails_between_two_requests_stops_a_stage_before_it_begins(tracker, folder, facts):
    from pipelines.errors import InfrastructureError

    tracker.client.away = True
    with pytest.raises(InfrastructureError, match=r"does not answer .*nothing was run"):
        tracker.open(folder, facts)
