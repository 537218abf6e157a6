"""The life of a stage, and of its processes: outputs, tracking, exit codes, and kills at the worst moments."""

import json
import os
import shutil
import signal
import socket
import subprocess
import sys

import psutil
import pytest
from PIL import Image

from pipelines.engine.forked import WORKER
from pipelines.identity.closure import ROOT
from pipelines.identity.fingerprint import tree_digests

pytestmark = pytest.mark.slow

LONG = {"probe": {"training": {"steps": 40, "batch": 16, "report_every": 7, "checkpoint_every": 5}}}


def error_lines(finished):
    assert "Traceback" not in finished.stderr
    return [line for line in finished.stderr.splitlines() if line.strip()]


def history(place, run, key):
    from mlflow import MlflowClient

    return [(point.step, point.value) for point in MlflowClient(place.store).get_metric_history(run.info.run_id, key)]


def test_a_runner_starts_without_the_libraries_of_its_worker(place):
    """Seconds of every stage: they are imported beside it, in the worker, or later."""
    code = (
        "import sys; from pathlib import Path; import pipelines.__main__, pipelines.engine.runner; "
        "from pipelines.params import load;"
        "load(Path(sys.argv[1])); print([name for name in ('torch', 'ray', 'mlflow', 'diffusers') if name in sys.modules])"
    )
    command = [sys.executable, "-c", code, str(place.root / "params.yaml")]
    found = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    assert found.stdout == "[]\n"


# -- a stage that goes well --------------------------------------------------------------------------------------------


def test_a_stage_writes_its_outputs_and_its_metrics(drawn_people):
    metrics = json.loads((drawn_people.root / "metrics/prepare/all.json").read_text())
    assert metrics["records"] == metrics["kept"] == 20 * 4
    assert (drawn_people.root / "data/people/manifest.parquet").is_file()


def test_a_stage_is_one_run_below_that_of_the_pipeline(drawn_people):
    (run,) = drawn_people.tracked("prepare")
    parents = [r for r in drawn_people.tracked() if "pipelines.pipeline" in r.data.tags]
    (folder,) = drawn_people.scratch("prepare")
    assert run.info.status == "FINISHED"
    assert run.data.tags["mlflow.parentRunId"] == parents[0].info.run_id
    assert (len(parents), parents[0].info.status) == (1, "FINISHED")
    assert folder.name == f"prepare-{run.data.tags['pipelines.fingerprint'][:16]}"
    assert {"git.revision", "git.dirty", "pipelines.seed", "pipelines.threads"} <= set(run.data.tags)
    assert run.data.params["prepare.identities.train"] == "12"
    assert "taca.gamma" not in run.data.params
    assert run.data.metrics["records"] == 80
    assert {"cost/seconds", "cost/cpu_seconds", "cost/peak_memory_mb"} <= set(run.data.metrics)
    (data,) = run.inputs.dataset_inputs
    assert (data.dataset.name, data.dataset.source_type) == ("data/raw", "dvc")


def test_a_second_call_puts_the_same_outputs_in_place_without_a_new_run(drawn_people, tmp_path, place_at):
    place = place_at(tmp_path / "other")
    shutil.copytree(drawn_people.home, place.home)
    shutil.copy(drawn_people.root / "mlflow.db", place.root / "mlflow.db")
    finished = place.run("prepare", MLFLOW_TRACKING_URI="http://127.0.0.1:1")  # nor is a server asked
    assert finished.returncode == 0, finished.stderr
    assert "found finished" in finished.stdout
    for path in ("data/people", "metrics/prepare"):
        assert tree_digests(place.root / path) == tree_digests(drawn_people.root / path)
    assert len(place.tracked("prepare")) == 1


def test_an_output_damaged_in_scratch_is_made_again(place):
    assert place.run("prepare").returncode == 0
    good = tree_digests(place.root / "data/people")
    (folder,) = place.scratch("prepare")
    (folder / "outputs/data/people/validation.json").write_text("{}")
    finished = place.run("prepare")
    assert (finished.returncode, "found finished" in finished.stdout) == (0, False)
    assert tree_digests(place.root / "data/people") == good
    assert len(place.tracked("prepare")) == 1


