"""Jobs without a cluster: what travels, what a storage promises, and how each end of a job ends the stage."""

import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import SimpleNamespace

import psutil
import pytest
import yaml

from components.errors import DataError, ParameterError
from pipelines import graph, params
from pipelines.engine import execution, ray_cluster
from pipelines.engine.child import module_of
from pipelines.errors import InfrastructureError, StageFailedError
from pipelines.health import cluster_check as health_cluster
from pipelines.health.cluster_check import check_cluster
from pipelines.health.findings import State
from pipelines.identity.closure import ROOT, stage_sources
from pipelines.jobs import following, repro_job, submission
from pipelines.jobs import snapshot as snapshots
from pipelines.jobs.dashboard import (
    Cluster,
    ClusterAwayError,
    JobRequest,
    Node,
    ResourceRequest,
    dashboard_address,
    require_fits,
    resources_for,
)
from pipelines.jobs.following import FollowedJob
from pipelines.jobs.inspection import REPORT, report_in
from pipelines.jobs.snapshot import REPRO, freeze, source_files
from pipelines.jobs.submission import by_hand, tracking_for_job
from pipelines.jobs.task import JobTask, place_inputs, publish_inputs
from pipelines.records.code_state import CodeState, code_revision, code_state
from pipelines.schema.running import Compute
from pipelines.scratch.storage import STORAGE_MANIFEST, Storage, files_below
from pipelines.workspace import Workspace

# -- what travels ------------------------------------------------------------------------------------------------------


def repository(folder, files):
    for name, text in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)
    subprocess.run(["git", "init", "--quiet"], cwd=folder, check=True)
    return folder


def test_a_snapshot_holds_every_source_of_every_stage_and_no_data(tmp_path):
    freeze(ROOT, tmp_path / "copy")
    copied = {
        path.relative_to(tmp_path / "copy").as_posix() for path in (tmp_path / "copy").rglob("*") if path.is_file()
    }
    for stage in graph.all_stages():
        assert set(stage_sources(stage)) <= copied
    assert {"requirements.lock", "pipelines/jobs/stage_job.py"} <= copied
    assert {name.split("/")[0] for name in copied} == {"components", "pipelines", "requirements.lock"}
    assert sum((tmp_path / "copy" / name).stat().st_size for name in copied) < 8 * 2**20


def test_new_files_travel_and_ignored_ones_stay(tmp_path):
    files = {
        ".gitignore": "*.bin\n",
        "components/new.py": "",
        "components/big.bin": "x",
        "data/raw.csv": "",
        "dvc.yaml": "",
    }
    root = repository(tmp_path, files)
    assert source_files(root, snapshots.CODE) == ["components/new.py"]
    assert source_files(root, REPRO) == [".gitignore", "components/new.py", "dvc.yaml"]


