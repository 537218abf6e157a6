"""Computed memory against tensors that really exist, and against the formula written out by hand."""

import json
import weakref
from typing import Any

import pytest
import torch
from small_transformers import flux, sd3
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from components.errors import ParameterError
from components.taca.footprint import Activations, count_activations, skeleton, training_memory
from components.taca.lora import add_lora
from components.taca.schedule import TemperatureSchedule
from components.taca.velocity import VelocityTask
from pipelines.identity.closure import ROOT

TEXT, LATENT, BATCH = 12, (16, 12), 3


def published(name: str) -> dict[str, Any]:
    return json.loads((ROOT / "presets" / "architectures" / f"{name}.json").read_text())


def config_of(model: Any) -> dict[str, Any]:
    return json.loads(model.to_json_string())


def counted(model: Any, **changes: Any) -> Activations:
    settings = {
        "rank": 4,
        "batch": BATCH,
        "latent": LATENT,
        "text_tokens": TEXT,
        "dtype": torch.float32,
        "autocast": False,
    }
    return count_activations(config_of(model), **(settings | changes))


class LiveBytes(TorchDispatchMode):
    """Bytes of all storages made inside and not yet freed."""

    def __init__(self, *known: Tensor) -> None:
        super().__init__()
        self.alive: dict[int, Any] = {}
        self.sizes: dict[int, int] = {}
        self.peak = 0
        for tensor in known:
            self._see(tensor, 0)

    @property
    def now(self) -> int:
        return sum(self.sizes.values())

    def _see(self, tensor: Tensor, size: int) -> None:
        storage = tensor.untyped_storage()
        key = storage._cdata
        if key not in self.alive:
            self.sizes[key] = size
            self.alive[key] = weakref.ref(storage, lambda _: (self.alive.pop(key), self.sizes.pop(key)))

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(out):
            if isinstance(leaf, Tensor):
                self._see(leaf, leaf.untyped_storage().nbytes())
        self.peak = max(self.peak, self.now)
        return out


def real_step(model: Any, *, checkpointing: bool) -> tuple[int, int]:
    """(bytes alive between forward and backward, most bytes alive at any time) of one real training step on the CPU."""
    add_lora(model, 4, seed=0)
    if checkpointing:
        model.enable_gradient_checkpointing()
    sample = {
        "prompt_embeds": torch.randn(BATCH, TEXT, model.config.joint_attention_dim),
        "pooled": torch.randn(BATCH, model.config.pooled_projection_dim),
    }
    if "Flux" in type(model).__name__:
        tokens = LATENT[0] * LATENT[1] // 4
        sample |= {"latents": torch.randn(BATCH, tokens, model.config.in_channels), "img_ids": torch.zeros(tokens, 3)}
    else:
        sample["latents"] = torch.randn(BATCH, model.config.in_channels, *LATENT)
    null = {"null_prompt_embeds": sample["prompt_embeds"][0].clone(), "null_pooled": sample["pooled"][0].clone()}
    task = VelocityTask(model, **null, seed=0, sigma_low=0.5, schedule=TemperatureSchedule(threshold=0.5)).train()
    for parameter in model.parameters():  # gradients are not activations
        if parameter.requires_grad:
            parameter.register_post_accumulate_grad_hook(lambda p: setattr(p, "grad", None))
    live = LiveBytes(*task.parameters(), *task.buffers(), *sample.values())
    with live:
        loss = task(sample, 0)["loss"]
        between = live.now
        loss.backward()
    return between, live.peak


@pytest.mark.parametrize("build", [flux, sd3])
def test_what_is_counted_is_what_a_real_forward_keeps(build: Any) -> None:
    between, _ = real_step(build(), checkpointing=False)
    assert counted(build()).bytes(checkpointing=False) == pytest.approx(between, rel=0.02)


