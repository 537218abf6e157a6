"""Real Ray Train workers: the same numbers as processes without Ray, and a lost worker costs nothing but time."""

import json
import tempfile
from pathlib import Path

import psutil
import pytest
from linear_training import STEPS, TOO_MUCH, on_rank
from processes import clean_environment
from safetensors.torch import load_file
from two_processes import in_two_processes
from workspaces import output_of_new

from pipelines.scratch.folder import Scratch
from pipelines.scratch.metric_log import MetricLog

pytestmark = [pytest.mark.ray, pytest.mark.slow]


@pytest.fixture(scope="module")
def dead_ray():
    """Ray's folder on this machine, with the address of a cluster that is no more. Sockets lie there: its path must be short."""
    with tempfile.TemporaryDirectory(prefix="ray-", dir="/tmp") as folder:
        (Path(folder) / "ray").mkdir()
        (Path(folder) / "ray" / "ray_current_cluster").write_text("127.0.0.1:1")
        yield Path(folder)


def under_ray(dead_ray: Path, folder: Path, end: str, **environment: str) -> tuple[dict[int, float], dict]:
    """Train with two workers in a new folder, in a process of its own: a Ray that hangs is ended with all it has started."""
    folder.mkdir()
    elsewhere = {"RAY_ADDRESS": "http://127.0.0.1:1", "RAY_TMPDIR": str(dead_ray)}  # neither may be joined
    environment = clean_environment(**environment, **elsewhere)
    ended, printed = output_of_new("import linear_training as t; t.main()", str(folder), end, **environment)
    assert ended == 0, printed[-3000:]
    assert json.loads((folder / "returned.json").read_text()) == {"rank": 0}
    return result(folder)


def result(folder: Path) -> tuple[dict[int, float], dict]:
    """Losses by step, and the weights."""
    lines = MetricLog(folder / "scratch" / "metrics.jsonl").read()
    assert [line["step"] for line in lines] == list(range(1, STEPS + 1))  # each reported once
    return {line["step"]: line["metrics"]["train/loss"] for line in lines}, load_file(folder / "weights.safetensors")


def guarded_memory() -> dict[str, str]:
    """Ray ends workers when all processes together hold half of TOO_MUCH more than they hold now."""
    memory = psutil.virtual_memory()
    share = (memory.total - memory.available + TOO_MUCH / 2) / memory.total
    return {"RAY_memory_usage_threshold": f"{share:.3f}", "RAY_memory_monitor_refresh_ms": "100"}


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory, warm_address):
    """Two processes without Ray, whose losses are those of one."""
    root = tmp_path_factory.mktemp("linear")
    for name in ("alone", "two"):
        Scratch(root / name / "scratch").begin()
    on_rank(0, 1, str(root / "alone"))
    in_two_processes(on_rank, warm_address, str(root / "two"))
    losses, weights = result(root / "two")
    assert losses == pytest.approx(result(root / "alone")[0], rel=1e-5)
    return losses, weights


@pytest.mark.faults
@pytest.mark.parametrize("end", ["is killed", "loses its storage", "takes all memory"])
def test_a_worker_that_dies_once_is_replaced_and_the_weights_are_the_same(undisturbed, dead_ray, tmp_path, end):
    losses, weights = undisturbed
    guarded = guarded_memory() if end == "takes all memory" else {}
    found, found_weights = under_ray(dead_ray, tmp_path / "dies", end, **guarded)
    assert (tmp_path / "dies" / "died").exists()
    for rank in (0, 1):  # both resumed from the checkpoint before the death
        assert (tmp_path / "dies" / f"starts-{rank}").read_text() == "2 0\n2 4\n"
    assert found == losses
    assert found_weights["weight"].equal(weights["weight"])


@pytest.mark.heavy
def test_two_workers_that_live_have_the_weights_of_two_processes(undisturbed, dead_ray, tmp_path):
    losses, weights = undisturbed
    found, found_weights = under_ray(dead_ray, tmp_path / "lives", "lives")
    assert (tmp_path / "lives" / "starts-1").read_text() == "2 0\n"
    assert found == losses
    assert found_weights["weight"].equal(weights["weight"])
