"""A real Ray cluster on this machine, whose nodes are killed and started again; and workspaces whose stages are jobs of it."""

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
from processes import clean_environment, output_of
from servers import free_port
from workspaces import FROM_NOTHING

from pipelines.scratch.metric_log import MetricLog

# Without dropout, which each worker draws for itself.
LONG_BASE = {
    "base_model": {
        **FROM_NOTHING["base_model"],
        "autoencoder": {"steps": 100, "batch": 8, "report_every": 10, "checkpoint_every": 10},
        "training": {"steps": 4, "batch": 8, "report_every": 2, "checkpoint_every": 2},
    }
}

SETTLED = 20
"""Steps of LONG_BASE after which another number of workers changes losses by 0.03 % at most, by rounding; after 10, by 0.6 %."""


class RayCluster:
    """A head and another node, one CPU each, whose dashboard stays at one address when the head is started again."""

    def __init__(self, folder: Path, **environment: str) -> None:
        self.folder = folder
        self.port, self.dashboard = free_port(), free_port()
        self.environment = {
            **clean_environment(),
            "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
            "RAY_AUTH_MODE": "disabled",
            "RAY_USAGE_STATS_ENABLED": "0",
            "RAY_health_check_period_ms": "1000",  # a killed node is seen after 5 s in place of 15
            "RAY_worker_niceness": "0",  # 15 by default: on two busy cores Ray's own processes come first
            **environment,
        }
        self.host = "127.0.0.1"
        self.nodes: list[psutil.Process] = []
        self.starts = 0

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.dashboard}"

    def start(self) -> None:
        self.start_head()
        self.add_node()

    def start_head(self, within: tuple[str, ...] = ()) -> None:
        head = ["--head", f"--port={self.port}", "--dashboard-host=127.0.0.1", f"--dashboard-port={self.dashboard}"]
        self._node(1, self.host, within, *head, f"--ray-client-server-port={free_port()}")

    def add_node(self, host: str = "127.0.0.1", within: tuple[str, ...] = ()) -> None:
        self._node(2, host, within, f"--address={self.host}:{self.port}")

    def _node(self, count: int, host: str, within: tuple[str, ...], *arguments: str) -> None:
        """Start a node, and wait until there are `count`. Ray gives a node 30 s to start, which is short on a busy machine.

        `host` is its address; `within` is a command that runs another one, in a network of its own, say.
        """
        for _ in range(4):
            self.starts += 1
            log = self.folder / f"{self.starts}.log"
            command = [
                *within,
                sys.executable,
                "-m",
                "ray.scripts.scripts",
                "start",
                "--block",
                "--num-cpus=1",
                f"--node-ip-address={host}",
                *arguments,
            ]
            command += [f"--temp-dir={self.folder / str(self.starts)}", "--disable-usage-stats"]
            command += [f"--dashboard-agent-listen-port={free_port()}"]
            with open(log, "w") as output:
                process = subprocess.Popen(
                    command,
                    env=self.environment,
                    stdout=output,
                    stderr=subprocess.STDOUT,
                    cwd=self.folder,
                    start_new_session=True,
                )
            node = psutil.Process(process.pid)
            self.nodes.append(node)
            while process.poll() is None:
                if self._living() >= count:
                    return
                time.sleep(0.5)
            self.nodes.remove(node)
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
        raise AssertionError(log.read_text()[-2000:])

    def _living(self) -> int:
        from pipelines.errors import InfrastructureError
        from pipelines.jobs.dashboard import Cluster

        try:
            return len(Cluster(self.address).nodes())
        except InfrastructureError:
            return 0

    def kill(self, nodes: list[psutil.Process]) -> None:
        for node in nodes:
            family = [*node.children(recursive=True), node]
            for one in family:
                with contextlib.suppress(psutil.NoSuchProcess):
                    one.kill()
            psutil.wait_procs(family, 10)
            self.nodes.remove(node)

    def printed_by_workers(self) -> str:
        """What the nodes that run now keep of it in Ray's logs."""
        return "".join(log.read_text() for log in self.folder.glob("*/session_latest/logs/worker-*.out"))

    def jobs(self) -> dict[str, str]:
        """Submission id -> status, of this project's stages."""
        from pipelines.jobs.dashboard import Cluster

        return {
            job.submission_id: job.status.value for job in Cluster(self.address).client.list_jobs() if job.submission_id
        }


def running(folder: Path, kind: type[RayCluster] = RayCluster, **environment: str) -> Iterator[RayCluster]:
    """A cluster of this kind with its files in `folder`, which goes with it."""
    cluster = kind(folder, **environment)
    try:
        cluster.start()
        yield cluster
    finally:
        cluster.kill(list(cluster.nodes))
        shutil.rmtree(folder, ignore_errors=True)


def as_job(place, cluster, storage, **more):
    """Let the place's heavy stages be jobs on `cluster`."""
    place.extra = {
        **place.extra,
        "PIPELINES_COMPUTE__BACKEND": "job",
        "PIPELINES_COMPUTE__ADDRESS": cluster.address,
        "PIPELINES_COMPUTE__STORAGE": str(storage),
        **more,
    }
    return place


def steps_in(storage: Path) -> int:
    """The newest checkpoint of the one job that runs."""
    return max(
        (int(path.name.removeprefix("step-")) for path in storage.glob("runs/*/checkpoints/*/step-*")), default=0
    )


def finish(place, stage: str = "probe", **environment: str) -> subprocess.CompletedProcess[str]:
    process = place.start(stage, **environment)
    out, errors = output_of(process)
    return subprocess.CompletedProcess(process.args, process.returncode, out, errors)


def trained_here(place, people, changes, stage: str = "probe"):
    """`place`, where one process of this machine has trained the stage."""
    shutil.copytree(people.root / "data" / "people", place.root / "data" / "people")
    place.edit(changes)
    finished = finish(place, stage)
    assert finished.returncode == 0, finished.stderr
    return place


def losses(place, stage: str) -> dict[tuple[str, int], float]:
    (scratch,) = place.scratch(stage)
    lines = MetricLog(scratch / "metrics.jsonl").read()
    return {(key, line["step"]): value for line in lines for key, value in line["metrics"].items() if "/loss" in key}
