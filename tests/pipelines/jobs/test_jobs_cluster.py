"""Stages as Ray jobs, on a cluster of two nodes on this machine, with real kills; storage in a folder, and in a bucket."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
from processes import output_of
from ray_clusters import LONG_BASE, SETTLED, RayCluster, as_job, finish, losses, running, steps_in, trained_here
from servers import BUCKET, SECRET, Store, mlflow_server, s3_store
from workspaces import FROM_NOTHING

from pipelines import presets
from pipelines.identity.fingerprint import digest, tree_digests

pytestmark = [pytest.mark.faults, pytest.mark.ray, pytest.mark.timeout(900)]

STEPS = 120
TINY_PEOPLE = {
    "prepare": {"identities": {"train": 12, "val": 4, "test": 4}, "caption_noise": 0.0},
    "compute": {"threads": 1, "device": "cpu"},
}
LONG = {"probe": {"training": {"steps": STEPS, "batch": 16, "report_every": 10, "checkpoint_every": 5}}}


@pytest.fixture(scope="module")
def short_folder() -> Iterator[Path]:
    """Ray's sockets lie below it, and a socket's path has at most 107 characters."""
    folder = Path(os.path.realpath(subprocess.check_output(["mktemp", "-d"], text=True).strip()))
    yield folder
    shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture(scope="module")
def bucket(short_folder: Path) -> Iterator[Store]:
    with s3_store(short_folder / "s3") as store:
        yield store


@pytest.fixture(scope="module")
def cluster(short_folder, bucket) -> Iterator[RayCluster]:
    (short_folder / "r").mkdir()
    yield from running(short_folder / "r", **bucket.environment)


@pytest.fixture(scope="module")
def undisturbed(drawn_people, place_at, tmp_path_factory):
    """Outputs and losses of the long probe, trained here in one go."""
    return trained_here(place_at(tmp_path_factory.mktemp("undisturbed") / "workspace"), drawn_people, LONG)


@pytest.fixture
def storage(tmp_path) -> Path:
    folder = tmp_path / "storage"
    folder.mkdir()
    return folder


def went_on_from(text: str) -> int:
    return int(re.findall(r"resuming from step (\d+)", text)[-1])


def same_model(place, other) -> bool:
    return tree_digests(place.root / "models/probe") == tree_digests(other.root / "models/probe")


def own_jobs(cluster: RayCluster, place) -> dict[str, str]:
    """Of the probe with the storage of `place`: attempts in order, and how they ended."""
    storage = place.extra["PIPELINES_COMPUTE__STORAGE"]
    found = {name: status for name, status in cluster.jobs().items() if f"-{digest(storage)[:6]}-" in name}
    return dict(sorted(found.items(), key=lambda job: int(job[0].rsplit("-", 1)[1])))


@pytest.fixture
def job_in_training(with_people, cluster, storage, waiting):
    """A probe that trains as a job, past its second checkpoint."""
    place = as_job(with_people, cluster, storage)
    place.edit(LONG)
    process = place.start("probe")
    try:
        waiting(lambda: steps_in(storage) >= 10, process, timeout=120)
        yield place, process
    finally:
        if process.poll() is None:
            output_of(process)


def test_a_stage_as_a_job_gives_the_outputs_metrics_and_run_of_one_here(with_people, cluster, storage, undisturbed):
    place = as_job(with_people, cluster, storage)
    place.edit(LONG)
    finished = finish(place)
    assert finished.returncode == 0, finished.stderr
    assert same_model(place, undisturbed)
    for path in ("metrics/probe/all.json", "curves/probe/all.csv"):
        assert (place.root / path).read_text() == (undisturbed.root / path).read_text()
    (run,), (expected,) = place.tracked("probe"), undisturbed.tracked("probe")
    assert run.info.status == "FINISHED"
    metrics = {
        key: value for key, value in run.data.metrics.items() if not key.startswith(("cost/", "system/", "throughput/"))
    }
    assert metrics.items() <= expected.data.metrics.items()
    assert own_jobs(cluster, place) == {run.data.tags["ray.submission"]: "SUCCEEDED"}
    assert {"host.cpu", "host.cores", "host.memory_gb"} <= set(run.data.tags)
    cost = {name: value for name, value in run.data.metrics.items() if name.startswith("cost/")}
    assert set(cost) >= {"cost/seconds", "cost/cpu_seconds", "cost/peak_memory_mb", "cost/worker_seconds"}
    assert min(cost["cost/cpu_seconds"], cost["cost/peak_memory_mb"]) > 1  # the job's, not those of who waited for it
    assert not list(storage.glob("runs/*/checkpoints"))  # nothing that only an unfinished job needs

    # Another checkout finds the result in the storage: no job, not even a cluster.
    shutil.rmtree(place.home)
    shutil.rmtree(place.root / "models")
    found = finish(place, PIPELINES_COMPUTE__ADDRESS="http://127.0.0.1:1")
    assert (found.returncode, "found finished in" in found.stdout) == (0, True), found.stderr
    assert same_model(place, undisturbed)


def test_a_killed_submitter_finds_its_job_again_and_starts_no_second(job_in_training, cluster, undisturbed):
    place, process = job_in_training
    family = [*psutil.Process(process.pid).children(recursive=True), psutil.Process(process.pid)]
    process.kill()  # the runner alone, as the kernel does it; its submitter sees the pipe close
    psutil.wait_procs(family, 20)
    assert not any(one.is_running() for one in family)
    finished = finish(place)
    assert finished.returncode == 0, finished.stderr
    assert ": following it" in finished.stderr or "found finished" in finished.stdout
    assert list(own_jobs(cluster, place).values()) == ["SUCCEEDED"]
    assert same_model(place, undisturbed)


def test_a_job_stopped_by_somebody_is_no_success_and_goes_on_when_it_is_run_again(
    job_in_training, cluster, undisturbed
):
    from pipelines.jobs.dashboard import Cluster

    place, process = job_in_training
    (submission,) = own_jobs(cluster, place)
    Cluster(cluster.address).stop(submission)
    _, errors = output_of(process)
    assert process.returncode == 130
    assert f"job {submission} was stopped" in errors
    assert "Traceback" not in errors
    assert not (place.root / "models/probe").exists()
    assert [run.info.status for run in place.tracked("probe")] == ["KILLED"]
    finished = finish(place)
    assert finished.returncode == 0, finished.stderr
    assert went_on_from(finished.stdout) >= 10
    assert list(own_jobs(cluster, place).values()) == ["STOPPED", "SUCCEEDED"]
    assert same_model(place, undisturbed)


def test_ctrl_c_stops_the_job(job_in_training, cluster):
    place, process = job_in_training
    os.killpg(process.pid, signal.SIGINT)
    _, errors = output_of(process)
    assert process.returncode == 130, errors
    assert "Traceback" not in errors
    deadline = time.monotonic() + 40
    while "RUNNING" in own_jobs(cluster, place).values() and time.monotonic() < deadline:
        time.sleep(0.5)
    assert list(own_jobs(cluster, place).values()) == ["STOPPED"]


def test_a_job_that_fails_gives_the_exit_code_of_its_stage(with_people, cluster, storage):
    place = as_job(with_people, cluster, storage)
    (place.root / "data/people/manifest.parquet").unlink()
    finished = finish(place)
    assert finished.returncode == 3, finished.stderr
    assert "Traceback" not in finished.stderr + finished.stdout
    assert "manifest.parquet" in finished.stdout
    assert list(own_jobs(cluster, place).values()) == ["FAILED"]


def test_the_doctor_looks_from_every_node(with_people, cluster, storage, capsys, monkeypatch):
    from pipelines.health.cluster_check import check_cluster
    from pipelines.params import load
    from pipelines.workspace import Workspace

    place = as_job(with_people, cluster, storage)
    for name, value in place.extra.items():
        monkeypatch.setenv(name, value)
    chosen = load(place.root / "params.yaml")
    findings = {found.subject: found for found in check_cluster(chosen, Workspace(place.root, place.home))}
    nodes = [found for subject, found in findings.items() if subject.startswith("node ")]
    assert [found.remarks for found in nodes] == [()] * len(nodes)
    assert findings["Ray cluster"].facts.endswith("2 nodes; the State API answers")
    assert {found.state.is_there for found in findings.values()} == {True}
    assert not list((storage / "doctor").iterdir())


def test_what_the_cluster_can_never_give_is_refused_before_anything_is_submitted(with_people, cluster, storage):
    place = as_job(with_people, cluster, storage)
    started = time.monotonic()
    finished = finish(place, PIPELINES_COMPUTE__WORKERS="8")
    assert time.monotonic() - started < 30
    assert finished.returncode == 75
    assert "can never give 8 x (1 CPUs): it lacks CPUs" in finished.stderr
    finished = finish(place, PIPELINES_COMPUTE__DEVICE="cuda")
    assert finished.returncode == 75
    assert "it lacks GPUs" in finished.stderr
    assert own_jobs(cluster, place) == {}
    assert not (storage / "runs").exists()


def test_a_job_keeps_its_checkpoints_in_a_bucket_and_its_secrets_out_of_sight(
    with_people, cluster, bucket, waiting, undisturbed
):
    from pipelines.jobs.dashboard import Cluster
    from pipelines.scratch.storage import Storage

    url = f"s3://{BUCKET}/{with_people.root.parent.name}"
    place = as_job(with_people, cluster, url, **bucket.environment)
    place.edit(LONG)
    process = place.start("probe")
    waiting(lambda: checkpoints_in(bucket) >= 2, process, timeout=120)
    (submission,) = own_jobs(cluster, place)
    Cluster(cluster.address).stop(submission)
    output_of(process)
    assert process.returncode == 130
    finished = finish(place)
    assert finished.returncode == 0, finished.stderr
    assert went_on_from(finished.stdout) > 0
    assert same_model(place, undisturbed)
    assert (place.root / "curves/probe/all.csv").read_text() == (undisturbed.root / "curves/probe/all.csv").read_text()
    for job in own_jobs(cluster, place):
        told = Cluster(cluster.address).info(job)
        assert SECRET not in json.dumps(told.runtime_env) + told.entrypoint
    assert not Storage(url).folder
    assert not list(bucket.folder.glob("*/runs/*/checkpoints/**/state.pt"))


def checkpoints_in(bucket: Store) -> int:
    """Whole checkpoints of the one job that runs."""
    return len(list(bucket.folder.glob("*/runs/*/checkpoints/*/*/step-*/manifest.json")))


@pytest.fixture(scope="module")
def base_alone(drawn_people, place_at, tmp_path_factory):
    """The generator's base, trained here by one process."""
    place = place_at(tmp_path_factory.mktemp("alone") / "workspace")
    return trained_here(place, drawn_people, LONG_BASE, "base_model")