def test_two_at_once_do_the_work_once(place):
    first, second = (place.start_forked("prepare") for _ in range(2))
    texts = [process.communicate(timeout=500) for process in (first, second)]
    assert [first.returncode, second.returncode] == [0, 0], texts
    assert sum("found finished" in out for out, _ in texts) == 1
    assert len(place.tracked("prepare")) == 1


# -- a stage that cannot go well: one line, the right code, nothing left behind -----------------------------------------


def test_an_unknown_key_is_one_line_and_exit_code_2(place):
    file = place.root / "params.yaml"
    file.write_text(file.read_text().replace("  source: drawn", "  sauce: drawn"))
    finished = place.run("prepare")
    assert finished.returncode == 2
    (line,) = error_lines(finished)
    assert "prepare.sauce: unknown key, did you mean source?" in line
    assert not place.home.exists()


def test_a_value_out_of_range_is_one_line_and_exit_code_2(place):
    file = place.root / "params.yaml"
    file.write_text(file.read_text().replace("  gamma: ", "  gamma: -"))
    finished = place.run("prepare")
    assert finished.returncode == 2
    assert len(error_lines(finished)) == 1


def test_a_missing_input_is_one_line_and_exit_code_3(place):
    finished = place.run("probe")
    assert finished.returncode == 3
    (line,) = error_lines(finished)
    assert "data/people" in line
    assert "python -m pipelines repro probe" in line


def test_a_missing_annotation_file_is_one_line_and_exit_code_3(place):
    place.edit({"prepare": {"source": "cuhk-pedes"}})
    finished = place.run("prepare")
    assert finished.returncode == 3
    (line,) = error_lines(finished)
    assert "reid_raw.json" in line
    assert not (place.root / "data/people").exists()
    (run,) = place.tracked("prepare")
    assert run.info.status == "FAILED"


def published(folder, bad=1, good=5):
    """A small set in the CUHK-PEDES layout, some of whose pictures are torn."""
    (folder / "imgs").mkdir(parents=True)
    entries = []
    for number in range(good + bad):
        name = f"{number}.png"
        Image.new("RGB", (16, 32), (number * 30, 90, 20)).save(folder / "imgs" / name)
        if number < bad:
            (folder / "imgs" / name).write_bytes((folder / "imgs" / name).read_bytes()[:40])
        split = ("train", "val", "test")[number % 3]
        entries.append({"split": split, "file_path": name, "id": number + 1, "captions": ["A man in a red coat."]})
    (folder / "reid_raw.json").write_text(json.dumps(entries))


def test_too_many_corrupt_pictures_are_one_line_and_exit_code_3(place):
    published(place.root / "data/raw/CUHK-PEDES")
    place.edit({"prepare": {"source": "cuhk-pedes"}})
    finished = place.run("prepare")
    assert finished.returncode == 3
    (line,) = error_lines(finished)
    assert "0.png" in line


def test_a_few_corrupt_pictures_are_reported_and_left_out(place):
    published(place.root / "data/raw/CUHK-PEDES")
    place.edit({"prepare": {"source": "cuhk-pedes", "max_bad_fraction": 0.5}})
    finished = place.run("prepare")
    assert finished.returncode == 0, finished.stderr
    metrics = json.loads((place.root / "metrics/prepare/all.json").read_text())
    assert (metrics["records"], metrics["kept"]) == (6, 5)
    assert metrics["left_out"] == {"train": {"pictures": 1, "captions": 1}}
    assert "cuhk-pedes: left out of 6 records: 1 corrupt image" in finished.stdout + finished.stderr
    assert "0.png" in (place.root / "data/people/validation.json").read_text()


