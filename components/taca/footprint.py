"""GPU memory of LoRA training, computed from the architecture: nothing is loaded and no GPU is needed.

    total = weights + gathered + LoRA + gradients + optimiser + average + activations

per GPU, with P frozen parameters of b bytes, L LoRA parameters (float32), N GPUs:

                 weights     gathered              LoRA    gradients   optimiser (Adam)   average
    ddp          P b         0                     4 L     4 L         8 L                4 L or 0
      N > 1      P b         0                     4 L     8 L         8 L                4 L or 0
    fsdp         P b / N     root + 3 blocks       4 L/N   4 L/N       8 L/N              4 L/N or 0

DDP holds the gradients a second time, in its buckets. FSDP gathers the block in use and the one after it, which arrives
in a buffer of its own; the parameters outside blocks stay gathered; with gradient accumulation the gradients are whole
until the last part (4 L more). Buffers of the model are never sharded.

Activations are what autograd keeps for the backward pass of one micro-batch. They are counted, not estimated: the training step's
forward runs on tensors without memory, under CUDA's autocast rules and with flash attention, and every tensor saved is measured
once. With gradient checkpointing the inputs of every block stay, and one block at a time is computed again:

    activations = outside + sum over blocks of inputs + the largest block's own

Not in it: gradients of activations while a block is being computed backwards (less than the block's own again; tests bound it on
real steps), the CUDA context and libraries (about 1 GB), the allocator's fragmentation. `MARGIN` is reserved for them in `fits`.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, fields
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from components.errors import ParameterError
from components.taca.conventions import PATCH
from components.taca.families import forward_parameters
from components.taca.lora import add_lora
from components.taca.registry import FAMILIES, family_of
from components.taca.schedule import TemperatureSchedule
from components.taca.velocity import VelocityTask
from components.training.context import Strategy
from components.training.distribution import repeated_blocks

MARGIN = 0.15  # of a GPU's memory, for what is not computed


@dataclass(frozen=True)
class Activations:
    """Bytes that autograd keeps for one micro-batch; `inputs` and `internals` have one entry per block."""

    outside: int
    inputs: tuple[int, ...]
    internals: tuple[int, ...]

    def bytes(self, *, checkpointing: bool) -> int:
        """Return the peak: at the start of backward, or with checkpointing while the largest block is recomputed."""
        if checkpointing:
            return self.outside + sum(self.inputs) + max(self.internals, default=0)
        return self.outside + sum(self.internals)


@dataclass(frozen=True)
class TrainingMemory:
    """Bytes on each GPU, by purpose; the module's docstring has the formula."""

    weights: int
    gathered: int
    lora: int
    gradients: int
    optimizer: int
    average: int
    activations: int

    @property
    def total(self) -> int:
        return sum(getattr(self, field.name) for field in fields(self))

    def fits(self, gpu_bytes: float) -> bool:
        """Whether the computed part leaves `MARGIN` of a GPU for the rest."""
        return self.total <= (1 - MARGIN) * gpu_bytes


def skeleton(config: Mapping[str, Any], dtype: torch.dtype) -> Any:
    """Build the transformer of a config.json on the meta device, without weights. Raises `ParameterError` for a class that TACA
    does not support."""
    import diffusers

    name = config.get("_class_name")
    if name not in FAMILIES:
        raise ParameterError(f"architecture: _class_name {name!r} is not supported; one of {', '.join(FAMILIES)}")
    with torch.device("meta"):
        transformer = getattr(diffusers, name).from_config(dict(config))
    return nn.Module.to(transformer, dtype)  # diffusers' own `to` warns about parts that this class does not have