def test_two_workers_of_a_job_on_two_nodes_go_on_from_a_bucket(with_people, cluster, bucket, waiting, base_alone):
    from pipelines.jobs.dashboard import Cluster

    place = as_job(with_people, cluster, f"s3://{BUCKET}/{with_people.root.parent.name}", **bucket.environment)
    place.extra["PIPELINES_COMPUTE__WORKERS"] = "2"
    place.edit(LONG_BASE)
    process = place.start("base_model")
    waiting(lambda: checkpoints_in(bucket) >= 2, process, timeout=300)
    (submission,) = own_jobs(cluster, place)
    Cluster(cluster.address).stop(submission)
    output_of(process)
    assert process.returncode == 130
    finished = finish(place, "base_model")
    assert finished.returncode == 0, finished.stderr
    assert re.search(r"vae: resuming from step \d+", cluster.printed_by_workers())
    assert losses(place, "base_model") == pytest.approx(losses(base_alone, "base_model"), rel=2e-3, abs=2e-4)


def test_training_goes_on_with_fewer_workers_when_a_node_is_lost(with_people, cluster, storage, waiting, base_alone):
    place = as_job(with_people, cluster, storage, PIPELINES_COMPUTE__WORKERS="2", PIPELINES_COMPUTE__MIN_WORKERS="1")
    place.edit(LONG_BASE)
    process = place.start("base_model")
    try:
        waiting(lambda: steps_in(storage) >= SETTLED, process, timeout=300)
        cluster.kill(cluster.nodes[1:])
    finally:
        out, errors = output_of(process)
        if len(cluster.nodes) < 2:
            cluster.add_node()
    assert process.returncode == 0, errors + out
    assert "training with 2 worker(s) broke off" in out
    assert "starting again with 1 worker(s)" in out
    assert re.search(r"vae: resuming from step \d+ with 1 worker\(s\) in place of 2", cluster.printed_by_workers())
    assert losses(place, "base_model") == pytest.approx(losses(base_alone, "base_model"), rel=2e-3, abs=2e-4)
    assert list(own_jobs(cluster, place).values()) == ["SUCCEEDED"]
    (run,) = place.tracked("base_model")
    cost = run.data.metrics
    assert cost["cost/seconds"] < cost["cost/worker_seconds"] < 2 * cost["cost/seconds"]


