"""A model of the step time on many GPUs, and a check of it on two cores.

    python benchmarks/scaling.py             # the tables of docs/scaling.md
    python benchmarks/scaling.py --measure   # one and two workers on this machine, predicted and measured (needs two idle cores)

The step is taken apart into what a GPU computes, what it exchanges, what it reads, and the checkpoint's share. Exchange hides
behind computation where PyTorch can hide it; reading hides behind everything. What is assumed stands in `H100`, `flux` and `gadms`.
"""

import argparse
import os
import time
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from typing import Any

from rich.table import Table

from pipelines.terminal.console import TableConsole


@dataclass(frozen=True)
class Cluster:
    """A node and its links. Rates are those that programs reach, not those of the data sheet."""

    peak: float  # FLOP/s of one GPU, dense bf16
    within: float  # bytes/s of one GPU to its node
    between: float  # bytes/s of one GPU to other nodes
    latency: float  # seconds of one hop of a collective
    cores: int  # per GPU, for decoding
    disk: float  # bytes/s of one writer to shared storage, flushed
    gpus: int = 8  # in a node


# 989 TFLOP/s, NVLink 450 GB/s each way, InfiniBand NDR 400 Gbit/s a GPU (NVIDIA's data sheets of H100 SXM and DGX H100); of the
# links, collectives reach 80 % (assumed). 12 cores a GPU and 1 GB/s to storage are assumed.
H100 = Cluster(peak=989e12, within=360e9, between=40e9, latency=10e-6, cores=12, disk=1e9)


@dataclass(frozen=True)
class Workload:
    """One training step."""

    name: str
    flops: float  # of one sample, forward, backward and recomputation
    utilisation: float  # of the peak, with enough samples on a GPU
    floor: float  # minimal seconds of a step: kernels are launched one by one
    gradients: float  # bytes that are summed over the GPUs
    gathered: float  # bytes of frozen weights that fsdp gathers in a step, forward and backward
    decoding: float  # core seconds of one sample
    checkpoint: float  # bytes
    every: int  # steps between checkpoints


def flux(image_tokens: int = 4096, text_tokens: int = 512, rank: int = 64) -> Workload:
    """LoRA on FLUX.1-dev: 19 double and 38 single blocks of width 3072; each token meets 12 d^2 weights in each of them.

    Forward, recomputation under gradient checkpointing, and the backward pass to activations: 3 x forward; the frozen weights need
    no gradients. LoRA is on the linears of attention: 16 r d weights in a double block, 6 r d in a single one.
    """
    width, blocks, tokens = 3072, 57, image_tokens + text_tokens
    forward = tokens * blocks * (2 * 12 * width**2 + 4 * tokens * width)
    lora = rank * width * (19 * 16 + 38 * 6)
    return Workload(
        "FLUX.1-dev, LoRA of rank 64, 1024 x 1024, cached latents",
        flops=3 * forward,
        utilisation=0.40,
        floor=0.2,
        gradients=4 * lora,
        gathered=2 * 23.8e9,
        decoding=0.5e-3,
        checkpoint=16 * lora,
        every=100,
    )


def gadms() -> Workload:
    """GA-DMS on ViT-B/16 at 384 x 128 (193 tokens, width 768) and CLIP's text tower (77 tokens, width 512), 12 blocks each.

    Image once, text twice (the two masked copies), each forward and backward (3 x); the score before them: one forward of the text
    and its gradient with respect to activations (2 x). The prediction head is left out: its tokens are few.
    """
    image = 12 * 193 * (2 * 12 * 768**2 + 4 * 193 * 768)
    text = 12 * 77 * (2 * 12 * 512**2 + 4 * 77 * 512)
    weights = 150e6
    return Workload(
        "GA-DMS, ViT-B/16, batch 1024",
        flops=3 * (image + 2 * text) + 2 * text,
        utilisation=0.35,
        floor=0.03,
        gradients=4 * weights,
        gathered=0.0,
        decoding=1.5e-3,
        checkpoint=12 * weights,
        every=1000,
    )