def test_without_git_the_same_files_are_found(tmp_path, monkeypatch):
    for name in ("components/a.py", "components/__pycache__/a.pyc", "other/b.py"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("")
    monkeypatch.setenv("GIT_DIR", str(tmp_path / "no such repository"))
    assert source_files(tmp_path, snapshots.CODE) == ["components/a.py"]


def test_a_package_that_is_too_large_is_refused_with_the_largest_files_named(tmp_path, monkeypatch):
    root = repository(tmp_path / "root", {"components/a.npy": "x" * 3000, "components/b.py": "x" * 10})
    monkeypatch.setattr(snapshots, "LIMIT_BYTES", 2000)
    with pytest.raises(DataError, match=r"components/a\.npy 0\.0 MiB; move such files out .* \.gitignore") as refused:
        snapshots.require_small(root, source_files(root, snapshots.CODE), 2000)
    assert "b.py" not in str(refused.value)
    assert "\n" not in str(refused.value)


def test_the_copy_of_a_checkout_knows_its_revision(tmp_path):
    root = repository(tmp_path / "root", {"components/a.py": ""})
    state = CodeState("0" * 40, True, "diff", (".env",))
    freeze(root, tmp_path / "copy", state=state)
    assert code_state(tmp_path / "copy") == state
    assert code_revision(tmp_path / "copy") == "0" * 40


def test_the_digest_of_a_snapshot_follows_names_and_contents(tmp_path):
    root = repository(tmp_path / "root", {"components/a.py": "1"})
    first = freeze(root, tmp_path / "1")
    assert freeze(root, tmp_path / "2") == first
    (root / "components/a.py").write_text("2")
    assert freeze(root, tmp_path / "3") != first


def test_results_go_with_a_job_and_do_not_tell_it_from_another(tmp_path):
    root = repository(tmp_path / "root", {"components/a.py": "1", "params.yaml": "a: 1"})
    before = freeze(root, tmp_path / "1", REPRO)
    (root / "metrics/probe").mkdir(parents=True)
    (root / "metrics/probe/all.json").write_text("{}")
    (root / "dvc.lock").write_text("stages: {}")
    assert freeze(root, tmp_path / "2", REPRO) == before
    assert (tmp_path / "2/dvc.lock").exists()
    assert (tmp_path / "2/metrics/probe/all.json").exists()
    (root / "params.yaml").write_text("a: 2")
    assert freeze(root, tmp_path / "3", REPRO) != before


# -- the storage -------------------------------------------------------------------------------------------------------


@pytest.fixture
def storage(tmp_path):
    (tmp_path / "storage").mkdir()
    return Storage(str(tmp_path / "storage"), timeout=0)


def published(storage, folder):
    (folder / "set" / "deep").mkdir(parents=True)
    (folder / "set" / "deep" / "a.txt").write_text("a")
    (folder / "set" / "b.txt").write_text("b")
    storage.publish(files_below(folder / "set"), "inputs/1")
    return storage.folder / "inputs" / "1"


def test_what_is_published_comes_back_whole(storage, tmp_path):
    published(storage, tmp_path)
    storage.fetch("inputs/1", tmp_path / "back")
    assert (tmp_path / "back/set/deep/a.txt").read_text() == "a"
    assert storage.names("inputs/1") == [STORAGE_MANIFEST, "set/b.txt", "set/deep/a.txt"]


def test_the_same_content_is_sent_once(storage, tmp_path):
    place = published(storage, tmp_path)
    before = (place / "set/b.txt").stat().st_mtime_ns
    storage.publish(files_below(tmp_path / "set"), "inputs/1")
    assert (place / "set/b.txt").stat().st_mtime_ns == before


@pytest.mark.parametrize("damage", ["changed", "gone", "unfinished", "outside"])
def test_what_was_damaged_in_the_storage_is_one_line_and_not_used(storage, tmp_path, damage):
    place = published(storage, tmp_path)
    if damage == "changed":
        (place / "set/b.txt").write_text("c")
    elif damage == "gone":
        (place / "set/b.txt").unlink()
    elif damage == "unfinished":
        (place / STORAGE_MANIFEST).unlink()
    else:
        (place / STORAGE_MANIFEST).write_text(json.dumps({"../../outside": "0"}))
    with pytest.raises(DataError, match="inputs/1") as refused:
        storage.fetch("inputs/1", tmp_path / "back")
    assert "\n" not in str(refused.value)


def test_a_file_is_there_whole_or_not_at_all(storage, monkeypatch):
    storage.write("a/b.json", "old")
    monkeypatch.setattr(os, "replace", lambda *paths: (_ for _ in ()).throw(OSError("no space left")))
    with pytest.raises(InfrastructureError, match="no space left"):
        storage.write("a/b.json", "new")
    assert storage.read("a/b.json") == "old"
    assert storage.names("a") == ["b.json"]


def test_a_storage_that_is_away_is_waited_for_and_nothing_is_written_under_its_mount(tmp_path):
    storage = Storage(str(tmp_path / "mount"), timeout=0)
    with pytest.raises(InfrastructureError, match="cannot be used"):
        storage.write("a", "text")
    assert not (tmp_path / "mount").exists()
    threading.Timer(0.3, (tmp_path / "mount").mkdir).start()
    patient = Storage(str(tmp_path / "mount"), timeout=5)
    patient.write("a", "text")
    assert patient.read("a") == "text"


def test_what_is_not_there_is_none_and_deleting_it_is_no_error(storage):
    assert storage.read("nothing") is None
    assert storage.read_json("nothing") is None
    assert storage.names("nothing") == []
    storage.delete("nothing")


@pytest.mark.parametrize("kind", ["folder", "bucket"])
def test_equal_files_of_two_names_are_two_inputs_and_a_link_is_what_it_points_to(tmp_path, kind):
    storage = Storage(str(tmp_path / "storage") if kind == "folder" else f"memory://{tmp_path.name}-{id(tmp_path)}")
    (tmp_path / "storage").mkdir()
    (tmp_path / "elsewhere.pt").write_text("weights")
    weights = tmp_path / "checkout/data/weights"
    weights.mkdir(parents=True)
    (weights / "linked.pt").symlink_to(tmp_path / "elsewhere.pt")
    (weights / "other name.pt").write_text("weights")
    names = ["data/weights/linked.pt", "data/weights/other name.pt"]
    first, second = (publish_inputs(storage, tmp_path / "checkout", [name]) for name in names)
    place_inputs(storage, {**first, **second}, tmp_path / "job")
    assert [(tmp_path / "job" / name).read_text() for name in names] == ["weights", "weights"]
    storage.delete("")


@pytest.mark.parametrize("path", ["/opt/clip.pt", "../clip.pt", "data/../../clip.pt"])
def test_an_input_outside_of_the_checkout_is_one_line(storage, tmp_path, path):
    with pytest.raises(DataError, match=f"{re.escape(path)}: is not a path in the checkout"):
        publish_inputs(storage, tmp_path, [path])


def test_work_that_the_node_does_not_see_says_so(storage):
    with pytest.raises(InfrastructureError, match="does not see the submitter's storage"):
        JobTask.read(storage, "probe-0123")
    work = JobTask("probe-0123", "probe", {"seed": 0}, {"workers": 0}, {"data/people": "inputs/1"})
    work.write(storage)
    assert JobTask.read(storage, "probe-0123") == work


# -- how a job ends ----------------------------------------------------------------------------------------------------


class FakeCluster:
    """Jobs by id; each poll of a running one moves it along its script."""

    address = "http://head:8265"

    def __init__(self, *scripts, known=None):
        self.scripts = list(scripts)
        self.jobs = dict(known or {})
        self.submitted, self.stopped = [], []
        self.log = ""

    def info(self, submission):
        states = self.jobs.get(submission)
        if not states:
            return None
        state = states.pop(0) if len(states) > 1 else states[0]
        if isinstance(state, Exception):
            raise state
        if state == "forgotten":
            del self.jobs[submission]
            return None
        status, extra = state if isinstance(state, tuple) else (state, {})
        terminal = status in ("SUCCEEDED", "FAILED", "STOPPED")
        return SimpleNamespace(
            status=SimpleNamespace(value=status, is_terminal=lambda: terminal),
            **{"driver_exit_code": None, "error_type": None, "message": "", **extra},
        )

    def submit(self, request, attempt):
        self.submitted.append(request.submission(attempt))
        self.jobs[request.submission(attempt)] = list(self.scripts.pop(0))

    def stop(self, submission):
        self.stopped.append(submission)
        self.jobs[submission] = ["STOPPED"]

    def logs(self, submission):
        return self.log


@pytest.fixture(autouse=True)
def _no_waiting(monkeypatch):
    monkeypatch.setattr(following, "POLL_SECONDS", 0.0)


def follow(cluster, retries=2, patience=0.2):
    request = JobRequest("probe-0123", "true", ROOT)
    job = FollowedJob(cluster, request, patience=patience, retries=retries)
    job.follow()
    return job


def test_the_first_attempt_is_named_by_the_work():
    cluster = FakeCluster(["PENDING", "RUNNING", "SUCCEEDED"])
    follow(cluster)
    assert cluster.submitted == ["probe-0123-1"]


def test_a_job_that_runs_is_followed_and_not_started_again():
    cluster = FakeCluster(known={"probe-0123-1": ["RUNNING", "RUNNING", "SUCCEEDED"]})
    follow(cluster)
    assert cluster.submitted == []


def test_after_a_job_without_result_comes_the_next_attempt():
    known = {"probe-0123-1": ["STOPPED"], "probe-0123-2": [("FAILED", {"driver_exit_code": 1})]}
    cluster = FakeCluster(["SUCCEEDED"], known=known)
    follow(cluster)
    assert cluster.submitted == ["probe-0123-3"]


@pytest.mark.parametrize(("end", "code"), [("STOPPED", 130), (("FAILED", {"driver_exit_code": 3}), 3),
                                           (("FAILED", {"driver_exit_code": 130}), 130)])  # fmt: skip
def test_a_job_that_did_not_succeed_gives_its_code(end, code):
    with pytest.raises(StageFailedError) as failed:
        follow(FakeCluster(["RUNNING", end]))
    assert failed.value.code == code


def test_a_job_that_has_just_succeeded_is_not_started_again():
    known = {"probe-0123-1": ["STOPPED"], "probe-0123-2": ["SUCCEEDED"]}
    cluster = FakeCluster(known=known)
    request = JobRequest("probe-0123", "true", ROOT)
    FollowedJob(cluster, request, patience=1, retries=0, finished=lambda: True).follow()
    assert cluster.submitted == []
    cluster = FakeCluster(["SUCCEEDED"], known=known)  # and its result is gone since
    FollowedJob(cluster, request, patience=1, retries=0, finished=lambda: False).follow()
    assert cluster.submitted == ["probe-0123-3"]


LOST = [
    "forgotten",
    ("FAILED", {"error_type": "JobErrorType.JOB_SUPERVISOR_ACTOR_DIED", "message": "the node died"}),
    ("FAILED", {"driver_exit_code": -9}),
    ("FAILED", {"driver_exit_code": 137}),
]


@pytest.mark.parametrize("end", LOST)
def test_a_lost_job_is_submitted_again(end, capsys):
    cluster = FakeCluster(["RUNNING", end], ["RUNNING", "SUCCEEDED"])
    follow(cluster)
    assert len(cluster.submitted) == 2
    assert "submitting it again" in capsys.readouterr().err


def test_a_job_that_is_lost_too_often_is_an_error_of_the_infrastructure():
    cluster = FakeCluster(*[["RUNNING", "forgotten"]] * 3)
    with pytest.raises(InfrastructureError, match=r"is lost .* run again"):
        follow(cluster, retries=2)
    assert len(cluster.submitted) == 3


def test_a_job_that_could_not_be_set_up_is_not_tried_again():
    cluster = FakeCluster([("FAILED", {"error_type": "RUNTIME_ENV_SETUP_FAILURE", "message": "no such\npackage"})])
    with pytest.raises(InfrastructureError, match="could not be run: no such package"):
        follow(cluster)
    assert len(cluster.submitted) == 1


def test_a_connection_that_is_lost_for_a_while_costs_a_warning(capsys):
    cluster = FakeCluster(["RUNNING", ClusterAwayError("gone"), ClusterAwayError("gone"), "RUNNING", "SUCCEEDED"])
    follow(cluster)
    assert capsys.readouterr().err.count("does not answer") == 1
    assert len(cluster.submitted) == 1


def test_a_connection_that_stays_away_is_an_error_that_says_where_the_job_is():
    cluster = FakeCluster(["RUNNING", ClusterAwayError("no Ray cluster answers")])
    with pytest.raises(InfrastructureError, match="job probe-0123-1 may still run, and is followed when you run again"):
        follow(cluster)


def test_a_job_is_stopped_once_and_its_end_waited_for():
    cluster = FakeCluster(["RUNNING"])
    job = FollowedJob(cluster, JobRequest("probe-0123", "true", ROOT), patience=1, retries=0)

    def interrupt():
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        job.follow(interrupt)
    job.stop(1)
    assert cluster.stopped == ["probe-0123-1"]


def test_each_line_of_a_job_is_printed_once(capsys):
    cluster = FakeCluster(["RUNNING", "RUNNING", "SUCCEEDED"])
    texts = iter(["one\ntw", "one\ntwo\n", "one\ntwo\nthree"])
    cluster.logs = lambda submission: next(texts)
    follow(cluster)
    assert capsys.readouterr().out == "one\ntwo\nthree"


# -- what a cluster can give -------------------------------------------------------------------------------------------

NODES = [Node("a", "10.0.0.1", {"CPU": 8.0}), Node("b", "10.0.0.2", {"CPU": 8.0, "GPU": 2.0})]


@pytest.mark.parametrize(
    ("need", "lacks"),
    [
        (ResourceRequest(4, 0, 4, 4), None),
        (ResourceRequest(4, 0, 5, 5), "CPUs"),
        (ResourceRequest(9, 0, 1, 1), "CPUs"),  # 16 in all, but on no node
        (ResourceRequest(4, 1, 2, 2), None),
        (ResourceRequest(1, 1, 3, 3), "GPUs"),
        (ResourceRequest(1, 1, 3, 2), None),  # fewer workers will do
        (ResourceRequest(9, 1, 1, 1), "CPUs"),
    ],
)
def test_a_request_that_can_never_fit_names_the_resource(need, lacks):
    if lacks is None:
        require_fits(need, NODES, "http://head:8265")
        return
    with pytest.raises(InfrastructureError, match=f"it lacks {lacks}, its nodes have 8 CPUs, 0 GPUs; 8 CPUs, 2 GPUs"):
        require_fits(need, NODES, "http://head:8265")


def test_a_stage_asks_for_a_place_for_each_worker_or_for_itself():
    assert resources_for(True, Compute(workers=4, threads=2, device="cpu"), NODES) == ResourceRequest(2, 0, 4, 4)
    assert resources_for(True, Compute(workers=4, threads=2, min_workers=2), NODES) == ResourceRequest(2, 1, 4, 2)
    assert resources_for(False, Compute(workers=4, threads=2, device="cuda"), NODES[:1]) == ResourceRequest(2, 1, 1, 1)
    assert resources_for(True, Compute(workers=0, threads=2), NODES[:1]) == ResourceRequest(2, 0, 1, 1)


@pytest.mark.parametrize(
    ("cpus", "least", "expected"), [(8, 1, 8), (7, 1, 4), (3, 1, 2), (1, 1, 1), (16, 8, 8), (5, 3, 4)]
)
def test_a_smaller_group_has_a_divisor_of_the_workers(monkeypatch, cpus, least, expected):
    import ray

    monkeypatch.setattr(ray, "nodes", lambda: [{"Alive": True, "Resources": {"CPU": float(cpus)}}])
    compute = Compute(workers=8, threads=1, device="cpu", min_workers=least)
    assert ray_cluster.group_size(compute, grows=False) == expected


def test_a_group_below_its_least_size_is_refused(monkeypatch):
    import ray

    monkeypatch.setattr(ray, "nodes", lambda: [{"Alive": True, "Resources": {"CPU": 3.0}}])
    with pytest.raises(InfrastructureError, match=r"can never give 4 x \(1 CPUs\): it lacks CPUs"):
        ray_cluster.group_size(Compute(workers=8, threads=1, device="cpu", min_workers=3), grows=False)


def node_at(port):
    return {"NodeID": "0123456789ab", "Alive": True, "NodeManagerAddress": "127.0.0.1", "NodeManagerPort": port}


def test_a_lost_node_is_waited_for_until_ray_gives_it_up(monkeypatch, capsys):
    import ray

    with socket.socket() as there, socket.socket() as gone:
        there.bind(("127.0.0.1", 0))
        there.listen()
        gone.bind(("127.0.0.1", 0))  # and nobody listens
        both = [node_at(there.getsockname()[1]), node_at(gone.getsockname()[1])]
        seen = [both, both, [both[0], {**both[1], "Alive": False}]]
        monkeypatch.setattr(ray, "nodes", lambda: seen.pop(0))
        ray_cluster.wait_for_dead_nodes()
        assert seen == []
        assert capsys.readouterr().out.count("node 01234567 does not answer") == 1
        monkeypatch.setattr(ray, "nodes", lambda: both)
        monkeypatch.setattr(ray_cluster, "NOTICE_SECONDS", 0.1)
        ray_cluster.wait_for_dead_nodes()  # it ends


def test_workers_that_find_no_place_are_tried_again_and_then_a_reason_to_try_later(monkeypatch, capsys):
    import ray.train

    monkeypatch.setattr(ray, "is_initialized", lambda: True)
    monkeypatch.setattr(execution, "wait_for_dead_nodes", lambda: None)
    monkeypatch.setattr(execution, "remove_placement_groups", lambda: None)
    sizes = [4, 2, 2]
    monkeypatch.setattr(execution, "group_size", lambda compute, *, grows: sizes.pop(0))

    def fit(work, compute, workers, storage):
        raise ray.train.ControllerError(TimeoutError(f"no place for {workers} workers"))

    monkeypatch.setattr(execution, "_fit", fit)
    with pytest.raises(InfrastructureError, match="the workers could not start: no place for 2 workers"):
        execution.under_ray_train(lambda *_: {}, Compute(workers=4, threads=1, min_workers=2, max_failures=2), "/tmp")
    assert sizes == []
    assert re.findall(r"starting again with (\d)", capsys.readouterr().out) == ["2", "2"]


def test_an_autoscaler_is_told_from_a_cluster_that_stays_as_it_is():
    assert not ray_cluster.adds_nodes({"node_type_mapping": {"ab": "node_ab", "cd": "node_cd"}})
    assert ray_cluster.adds_nodes({"node_type_mapping": {"10.0.0.1": "gpu-worker"}})
    assert ray_cluster.adds_nodes(None)  # the second generation leaves no report


# -- choosing where ----------------------------------------------------------------------------------------------------


def test_only_heavy_stages_become_jobs():
    job = Compute(backend="job", storage="/shared")
    heavy = {
        run.address for stage in graph.all_stages() for run in graph.runs_of(stage) if "jobs" in module_of(run, job)
    }
    assert {"probe", "base_model", "taca_train@taca", "taca_generate@base", "gadms_finetune@gadms"} <= heavy
    assert not heavy & {"prepare", "taca_evaluate@base", "index", "report"}
    assert module_of(graph.find("probe"), Compute()) == "pipelines.engine.worker"


def test_the_dashboard_is_found_in_params_then_in_the_environment(monkeypatch):
    for name in ("RAY_API_SERVER_ADDRESS", "RAY_ADDRESS"):
        monkeypatch.delenv(name, raising=False)
    assert dashboard_address(Compute()) == "http://127.0.0.1:8265"
    monkeypatch.setenv("RAY_ADDRESS", "auto")  # that of the cluster itself, not of its dashboard
    assert dashboard_address(Compute()) == "http://127.0.0.1:8265"
    monkeypatch.setenv("RAY_API_SERVER_ADDRESS", "http://head:8265")
    assert dashboard_address(Compute()) == "http://head:8265"
    assert dashboard_address(Compute(address="https://other:1")) == "https://other:1"
    assert dashboard_address(Compute(address="[::1]:8265")) == "http://[::1]:8265"


@pytest.mark.parametrize(
    "address", ["ray://head:10001", "http://head:port", "http://", "http://he ad:8265", "head:99999999"]
)
def test_what_is_no_address_of_a_dashboard_is_refused_at_once(monkeypatch, address):
    monkeypatch.setenv("RAY_API_SERVER_ADDRESS", address)
    with pytest.raises(ParameterError, match=r"compute\.address .* must be that of the cluster's dashboard"):
        dashboard_address(Compute())


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"backend": "job"}, "a job needs an absolute folder"),
        ({"storage": "relative/folder"}, "absolute folder that every node sees"),
        ({"storage": "s3://"}, "absolute folder that every node sees"),
        ({"backend": "cloud"}, "backend"),
        ({"workers": 2, "min_workers": 3}, "must not be above workers = 2"),
    ],
)
def test_a_mistake_in_compute_is_one_line(values, words, tmp_path):
    file = tmp_path / "params.yaml"
    document = yaml.safe_load((ROOT / "params.yaml").read_text())
    document["compute"].update(values)
    file.write_text(yaml.safe_dump(document))
    with pytest.raises(ParameterError, match=words) as refused:
        params.load(file)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize("uri", ["", "sqlite:////tmp/mlflow.db", "https://me:hunter22@mlflow.example.org"])
