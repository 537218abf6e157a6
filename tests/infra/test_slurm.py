"""infra/slurm/pipeline.sbatch, run with stand-ins for Slurm and Ray that write down how they were called."""

import contextlib
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from infra_files import INFRA, options_in, ray_start_options
from processes import wait_until

SCRIPT = INFRA / "slurm" / "pipeline.sbatch"

STAND_INS = {
    "scontrol": """
        echo "scontrol $*" >>"$CALLS"
        [[ $1 != requeue ]] || exit "${NO_REQUEUE:-0}"
        printf "%s\\n" $NODES
    """,
    "hostname": "echo 192.0.2.2 192.0.2.3",
    # Runs the step here, as the node would; what follows the options is the command.
    "srun": """
        echo "srun $*" >>"$CALLS"
        while [[ $1 == --* ]]; do shift; done
        exec "$@"
    """,
    # `ray start --block` holds until it is told to end.
    "ray": """
        trap 'echo "ray ended ${*: -1}" >>"$CALLS"; exit 0' TERM
        echo "ray $* auth=$RAY_AUTH_MODE token=${#RAY_AUTH_TOKEN}" >>"$CALLS"
        case $1 in
            start)
                [[ -z ${BROKEN_RAY:-} ]] || exit 1
                touch "$UP"
                while true; do sleep 0.05; done ;;
            health-check) [[ -z ${MUTE_RAY:-} && -e $UP ]] ;;
        esac
    """,
    # wait_for_nodes.py: returns when Ray has started in every step, of which there is one for the other nodes together.
    "python": """
        until (($(grep -c "^ray start" "$CALLS") == ($2 > 1 ? 2 : 1))); do sleep 0.05; done
        echo "python $*" >>"$CALLS"
        exit "${MISSING_NODES:-0}"
    """,
    "dvc": 'echo "dvc $* at=$RAY_ADDRESS workers=$PIPELINES_COMPUTE__WORKERS" >>"$CALLS"',
}