def test_a_head_that_comes_back_without_its_jobs_is_given_the_job_again(job_in_training, cluster, undisturbed):
    place, process = job_in_training
    cluster.kill(list(cluster.nodes))
    cluster.start()
    out, errors = output_of(process)
    assert process.returncode == 0, errors
    assert "does not answer; asking again" in errors
    assert "is lost" in errors
    assert went_on_from(out) >= 10
    assert same_model(place, undisturbed)


def test_a_head_that_stays_away_is_exit_code_75_and_says_that_the_job_may_run(with_people, cluster, storage, waiting):
    place = as_job(with_people, cluster, storage, PIPELINES_COMPUTE__PATIENCE="3")
    place.edit(LONG)
    process = place.start("probe")
    waiting(lambda: steps_in(storage) >= 5, process, timeout=120)
    cluster.kill(list(cluster.nodes))
    try:
        _, errors = output_of(process)
        assert process.returncode == 75, errors
        assert "no Ray cluster answers" in errors
        assert "may still run" in errors
        assert "Traceback" not in errors
        refused = finish(place)
        assert refused.returncode == 75
        assert "start it, or set compute.address" in refused.stderr
    finally:
        cluster.start()


@pytest.fixture
def tracking_server(bucket, tmp_path) -> Iterator[str]:
    with mlflow_server(f"sqlite:///{tmp_path}/server.db", bucket, tmp_path / "server.log") as url:
        yield url