def test_a_whole_run_as_a_job_needs_a_server_and_no_password_in_sight(monkeypatch, uri):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    with pytest.raises(ParameterError, match="MLFLOW_TRACKING_URI") as refused:
        tracking_for_job()
    assert "hunter22" not in str(refused.value)


def test_the_command_by_hand_says_what_the_client_would():
    request = JobRequest(
        "repro-0123", "python -m pipelines.jobs.repro_job /shared repro-0123 ab", ROOT, {"A": "b c"}, cpus=2
    )
    assert by_hand(request, "http://head:8265") == (
        "ray job submit --address http://head:8265 --submission-id repro-0123-1 "
        f"--working-dir {ROOT} --entrypoint-num-cpus 2 "
        """--runtime-env-json '{"env_vars": {"A": "b c"}}' -- python -m pipelines.jobs.repro_job /shared repro-0123 ab"""
    )


SCHEDULER = """
import os, signal, sys, time
print(sys.argv[1:], os.environ["PIPELINES_COMPUTE__BACKEND"], flush=True)
if sys.argv[2] == "long":
    def stop(number, frame):
        time.sleep(0.3)
        print("saved", flush=True)
        sys.exit(130)
    signal.signal(signal.SIGTERM, stop)
    open("started", "w").close()
    time.sleep(30)
if sys.argv[2] == "killed":
    os.kill(os.getpid(), signal.SIGKILL)
if sys.argv[2] == "early":
    os.kill(os.getpid(), signal.SIGTERM)
sys.exit(int(sys.argv[2]))
"""


