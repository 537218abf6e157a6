"""infra/slurm/pipeline.sbatch on a Slurm of two nodes: a stage, a requeue, and a time limit."""

import re
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest
from checkout import Checkout
from processes import wait_until
from slurm_sites import Job, SlurmSite, slurm_site
from workspaces import FROM_NOTHING

from pipelines import presets

pytestmark = [pytest.mark.infra, pytest.mark.timeout(1800)]

STEPS = 400
PARAMETERS = {
    "probe": {
        **FROM_NOTHING["probe"],
        "training": {"steps": STEPS, "batch": 16, "report_every": 50, "checkpoint_every": 5},
    },
    "compute": {"threads": 1, "device": "cpu"},
}
MINUTE = 60.0


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SlurmSite]:
    with slurm_site(tmp_path_factory.mktemp("slurm")) as site:
        yield site


@pytest.fixture(scope="module")
def prepared(
    site: SlurmSite, copy_of_the_checkout: Callable[[Path], Path], tmp_path_factory: pytest.TempPathFactory
) -> Checkout:
    checkout = Checkout(copy_of_the_checkout(tmp_path_factory.mktemp("prepared") / "checkout"))
    presets.apply(["smoke"], checkout.root)
    presets.edit(checkout.root / "params.yaml", PARAMETERS)
    checkout.repro("prepare", timeout=600)
    return checkout


def training_processes(site: SlurmSite) -> list[psutil.Process]:
    """Ray's training workers on both hosts."""
    found = [
        process for process in psutil.process_iter(["cmdline"]) if "RayTrainWorker" in str(process.info["cmdline"])
    ]
    inside = {number for host in site.hosts for number in host.processes()}
    return [process for process in found if process.pid in inside]


@pytest.fixture
def ray_folder() -> Iterator[Path]:
    """Where a job's Ray keeps its files. Its sockets are in it, so the name is short."""
    with tempfile.TemporaryDirectory(prefix="ray", ignore_cleanup_errors=True) as folder:
        yield Path(folder)


def went_on_from(ray_folder: Path) -> int:
    """The step at which training went on, as its workers say in Ray's logs."""
    printed = "".join(path.read_text(errors="replace") for path in ray_folder.rglob("worker-*.out"))
    (step,) = set(re.findall(r"resuming from step (\d+)", printed))
    return int(step)


def training_job(site: SlurmSite, checkout: Checkout, ray_folder: Path) -> Job:
    """Return a job that trains the probe, when it has done some of its steps."""
    job = Job(
        site, checkout.root, "dvc", "repro", "--single-item", "probe", environment={"RAY_TMPDIR": str(ray_folder)}
    )
    wait_until(lambda: checkout.progress("probe") >= 20, timeout=600, said=job.report)
    return job


@pytest.fixture(scope="module")
def undisturbed(site: SlurmSite, prepared: Checkout, tmp_path_factory: pytest.TempPathFactory) -> Checkout:
    """Where a job has trained the probe on both nodes, from its start to its end."""
    checkout = prepared.copy(tmp_path_factory.mktemp("undisturbed") / "checkout")
    nodes = 'import ray; ray.init(log_to_driver=False); print("node", *(n["NodeManagerAddress"] for n in ray.nodes()))'
    job = Job(site, checkout.root, "bash", "-euc", f"python -c '{nodes}'; dvc repro --single-item probe")
    job.wait("COMPLETED")
    (line,) = re.findall(r"^node (.*)", job.printed(), re.MULTILINE)
    assert sorted(line.split()) == [host.address for host in site.hosts]
    return checkout


def test_a_stage_trains_on_both_nodes(undisturbed: Checkout, site: SlurmSite) -> None:
    (run,) = undisturbed.runs("probe")
    assert run.info.status == "FINISHED"
    assert undisturbed.hashes("probe")
    assert not training_processes(site), "the job's Ray ended with it"


def test_a_requeued_job_goes_on_with_the_same_result(
    site: SlurmSite, prepared: Checkout, undisturbed: Checkout, tmp_path: Path, ray_folder: Path
) -> None:
    checkout = prepared.copy(tmp_path / "checkout")
    job = training_job(site, checkout, ray_folder)
    site.client("scontrol", "requeue", job.number)
    job.wait("COMPLETED")
    assert job.facts()["Restarts"] == "1"
    assert 20 <= went_on_from(ray_folder) < STEPS
    assert checkout.hashes("probe") == undisturbed.hashes("probe")
    assert [run.info.status for run in checkout.runs("probe")] == ["FINISHED"]


def test_the_time_limit_interrupts_and_the_job_goes_on_by_itself(
    site: SlurmSite, prepared: Checkout, undisturbed: Checkout, tmp_path: Path, ray_folder: Path
) -> None:
    checkout = prepared.copy(tmp_path / "checkout")
    job = training_job(site, checkout, ray_folder)
    # Slurm looks at limits every half minute, and training would be done: it stands still until the notice has come.
    workers = training_processes(site)
    assert len(workers) == 2
    for worker in workers:
        worker.suspend()
    hours, minutes, seconds = map(int, job.facts()["RunTime"].split(":"))
    limit = 60 * hours + minutes + (seconds > 0) + 3  # nearer than --signal says, and time enough to end in order
    job.limit(limit)
    wait_until(lambda: "ending: the time limit is near" in job.printed(), timeout=2 * MINUTE, said=job.report)
    for worker in workers:
        worker.resume()
    wait_until(lambda: job.facts()["Restarts"] == "1", timeout=3 * MINUTE, said=job.report)
    job.limit(60)
    (run,) = checkout.runs("probe")
    assert run.info.status == "KILLED", "the stage ended in order"
    job.wait("COMPLETED")
    assert 20 <= went_on_from(ray_folder) < STEPS
    assert checkout.hashes("probe") == undisturbed.hashes("probe")
