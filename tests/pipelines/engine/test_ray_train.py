"""Real Ray Train workers: the same numbers as one process, and a lost worker costs nothing but time."""

import json
import subprocess
import sys
from pathlib import Path

import psutil
import pytest
from processes import clean_environment, output_of
from safetensors.torch import load_file

from pipelines.identity.closure import ROOT
from pipelines.scratch.metric_log import MetricLog

pytestmark = [pytest.mark.ray, pytest.mark.slow]

STEPS, DIES_AT = 8, 5
TOO_MUCH = 8 << 30
"""Bytes."""

# In a process of its own, so that a Ray that hangs can be ended from outside with all it has started.
# Arguments: how workers end, and for each training a folder and the number of workers.
TRAIN = f"""
import json, os, signal, sys, time
from pathlib import Path

from pipelines.engine.execution import under_ray_train
from pipelines.schema.running import Compute
from pipelines.scratch.folder import Scratch


def work_in(folder, end):
    def work(rank, world_size, on_save):
        import torch
        from safetensors.torch import save_file
        from components.training.config import LoopConfig
        from components.training.loop import fit
        from components.training.randomness import generator
        from components.training.task import TrainingTask
        from pipelines.engine.context import StageContext

        class Linear(TrainingTask):
            def __init__(self):
                super().__init__()
                self.weight = torch.nn.Parameter(torch.zeros(4, 1))

            def forward(self, batch, step):
                inputs, targets = batch
                return {{"loss": (inputs @ self.weight - targets).square().mean()}}

        def batches(step):
            if end != "lives" and rank == 1 and step == {DIES_AT} and not (folder / "died").exists():
                (folder / "died").touch()
                if end == "raises":
                    raise RuntimeError("a library's bug, say")
                if end == "takes all memory":
                    held = bytearray(b"x") * {TOO_MUCH}
                    time.sleep(60)
                    raise SystemExit(f"nobody minded {{len(held)}} bytes")
                os.kill(os.getpid(), signal.SIGKILL)
            inputs = torch.randn(8, 4, generator=generator(0, "batch", step)).chunk(world_size)[rank]
            return inputs, inputs.sum(1, keepdim=True)

        torch.set_num_threads(1)
        context = StageContext(Scratch(folder / "scratch"), seed=0, arm=None, device=torch.device("cpu"), rank=rank,
                               world_size=world_size, on_save=on_save)
        task = Linear()
        with open(folder / f"starts-{{rank}}", "a") as file:
            file.write(f"{{world_size}} {{(context.load() or (0,))[0]}}\\n")
        config = LoopConfig(steps={STEPS}, learning_rate=0.1, report_every=1, checkpoint_every=2)
        fit(task, batches, config, context)
        if rank == 0:
            save_file(task.state_dict(), folder / "weights.safetensors")
        return {{"rank": rank}}

    return work


end, *trainings = sys.argv[1:]
for folder, workers in zip(map(Path, trainings[::2]), map(int, trainings[1::2])):
    Scratch(folder / "scratch").begin()
    compute = Compute(workers=workers, threads=1, device="cpu", max_failures=1)
    found = under_ray_train(work_in(folder, end), compute, folder)
    (folder / "returned.json").write_text(json.dumps(found))
"""


def train(workers: dict[Path, int], end: str = "lives") -> list[tuple[dict[int, float], dict]]:
    """Losses by step, and the weights, of a training in each of these new folders."""
    for folder in workers:
        folder.mkdir()
    script = folder.parent / "train.py"
    script.write_text(TRAIN)
    arguments = [str(word) for training in workers.items() for word in training]
    process = subprocess.Popen(
        [sys.executable, str(script), end, *arguments],
        cwd=ROOT,
        env=clean_environment(**(guarded_memory() if end == "takes all memory" else {}), PYTHONPATH=str(ROOT)),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    out, _ = output_of(process)
    assert process.returncode == 0, out[-3000:]
    return [result(folder) for folder in workers]


def result(folder: Path) -> tuple[dict[int, float], dict]:
    assert json.loads((folder / "returned.json").read_text()) == {"rank": 0}
    lines = MetricLog(folder / "scratch" / "metrics.jsonl").read()
    assert [line["step"] for line in lines] == list(range(1, STEPS + 1))  # each reported once
    return {line["step"]: line["metrics"]["train/loss"] for line in lines}, load_file(folder / "weights.safetensors")


def guarded_memory() -> dict[str, str]:
    """Ray ends workers when all processes together hold half of TOO_MUCH more than they hold now."""
    memory = psutil.virtual_memory()
    share = (memory.total - memory.available + TOO_MUCH / 2) / memory.total
    return {"RAY_memory_usage_threshold": f"{share:.3f}", "RAY_memory_monitor_refresh_ms": "100"}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("ray")


@pytest.fixture(scope="module")
def trained(folder):
    """Undisturbed, by one process and by two workers."""
    return train({folder / "alone": 0, folder / "two": 2})


def test_two_workers_have_the_losses_of_one_process(trained, folder):
    (alone, _), (losses, _) = trained
    assert (folder / "alone" / "starts-0").read_text() == "1 0\n"
    assert losses == pytest.approx(alone, rel=1e-5)


@pytest.mark.parametrize(
    "end", ["is killed", *(pytest.param(end, marks=pytest.mark.faults) for end in ("raises", "takes all memory"))]
)
def test_a_worker_that_dies_once_is_replaced_and_the_weights_are_the_same(trained, tmp_path, end):
    losses, weights = trained[1]
    ((found, found_weights),) = train({tmp_path / "dies": 2}, end)
    assert (tmp_path / "dies" / "died").exists()
    for rank in (0, 1):  # both went on from the checkpoint before the death
        assert (tmp_path / "dies" / f"starts-{rank}").read_text() == "2 0\n2 4\n"
    assert found == losses
    assert found_weights["weight"].equal(weights["weight"])