@pytest.fixture
def checkout_of_a_job(tmp_path):
    """A checkout whose `python -m pipelines` is SCHEDULER."""
    (tmp_path / "pipelines").mkdir()
    (tmp_path / "pipelines/__init__.py").touch()
    (tmp_path / "pipelines/__main__.py").write_text(SCHEDULER)
    return tmp_path


@pytest.mark.parametrize(("target", "code"), [("0", 0), ("3", 3), ("75", 75), ("killed", 137), ("early", 130)])
def test_a_whole_run_ends_with_the_code_of_the_scheduler(checkout_of_a_job, target, code, capfd):
    assert repro_job.repro(checkout_of_a_job, [target], {"PIPELINES_COMPUTE__BACKEND": "job"}) == code
    assert f"['repro', '{target}'] job" in capfd.readouterr().out


def test_a_whole_run_that_is_stopped_waits_for_the_scheduler_to_save(checkout_of_a_job, capfd):
    before = signal.getsignal(signal.SIGTERM)

    def stop_all() -> None:  # as Ray does it
        while not (checkout_of_a_job / "started").exists():
            time.sleep(0.02)
        for process in (psutil.Process(), *psutil.Process().children()):
            process.send_signal(signal.SIGTERM)

    threading.Thread(target=stop_all, daemon=True).start()
    assert repro_job.repro(checkout_of_a_job, ["long"], {"PIPELINES_COMPUTE__BACKEND": "job"}) == 130
    assert "saved" in capfd.readouterr().out
    assert signal.getsignal(signal.SIGTERM) == before