@dataclass(frozen=True)
class Step:
    """Seconds of a step on each GPU, by part; overlapped time is not counted."""

    compute: float
    exchange: float
    data: float
    checkpoint: float

    @property
    def total(self) -> float:
        return self.compute + self.exchange + self.data + self.checkpoint


def all_reduce(size: float, nodes: int, cluster: Cluster) -> float:
    """Seconds to sum `size` bytes over all GPUs: within the node, between nodes (each GPU its share), within the node again."""
    n = cluster.gpus
    inside = 2 * (n - 1) / n * size / cluster.within
    outside = 2 * (nodes - 1) / nodes * size / n / cluster.between
    return inside + outside + cluster.latency * 2 * (n - 1 + nodes - 1)


def step(work: Workload, batch: int, nodes: int, cluster: Cluster, *, fsdp: bool = False) -> Step:
    """The time of a step with a global batch on `nodes` full nodes (0: one GPU)."""
    gpus = nodes * cluster.gpus or 1
    samples = batch / gpus
    compute = max(work.floor, samples * work.flops / (cluster.peak * work.utilisation))
    exchange = 0.0
    if nodes:
        summed = all_reduce(work.gradients, nodes, cluster)
        bucket = summed * min(1.0, 25 * 2**20 / work.gradients)  # nothing overlaps with DDP's last bucket
        exchange = max(summed - compute * 2 / 3, bucket)
        if (
            fsdp
        ):  # over all GPUs, as components/training/distribution.py does: with several nodes the slow link is the limit
            gather = work.gathered * (gpus - 1) / gpus / (cluster.within if nodes == 1 else cluster.between)
            exchange += max(gather - compute, gather / 57)  # the weights of the first block overlap with nothing
    reading = samples * work.decoding / cluster.cores
    saving = (work.checkpoint / cluster.disk + work.checkpoint / 1.5e9) / work.every  # written, then digested (SHA-256)
    return Step(compute, exchange, max(0.0, reading - compute - exchange), saving)


def tables(console: TableConsole) -> None:
    """The tables of docs/scaling.md."""
    cases: list[tuple[Workload, Any, list[int], bool]] = [
        (flux(), lambda gpus: 4 * gpus, [0, 1, 64], False),
        (flux(), lambda gpus: 4 * gpus, [1, 64], True),
        (gadms(), lambda gpus: 1024, [0, 1, 2, 4, 8, 64], False),
    ]
    for work, batch_of, sizes, fsdp in cases:
        table = Table(title=f"{work.name}{', fsdp' if fsdp else ', ddp'}; milliseconds", title_justify="left")
        for heading in ("GPUs", "batch", "compute", "exchange", "data", "checkpoint", "step", "samples/s", "of linear"):
            table.add_column(heading, justify="right")
        alone = batch_of(1) / step(work, batch_of(1), 0, H100).total
        for nodes in sizes:
            gpus = nodes * H100.gpus or 1
            found = step(work, batch_of(gpus), nodes, H100, fsdp=fsdp)
            rate = batch_of(gpus) / found.total
            parts = (found.compute, found.exchange, found.data, found.checkpoint, found.total)
            numbers = [f"{1000 * part:.1f}" for part in parts]
            table.add_row(str(gpus), str(batch_of(gpus)), *numbers, f"{rate:.0f}", f"{100 * rate / alone / gpus:.0f} %")
        console.print(table)


def _task(width: int) -> Any:
    import torch

    from components.training.task import TrainingTask

    class Blocks(TrainingTask):
        def __init__(self) -> None:
            super().__init__()
            torch.manual_seed(0)
            block = torch.nn.TransformerEncoderLayer(width, 4, 4 * width, dropout=0.0, batch_first=True)
            self.layers = torch.nn.TransformerEncoder(block, 4, enable_nested_tensor=False)

        def forward(self, batch: Any, step: int) -> dict[str, Any]:
            return {"loss": self.layers(batch).square().mean()}

    return Blocks()