def test_a_whole_repro_as_one_job_leaves_a_checkout_that_is_up_to_date(
    cluster, storage, tracking_server, copy_of_the_checkout, tmp_path
):
    from mlflow import MlflowClient

    checkout = copy_of_the_checkout(tmp_path / "checkout")
    (checkout / "dvc.lock").unlink()
    short = {"steps": 5, "batch": 16, "report_every": 5, "checkpoint_every": 5}
    presets.edit(checkout / "params.yaml", {**TINY_PEOPLE, "probe": {**FROM_NOTHING["probe"], "training": short}})
    environment = {
        **cluster.environment,
        "PIPELINES_COMPUTE__ADDRESS": cluster.address,
        "PIPELINES_COMPUTE__STORAGE": str(storage),
        "MLFLOW_TRACKING_URI": tracking_server,
        "RAY_AUTH_MODE": "disabled",
    }

    def command(*words: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-m", *words], cwd=checkout, env=environment, capture_output=True, text=True, timeout=400
        )

    refused = command("pipelines", "submit")  # at once, and not when everything else is done
    assert refused.returncode == 75
    assert "the workers of train_parity beside it, can never give 3 x (1 CPUs)" in refused.stderr
    assert not any(name.startswith("repro-") for name in cluster.jobs())

    submitted = command("pipelines", "submit", "--stage", "probe")  # which is a job beside the scheduler's
    assert submitted.returncode == 0, submitted.stderr + submitted.stdout
    assert "ray job submit --address" in submitted.stdout
    assert json.loads((checkout / "metrics/prepare/all.json").read_text())["records"] == 80
    client = MlflowClient(tracking_server)
    experiment = client.get_experiment_by_name("crossmodal-pipelines")
    (run,) = client.search_runs([experiment.experiment_id], "tags.`pipelines.stage` = 'prepare'")
    head = subprocess.check_output(["git", "rev-parse", "HEAD"], cwd=checkout, text=True).strip()
    assert (run.data.tags["git.revision"], run.data.tags["git.dirty"]) == (head, "true")
    repeated = command("dvc", "repro", "probe")
    assert repeated.returncode == 0, repeated.stderr
    assert "Running stage" not in repeated.stdout
    (whole,) = re.findall(r"--submission-id (\S+)", submitted.stdout)
    before = cluster.jobs()
    assert [name for name in before if name.startswith("repro-")] == [whole]
    (trained,) = client.search_runs([experiment.experiment_id], "tags.`pipelines.stage` = 'probe'")
    assert before[trained.data.tags["ray.submission"]] == "SUCCEEDED"

    again = command("pipelines", "submit", "--stage", "probe")  # the same job, which has finished
    assert again.returncode == 0, again.stderr
    assert cluster.jobs() == before

    presets.edit(checkout / "params.yaml", {"prepare": {"source": "cuhk-pedes"}})  # of which data/raw has nothing
    failed = command("pipelines", "submit", "--stage", "probe")
    assert failed.returncode == 3, failed.stderr + failed.stdout