@pytest.mark.parametrize(
    ("workers", "cpus", "grows", "as_jobs"),
    [(0, 2, False, False), (0, 4, False, True), (2, 4, False, False), (2, 6, False, True), (0, 0, True, True)],
)
def test_heavy_stages_of_a_whole_run_are_jobs_where_one_fits_beside_it(
    tmp_path, storage, monkeypatch, workers, cpus, grows, as_jobs
):
    document = yaml.safe_load((ROOT / "params.yaml").read_text())
    document["compute"] |= {"workers": workers, "threads": 2}
    (tmp_path / "params.yaml").write_text(yaml.safe_dump(document))
    nodes = [Node("a", "10.0.0.1", {"CPU": float(cpus)})]
    cluster = SimpleNamespace(address="http://10.0.0.1:8265", nodes=lambda: nodes, grows=lambda: grows)
    monkeypatch.setattr(repro_job, "own_dashboard", lambda: cluster.address)
    monkeypatch.setattr(repro_job, "Cluster", lambda address: cluster)
    expected = {
        "PIPELINES_COMPUTE__BACKEND": "job",
        "PIPELINES_COMPUTE__ADDRESS": cluster.address,
        "PIPELINES_COMPUTE__STORAGE": storage.url,
    }
    assert repro_job.stages_as_jobs(tmp_path, storage) == (expected if as_jobs else {})