class Allocation:
    """A submit folder, and the environment in which Slurm would run the script there."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.calls = folder / "calls"
        self.sessions: list[int] = []
        programs = folder / "bin"
        programs.mkdir()
        for name, body in STAND_INS.items():
            (programs / name).write_text(f"#!/usr/bin/env bash\n{body}\n")
            (programs / name).chmod(0o755)
        shutil.copytree(INFRA / "slurm", folder / "infra" / "slurm")
        self.environment = {
            "PATH": f"{programs}:/usr/bin:/bin",
            "HOME": str(folder),
            "CALLS": str(self.calls),
            "UP": str(folder / "up"),
            "NODES": "n1 n2 n3",
            "SLURM_SUBMIT_DIR": str(folder),
            "SLURM_JOB_NODELIST": "n[1-3]",
            "SLURM_JOB_ID": "7",
            "SLURM_CPUS_PER_TASK": "16",
            "SLURM_GPUS_ON_NODE": "4",
        }

    def start(self, *command: str, **environment: str) -> subprocess.Popen[str]:
        # Slurm runs a copy of the script from its spool, in a session of its own.
        for left in (self.calls, Path(self.environment["UP"])):
            left.unlink(missing_ok=True)
        process = subprocess.Popen(
            ["bash", shutil.copy(SCRIPT, self.folder / "slurm_script"), *command],
            env={**self.environment, **environment},
            cwd="/",
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        self.sessions.append(process.pid)
        return process

    def run(self, *command: str, **environment: str) -> tuple[int, str]:
        """Exit code and what was said on stderr."""
        process = self.start(*command, **environment)
        _, said = process.communicate(timeout=200)
        return process.returncode, said

    def log(self) -> list[str]:
        return self.calls.read_text().splitlines()

    def position(self, start: str, containing: str = "") -> int:
        """Of the one call that begins so."""
        found = [index for index, line in enumerate(self.log()) if line.startswith(start) and containing in line]
        assert len(found) == 1, (start, containing, self.log())
        return found[0]


@pytest.fixture
def allocation(tmp_path: Path) -> Iterator[Allocation]:
    made = Allocation(tmp_path)
    yield made
    for group in made.sessions:  # what a failed test left running
        with contextlib.suppress(ProcessLookupError):
            os.killpg(group, signal.SIGKILL)


def test_the_script_is_bash() -> None:
    done = subprocess.run(["bash", "-n", str(SCRIPT)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("script", ["slurm/pipeline.sbatch", "docker/on-shared-checkout"])
def test_shellcheck_finds_nothing(script: str) -> None:
    if not shutil.which("shellcheck"):
        pytest.skip("shellcheck is not installed (apt-get install shellcheck)")
    done = subprocess.run(["shellcheck", "--shell=bash", str(INFRA / script)], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout


def test_slurm_reads_the_options_before_the_first_command() -> None:
    lines = SCRIPT.read_text(encoding="utf-8").splitlines()
    options = [index for index, line in enumerate(lines) if line.startswith("#SBATCH ")]
    commands = [index for index, line in enumerate(lines) if line and not line.startswith("#")]
    assert len(options) >= 7
    assert max(options) < min(commands)


def test_head_then_workers_then_all_nodes_then_the_command_then_the_end(allocation: Allocation) -> None:
    code, said = allocation.run()
    assert code == 0, said
    order = [
        allocation.position("scontrol show hostnames n[1-3]"),
        allocation.position("srun", "--nodelist=n1 "),
        allocation.position("ray start", "--head"),
        allocation.position("python infra/slurm/wait_for_nodes.py 1 "),
        allocation.position("srun", "--nodelist=n2,n3 "),
        allocation.position("python infra/slurm/wait_for_nodes.py 3 "),
        allocation.position("dvc repro"),
        allocation.position("ray ended", "--dashboard-host"),
    ]
    assert order == sorted(order)
    assert allocation.position("ray start", "--address=192.0.2.2:20007") > order[2]


def test_every_node_gets_the_cpus_and_gpus_of_the_allocation(allocation: Allocation) -> None:
    allocation.run()
    steps = [line for line in allocation.log() if line.startswith("srun")]
    assert [("--nodes=1 " in step, "--nodes=2 " in step) for step in steps] == [(True, False), (False, True)]
    assert all("--ntasks-per-node=1 " in step and "--cpus-per-task=16 " in step for step in steps)
    starts = [line for line in allocation.log() if line.startswith("ray start")]
    assert len(starts) == 2
    assert all("--num-cpus=16 --num-gpus=4 " in start for start in starts)
    assert all(options_in(start) <= ray_start_options() for start in starts)


def test_one_training_worker_a_gpu_unless_told_otherwise(allocation: Allocation) -> None:
    allocation.run()
    assert "dvc repro at=192.0.2.2:20007 workers=12" in allocation.log()
    allocation.run(PIPELINES_COMPUTE__WORKERS="5", RAY_NODE_IP="198.51.100.1", SLURM_JOB_ID="5008")
    assert "dvc repro at=198.51.100.1:25008 workers=5" in allocation.log()
    without = {name: value for name, value in allocation.environment.items() if name != "SLURM_GPUS_ON_NODE"}
    allocation.environment = without
    allocation.run()
    assert "dvc repro at=192.0.2.2:20007 workers=3" in allocation.log(), "one a node"


def test_every_process_has_a_token_that_is_nowhere_to_be_read(allocation: Allocation) -> None:
    code, said = allocation.run("sh", "-c", "printf %s $RAY_AUTH_TOKEN > token")
    assert code == 0, said
    token = (allocation.folder / "token").read_text()
    assert len(token) == 64
    calls = [line for line in allocation.log() if line.startswith("ray ") and "auth=" in line]
    assert len(calls) >= 3
    assert all(line.endswith("auth=token token=64") for line in calls)
    assert token not in said + allocation.calls.read_text()
    allocation.run("sh", "-c", "printf %s $RAY_AUTH_TOKEN > token")
    assert (allocation.folder / "token").read_text() != token, "another for each job"


def test_the_dashboard_is_for_the_head_alone(allocation: Allocation) -> None:
    allocation.run()
    assert "--dashboard-host=127.0.0.1" in allocation.log()[allocation.position("ray start", "--head")]


def test_one_node_needs_no_other(allocation: Allocation) -> None:
    code, _ = allocation.run(NODES="n1")
    assert code == 0
    assert len([line for line in allocation.log() if line.startswith("srun")]) == 1
    allocation.position("python infra/slurm/wait_for_nodes.py 1 ")


def test_the_commands_exit_code_is_the_jobs(allocation: Allocation) -> None:
    assert allocation.run("sh", "-c", "exit 3")[0] == 3
    assert not any(line.startswith("dvc") for line in allocation.log())


def test_only_what_was_started_is_ended(allocation: Allocation) -> None:
    allocation.run()
    assert sum(line.startswith("ray ended") for line in allocation.log()) == 2
    assert not any(line.startswith("ray stop") for line in allocation.log())


@pytest.mark.parametrize(
    ("trouble", "message"),
    [
        ({"BROKEN_RAY": "1"}, "Ray's head did not start on n1"),
        ({"MUTE_RAY": "1", "RAY_START_SECONDS": "1"}, "Ray's head on n1 does not answer after 1 s"),
        ({"MISSING_NODES": "1"}, ""),
    ],
)
def test_a_cluster_that_does_not_come_up_is_tried_again(
    allocation: Allocation, trouble: dict[str, str], message: str
) -> None:
    code, said = allocation.run(**trouble)
    assert code == 75
    assert message in said
    assert not any(line.startswith("dvc") for line in allocation.log()), "no work without the cluster"
    starts, ends = (sum(line.startswith(f"ray {word}") for line in allocation.log()) for word in ("start", "ended"))
    assert ends == (0 if "BROKEN_RAY" in trouble else starts)


STAGE = """
import pathlib, time
here = pathlib.Path("stage")
try:
    here.write_text("runs")
    time.sleep(60)