def _work(rank: int, world: int, port: int, samples: int, steps: int, found: Any) -> None:
    """One process: time steps of the training loop and, with two processes, all-reduces of the size of the gradients."""
    import torch
    import torch.distributed as dist

    from components.training.config import LoopConfig
    from components.training.context import LocalContext
    from components.training.loop import fit

    torch.set_num_threads(1)
    if world > 1:
        os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
        dist.init_process_group("gloo", rank=rank, world_size=world)
    task = _task(192)
    context = LocalContext()
    context.rank, context.world_size = rank, world
    times: list[float] = []

    def batches(number: int) -> Any:
        times.append(time.perf_counter())
        return torch.randn(samples, 64, 192, generator=torch.Generator().manual_seed(number))

    fit(task, batches, LoopConfig(steps=steps, learning_rate=1e-4, report_every=steps, checkpoint_every=steps), context)
    lengths = sorted(after - before for before, after in pairwise(times[2:]))
    summing, size = 0.0, sum(p.numel() for p in task.parameters())
    if world > 1:
        gradients = torch.zeros(size)
        dist.all_reduce(gradients)
        start = time.perf_counter()
        for _ in range(10):
            dist.all_reduce(gradients)
        summing = (time.perf_counter() - start) / 10
        dist.destroy_process_group()
    if rank == 0:
        found.put((lengths[len(lengths) // 2], lengths[0], summing))


def measure(console: TableConsole, samples: int = 32, steps: int = 20) -> None:
    """Time one worker on the batch, one on half of it, and two on half each. Prediction: half the batch, plus unhidden sums."""
    import socket

    import torch.multiprocessing as mp

    def run(world: int, each: int) -> tuple[float, float, float]:
        with socket.socket() as taken:
            taken.bind(("127.0.0.1", 0))
            port = taken.getsockname()[1]
        context = mp.get_context("spawn")
        found = context.SimpleQueue()
        processes = [
            context.Process(target=partial(_work, rank, world, port, each, steps, found)) for rank in range(world)
        ]
        for process in processes:
            process.start()
        result: tuple[float, float, float] = found.get()
        for process in processes:
            process.join()
        return result

    whole, half, two = run(1, samples), run(1, samples // 2), run(2, samples // 2)
    predicted = half[1] + max(two[2] - half[1] * 2 / 3, two[2] / 4)  # four blocks, of which the last bucket is one
    table = Table(
        title=f"4 blocks of width 192, 64 tokens, batch {samples}, one thread per worker", title_justify="left"
    )
    for heading in ("", "median ms", "min ms"):
        table.add_column(heading, justify="right" if heading else "left")
    table.add_row("1 worker, whole batch", f"{1000 * whole[0]:.1f}", f"{1000 * whole[1]:.1f}")
    table.add_row("1 worker, half of it", f"{1000 * half[0]:.1f}", f"{1000 * half[1]:.1f}")
    table.add_row("sum of the gradients, 2 workers", f"{1000 * two[2]:.1f}", "")
    table.add_row("2 workers, predicted", "", f"{1000 * predicted:.1f}")
    table.add_row("2 workers, measured", f"{1000 * two[0]:.1f}", f"{1000 * two[1]:.1f}")
    console.print(table)
    load = os.getloadavg()[0]
    console.print(
        f"measured / predicted: {two[1] / predicted:.2f}; load of this machine: {load:.1f} on {os.cpu_count()} cores"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--measure", action="store_true", help="check the model with two processes on this machine")
    options = parser.parse_args()
    console = TableConsole()
    if options.measure:
        measure(console)
    else:
        tables(console)


if __name__ == "__main__":
    main()