def test_a_job_that_does_not_find_its_dashboard_runs_the_stages_itself(tmp_path, storage, monkeypatch, capsys):
    (tmp_path / "params.yaml").write_text((ROOT / "params.yaml").read_text())

    def away() -> str:
        raise InfrastructureError("this cluster's dashboard is not found")

    monkeypatch.setattr(repro_job, "own_dashboard", away)
    assert repro_job.stages_as_jobs(tmp_path, storage) == {}
    warning = capsys.readouterr().err
    assert "all stages run in this job, one after the other" in warning
    assert warning.count("\n") == 1


def test_a_copy_is_laid_into_the_shared_folder_once_and_with_its_raw_data_and_weights(tmp_path):
    source, shared = tmp_path / "source", tmp_path / "shared"
    for name, text in {"dvc.yaml": "first", ".dvc/config": "", "pipelines/__pycache__/a.pyc": ""}.items():
        (source / name).parent.mkdir(parents=True, exist_ok=True)
        (source / name).write_text(text)
    for name in ("data/raw/README.md", "data/weights/a.pt", "data/weights/b.pt"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("raw")
    shared.mkdir()
    storage = Storage(str(shared), timeout=0)
    inputs = publish_inputs(storage, tmp_path, ["data/raw", "data/weights/a.pt", "data/weights/b.pt"])
    checkout = shared / "checkouts/repro-1"
    repro_job.make_checkout(source, checkout, storage, inputs)
    laid = [path.relative_to(checkout / "data").as_posix() for path in (checkout / "data").rglob("*.*")]
    assert sorted(laid) == ["raw/README.md", "weights/a.pt", "weights/b.pt"]
    assert f"dir = {shared}/dvc-cache" in (checkout / ".dvc/config.local").read_text()
    assert not (checkout / "pipelines/__pycache__").exists()
    (source / "dvc.yaml").write_text("second")
    repro_job.make_checkout(source, checkout, storage, inputs)  # another attempt: what is there may hold finished work
    assert (checkout / "dvc.yaml").read_text() == "first"
    assert [path.name for path in checkout.parent.iterdir()] == ["repro-1"]


# -- who may, and what the doctor says ---------------------------------------------------------------------------------


@pytest.fixture
def answering(monkeypatch):
    """A dashboard that answers everything with one status; gives its address and the headers that it was sent."""
    monkeypatch.setenv("RAY_AUTH_MODE", "disabled")
    seen = []

    class Handler(BaseHTTPRequestHandler):
        status = 200

        def do_GET(self):
            seen.append(dict(self.headers))
            if self.status == 0:
                time.sleep(1)
                return
            body = json.dumps({"ray_version": "2.60.0", "version": "4"}).encode()
            self.send_response(self.status)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *arguments):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}", Handler, seen
    server.shutdown()


