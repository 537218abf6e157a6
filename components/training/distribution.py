"""Train one model in several processes: each holds all of it (ddp), or a shard (fsdp).

ddp keeps the whole model in every process and averages gradients. fsdp (PyTorch's FSDP2) shards every tensor along its first
dimension, so that a process stores 1/n of base, adapter, gradients and optimizer state; a block is gathered only while it
computes. Both run the same operations on the same data and differ in rounding alone: `fsdp` casts nothing, a base stored in
bfloat16 is gathered in bfloat16, float32 masters stay float32, and gradients are reduced in float32.

Checkpoints hold whole tensors (`gathered`), and loading one shards them again (`sharded_like`), so a run can be resumed with
another number of processes or the other strategy.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any, get_args

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from components.errors import ParameterError
from components.training.context import Context, Strategy


def repeated_blocks(model: nn.Module) -> list[nn.Module]:
    """Return the repeated blocks of a transformer: the members of its lists of modules. FLUX.1-dev has 57."""
    return [block for child in model.children() if isinstance(child, nn.ModuleList) for block in child]


def shard(task: nn.Module, blocks: Sequence[nn.Module], context: Context) -> bool:
    """Shard `task` in place over the processes of `context` if its strategy is fsdp; return whether it was done.

    Each of `blocks` is a unit that is gathered before it computes and freed after; the rest of `task` is one more. Every process
    must hold the same weights; they are moved to `context.device` one unit at a time, so the whole model need not fit there.
    Does nothing without blocks: such a model is small, and a copy in every process is faster. Raises ParameterError for an
    unknown strategy.
    """
    if context.strategy not in (allowed := get_args(Strategy)):
        raise ParameterError(f"strategy = {context.strategy!r}: allowed are {', '.join(allowed)}")
    if context.strategy == "ddp" or context.world_size == 1 or not blocks:
        return False
    from torch.distributed.device_mesh import init_device_mesh

    shard_over(task, blocks, init_device_mesh(context.device.type, (context.world_size,)))
    return True


def shard_over(task: nn.Module, blocks: Sequence[nn.Module], mesh: Any) -> None:
    """Shard `task` in place over a device mesh of one axis: each of `blocks` is a unit, the rest of `task` one more."""
    from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard

    policy = MixedPrecisionPolicy(reduce_dtype=torch.float32, cast_forward_inputs=False)
    for unit in (*blocks, task):
        fully_shard(unit, mesh=mesh, mp_policy=policy)


def replicate(task: nn.Module, context: Context) -> nn.Module:
    """Wrap `task` in DistributedDataParallel, unless there is only one process."""
    if context.world_size == 1:
        return task
    ids = [context.device.index] if context.device.type == "cuda" else None
    return DistributedDataParallel(task, device_ids=ids, broadcast_buffers=False)


@contextmanager
def gradient_sync(model: Any, enabled: bool) -> Iterator[None]:
    """Set whether backward passes inside the block exchange gradients: only the last micro-batch of a step does."""
    scope: AbstractContextManager[None] = nullcontext()
    if isinstance(model, DistributedDataParallel) and not enabled:
        scope = model.no_sync()
    elif hasattr(model, "set_requires_gradient_sync"):  # FSDP2
        model.set_requires_gradient_sync(enabled)
    with scope:
        yield


def gathered(value: Any) -> Any:
    """Gather every sharded tensor in `value` on the CPU; the rest is returned as it is. All processes must call it together."""
    if isinstance(value, Mapping):
        return {key: gathered(item) for key, item in value.items()}
    if isinstance(value, list):
        return [gathered(item) for item in value]
    return value.full_tensor().cpu() if _is_sharded(value) else value


def sharded_like(value: Any, parameter: Tensor) -> Any:
    """Return this process's shard of a whole tensor, if `parameter` is sharded and of its shape; else `value` as it is."""
    if not _is_sharded(parameter) or not isinstance(value, Tensor) or value.shape != parameter.shape:
        return value
    from torch.distributed.tensor import distribute_tensor

    sharded: Any = parameter
    return distribute_tensor(value.to(parameter.device), sharded.device_mesh, sharded.placements, src_data_rank=None)


def _is_sharded(value: Any) -> bool:
    return isinstance(value, Tensor) and hasattr(value, "full_tensor")
