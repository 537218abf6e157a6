"""The training loop, shared by all methods.

A method brings a `TrainingTask`: a module that holds the model, the loss and the form of a batch. Everything else (optimizer,
schedule, averaging, checkpoints, several processes, non-finite losses) is here. A killed and resumed run takes the same steps on
the same data, with any number of processes (distribution.py) and in any number of parts (accumulation.py).
"""

import errno
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from tqdm import tqdm

from components.errors import ParameterError
from components.training.accumulation import as_part, require_splittable, virtual_ranks
from components.training.averaging import WeightAverage
from components.training.config import LoopConfig
from components.training.context import Context
from components.training.distribution import gathered, gradient_sync, replicate, shard, sharded_like
from components.training.muon import MuonAdamW, matrices_of
from components.training.randomness import stream_seed
from components.training.schedules import Decay, learning_rate_factor, rates_at
from components.training.task import TrainingTask

Batch = Any


class NonFiniteLossError(FloatingPointError):
    """The loss or its gradient became NaN or infinite. Weights are those before the step, and the last checkpoint is kept."""


class StopRequested(Exception):
    """Training stopped because its context requested it (`stop_requested`); a checkpoint holds everything up to here."""


def fit(
    task: TrainingTask,
    batches: Callable[[int], Batch] | Sequence[Callable[[int], Batch]],
    config: LoopConfig,
    context: Context,
    *,
    prefix: str = "train",
    decay: Decay = "cosine",
    on_report: Callable[[int], Mapping[str, float]] | None = None,
    blocks: Sequence[nn.Module] = (),
) -> None:
    """Train `task` in place for `config.steps` steps, resuming from the context's newest checkpoint.

    `batches(step)` returns this rank's part of the global batch of a 0-based step; with `accumulate`, `batches` is a sequence of
    such functions, one per virtual rank. Scalars are averaged over the steps and ranks since the last report and named
    `<prefix>/<key>`; `on_report(step)` may add metrics (those of rank 0 are kept). At the end `task` is in eval mode, and with
    `ema_decay` holds the averaged weights. `blocks` are the modules that the strategy fsdp gathers one at a time; `task` is still
    sharded afterwards.

    Raises NonFiniteLossError on every rank, before the optimizer step, when any rank's loss or gradient is not finite,
    StopRequested on every rank, with a checkpoint written, after the step in which the context of any rank requested it, and
    OSError on every rank, before any step, where they read different checkpoints.
    """
    parts = [batches] if callable(batches) else list(batches)
    require_splittable(task, len(parts), config.accumulate)
    sharded = shard(task, blocks, context)
    if sharded and config.optimizer == "muon":
        raise ParameterError("optimizer = muon: needs whole matrices: set compute.strategy to ddp")
    task.to(context.device)
    optimizer = _optimizer(task, config)
    average = WeightAverage(_trainable(task).values(), config.ema_decay) if config.ema_decay else None
    meter = _Meter(context)
    start = _resume(task, optimizer, average, meter, context)
    model = task if sharded else replicate(task, context)
    with _training_mode(task):
        for step in _progress(start, config.steps, prefix, context):
            _set_rates(optimizer, config, decay, step)
            optimizer.zero_grad(set_to_none=True)
            scalars = _accumulate(model, task, parts, step, config, context, prefix)
            norm = gathered(nn.utils.clip_grad_norm_(_trainable(task).values(), config.clip_norm or math.inf))
            stopping = _agree(scalars["loss"], norm, step, context)
            optimizer.step()
            if average:
                average.update(step)
            meter.add({**scalars, "gradient_norm": norm})
            done = step + 1
            if done % config.report_every == 0 or done == config.steps:
                metrics = {f"{prefix}/{key}": value for key, value in meter.drain().items()}
                extra = on_report(done) if on_report else {}
                context.report({**metrics, f"{prefix}/learning_rate": optimizer.param_groups[0]["lr"], **extra}, done)
            if done % config.checkpoint_every == 0 or done == config.steps or stopping:
                context.save(_state(task, optimizer, average, meter), done)
            if stopping and done < config.steps:
                raise StopRequested(f"{prefix}: stopped after step {done} as requested; run again to resume")
    if average:
        average.copy_to_parameters()