@pytest.mark.parametrize("build", [flux, sd3])
def test_with_checkpointing_a_real_step_keeps_the_inputs_of_blocks_and_peaks_with_one_block(build: Any) -> None:
    between, peak = real_step(build(), checkpointing=True)
    found = counted(build())
    assert found.outside + sum(found.inputs) == pytest.approx(between, rel=0.05)
    assert found.bytes(checkpointing=True) <= peak
    # What is not computed: gradients of activations of the block being computed backwards.
    assert peak <= found.bytes(checkpointing=True) + max(found.internals)
    assert found.bytes(checkpointing=True) < found.bytes(checkpointing=False)


def test_activations_grow_with_the_batch_and_never_with_the_square_of_the_tokens() -> None:
    one = counted(flux(), batch=1, latent=(32, 32)).bytes(checkpointing=False)
    assert counted(flux(), batch=4, latent=(32, 32)).bytes(checkpointing=False) == pytest.approx(4 * one, rel=0.05)
    assert counted(flux(), batch=1, latent=(64, 64)).bytes(checkpointing=False) <= 4 * one


def test_counting_leaves_no_autocast_behind() -> None:
    counted(flux(), autocast=True, dtype=torch.bfloat16)
    assert not torch.is_autocast_enabled("cuda")


@pytest.mark.parametrize(("name", "parameters"), [("flux-dev", 11_901_408_320), ("sd35-medium", 2_243_171_520)])
def test_a_skeleton_of_a_published_model_has_its_size_and_no_memory(name: str, parameters: int) -> None:
    model = skeleton(published(name), torch.bfloat16)
    assert sum(parameter.numel() for parameter in model.parameters()) == parameters
    tensors = [*model.parameters(), *model.buffers()]
    assert {tensor.device.type for tensor in tensors} == {"meta"}
    assert {tensor.dtype for tensor in model.parameters()} == {torch.bfloat16}


def test_an_architecture_that_is_not_supported_is_refused_in_one_line() -> None:
    with pytest.raises(ParameterError, match="'UNet2DConditionModel' is not supported; one of Flux"):
        skeleton({"_class_name": "UNet2DConditionModel"}, torch.float32)


def test_memory_follows_the_formula_for_every_way_to_spread_it() -> None:
    model = skeleton(published("flux-dev"), torch.bfloat16)
    lora = add_lora(model, 64, seed=0)
    base, block = 2 * 11_901_408_320, _bytes_of_the_first_block(model)
    outside = sum(p.numel() * p.element_size() for n, p in model.named_parameters() if "blocks" not in n)
    alone = training_memory(model, 5, average=True)
    assert (alone.weights, alone.gathered, alone.lora, alone.gradients) == (base, 0, 4 * lora, 4 * lora)
    assert (alone.optimizer, alone.average, alone.activations) == (8 * lora, 4 * lora, 5)
    assert alone.total == base + 20 * lora + 5
    assert training_memory(model, 5, gpus=8).gradients == 8 * lora  # and DDP's buckets
    sharded = training_memory(model, 5, strategy="fsdp", gpus=8)
    assert sharded.gathered == 3 * block + outside
    assert 8 * sharded.weights == pytest.approx(base)
    assert (sharded.lora, sharded.gradients, sharded.optimizer) == (lora / 2, lora / 2, lora)
    assert training_memory(model, 5, strategy="fsdp", gpus=8, accumulate=2).gradients == lora / 2 + 4 * lora


def test_buffers_are_on_every_gpu() -> None:
    model = skeleton(published("sd35-medium"), torch.bfloat16)  # positions of a 384x384 grid, 1536 wide
    add_lora(model, 64, seed=0)
    many = training_memory(model, 0, strategy="fsdp", gpus=1_000_000).weights
    assert many == pytest.approx(2 * 384 * 384 * 1536, rel=0.001)


def test_a_gpu_that_would_be_full_to_the_brim_does_not_fit() -> None:
    model = skeleton(config_of(flux()), torch.float32)
    add_lora(model, 4, seed=0)
    memory = training_memory(model, 1_000_000)
    assert memory.fits(memory.total / 0.8)
    assert not memory.fits(memory.total)


def _bytes_of_the_first_block(model: nn.Module) -> int:
    """FLUX's double-stream blocks are its largest."""
    return sum(
        p.numel() * p.element_size() for n, p in model.named_parameters() if n.startswith("transformer_blocks.0.")
    )