def training_memory(
    transformer: nn.Module,
    activations: int,
    *,
    strategy: Strategy = "ddp",
    gpus: int = 1,
    accumulate: int = 1,
    average: bool = False,
) -> TrainingMemory:
    """Compute the memory on each of `gpus` GPUs for a transformer whose only trainable parameters are its LoRA.

    activations: bytes of one GPU's micro-batch (`count_activations`). accumulate: micro-batches of a step. average:
    whether averaged weights are kept.
    """
    frozen = _bytes(p for p in transformer.parameters() if not p.requires_grad)
    lora = _bytes(p for p in transformer.parameters() if p.requires_grad)
    buffers = _bytes(transformer.buffers())
    if strategy == "ddp":
        copies = 2 if gpus > 1 else 1
        return TrainingMemory(frozen + buffers, 0, lora, copies * lora, 2 * lora, average * lora, activations)
    blocks = [_bytes(block.parameters()) for block in repeated_blocks(transformer)]
    gathered = frozen + lora - sum(blocks) + 3 * max(blocks, default=0) if gpus > 1 else 0
    part, whole = -(-lora // gpus), lora if gpus > 1 and accumulate > 1 else 0
    weights = -(-frozen // gpus) + buffers
    return TrainingMemory(weights, gathered, part, part + whole, 2 * part, average * part, activations)


def count_activations(
    config: Mapping[str, Any],
    *,
    rank: int,
    batch: int,
    latent: tuple[int, int],
    text_tokens: int,
    dtype: torch.dtype = torch.bfloat16,
    autocast: bool = True,
) -> Activations:
    """Count what autograd keeps in one forward of LoRA training under TACA, without gradient checkpointing.

    config: the transformer's config.json. latent: height and width of the VAE's latents (1024x1024 pixels: 128x128).
    dtype: of the frozen weights. autocast: whether computation is in bfloat16 for any dtype of the weights. Takes some seconds
    for FLUX.1-dev. Raises `ParameterError` for a family whose training batch cannot be derived.
    """
    from torch._subclasses.fake_tensor import FakeTensorMode

    transformer = skeleton(config, dtype)
    add_lora(transformer, rank, seed=0)
    with FakeTensorMode():
        _move_to_fake_gpu(transformer)
        sample = _sample(transformer, batch, latent, text_tokens)
        task = VelocityTask(
            transformer,
            null_prompt_embeds=sample["prompt_embeds"][0],
            null_pooled=sample["pooled"][0],
            seed=0,
            sigma_low=0.5,
            schedule=TemperatureSchedule(),
        )
        task.train()
        record = _Record(transformer)
        with record.saving(), _FlashAttention(), _autocast(autocast):
            task(sample, 0)
    return record.result()


def counts_activations(transformer: nn.Module) -> bool:
    """Whether `count_activations` can derive a training batch of this transformer's family: of FLUX.1 and SD3."""
    return family_of(transformer).conventions is not None and "pooled_projections" in forward_parameters(transformer)


def _sample(transformer: Any, batch: int, latent: tuple[int, int], text_tokens: int) -> dict[str, Tensor]:
    """Return a micro-batch for `VelocityTask`, of tensors without memory."""
    family, config, (rows, columns) = family_of(transformer), transformer.config, latent
    if family.conventions is None or not counts_activations(transformer):
        raise ParameterError(f"activations of {family.name} cannot be computed yet: only of flux and sd3")
    sample = {
        "prompt_embeds": torch.empty(batch, text_tokens, config.joint_attention_dim, device="cuda"),
        "pooled": torch.empty(batch, config.pooled_projection_dim, device="cuda"),
    }
    if family.conventions.packed:
        tokens = (rows // PATCH) * (columns // PATCH)
        sample["latents"] = torch.empty(batch, tokens, config.in_channels, device="cuda")
        sample["img_ids"] = torch.empty(tokens, 3, device="cuda")
    else:
        sample["latents"] = torch.empty(batch, config.in_channels, rows, columns, device="cuda")
    return sample


class _Record:
    """Counts the tensors that autograd saves, by block."""

    def __init__(self, transformer: nn.Module) -> None:
        self.blocks = repeated_blocks(transformer)
        # Holding the storages keeps their ids from being used again.
        self._own = {t.untyped_storage()._cdata for t in (*transformer.parameters(), *transformer.buffers())}
        self._saved: dict[int, Any] = {}
        self._given: dict[int, Any] = {}
        self._inside: int | None = None
        self.internals = [0] * len(self.blocks)
        self.inputs = [0] * len(self.blocks)
        self.outside = 0

    @contextmanager
    def saving(self) -> Iterator[None]:
        hooks = []
        for index, block in enumerate(self.blocks):
            hooks.append(block.register_forward_pre_hook(self._enter(index), with_kwargs=True))
            hooks.append(block.register_forward_hook(self._leave))
        try:
            with torch.autograd.graph.saved_tensors_hooks(self._save, lambda tensor: tensor):
                yield
        finally:
            for hook in hooks:
                hook.remove()

    def result(self) -> Activations:
        return Activations(self.outside, tuple(self.inputs), tuple(self.internals))

    def _enter(self, index: int) -> Any:
        from torch.utils._pytree import tree_leaves

        def enter(block: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            self._inside = index
            given = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
            self.inputs[index] = sum(self._size(tensor, self._given) for tensor in given)

        return enter

    def _leave(self, *_: Any) -> None:
        self._inside = None

    def _save(self, tensor: Tensor) -> Tensor:
        size = self._size(tensor, self._saved)
        if self._inside is None:
            self.outside += size
        else:
            self.internals[self._inside] += size
        return tensor

    def _size(self, tensor: Tensor, seen: dict[int, Any]) -> int:
        """Return the bytes of a tensor's storage; 0 if it was counted before or belongs to the model."""
        storage = tensor.untyped_storage()
        if storage._cdata in self._own or storage._cdata in seen:
            return 0
        seen[storage._cdata] = storage
        return storage.nbytes()


class _FlashAttention(TorchFunctionMode):
    """Routes attention to the flash kernel, which a GPU would choose: no S x S tensor is kept."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func is not F.scaled_dot_product_attention:
            return func(*args, **kwargs)
        query, key, value = args[:3] if args else (kwargs[name] for name in ("query", "key", "value"))
        return torch.ops.aten._scaled_dot_product_flash_attention(query, key, value)[0]


@contextmanager
def _autocast(enabled: bool) -> Iterator[None]:
    """Apply CUDA's autocast rules to fake GPU tensors; `torch.autocast` refuses without a GPU."""
    before = torch.is_autocast_enabled("cuda"), torch.get_autocast_dtype("cuda")
    torch.set_autocast_enabled("cuda", enabled)
    torch.set_autocast_dtype("cuda", torch.bfloat16)
    try:
        yield
    finally:
        torch.set_autocast_enabled("cuda", before[0])
        torch.set_autocast_dtype("cuda", before[1])
        torch.clear_autocast_cache()


def _move_to_fake_gpu(transformer: nn.Module) -> None:
    """Replace meta tensors by fake tensors on a GPU; call inside a FakeTensorMode."""
    for module in transformer.modules():
        for name, parameter in module._parameters.items():
            if parameter is not None:
                fake = torch.empty(parameter.shape, dtype=parameter.dtype, device="cuda")
                module._parameters[name] = nn.Parameter(fake, requires_grad=parameter.requires_grad)
        for name, buffer in module._buffers.items():
            if buffer is not None:
                module._buffers[name] = torch.empty(buffer.shape, dtype=buffer.dtype, device="cuda")


def _bytes(tensors: Any) -> int:
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)