def test_a_server_that_is_away_stops_the_stage_before_any_work(with_people):
    with socket.socket() as taken:  # bound and not listening: whoever connects is refused
        taken.bind(("127.0.0.1", 0))
        finished = with_people.run("probe", MLFLOW_TRACKING_URI=f"http://127.0.0.1:{taken.getsockname()[1]}")
    assert finished.returncode == 75
    (line,) = error_lines(finished)
    assert "does not answer" in line
    assert "nothing was run" in line
    assert not (with_people.root / "models").exists()
    (folder,) = with_people.scratch("probe")
    assert not (folder / "checkpoints").exists()
    assert not (folder / "metrics.jsonl").exists()


# -- a stage that is killed --------------------------------------------------------------------------------------------


@pytest.fixture
def training(with_people, waiting):
    """A workspace, the runner of a probe in mid-training, past the second checkpoint, and its worker, both forked."""
    with_people.edit(LONG)
    process = with_people.start_forked("probe")
    family = [psutil.Process(process.pid)]
    try:
        waiting(lambda: max(with_people.steps("probe"), default=0) >= 10, process, 200)
        (worker,) = workers_in(with_people)
        family.append(worker)
        yield with_people, process, worker
    finally:
        for one in family:
            if one.is_running():
                one.kill()
        process.wait(timeout=100)


def workers_in(place):
    found = psutil.process_iter(["name"])  # asked here, a name of a process that has ended meanwhile were an error
    return [one for one in found if one.info["name"] == WORKER and place.is_open_in(one)]


def test_sigterm_ends_the_stage_with_130_and_its_run_as_killed(training):
    place, process, worker = training
    process.send_signal(signal.SIGTERM)
    _, errors = process.communicate(timeout=500)
    assert process.returncode == 130
    assert "Traceback" not in errors
    assert errors.count("probe: paused at step ") == errors.count("run again") == 1
    assert "interrupted" not in errors
    assert not worker.is_running()
    (run,) = place.tracked("probe")
    assert run.info.status == "KILLED"
    assert not (place.root / "models/probe").exists()
    (folder,) = place.scratch("probe")
    assert json.loads((folder / "cost.json").read_text())["cost/cpu_seconds"] > 0  # the next attempt adds its own
    assert json.loads((folder / "group.json").read_text())["workers"] == 1


def test_a_worker_killed_by_the_system_leaves_a_failed_run_and_a_line(training):
    place, process, worker = training
    worker.kill()
    _, errors = process.communicate(timeout=500)
    assert process.returncode == 75
    assert "Traceback" not in errors
    assert "SIGKILL" in errors
    (run,) = place.tracked("probe")
    assert run.info.status == "FAILED"


def test_a_killed_runner_takes_its_worker_along_and_the_next_call_goes_on(training, place_at, tmp_path, drawn_people):
    place, process, worker = training
    worker.suspend()  # the worst case: the worker is slow to die
    os.kill(process.pid, signal.SIGKILL)
    process.wait(timeout=100)
    done = max(place.steps("probe"))
    assert done < 40
    second = place.start_forked("probe")
    assert "waiting" in second.stderr.readline()
    assert workers_in(place) == [worker]
    worker.resume()
    worker.wait(timeout=100)
    out, errors = second.communicate(timeout=500)
    assert second.returncode == 0, errors
    assert f"main: resuming from step {done}" in out

    calm = place_at(tmp_path / "calm")
    shutil.copytree(drawn_people.root / "data" / "people", calm.root / "data" / "people")
    calm.edit(LONG)
    undisturbed = calm.run("probe")
    assert undisturbed.returncode == 0, undisturbed.stderr
    assert "resuming" not in undisturbed.stdout
    for path in ("models/probe", "metrics/probe", "curves/probe"):
        assert tree_digests(place.root / path) == tree_digests(calm.root / path), path

    (run,), (calm_run,) = place.tracked("probe"), calm.tracked("probe")
    assert run.info.status == calm_run.info.status == "FINISHED"
    assert run.data.tags["pipelines.fingerprint"] == calm_run.data.tags["pipelines.fingerprint"]
    curve = history(place, run, "probe/loss")
    assert curve == history(calm, calm_run, "probe/loss")
    assert [step for step, _ in curve] == [*range(7, 40, 7), 40]
