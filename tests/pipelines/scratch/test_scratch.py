"""Scratch folders, outputs put in place, the metric log, and exit codes."""

import csv
import io
import json
import os
import subprocess
import sys
import time
from contextlib import suppress

import pytest

from components.errors import DataError, ParameterError
from components.files import TEMPORARY, temporary_beside, write_atomically, written_atomically
from components.training.loop import NonFiniteLossError
from pipelines import errors, graph
from pipelines.engine.runner import _paused
from pipelines.errors import InfrastructureError, StageFailedError, exit_code, is_expected
from pipelines.scratch.folder import LINK_FROM_BYTES, Scratch, put_in_place
from pipelines.scratch.manifest import Manifest
from pipelines.scratch.metric_log import MetricFollower, MetricLog

MANIFEST = Manifest(stage="probe", fingerprint="0123", metrics={"accuracy": 0.5})


@pytest.fixture
def scratch(tmp_path):
    scratch = Scratch(tmp_path / "probe-0123")
    scratch.begin()
    return scratch


def write_outputs(scratch):
    (scratch.writing / "models" / "probe").mkdir(parents=True)
    (scratch.writing / "models" / "probe" / "weights").write_bytes(b"1234")
    (scratch.writing / "metrics.json").write_text("{}")
    return ["models/probe", "metrics.json"]


def test_a_finished_stage_has_a_manifest_with_its_digests(scratch):
    assert scratch.done() is None
    written = scratch.finish(write_outputs(scratch), MANIFEST)
    assert scratch.done() == written
    assert written.metrics == {"accuracy": 0.5}
    assert set(written.outputs) == {"models/probe", "metrics.json"}


def test_an_output_that_was_not_written_is_named_and_nothing_is_done(scratch):
    with pytest.raises(RuntimeError, match="did not write curves"):
        scratch.finish([*write_outputs(scratch), "curves"], MANIFEST)
    assert scratch.done() is None


@pytest.mark.parametrize("tamper", ["change", "remove", "add"])
def test_an_output_that_was_tampered_with_is_not_done(scratch, tamper):
    scratch.finish(write_outputs(scratch), MANIFEST)
    weights = scratch.outputs / "models" / "probe" / "weights"
    if tamper == "change":
        weights.write_bytes(b"1235")
    elif tamper == "remove":
        weights.unlink()
    else:
        weights.with_name("more").write_bytes(b"")
    assert scratch.done() is None


@pytest.mark.parametrize("content", ["", "{", '{"outputs"', "[]", '{"outputs": {}}'])
def test_a_torn_manifest_is_not_done(scratch, content):
    scratch.finish(write_outputs(scratch), MANIFEST)
    (scratch.folder / "DONE.json").write_text(content)
    assert scratch.done() is None


def test_a_manifest_of_older_code_is_read_and_keeps_its_keys(tmp_path):
    """Written before provenance, cost and DVC's md5 were recorded."""
    older = {
        "fingerprint": "f",
        "metrics": {"a": 1, "b": 1.0},
        "outputs": {"a": {"": "0"}},
        "run": "r",
        "stage": "probe",
    }
    (tmp_path / "DONE.json").write_text(json.dumps(older))
    manifest = Manifest.read(tmp_path / "DONE.json")
    assert (manifest.provenance, manifest.cost, manifest.inputs) == (None, {}, {})
    assert manifest.to_json() == json.dumps(older) + "\n"


def test_a_new_attempt_keeps_checkpoints_and_drops_half_outputs(scratch):
    write_outputs(scratch)
    scratch.checkpoints.mkdir()
    scratch.begin()
    assert list(scratch.writing.iterdir()) == []
    assert scratch.checkpoints.is_dir()