def _accumulate(
    model: nn.Module,
    task: TrainingTask,
    parts: Sequence[Callable[[int], Batch]],
    step: int,
    config: LoopConfig,
    context: Context,
    prefix: str,
) -> dict[str, Tensor]:
    """Sum the gradients of this rank's micro-batches, exchanged once, with the last; return the means of their scalars."""
    seen: list[Mapping[str, Tensor]] = []
    for part, batch in zip(virtual_ranks(context, config.accumulate), parts, strict=True):
        last = len(seen) == len(parts) - 1
        with as_part(task, part, config.accumulate), gradient_sync(model, last):
            with _autocast(context.device, config.precision), _seeded(context, prefix, step, part["rank"]):
                scalars = model(batch(step), step)
            (scalars["loss"] / len(parts)).backward()
        seen.append({key: value.detach().double() for key, value in scalars.items()})
    return {key: torch.stack([scalars[key] for scalars in seen]).mean(dim=0) for key in seen[0]}


def _trainable(task: nn.Module) -> dict[str, nn.Parameter]:
    return {name: parameter for name, parameter in task.named_parameters() if parameter.requires_grad}


def _optimizer(task: TrainingTask, config: LoopConfig) -> torch.optim.Optimizer:
    """Return the optimizer over the task's parameter groups, or else with weight decay on matrices only."""
    groups = task.parameter_groups(config.learning_rate)
    if groups is None:
        parameters = list(_trainable(task).values())
        groups = [
            {"params": [p for p in parameters if p.ndim >= 2], "weight_decay": config.weight_decay},
            {"params": [p for p in parameters if p.ndim < 2], "weight_decay": 0.0},
        ]
    groups = [group for group in groups if group["params"]]
    settings: dict[str, Any] = {
        "lr": config.learning_rate,
        "betas": (config.beta1, config.beta2),
        "eps": config.epsilon,
        "weight_decay": config.weight_decay,
    }
    optimizer: torch.optim.Optimizer
    if config.optimizer == "muon":
        optimizer = MuonAdamW(groups, matrices_of(task), **settings)
    else:
        kind = torch.optim.Adam if config.optimizer == "adam" else torch.optim.AdamW
        optimizer = kind(groups, **settings, foreach=True)
    for group in optimizer.param_groups:
        group["base_lr"], group["base_decay"] = group["lr"], group["weight_decay"]
    return optimizer


def _set_rates(optimizer: torch.optim.Optimizer, config: LoopConfig, decay: Decay, step: int) -> None:
    """Set the learning rate and weight decay of each group for this step, in proportion to its own base rates."""
    factor = learning_rate_factor(step, config.steps, config.warmup_steps, decay, config.warmup_start)
    rate, weight_decay = rates_at(step, config.learning_rate, config.weight_decay, config.changes)
    decay_factor = weight_decay / config.weight_decay if config.weight_decay else 1.0
    for group in optimizer.param_groups:
        group["lr"] = group["base_lr"] * factor * (rate / config.learning_rate)
        group["weight_decay"] = group["base_decay"] * decay_factor


def _state(
    task: nn.Module, optimizer: torch.optim.Optimizer, average: WeightAverage | None, meter: "_Meter"
) -> dict[str, Any]:
    weights = {name: p.detach() for name, p in _trainable(task).items()}
    parameters = {name for name, _ in task.named_parameters(remove_duplicate=False)}
    buffers = {name: t for name, t in task.state_dict().items() if name not in parameters}
    return {
        "weights": gathered(weights),
        "buffers": buffers,
        "optimizer": gathered(optimizer.state_dict()),
        "average": gathered(average.state_dict()) if average else None,
        "meter": meter.state_dict(),
    }


@torch.no_grad()
def _resume(
    task: nn.Module, optimizer: torch.optim.Optimizer, average: WeightAverage | None, meter: "_Meter", context: Context
) -> int:
    loaded = context.load()
    _require_same_start(loaded[0] if loaded else 0, context)
    if loaded is None:
        return 0
    step, state = loaded
    trainable = _trainable(task)
    weights = {name: sharded_like(value, trainable[name]) for name, value in state["weights"].items()}
    task.load_state_dict({**weights, **state["buffers"]}, strict=False)
    updated = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    moments = {
        index: {name: sharded_like(value, updated[index]) for name, value in entry.items()}
        for index, entry in state["optimizer"]["state"].items()
    }
    optimizer.load_state_dict({**state["optimizer"], "state": moments})
    if average:
        pairs = zip(state["average"]["shadow"], average.shadow, strict=True)
        average.load_state_dict({"shadow": [sharded_like(value, shadow) for value, shadow in pairs]})
    meter.load_state_dict(state["meter"])
    return step


