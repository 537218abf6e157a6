"""What a real Slurm does to infra/slurm/pipeline.sbatch and its command: stand-ins for Ray, and a command that counts."""

import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from infra_files import INFRA
from processes import wait_until
from slurm_sites import Job, SlurmSite, slurm_site

pytestmark = [pytest.mark.infra, pytest.mark.timeout(1200)]

STAND_INS = {
    "ray": "case $1 in start) sleep infinity ;; esac",  # its health is always good
    "python": "exit 0",  # all nodes are there
}
COUNT = """
import pathlib, sys, time
step, saved = 0, pathlib.Path("step")
if saved.exists():
    step = int(saved.read_text())
print("resuming from step", step, flush=True)
try:
    while step < int(sys.argv[1]):
        time.sleep(0.1)
        step += 1
        saved.with_suffix(".new").write_text(str(step))
        saved.with_suffix(".new").replace(saved)
except KeyboardInterrupt:
    print("interrupted in order", flush=True)
    raise SystemExit(130)
print("done", flush=True)
"""
LONG = "100000"
"""Steps that nobody waits for."""


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SlurmSite]:
    programs = tmp_path_factory.mktemp("bin")
    for name, body in STAND_INS.items():
        (programs / name).write_text(f"#!/usr/bin/env bash\n{body}\n")
        (programs / name).chmod(0o755)
    with slurm_site(tmp_path_factory.mktemp("slurm"), programs) as site:
        yield site


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A submit folder."""
    shutil.copytree(INFRA / "slurm", tmp_path / "infra" / "slurm")
    (tmp_path / "count.py").write_text(COUNT)
    return tmp_path


def start(site: SlurmSite, folder: Path, steps: str, *options: str, **environment: str) -> Job:
    """A job that counts to `steps`, when it has begun to."""
    job = Job(site, folder, sys.executable, "count.py", steps, options=options, environment=environment)
    wait_until(lambda: reached(folder) >= 5, timeout=120, said=job.report)
    return job


def reached(folder: Path) -> int:
    return int((folder / "step").read_text()) if (folder / "step").exists() else 0


def test_a_job_ends_with_its_command(site: SlurmSite, folder: Path) -> None:
    job = start(site, folder, "10")
    job.wait("COMPLETED")
    assert "done" in job.printed()


def test_a_requeued_job_goes_on_and_appends_to_its_output(site: SlurmSite, folder: Path) -> None:
    job = start(site, folder, "200")
    site.client("scontrol", "requeue", job.number)
    job.wait("COMPLETED")
    first, second = job.starts()
    assert first == 0
    assert 5 <= second < 200
    assert "done" in job.printed()


def test_at_the_time_limit_the_job_requeues_itself_and_goes_on(site: SlurmSite, folder: Path) -> None:
    job = start(site, folder, LONG)
    job.limit(minutes=4)  # less than the five of --signal
    wait_until(lambda: job.facts()["Restarts"] == "1", timeout=300, said=job.report)
    job.limit(minutes=60)
    wait_until(lambda: len(job.starts()) == 2, timeout=300, said=job.report)
    assert 5 <= job.starts()[1] <= reached(folder)
    printed = job.printed()
    assert printed.index("ending: the time limit is near") < printed.index("interrupted in order")
    site.client("scancel", job.number)
    job.wait("CANCELLED")


@pytest.mark.parametrize(
    ("options", "environment"),
    [(("--no-requeue",), {}), ((), {"MAX_RESTARTS": "0"})],
    ids=["--no-requeue", "started often enough"],
)
def test_at_the_time_limit_a_job_that_may_not_be_requeued_ends(
    site: SlurmSite, folder: Path, options: tuple[str, ...], environment: dict[str, str]
) -> None:
    job = start(site, folder, LONG, *options, **environment)
    job.limit(minutes=4)
    job.wait("FAILED")
    assert job.facts()["ExitCode"] == "130:0"
    assert "interrupted in order" in job.printed()
    assert "submit it again to go on" in job.printed()


def test_a_cancelled_job_stays_away(site: SlurmSite, folder: Path) -> None:
    job = start(site, folder, LONG)
    site.client("scancel", job.number)
    job.wait("CANCELLED")
    wait_until(lambda: site.client("squeue", "--noheader") == "", timeout=60, said=job.report)
    assert len(job.starts()) == 1