def test_a_second_process_waits_for_the_first(scratch):
    code = (
        "import sys; from pathlib import Path; from pipelines.scratch.folder import Scratch\n"
        "with Scratch(Path(sys.argv[1])).lock(): print('held', flush=True)"
    )
    with scratch.lock():
        second = subprocess.Popen(
            [sys.executable, "-c", code, str(scratch.folder)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
        assert "waiting" in second.stderr.readline()
        assert second.poll() is None
    out, _ = second.communicate(timeout=200)
    assert out == "held\n"


def test_a_wait_for_another_has_an_end(scratch, monkeypatch, capsys):
    monkeypatch.setenv("PIPELINES_LOCK_TIMEOUT", "0.3")
    with (
        scratch.lock(),
        pytest.raises(InfrastructureError, match=f"process {os.getpid()} on .* still works in"),
        scratch.lock(),
    ):
        pytest.fail("held twice")
    assert f"waiting: process {os.getpid()} on" in capsys.readouterr().err
    with scratch.lock():  # and is free again
        pass


def test_a_wait_that_is_no_number_is_refused(scratch, monkeypatch):
    monkeypatch.setenv("PIPELINES_LOCK_TIMEOUT", "long")
    with (
        pytest.raises(ParameterError, match="PIPELINES_LOCK_TIMEOUT = 'long': must be a number of seconds"),
        scratch.lock(),
    ):
        pass


@pytest.mark.parametrize("before", [None, "file", "folder"])
@pytest.mark.parametrize("kind", ["file", "folder"])
def test_an_output_replaces_whatever_was_in_its_place(tmp_path, before, kind):
    source, target = tmp_path / "source", tmp_path / "deep" / "target"
    for path, shape in ((source, kind), (target, before)):
        path.parent.mkdir(exist_ok=True)
        if shape == "file":
            path.write_text(path.name)
        elif shape == "folder":
            (path / "sub").mkdir(parents=True)
            (path / "sub" / path.name).write_text(path.name)
    put_in_place(source, target)
    assert (target.read_text() if kind == "file" else (target / "sub" / "source").read_text()) == "source"
    assert [path.name for path in target.parent.iterdir()] == ["target"]
    assert kind == "file" or [path.name for path in (target / "sub").iterdir()] == ["source"]


def test_what_a_killed_write_left_is_removed_and_that_of_another_output_stays(tmp_path):
    """In the workspace, and in a folder that is placed from a storage where another process was killed."""
    source, target = tmp_path / "shared" / "people", tmp_path / "data" / "people"
    for folder in (source, target.parent):
        folder.mkdir(parents=True)
    (source / "manifest.parquet").write_text("whole")
    temporary_beside(source / "manifest.parquet").write_text("ha")
    temporary_beside(target).mkdir()
    other = temporary_beside(target.with_name("people.json"))
    other.write_text("being written")
    put_in_place(source, target)
    assert {path.name for path in target.parent.iterdir()} == {"people", other.name}
    assert [path.name for path in target.iterdir()] == ["manifest.parquet"]


@pytest.mark.parametrize("error", [OSError("disk full"), KeyboardInterrupt()])
def test_a_write_that_fails_leaves_the_file_as_it_was_and_nothing_beside_it(tmp_path, error):
    path = tmp_path / ("ö" * 125 + ".json")  # 255 bytes, the most that file systems allow
    write_atomically(path, "before")
    with suppress(type(error)), written_atomically(path) as temporary:
        assert temporary.match(TEMPORARY)
        temporary.write_text("half")
        raise error
    assert [file.read_text() for file in tmp_path.iterdir()] == ["before"]


def test_a_small_file_in_the_workspace_can_be_edited_without_reaching_the_stored_one(tmp_path):
    source = tmp_path / "source"
    source.mkdir()
    (source / "small").write_bytes(b"a" * (LINK_FROM_BYTES - 1))
    (source / "large").write_bytes(b"a" * LINK_FROM_BYTES)
    put_in_place(source, tmp_path / "target")
    with open(tmp_path / "target" / "small", "r+b") as file:
        file.write(b"b")
    assert (source / "small").read_bytes()[:1] == b"a"
    assert os.path.samefile(source / "large", tmp_path / "target" / "large")


def test_without_links_files_are_copied(tmp_path, monkeypatch):
    def refuse(source, target):
        raise OSError("cross-device link")

    monkeypatch.setattr(os, "link", refuse)
    (tmp_path / "source").write_bytes(b"a" * LINK_FROM_BYTES)
    put_in_place(tmp_path / "source", tmp_path / "target")
    assert (tmp_path / "target").read_bytes() == (tmp_path / "source").read_bytes()


def test_a_copy_that_fails_leaves_what_was_there(tmp_path, monkeypatch):
    (tmp_path / "source").write_text("new")
    (tmp_path / "target").write_text("old")

    def full(source, target):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("shutil.copyfile", full)
    with pytest.raises(OSError, match="No space"):
        put_in_place(tmp_path / "source", tmp_path / "target")
    assert (tmp_path / "target").read_text() == "old"


def test_a_write_that_fails_leaves_the_old_file(tmp_path, monkeypatch):
    write_atomically(tmp_path / "file", "old")

    def full(descriptor):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space"):
        write_atomically(tmp_path / "file", "new")
    assert (tmp_path / "file").read_text() == "old"


@pytest.fixture
def log(tmp_path):
    log = MetricLog(tmp_path / "metrics.jsonl")
    for step in (1, 2, 3):
        log.append("main", step, {"loss": 1 / step})
    log.append("other", 3, {"psnr": 30.0})
    return log


def steps(log):
    return [(line["phase"], line["step"]) for line in log.read()]


def test_metrics_are_read_in_the_order_they_were_reported(log):
    assert steps(log) == [("main", 1), ("main", 2), ("main", 3), ("other", 3)]


@pytest.mark.parametrize("cut", range(1, 12))
def test_a_torn_last_line_is_left_out_and_written_over(log, cut):
    content = log.path.read_bytes()
    log.path.write_bytes(content[:-cut])
    assert steps(log) == [("main", 1), ("main", 2), ("main", 3)]
    log.take_back("main", 2)
    log.append("main", 3, {"loss": 7.0})
    assert steps(log) == [("main", 1), ("main", 2), ("main", 3)]
    assert log.read()[-1]["metrics"] == {"loss": 7.0}


def test_a_line_torn_in_the_middle_is_left_out(log):
    """By a disk that was full, and that a later process had room on again."""
    first, *rest = log.path.read_text().splitlines(keepends=True)
    log.path.write_text(first[:20] + "".join(rest))
    assert steps(log) == [("main", 3), ("other", 3)]


def test_what_came_after_a_checkpoint_is_taken_back_for_its_own_phase_only(log):
    log.take_back("main", 1)
    assert steps(log) == [("main", 1), ("other", 3)]


def test_the_table_has_a_row_a_step_and_no_times(log):
    log.append("main", 4, {"loss": float("inf"), "gap": 0.1})
    rows = list(csv.DictReader(io.StringIO(log.table())))
    assert [row["step"] for row in rows] == ["1", "2", "3", "4"]
    assert rows[2] == {"step": "3", "gap": "", "loss": repr(1 / 3), "psnr": "30.0"}
    time.sleep(0.01)
    again = MetricLog(log.path.with_name("again"))
    for line in log.read():
        again.append(line["phase"], line["step"], line["metrics"])
    assert again.table() == log.table()


@pytest.mark.parametrize(
    ("error", "code", "one_line"),
    [
        (ParameterError("x"), 2, True),
        (DataError("x"), 3, True),
        (InfrastructureError("x"), 75, True),
        (OSError(28, "No space left on device"), 75, True),
        (KeyboardInterrupt(), 130, True),
        (NonFiniteLossError("x"), 1, True),
        (StageFailedError("x", 3), 3, True),
        (StageFailedError("x", 1), 1, True),
        (ValueError("a bug"), 1, False),
        (KeyError("a bug"), 1, False),
        (ZeroDivisionError("a bug"), 1, False),
    ],
)
def test_an_error_ends_with_its_exit_code_and_only_bugs_show_a_traceback(error, code, one_line):
    assert exit_code(error) == code
    assert is_expected(error) == one_line


def test_an_interrupt_says_once_how_far_the_stage_has_come(scratch, capsys):
    training, evaluation = graph.find("probe"), graph.find("gadms_evaluate@gadms")
    assert _paused(evaluation, scratch) == "gadms_evaluate@gadms: stopped: run again"
    assert _paused(training, scratch) == "probe: stopped before its first checkpoint: run again"
    for age, step in ((2, "first/step-00000900"), (1, "main/step-00000650"), (0, "main/step-00000700")):
        folder = scratch.checkpoints / step
        folder.mkdir(parents=True)
        os.utime(folder, (time.time() - age, time.time() - age))
    assert errors.report_error(KeyboardInterrupt(_paused(training, scratch))) == 130
    assert capsys.readouterr().err == "probe: paused at step 700: run again to resume\n"
    assert errors.report_error(KeyboardInterrupt()) == 130
    assert capsys.readouterr().err == "interrupted\n"


def test_an_error_is_shortened_to_one_line_without_secrets():
    assert errors.one_line(ValueError("a\n  b")) == "a b"
    assert errors.one_line(ValueError()) == "ValueError"
    assert errors.one_line("x" * 300, 10) == "x" * 10
    assert "hunter2" not in errors.one_line(ValueError("http://me:hunter2@host/"))
    assert errors.one_line(RuntimeError('Traceback:\n  File "a.py", line 1\nKeyError: 3')) == "KeyError: 3"


def test_a_follower_reads_what_is_new_and_a_replaced_log_from_its_start(tmp_path):
    log, follower = MetricLog(tmp_path / "metrics.jsonl"), MetricFollower(tmp_path / "metrics.jsonl")
    assert follower.read() == []
    log.append("main", 1, {"loss": 1.0})
    log.append("main", 2, {"loss": 0.5})
    assert [line["step"] for line in follower.read()] == [1, 2]
    with open(log.path, "a") as file:
        file.write('{"phase": "main", "step": 3')  # being written
    assert follower.read() == []
    with open(log.path, "a") as file:
        file.write(', "time": 1, "metrics": {}}\nnot JSON\n')
    assert [line["step"] for line in follower.read()] == [3]
    log.take_back("main", 1)
    log.append("main", 2, {"loss": 0.25})
    assert [line["step"] for line in follower.read()] == [1, 2]
    assert follower.read() == []