def test_a_cluster_that_asks_for_a_token_says_what_to_set(answering):
    address, handler, _ = answering
    handler.status = 401
    with pytest.raises(InfrastructureError, match="set RAY_AUTH_MODE=token and RAY_AUTH_TOKEN") as refused:
        Cluster(address)
    assert not isinstance(refused.value, ClusterAwayError)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize("status", [500, 503, 0])
def test_a_cluster_that_is_ill_or_hangs_is_away_and_may_come_back(answering, monkeypatch, status):
    address, handler, _ = answering
    monkeypatch.setattr("pipelines.jobs.dashboard.REQUEST_SECONDS", 0.3)
    handler.status = status
    with pytest.raises(ClusterAwayError):
        Cluster(address)


def test_a_submission_that_is_not_answered_may_have_arrived_and_is_asked_for_again(answering, monkeypatch):
    import requests

    address, _, _ = answering
    cluster = Cluster(address)
    ends = iter([requests.exceptions.ReadTimeout("slow"), RuntimeError("Job with submission_id a already exists"),
                 RuntimeError("Request failed with status code 400: no")])  # fmt: skip

    def submit_job(**options):
        raise next(ends)

    monkeypatch.setattr(cluster.client, "submit_job", submit_job)
    request = JobRequest("probe-0123", "true", ROOT)
    with pytest.raises(ClusterAwayError):
        cluster.submit(request, 1)
    cluster.submit(request, 1)
    with pytest.raises(InfrastructureError, match="refused the job probe-0123-1") as refused:
        cluster.submit(request, 1)
    assert not isinstance(refused.value, ClusterAwayError)