except KeyboardInterrupt:
    here.write_text("interrupted in order")
    raise SystemExit(130)
"""


def interrupted(allocation: Allocation, number: signal.Signals, **environment: str) -> tuple[int, str]:
    """Exit code, and what was said, of a job that got this signal while its command ran."""
    stage = allocation.folder / "stage"
    process = allocation.start(sys.executable, "-c", STAGE, **environment)
    wait_until(lambda: stage.exists() and stage.read_text() == "runs")
    process.send_signal(number)
    _, said = process.communicate(timeout=200)
    assert stage.read_text() == "interrupted in order"
    assert sum(line.startswith("ray ended") for line in allocation.log()) == 2
    return process.returncode, said


def requeues(allocation: Allocation) -> int:
    return allocation.log().count("scontrol requeue 7")


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT], ids=lambda number: number.name)
def test_a_job_that_is_cancelled_interrupts_its_command_as_ctrl_c_does(
    allocation: Allocation, number: signal.Signals
) -> None:
    assert interrupted(allocation, number)[0] == 130
    assert requeues(allocation) == 0, "nobody wants it again"


def test_the_notice_of_the_time_limit_puts_the_job_back_into_the_queue(allocation: Allocation) -> None:
    code, said = interrupted(allocation, signal.SIGUSR1)
    assert code == 130
    assert "the time limit is near" in said
    assert requeues(allocation) == 1
    assert "#SBATCH --signal=B:USR1@300\n" in SCRIPT.read_text(encoding="utf-8"), "which Slurm sends"


@pytest.mark.parametrize(
    ("environment", "tries"),
    [({"SLURM_RESTART_COUNT": "3", "MAX_RESTARTS": "3"}, 0), ({"NO_REQUEUE": "1"}, 1)],
    ids=["often enough", "refused by Slurm"],
)
def test_a_job_that_is_not_requeued_says_what_to_do(
    allocation: Allocation, environment: dict[str, str], tries: int
) -> None:
    code, said = interrupted(allocation, signal.SIGUSR1, **environment)
    assert code == 130
    assert "submit it again to go on" in said
    assert requeues(allocation) == tries


def test_without_an_allocation_it_says_how_to_be_run(allocation: Allocation) -> None:
    del allocation.environment["SLURM_JOB_NODELIST"]
    code, said = allocation.run()
    assert code != 0
    assert "submit this with sbatch" in said
    assert not allocation.calls.exists()


RAY = """
import os
JOINS, REFUSALS = int(os.environ["JOINS"]), int(os.environ["REFUSALS"])
asked = tried = 0
def is_initialized(): return tried > REFUSALS
def init(**options):
    global tried
    tried += 1
    if tried <= REFUSALS: raise ConnectionError("No node info found")
def shutdown(): print("left")
def nodes():
    global asked
    asked += 1
    return [{"Alive": True}] * min(asked, JOINS) + [{"Alive": False}]
"""


@pytest.mark.parametrize(("joins", "refusals", "code"), [(2, 0, 0), (2, 1, 0), (1, 0, 75), (0, 99, 75)])
def test_waiting_counts_the_living_and_gives_up_in_time(tmp_path: Path, joins: int, refusals: int, code: int) -> None:
    (tmp_path / "ray.py").write_text(RAY)
    environment = {**os.environ, "PYTHONPATH": str(tmp_path), "JOINS": str(joins), "REFUSALS": str(refusals)}
    command = [sys.executable, str(INFRA / "slurm" / "wait_for_nodes.py"), "2", "2"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=200)
    assert done.returncode == code
    assert (f"error: {joins} of 2 nodes are in the Ray cluster" in done.stderr) == (code == 75)
    assert "Traceback" not in done.stderr
    assert done.stdout == ("" if refusals > 1 else "left\n")
