"""Which Ray is used: one of our own unless RAY_ADDRESS names a cluster, which must answer."""

import json
import os
import socket
import subprocess
import sys

import pytest
import ray
from processes import clean_environment
from ray._private import ray_constants
from ray._private.services import get_node_ip_address
from ray.runtime_env.runtime_env import _merge_runtime_env

from pipelines.engine.ray_cluster import start_ray
from pipelines.errors import InfrastructureError
from pipelines.schema.running import Compute
from pipelines.threads.settings import OPENMP_WAITING, waiting_settings

VARIABLE = ray_constants.ENABLE_RAY_CLUSTERS_ENV_VAR
LISTENING = """
import psutil, ray
from pipelines.engine.ray_cluster import ray_session
from pipelines.schema.running import Compute

with ray_session(Compute()):
    assert ray.get(ray.remote(lambda: 1).remote()) == 1
    family = [psutil.Process(), *psutil.Process().children(recursive=True)]
    sockets = [each for process in family for each in process.net_connections("inet")]
    print("LISTENING", *{each.laddr.ip for each in sockets if each.status == psutil.CONN_LISTEN})
"""


@pytest.fixture(autouse=True)
def restored(monkeypatch):
    """What `start_ray` sets for this process."""
    monkeypatch.setenv(VARIABLE, "1")
    monkeypatch.setattr(ray_constants, "ENABLE_RAY_CLUSTER", True)


@pytest.fixture
def started(monkeypatch):
    """The arguments of each `ray.init`, which starts nothing."""
    calls = []
    monkeypatch.setattr(ray, "init", lambda *arguments, **options: calls.append((arguments, options)))
    monkeypatch.setenv("RAY_AUTH_MODE", "disabled")
    return calls


@pytest.mark.parametrize("address", [None, "", "local", "http://head:8265", "https://head"])
def test_without_the_address_of_a_cluster_ray_is_started_here(started, monkeypatch, address):
    monkeypatch.setenv("RAY_ADDRESS", address or "")
    if address is None:
        monkeypatch.delenv("RAY_ADDRESS")
    start_ray(Compute(workers=3, threads=2))
    ((arguments, options),) = started
    assert arguments == ("local",)  # and not the one of an address file
    assert options["num_cpus"] >= 6


def test_a_ray_that_is_started_here_takes_loopback_for_its_address_and_one_that_is_joined_does_not(
    started, monkeypatch
):
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    start_ray(Compute())
    assert os.environ[VARIABLE] == "0"
    assert get_node_ip_address() == "127.0.0.1"
    monkeypatch.delenv(VARIABLE)
    with socket.create_server(("127.0.0.1", 0)) as head:
        monkeypatch.setenv("RAY_ADDRESS", f"127.0.0.1:{head.getsockname()[1]}")
        start_ray(Compute())
    assert VARIABLE not in os.environ


@pytest.mark.heavy
@pytest.mark.ray
def test_every_port_of_a_ray_that_is_started_here_is_on_loopback():
    """In a process of its own, which has imported Ray before."""
    environment = clean_environment()
    done = subprocess.run(
        [sys.executable, "-c", LISTENING], env=environment, capture_output=True, text=True, check=False, timeout=300
    )
    assert done.returncode == 0, done.stderr
    (line,) = [line for line in done.stdout.splitlines() if line.startswith("LISTENING")]
    assert line.split()[1:]
    assert set(line.split()[1:]) <= {"127.0.0.1", "::1", "::ffff:127.0.0.1"}


@pytest.mark.parametrize("form", ["127.0.0.1:{}", "ray://localhost:{}"])
def test_a_cluster_that_answers_is_joined(started, monkeypatch, form):
    with socket.create_server(("127.0.0.1", 0)) as head:
        monkeypatch.setenv("RAY_ADDRESS", form.format(head.getsockname()[1]))
        start_ray(Compute())
    ((arguments, options),) = started
    assert arguments == ()  # the address is that of the environment
    assert options["runtime_env"] == {"env_vars": waiting_settings()}


def test_workers_on_a_cluster_wait_as_processes_here_do(started, monkeypatch):
    """Ray's own merge of what its job has and what we ask for: it refuses a variable that both set."""
    for name in (*OPENMP_WAITING, "OPENBLAS_THREAD_TIMEOUT"):
        monkeypatch.delenv(name, raising=False)
    with socket.create_server(("127.0.0.1", 0)) as head:
        monkeypatch.setenv("RAY_ADDRESS", f"127.0.0.1:{head.getsockname()[1]}")
        for of_job in (None, {}, {"GOMP_SPINCOUNT": "5"}, {"OPENBLAS_THREAD_TIMEOUT": "20", "MINE": "1"}):
            with monkeypatch.context() as job:
                for name, value in (of_job or {}).items():  # Ray sets them in the job's own process
                    job.setenv(name, value)
                config = {} if of_job is None else {"runtime_env": {"env_vars": of_job}}
                job.setenv("RAY_JOB_CONFIG_JSON_ENV_VAR", json.dumps(config))
                start_ray(Compute())
                merged = _merge_runtime_env(config.get("runtime_env"), started[-1][1]["runtime_env"])
                assert merged is not None
                assert merged["env_vars"] == {**waiting_settings(), **(of_job or {})}
                assert merged["env_vars"].get("GOMP_SPINCOUNT") == (
                    "5" if of_job and "GOMP_SPINCOUNT" in of_job else "1000"
                )


@pytest.mark.parametrize(
    ("address", "said"),
    [
        ("127.0.0.1:1", "127.0.0.1:1: .*refused"),
        ("auto", "no Ray was started on this machine"),
        ("nonsense", "nonsense"),
    ],
)
def test_a_cluster_that_does_not_answer_is_one_line_at_once(started, monkeypatch, tmp_path, address, said):
    monkeypatch.setenv("RAY_ADDRESS", address)
    monkeypatch.setenv("RAY_TMPDIR", str(tmp_path))
    with pytest.raises(
        InfrastructureError, match=rf"^RAY_ADDRESS = {address}: no Ray cluster answers \({said}"
    ) as caught:
        start_ray(Compute())
    assert "\n" not in str(caught.value)
    assert not started


def test_a_cluster_that_refuses_is_one_line(monkeypatch):
    def refuse(**options):
        raise RuntimeError("Version mismatch: the cluster was started with\n    Ray: 1.0\n")

    monkeypatch.setattr(ray, "init", refuse)
    with socket.create_server(("127.0.0.1", 0)) as head:
        monkeypatch.setenv("RAY_ADDRESS", f"127.0.0.1:{head.getsockname()[1]}")
        with pytest.raises(InfrastructureError, match="cannot be joined: Version mismatch") as caught:
            start_ray(Compute())
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("error", [Exception("The current node timed out during startup."), OSError("no port is free")])
def test_a_machine_too_busy_to_start_ray_is_one_line_and_exit_code_75(monkeypatch, error):
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.setattr(ray, "init", lambda *_, **__: (_ for _ in ()).throw(error))
    with pytest.raises(InfrastructureError, match=rf"could not be started on this machine: .*{error}"):
        start_ray(Compute())


def test_a_wrong_argument_to_ray_is_a_bug_and_keeps_its_traceback(monkeypatch):
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.setattr(ray, "init", lambda *_, **__: (_ for _ in ()).throw(TypeError("no such argument")))
    with pytest.raises(TypeError):
        start_ray(Compute())