def test_another_ray_is_refused(answering, monkeypatch):
    import ray

    address, _, _ = answering
    monkeypatch.setattr(ray, "__version__", "2.59.0")
    with pytest.raises(InfrastructureError, match=r"runs Ray 2\.60\.0, here is 2\.59\.0: install the same"):
        Cluster(address).require_same_ray()


def test_the_token_comes_from_the_environment_and_a_home_that_cannot_be_written_does_not_matter(answering):
    address, _, seen = answering
    code = "import sys; from pipelines.jobs.dashboard import Cluster; Cluster(sys.argv[1])"
    kept = {k: v for k, v in os.environ.items() if not k.startswith("RAY_")}
    environment = {**kept, "HOME": "/proc/nowhere", "PYTHONPATH": str(ROOT), "RAY_AUTH_TOKEN": "a" * 32}
    finished = subprocess.run([sys.executable, "-c", code, address], env=environment, capture_output=True, text=True)
    assert finished.returncode == 0, finished.stderr
    assert "a" * 32 in " ".join(f"{value}" for value in seen[-1].values())
    assert "a" * 32 not in finished.stdout + finished.stderr


def test_the_doctor_needs_no_cluster_where_nothing_names_one(monkeypatch):
    for name in ("RAY_API_SERVER_ADDRESS", "RAY_ADDRESS"):
        monkeypatch.delenv(name, raising=False)
    chosen = SimpleNamespace(compute=Compute())
    (found,) = check_cluster(chosen, None)
    assert found.state is State.MADE


def test_the_doctor_says_how_to_reach_a_cluster_that_is_away(monkeypatch):
    monkeypatch.setenv("RAY_AUTH_MODE", "disabled")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://me:hunter22@127.0.0.1:1")
    compute = Compute(backend="job", storage="/shared", address="http://127.0.0.1:1")
    ray, server = check_cluster(SimpleNamespace(compute=compute), None)
    assert (ray.state, ray.asked_for) == (State.MISSING, True)
    assert "set compute.address" in ray.remarks[0]
    assert (server.subject, server.state) == ("MLflow", State.MISSING)
    assert "hunter22" not in server.facts + "".join(server.remarks)


GOOD = {"read": "token", "error": None, "torch": "2", "gpus": 2, "free_gib": 99.0}


@pytest.mark.parametrize(
    ("differs", "words"),
    [
        ({}, None),
        (
            {"read": None, "error": "no such folder"},
            r"does not see what was written to /shared here \(no such folder\)",
        ),
        ({"read": "old"}, "does not see"),
        ({"python": "3.9.1"}, "runs Python 3.9.1, here is"),
        ({"free_gib": 0.5}, "has 0.5 GiB free"),
        ({"gpus": 1}, "Ray counts 2 GPUs there, torch sees 1"),
    ],
)
def test_the_doctor_says_what_a_node_lacks(differs, words):
    report = {"python": ".".join(map(str, sys.version_info[:3])), **GOOD, **differs}
    found = health_cluster._node(NODES[1], report, "token", Compute(storage="/shared", device="cuda"), True)
    if words is None:
        assert (found.state, found.remarks) == (State.WHOLE, ())
    else:
        assert found.state is State.INCOMPLETE
        assert re.search(words, found.remarks[0])


def test_the_doctors_job_carries_its_report_in_its_log():
    assert report_in("Running entrypoint\n" + REPORT + '[{"node": "a"}]\n') == [{"node": "a"}]
    assert report_in("nothing") == []


def test_a_submission_leaves_its_frozen_copy_and_nothing_else(tmp_path, monkeypatch):
    workspace = Workspace(tmp_path / "checkout", tmp_path / "home")
    (workspace.root / "data/raw").mkdir(parents=True)
    (workspace.root / "data/raw/README.md").write_text("raw")
    (workspace.root / "params.yaml").write_text("seed: 0\n")
    (tmp_path / "shared").mkdir()
    monkeypatch.setattr(submission, "tracking_for_job", lambda: "http://server")
    left, young = (workspace.home / "snapshots" / f".writing-{age}" for age in ("old", "young"))
    for folder in (left, young):
        folder.mkdir(parents=True)
    os.utime(left, (0, 0))  # of a submission that was killed days ago
    need = ResourceRequest(1, 0, 1, 1)
    arguments = (workspace, Storage(str(tmp_path / "shared")), Compute(), need, [], [])
    first, second = submission._request(*arguments), submission._request(*arguments)
    assert first == second
    assert (first.working_dir / "params.yaml").read_text() == "seed: 0\n"
    assert {path.name for path in (workspace.home / "snapshots").iterdir()} == {first.key, young.name}
    (workspace.root / "params.yaml").unlink()
    (workspace.root / "data/raw/README.md").unlink()
    monkeypatch.setattr(submission, "freeze", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        submission._request(*arguments)
    assert {path.name for path in (workspace.home / "snapshots").iterdir()} == {first.key, young.name}
