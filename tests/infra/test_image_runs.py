"""The image, built from infra/docker/Dockerfile on a base that is made here, and its head and a worker, which run a job.

No image registry is needed: the base has the name that the Dockerfile begins with, and is Debian's release of that name with
Debian's Python (3.11.2 in Debian 12, where the image has 3.11.15). Packages come from the registries that this machine knows.
"""

import os
import secrets
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from built_images import Builder, builder
from infra_files import ROOT, documents, locked
from network_hosts import Host, two_hosts
from processes import wait_until
from repositories import git

pytestmark = [pytest.mark.infra, pytest.mark.timeout(10800)]

PYTHON = "python:3.11.15-slim-bookworm"
SUITE = PYTHON.rpartition("-")[2]
IMAGE = "crossmodal-pipelines:tested"
TOKEN = secrets.token_hex(32)
RESTART = 'until "$@"; do sleep 2; done'
"""What Compose's `restart: unless-stopped` does: a worker gives up where the head's own node is not there yet."""


@pytest.fixture(scope="module")
def hosts() -> Iterator[tuple[Host, Host]]:
    with two_hosts() as hosts:
        yield hosts


@pytest.fixture(scope="module")
def built(hosts: tuple[Host, Host], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Builder]:
    """The image of this checkout's commit, built as ../../infra/README.md says."""
    with builder(tmp_path_factory.mktemp("builder")) as buildah:
        buildah.make_base(PYTHON, "ca-certificates,python3-pip,python3-venv", SUITE)
        buildah.lend_cache("/cache")
        context = buildah.temporary / "context"
        context.mkdir()
        archive = subprocess.run(["git", "archive", "HEAD"], cwd=ROOT, capture_output=True, check=True).stdout
        subprocess.run(["tar", "-x", "-C", str(context)], input=archive, check=True)
        dockerfile = context / "infra" / "docker" / "Dockerfile"
        buildah(
            *("build", "--pull-never", "--network=host", f"--file={dockerfile}", f"--tag={IMAGE}"),
            *(f"--build-arg=GIT_REVISION={git(ROOT, 'rev-parse', 'HEAD')}", context),
        )
        shutil.rmtree(context)
        yield buildah


@pytest.fixture(scope="module")
def cluster(built: Builder, hosts: tuple[Host, Host], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """`ray-head` and `ray-worker` of compose.yaml, on a host each; the folder of what they print.

    Their shared folder is on this machine's disk. The head's name is known to both, as Compose's network would tell it.
    """
    (compose,) = documents("docker/compose.yaml")
    storage = built.folder / "storage"
    storage.mkdir()
    os.chown(storage, 1000, 1000)
    output = tmp_path_factory.mktemp("printed")
    for service, host in zip(("ray-head", "ray-worker"), hosts, strict=True):
        options = (f"--name={service}", f"--add-host=ray-head:{hosts[0].address}", "--shm-size=4g")
        built("from", "--pull-never", *options, f"--volume={storage}:/storage", IMAGE)
        environment = {"RAY_AUTH_TOKEN": TOKEN, "PIPELINES_COMPUTE__WORKERS": "1", "OMP_WAIT_POLICY": "PASSIVE"}
        built("config", *(f"--env={name}={value}" for name, value in environment.items()), service)
        words = ("sh", "-c", RESTART, "sh", *compose["services"][service]["command"])
        process = built.start(service, *words, host=host, output=output / service)
        if service == "ray-head":
            wait_until_healthy(built, host, compose["services"][service]["healthcheck"]["test"][1:], process)
    yield output
    for host in hosts:
        host.end_processes()


def wait_until_healthy(built: Builder, host: Host, check: list[str], head: "subprocess.Popen[bytes]") -> None:
    """Until the check succeeds in the head's container; shows what its last try printed."""
    tries: list[subprocess.CompletedProcess[str]] = []

    def succeeds() -> bool:
        tries.append(inside(built, host, *check))
        return tries[-1].returncode == 0

    wait_until(succeeds, head, timeout=600, said=lambda: tries[-1].stderr, pause=2)


def inside(built: Builder, host: Host, *words: str, container: str = "ray-head") -> "subprocess.CompletedProcess[str]":
    """Runs a command in a container, on a host's network, to its end."""
    command = built.command("run", f"--network=ns:/run/netns/{host.namespace}", container, "--", *words)
    return subprocess.run(command, env=built.environment(), capture_output=True, text=True, timeout=1800)


def test_the_image_holds_the_packages_of_the_lock_and_the_commit(built: Builder, hosts: tuple[Host, Host]) -> None:
    built("from", "--pull-never", "--name=looked-at", IMAGE)
    code = "import os, sys, torch, ray; print(sys.version.split()[0], torch.__version__, ray.__version__, os.getuid())"
    done = inside(built, hosts[0], "python", "-c", code, container="looked-at")
    python, torch, ray, user = done.stdout.split()
    print(f"the base's Python is {python}")
    assert torch.partition("+")[0] == locked("torch")
    assert ray == locked("ray")
    assert user == "1000"
    revision = git(ROOT, "rev-parse", "HEAD")
    show = 'echo $GIT_REVISION; ls -A /opt/crossmodal-pipelines; find / -xdev -name "packages.lock" -size +0'
    shown = inside(built, hosts[0], "sh", "-c", show, container="looked-at").stdout.split()
    assert shown[0] == revision
    assert {"components", "pipelines", "dvc.yaml", "params.yaml", "requirements.lock"} <= set(shown[1:])
    assert not {"tests", "docs", ".git", "packages.lock"} & set(shown[1:])


def test_head_and_worker_run_a_job(built: Builder, cluster: Path, hosts: tuple[Host, Host]) -> None:
    """The head offers no CPU, so what trains does so in the worker's container."""
    jobs = ("ray", "job", "list", "--address", "http://127.0.0.1:8265")
    wait_until(lambda: inside(built, hosts[0], *jobs).returncode == 0, timeout=600, pause=2)
    job = "python -m pipelines preset smoke && dvc repro probe"
    submit = ("ray", "job", "submit", "--address", "http://127.0.0.1:8265", "--", "on-shared-checkout", "sh", "-c", job)
    done = inside(built, hosts[0], *submit)
    printed = "\n".join(path.read_text(errors="replace")[-3000:] for path in cluster.iterdir())
    assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-3000:] + printed
    assert "succeeded" in done.stdout
    (checkout,) = (built.folder / "storage" / "checkouts").iterdir()
    assert checkout.name == git(ROOT, "rev-parse", "HEAD")
    assert (checkout / "metrics" / "probe").exists()
    assert "probe" in (checkout / "dvc.lock").read_text()


def test_without_the_token_nobody_submits(built: Builder, cluster: Path, hosts: tuple[Host, Host]) -> None:
    command = ("env", "RAY_AUTH_TOKEN=wrong", "ray", "job", "list", "--address", "http://127.0.0.1:8265")
    assert inside(built, hosts[0], *command).returncode != 0