def _require_same_start(step: int, context: Context) -> None:
    """Raise OSError on all ranks where one has read another checkpoint, as its storage is late or its copy unreadable.

    Each would go on with other steps, and the first to end would leave wrong weights behind.
    """
    if context.world_size == 1:
        return
    own = torch.tensor([step], device=context.device)
    ranks = [torch.empty_like(own) for _ in range(context.world_size)]
    dist.all_gather(ranks, own)
    steps = [int(each) for each in ranks]
    if len(set(steps)) > 1:
        found = ", ".join(f"rank {rank} that of step {each}" for rank, each in enumerate(steps))
        raise OSError(
            errno.ESTALE,
            f"the processes read different checkpoints as the newest ({found}): run again; if it stays so, delete the "
            "checkpoints that some process cannot read",
        )


def _autocast(device: torch.device, precision: str) -> Any:
    return torch.autocast(device.type, dtype=torch.bfloat16) if precision == "bf16" else nullcontext()


@contextmanager
def _training_mode(task: nn.Module) -> Iterator[None]:
    """Train mode inside the block, eval mode afterwards, also after an error: whoever catches it may evaluate the task."""
    task.train()
    try:
        yield
    finally:
        task.eval()


@contextmanager
def _seeded(context: Context, prefix: str, step: int, rank: int) -> Iterator[None]:
    """Seed PyTorch's global generator, which dropout uses, with a stream named by step and rank."""
    with torch.random.fork_rng([context.device] if context.device.type == "cuda" else []):
        torch.manual_seed(stream_seed(context.seed, prefix, "global", step, rank))
        yield


def _agree(loss: Tensor, gradient_norm: Tensor, step: int, context: Context) -> bool:
    """Return whether all ranks stop after this step because one was requested to.

    Raises NonFiniteLossError on all when the loss or the gradient of one is not finite: one rank alone would leave the others
    waiting in the next all-reduce. A finite loss may have a gradient that is not (sqrt at 0, an overflow in half precision).
    """
    values = torch.stack([loss, gradient_norm.to(loss)])
    flags = torch.cat([(~values.isfinite()).float(), values.new_tensor([context.stop_requested()], dtype=torch.float)])
    if context.world_size > 1:
        dist.all_reduce(flags, op=dist.ReduceOp.MAX)
    bad_loss, bad_gradient, stopping = flags.tolist()
    if bad_loss or bad_gradient:
        what = "loss" if bad_loss else "gradient"
        raise NonFiniteLossError(
            f"the {what} is not finite at step {step + 1}; the last checkpoint is kept: lower the learning rate"
        )
    return bool(stopping)


class _Meter:
    """Accumulates means of scalars over steps and ranks, on the device until they are drained. A scalar may come from elsewhere."""

    def __init__(self, context: Context) -> None:
        self.context = context
        self.sums: dict[str, Tensor] = {}
        self.counts: dict[str, int] = {}

    def add(self, scalars: Mapping[str, Tensor]) -> None:
        for key, value in scalars.items():
            value = value.detach().to(self.context.device, torch.float64)
            self.sums[key] = self.sums[key] + value if key in self.sums else value
            self.counts[key] = self.counts.get(key, 0) + 1

    def state_dict(self) -> dict[str, Any]:
        """Return the sums of every rank, (ranks, keys). All processes must call it together."""
        keys = sorted(self.sums)
        ranks = [torch.stack([self.sums[key] for key in keys])] if keys else []
        if keys and self.context.world_size > 1:
            own = ranks[0]
            ranks = [torch.empty_like(own) for _ in range(self.context.world_size)]
            dist.all_gather(ranks, own)
        return {"counts": {key: self.counts[key] for key in keys}, "sums": torch.stack(ranks) if keys else None}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take this rank's sums; with another number of ranks their mean, which leaves the mean over all as it is."""
        self.counts = dict(state["counts"])
        self.sums = {}
        if self.counts:
            ranks = state["sums"].to(self.context.device)
            own = ranks[self.context.rank] if len(ranks) == self.context.world_size else ranks.mean(dim=0)
            self.sums = dict(zip(self.counts, own.unbind(), strict=True))

    def drain(self) -> dict[str, float]:
        if not self.sums:
            return {}
        keys = sorted(self.sums)
        means = torch.stack([self.sums[key] / self.counts[key] for key in keys])
        if self.context.world_size > 1:
            dist.all_reduce(means)
            means /= self.context.world_size
        self.sums, self.counts = {}, {}
        return dict(zip(keys, means.tolist(), strict=True))


def _progress(start: int, steps: int, prefix: str, context: Context) -> Iterator[int]:
    """Yield the remaining steps, with a progress bar on rank 0 on a terminal."""
    # tqdm, not rich as in pipelines: rich has one live display per process, and a study's or sweep's may be open around this.
    disable = None if context.rank == 0 else True  # None: only on a terminal
    yield from tqdm(range(start, steps), initial=start, total=steps, desc=prefix, disable=disable, leave=False)
