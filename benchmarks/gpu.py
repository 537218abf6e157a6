"""What can be checked and measured on a GPU alone, in at most eight minutes on one card of 80 GB or more.

    make gpu        or: python benchmarks/gpu.py [--json FILE] [--seconds 420] [--toy]

Weights are random; nothing is downloaded. Each check gives rows: a number, and where there is a right one, whether it holds. A
check that would begin after `--seconds` is left out and named. `--toy` runs every path at toy sizes on the CPU, as the tests do.

    attention     each attention backend in bfloat16 at FLUX's 1024x1024: error against float64, time relative to its stock call
    transformer   FLUX.1-dev at 1024x1024: one block, and whole forwards, with TACA on and off
    memory        a LoRA training step of the presets flux-dev and sd35-medium: CUDA memory, beside what `dry-run` computes
    fsdp          FSDP2 on one device against the same step unsharded
    training      both trainings in bfloat16: the LoRA of TACA, and GA-DMS
    generation    two workers on one device draw the same bytes as this process
    card          FLUX.1-dev with each offloading: the same picture, memory beside what `dry-run` computes; quantised small bases
"""

import argparse
import gc
import importlib.util
import json
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from rich import box
from rich.console import Console
from rich.table import Table
from timing import save, take_turns
from torch import Tensor

from components.taca.attention import temperature_adjusted_attention
from components.taca.drawing_memory import DrawingMemory, decoding_bytes, forward_bytes, part_size, skeleton_part
from components.taca.footprint import MARGIN, count_activations, skeleton, training_memory
from components.taca.install import enable_taca
from components.taca.interception import running
from components.taca.lora import add_lora
from components.taca.memory_options import Quantization
from components.taca.offloading import LEAST_FIRST, place
from components.taca.schedule import TemperatureSchedule
from components.taca.velocity import VelocityTask
from components.training.config import LoopConfig
from components.training.context import LocalContext
from components.training.distribution import repeated_blocks, shard_over
from components.training.loop import fit
from pipelines.terminal.console import TableConsole

ROOT = Path(__file__).resolve().parent.parent
SECONDS = 480
GAMMA = 1.2
SCHEDULE = TemperatureSchedule(gamma=GAMMA, threshold=0.5)
BFLOAT16 = torch.bfloat16
TOLERANCE = 0.03
"""Of the largest value: bfloat16 keeps 8 bits, and the probabilities and scaled keys are rounded to it."""

Row = dict[str, Any]


@dataclass(frozen=True)
class Sizes:
    """The sizes of all checks. side: of the latents, before packing. config: changes of a published architecture by class name."""

    text: int
    side: int
    heads: int
    head_dim: int
    batch: int
    rank: int
    rounds: int
    backends: tuple[str, ...]
    config: Mapping[str, Mapping[str, Any]]
    fsdp: Mapping[str, Any]
    encoder: Any
    pairs: int
    workers: int
    pictures: int
    vae: Mapping[str, Any]


_SMALL_FLUX = {
    "num_layers": 1,
    "num_single_layers": 1,
    "attention_head_dim": 32,
    "num_attention_heads": 2,
    "axes_dims_rope": (8, 12, 12),
    "in_channels": 12,
    "joint_attention_dim": 24,
    "pooled_projection_dim": 20,
}
_SMALL_SD3 = {
    "num_layers": 2,
    "attention_head_dim": 32,
    "num_attention_heads": 2,
    "caption_projection_dim": 64,
    "dual_attention_layers": (0,),
    "in_channels": 3,
    "out_channels": 3,
    "joint_attention_dim": 24,
    "pooled_projection_dim": 20,
    "pos_embed_max_size": 8,
    "sample_size": 8,
}
_SMALL_VAE = {
    "block_out_channels": (8, 8),
    "down_block_types": ("DownEncoderBlock2D",) * 2,
    "up_block_types": ("UpDecoderBlock2D",) * 2,
    "latent_channels": 3,
    "norm_num_groups": 4,
}
_SMALL_ENCODER = {
    "embed_dim": 16,
    "quick_gelu": True,
    "vision_cfg": {"image_size": [16, 8], "layers": 1, "width": 16, "head_width": 8, "patch_size": 8},
    "text_cfg": {"context_length": 77, "vocab_size": 49408, "width": 16, "heads": 2, "layers": 2},
}
FULL = Sizes(
    text=512,
    side=128,
    heads=24,
    head_dim=128,
    batch=4,
    rank=64,
    rounds=5,
    backends=("native", "_native_flash", "_native_cudnn", "_native_efficient", "flash"),
    config={},
    fsdp={"num_layers": 2, "num_single_layers": 4},
    encoder="ViT-B-16-quickgelu",
    pairs=64,
    workers=2,
    pictures=64,
    vae={},
)
TOY = Sizes(
    text=6,
    side=8,
    heads=2,
    head_dim=32,
    batch=2,
    rank=2,
    rounds=1,
    backends=("native", "_native_math"),
    config={"FluxTransformer2DModel": _SMALL_FLUX, "SD3Transformer2DModel": _SMALL_SD3},
    fsdp={},
    encoder=_SMALL_ENCODER,
    pairs=4,
    workers=0,
    pictures=2,
    vae=_SMALL_VAE,
)


def row(what: str, value: float | None, unit: str, holds: bool | None = None, note: str = "") -> Row:
    """A line of the table; `holds` is None for a measurement that has no right value."""
    return {"what": what, "value": value, "unit": unit, "holds": holds, "note": note}


def attention(device: torch.device, sizes: Sizes) -> list[Row]:
    """Each backend: the error of TACA's attention against an explicit softmax in float64, and its time."""
    from diffusers.models.attention_dispatch import AttentionBackendName, dispatch_attention_fn

    source = torch.Generator().manual_seed(0)
    image = (sizes.side // 2) ** 2
    shape = (1, sizes.text + image, sizes.heads, sizes.head_dim)
    query, key, value = (torch.randn(shape, generator=source).to(device, BFLOAT16) for _ in range(3))
    text = slice(0, sizes.text)
    gamma = torch.full((1, 1, 1, 1), GAMMA, device=device)
    expected = _explicit(query[:, -16:], key, value, text)  # (1, 16, H, D): the last queries are of the image
    rows = []
    for name in sizes.backends:
        if name == "flash" and importlib.util.find_spec("flash_attn") is None:
            rows.append(row(f"{name}: error", None, "", note="flash_attn is not installed"))
            continue
        backend = AttentionBackendName(name)
        both: dict[str, Callable[[], Tensor]] = {
            "stock": lambda b=backend: dispatch_attention_fn(query, key, value, backend=b),
            "TACA": lambda b=backend: temperature_adjusted_attention(query, key, value, gamma, text, backend=b),
        }
        with torch.no_grad():
            found = take_turns(both, device, rounds=sizes.rounds, budget=2.0)
            failure = found["TACA"].failure or found["stock"].failure
            if failure:
                rows.append(row(f"{name}: error", None, "", False, failure))
                continue
            error = float((both["TACA"]()[:, -16:].double() - expected).abs().max() / expected.abs().max())
        rows.append(row(f"{name}: error", error, "of the largest", error < TOLERANCE))
        ratio = found["TACA"].minimum / found["stock"].minimum
        rows.append(row(f"{name}: TACA / stock", ratio, "x", note=f"stock {1000 * found['stock'].minimum:.3f} ms"))
    return rows


def _explicit(query: Tensor, key: Tensor, value: Tensor, text: slice) -> Tensor:
    """Image rows of TACA's attention by its formula in float64."""
    q, k, v = (tensor.double().transpose(1, 2) for tensor in (query, key, value))
    logits = q @ k.transpose(-2, -1) / q.shape[-1] ** 0.5
    logits[..., text] *= GAMMA
    return (logits.softmax(-1) @ v).transpose(1, 2)


def random_transformer(file: str, device: torch.device, changes: Mapping[str, Any] | None = None) -> Any:
    """A published architecture in bfloat16 with small random weights, made on the device: built without memory, then filled."""
    config = json.loads((ROOT / "presets/architectures" / file).read_text()) | dict(changes or {})
    return randomised(skeleton(config, BFLOAT16), device)


def randomised(skeleton_on_meta: Any, device: torch.device) -> Any:
    """Give a model without memory small random weights on the device."""
    model = skeleton_on_meta.to_empty(device=device)
    source = torch.Generator(device).manual_seed(0)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.ndim > 1:
                parameter.normal_(std=0.02, generator=source)
            else:
                parameter.fill_(float("norm" in name and name.endswith("weight")))
        for buffer in model.buffers():
            buffer.zero_()
    return model.eval()


def training_sample(model: Any, batch: int, sizes: Sizes) -> dict[str, Tensor]:
    """A batch for `VelocityTask` on the model's device."""
    source, config, side = torch.Generator().manual_seed(1), model.config, sizes.side
    shapes = {"prompt_embeds": (sizes.text, config.joint_attention_dim), "pooled": (config.pooled_projection_dim,)}
    if "axes_dims_rope" in config:
        shapes["latents"] = ((side // 2) ** 2, config.in_channels)
    else:
        shapes["latents"] = (config.in_channels, side, side)
    sample = {name: torch.randn((batch, *shape), generator=source) for name, shape in shapes.items()}
    sample["img_ids"] = torch.cartesian_prod(torch.zeros(1), *[torch.arange(side / 2)] * 2)
    return {name: tensor.to(model.device) for name, tensor in sample.items()}


def lora_task(model: Any, sample: Mapping[str, Tensor], rank: int) -> VelocityTask:
    """LoRA training of a transformer under TACA, with gradient checkpointing, as the presets train."""
    add_lora(model, rank, seed=0)
    model.enable_gradient_checkpointing()
    null = {"null_prompt_embeds": sample["prompt_embeds"][0], "null_pooled": sample["pooled"][0]}
    return VelocityTask(model, **null, seed=0, sigma_low=0.5, schedule=SCHEDULE).to(model.device)


def transformer(device: torch.device, sizes: Sizes) -> list[Row]:
    """FLUX.1-dev at 1024x1024: one double-stream block, and whole forwards, with TACA on and off."""
    model = random_transformer("flux-dev.json", device, sizes.config.get("FluxTransformer2DModel"))
    sample = training_sample(model, 1, sizes)
    arguments = {
        "hidden_states": sample["latents"].to(BFLOAT16),
        "encoder_hidden_states": sample["prompt_embeds"].to(BFLOAT16),
        "pooled_projections": sample["pooled"].to(BFLOAT16),
        "timestep": torch.ones(1, device=device),
        "guidance": torch.full((1,), 3.5, device=device),
        "img_ids": sample["img_ids"],
        "txt_ids": torch.zeros(sizes.text, 3, device=device),
    }
    given: list[Any] = []
    block = model.transformer_blocks[0]

    @torch.no_grad()
    def forward(taca: TemperatureSchedule | None) -> Tensor:
        if taca is None:
            out: Tensor = model(**arguments, return_dict=False)[0]
            return out
        with enable_taca(model, taca):
            hook = block.register_forward_pre_hook(
                lambda _, args, kwargs: given.append((args, kwargs, running().adjustment)), with_kwargs=True
            )
            out = model(**arguments, return_dict=False)[0]
            hook.remove()
        return out

    stock, on, off = forward(None), forward(SCHEDULE), forward(TemperatureSchedule(gamma=1.0))
    rows = [
        row("a forward is finite", float(on.isfinite().all()), "", bool(on.isfinite().all())),
        row("TACA changes it", float((on - stock).abs().max()), "largest difference", not torch.equal(on, stock)),
        row("gamma 1 is stock", float((off - stock).abs().max()), "largest difference", torch.equal(off, stock)),
    ]
    args, kwargs, adjustment = given[0]

    def run_block(taca: Any) -> Any:
        running().adjustment = taca  # the processors stay TACA's; without an adjustment they call the stock one
        try:
            return block(*args, **kwargs)
        finally:
            running().adjustment = None

    with torch.no_grad(), enable_taca(model, SCHEDULE):
        turns = {"stock": lambda: run_block(None), "TACA": lambda: run_block(adjustment)}
        rows += _ratio("one block", take_turns(turns, device, rounds=sizes.rounds, budget=3.0))
    whole = {"stock": lambda: forward(None), "TACA": lambda: forward(SCHEDULE)}
    rows += _ratio("a whole forward", take_turns(whole, device, rounds=sizes.rounds, budget=10.0))
    return rows


def _ratio(what: str, found: Mapping[str, Any]) -> list[Row]:
    failure = found["TACA"].failure or found["stock"].failure
    if failure:
        return [row(what, None, "", False, failure)]
    stock, taca = found["stock"].minimum, found["TACA"].minimum
    return [
        row(f"{what}: TACA / stock", taca / stock, "x", note=f"stock {1000 * stock:.1f} ms, TACA {1000 * taca:.1f} ms")
    ]


def memory(device: torch.device, sizes: Sizes) -> list[Row]:
    """A LoRA training step of both presets: the peak of CUDA memory, beside what `footprint.py` computes."""
    rows = []
    for preset, prepended in (("flux-dev", 0), ("sd35-medium", 77)):
        file = f"{preset}.json"
        _free(device)
        name = json.loads((ROOT / "presets/architectures" / file).read_text())["_class_name"]
        model = random_transformer(file, device, sizes.config.get(name))
        text = sizes.text if not prepended else sizes.text // 2 + prepended  # SD3.5: 256 of T5 behind CLIP's 77
        config = {**model.config, "_class_name": name}
        counted = count_activations(
            config, rank=sizes.rank, batch=sizes.batch, latent=(sizes.side, sizes.side), text_tokens=text
        )
        sample = training_sample(model, sizes.batch, sizes)
        sample["prompt_embeds"] = sample["prompt_embeds"][:, :1].expand(-1, text, -1).contiguous()
        task = lora_task(model, sample, sizes.rank).train()
        optimizer = torch.optim.AdamW([p for p in task.parameters() if p.requires_grad], lr=1e-4)
        computed = training_memory(model, counted.bytes(checkpointing=True)).total / 1e9
        if device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(device)
        begin = time.perf_counter()
        for step in range(2):
            with torch.autocast(device.type, BFLOAT16):
                loss = task(sample, step)["loss"]
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            optimizer.step()
        finite = bool(torch.isfinite(loss))
        rows.append(
            row(f"{preset}: loss", float(loss), "", finite, f"{(time.perf_counter() - begin) / 2:.2f} s a step")
        )
        peak = torch.cuda.max_memory_allocated(device) / 1e9 if device.type == "cuda" else None
        fits = None if peak is None else (1 - MARGIN) * peak <= computed
        rows.append(row(f"{preset}: memory", peak, "GB", fits, f"computed {computed:.1f} GB, margin {MARGIN:.0%}"))
        del model, task, optimizer, loss, sample
    return rows


def fsdp(device: torch.device, sizes: Sizes) -> list[Row]:
    """The gradients of a LoRA step, sharded by FSDP2 over one device, against the same step unsharded."""
    changes = sizes.config.get("FluxTransformer2DModel") or sizes.fsdp
    found: dict[bool, tuple[float, list[Tensor]]] = {}
    with _process_group(device) as mesh:
        for sharded in (False, True):
            model = random_transformer("flux-dev.json", device, changes)
            sample = training_sample(model, 1, sizes)
            task = lora_task(model, sample, sizes.rank).train()
            if sharded:
                shard_over(task, repeated_blocks(model), mesh)
            with torch.autocast(device.type, BFLOAT16):
                loss = task(sample, 0)["loss"]
            loss.backward()
            gradients = [p.grad for p in task.parameters() if p.requires_grad and p.grad is not None]
            found[sharded] = loss.item(), [getattr(g, "full_tensor", lambda g=g: g)().float().cpu() for g in gradients]
    (loss, whole), (other, parts) = found[False], found[True]
    largest = max(float(each.abs().max()) for each in whole)
    error = max(float((a - b).abs().max()) for a, b in zip(whole, parts, strict=True)) / largest
    return [
        row("loss, unsharded - sharded", abs(loss - other), "", abs(loss - other) <= 1e-2 * abs(loss)),
        row("gradients of the LoRA", error, "of the largest", error < TOLERANCE, f"{len(whole)} tensors"),
    ]


@contextmanager
def _process_group(device: torch.device) -> Iterator[Any]:
    """A group of this process alone."""
    from torch import distributed
    from torch.distributed.device_mesh import init_device_mesh

    with tempfile.TemporaryDirectory() as folder:
        backend = "nccl" if device.type == "cuda" else "gloo"
        distributed.init_process_group(backend, init_method=f"file://{folder}/group", rank=0, world_size=1)
        try:
            yield init_device_mesh(device.type, (1,))
        finally:
            distributed.destroy_process_group()


def training(device: torch.device, sizes: Sizes) -> list[Row]:
    """Both trainings in bfloat16, by the project's own loop: every step is taken, and its loss and gradient are finite."""
    from train_step import random_batch

    from components.gadms.methods import RetrievalConfig
    from components.gadms.model import DualEncoder
    from components.gadms.tasks import RetrievalTask

    small = sizes.config.get("FluxTransformer2DModel") or sizes.fsdp
    model = random_transformer("flux-dev.json", device, small)
    sample = training_sample(model, 2, sizes)
    rows = _fitted("LoRA of TACA", lora_task(model, sample, sizes.rank), sample, device, lambda step: 0)
    del model
    named = isinstance(sizes.encoder, str)
    encoder = DualEncoder.create(sizes.encoder, image_size=(384, 128) if named else None)
    batch: Any = {name: tensor.to(device) for name, tensor in random_batch(encoder, sizes.pairs, 24).items()}  # type: ignore[attr-defined]
    task = RetrievalTask(encoder, RetrievalConfig(name="gadms", warmup_steps=2), captions=sizes.pairs)
    return rows + _fitted("GA-DMS", task, batch, device, lambda step: step)


def _fitted(what: str, task: Any, batch: Any, device: torch.device, at: Callable[[int], int]) -> list[Row]:
    """Train on one batch for a few steps. at: the step whose noise a step has."""
    context = LocalContext(device=str(device))
    steps = LoopConfig(steps=6, learning_rate=1e-4, precision="bf16", report_every=1)
    forward = task.forward
    task.forward = lambda batch, step: forward(batch, at(step))
    begin = time.perf_counter()
    fit(task, lambda step: batch, steps, context)
    seconds = (time.perf_counter() - begin) / steps.steps
    losses = [metrics["train/loss"] for _, metrics in context.history]
    finite = all(map(torch.isfinite, map(torch.tensor, losses)))
    note = f"from {losses[0]:.4f} to {losses[-1]:.4f}, {seconds:.2f} s a step"
    return [row(f"{what}: last loss", losses[-1], "", finite and len(losses) == steps.steps, note)]


def generation(device: torch.device, sizes: Sizes) -> list[Row]:
    """Two workers on one device, against this process: the same prompts give the same bytes."""
    from components.taca.reference import write_reference
    from components.taca.toy.config import TinyConfig
    from components.taca.toy.pipeline import build_tiny_pipeline
    from pipelines.generating.painter import DrawSettings
    from pipelines.generating.plan import plan
    from pipelines.generating.pool import draw
    from pipelines.generating.prompts import Prompt
    from pipelines.schema.running import Compute

    digests: dict[int, list[str]] = {}
    seconds = 0.0
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        build_tiny_pipeline(TinyConfig(width=64, heads=2), ("a", "woman"), 0).save_pretrained(folder / "base")
        write_reference(folder / "base", folder / "base.json")
        settings = DrawSettings(
            model=folder / "base.json",
            adapters=(),
            taca={"gamma": GAMMA, "threshold": 0.5},
            height=64,
            width=32,
            steps=4,
            guidance=1.0,
            embedded_guidance=3.5,
            dtype="fp32",
            batch=max(1, sizes.pictures // 8),
        )
        shards = plan([Prompt(str(n), "a woman") for n in range(sizes.pictures)], 0, 1, settings.batch)
        for workers in (0, sizes.workers):
            shards_at = folder / f"shards-{len(digests)}"
            shards_at.mkdir()
            compute = Compute(workers=workers, threads=1, device="cuda" if device.type == "cuda" else "cpu")
            begin = time.perf_counter()
            drawn = {shard.number: result.digest for shard, result in draw(settings, shards_at, shards, compute)}
            digests[len(digests)] = [drawn[number] for number in sorted(drawn)]
            seconds = time.perf_counter() - begin
    same = digests[0] == digests[1]
    note = f"{sizes.pictures} pictures by {sizes.workers} workers in {seconds:.1f} s, their start included"
    return [row("shards with the bytes of one process", float(len(digests[1])), "", same, note)]


def card(device: torch.device, sizes: Sizes) -> list[Row]:
    """What a small card needs: offloading changes no picture and keeps to the memory computed; quantised bases draw nearly the
    same."""
    return [*_offloading(device, sizes), *_quantisation(device)]


def _offloading(device: torch.device, sizes: Sizes) -> list[Row]:
    """FLUX.1-dev and its VAE, TACA on at every step: two steps and the decoding."""
    from diffusers import FlowMatchEulerDiscreteScheduler, FluxPipeline

    host = torch.device("cpu")
    model = random_transformer("flux-dev.json", device, sizes.config.get("FluxTransformer2DModel")).to(host)
    parts = json.loads((ROOT / "presets/architectures/flux-dev-parts.json").read_text())
    vae = randomised(skeleton_part(parts["vae"] | dict(sizes.vae)), host)
    enable_taca(model, SCHEDULE)
    sample = training_sample(model, 1, sizes)
    tokens = sizes.text + (sizes.side // 2) ** 2
    weights = {"transformer": part_size(model, quantised=False), "vae": part_size(vae, quantised=False)}
    side = sizes.side * 2 ** (len(vae.config.block_out_channels) - 1)
    meta = skeleton_part(parts["vae"] | dict(sizes.vae))
    needs = DrawingMemory(weights, forward_bytes(model.config, tokens), decoding_bytes(meta, (sizes.side, sizes.side)))
    rows: list[Row] = []
    first: Tensor | None = None
    for offload in LEAST_FIRST:
        scheduler = FlowMatchEulerDiscreteScheduler(shift=3.0)
        pipe: Any = FluxPipeline(scheduler, vae, None, None, None, None, model)
        pipe.set_progress_bar_config(disable=True)
        place(pipe, device, offload)
        if device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(device)
        begin = time.perf_counter()
        drawn = pipe(
            prompt_embeds=sample["prompt_embeds"].to(device, BFLOAT16),
            pooled_prompt_embeds=sample["pooled"].to(device, BFLOAT16),
            latents=sample["latents"].to(device, BFLOAT16),
            height=side,
            width=side,
            num_inference_steps=2,
            output_type="pt",
        ).images.cpu()
        seconds = time.perf_counter() - begin
        first = drawn if first is None else first
        same = torch.equal(drawn, first) and bool(drawn.isfinite().all())
        rows.append(row(f"offload {offload}: seconds", seconds, "s", same, "the picture of offload none, bit for bit"))
        peak = torch.cuda.max_memory_allocated(device) / 1e9 if device.type == "cuda" else None
        computed = needs.bytes(offload, {}) / 1e9
        fits = None if peak is None else (1 - MARGIN) * peak <= computed
        rows.append(
            row(f"offload {offload}: memory", peak, "GB", fits, f"computed {computed:.2f} GB, margin {MARGIN:.0%}")
        )
        pipe.remove_all_hooks()
        if offload != "group":  # whose hooks stay; it is the last
            pipe.to(host)
        _free(device)
    return rows


def _quantisation(device: torch.device) -> list[Row]:
    """A small pipeline read from its folder in fewer bits: its picture beside that in bfloat16, and beside another prompt's."""
    from components.taca.generation import generate
    from components.taca.reference import load_base, write_reference
    from components.taca.toy.config import TinyConfig
    from components.taca.toy.pipeline import build_tiny_pipeline

    kinds: tuple[Quantization, ...] = ("none", "int8", "fp8")
    drawn: dict[str, Tensor] = {}
    with tempfile.TemporaryDirectory() as place_:
        folder = Path(place_)
        pipe = build_tiny_pipeline(TinyConfig(width=64, heads=2), ("a", "woman"), 0)
        with torch.no_grad():  # FLUX starts with a silent output layer
            for parameter in pipe.transformer.parameters():
                noise = torch.randn(parameter.shape, generator=torch.Generator().manual_seed(parameter.numel()))
                parameter.add_(0.1 * noise)
        pipe.save_pretrained(folder / "base")
        write_reference(folder / "base", folder / "base.json")
        for kind in kinds:
            read = place(load_base(folder / "base.json", dtype=BFLOAT16, quantize=kind), device)
            drawn[kind] = generate(read, ["a woman", "a"], [0, 1], height=64, width=32, steps=2).float()
    other = float((drawn["none"] - drawn["none"].flip(0)).abs().mean())
    return [
        row(f"{kind}: difference", error, "of 255", 0 < error < 0.5 * other, f"of two prompts {other:.1f}")
        for kind in kinds[1:]
        for error in [float((drawn[kind] - drawn["none"]).abs().mean())]
    ]


CHECKS: dict[str, Callable[[torch.device, Sizes], list[Row]]] = {
    "attention": attention,
    "transformer": transformer,
    "memory": memory,
    "fsdp": fsdp,
    "training": training,
    "generation": generation,
    "card": card,
}


def run(device: torch.device, sizes: Sizes, seconds: float = SECONDS) -> list[Row]:
    """Run every check that can begin within `seconds`. One that raises is a row that does not hold."""
    rows, begin = [], time.perf_counter()
    for name, check in CHECKS.items():
        if time.perf_counter() - begin > seconds:
            rows.append({"check": name, **row("left out", None, "", None, f"{seconds:.0f} s are over")})
            continue
        print(f"{time.perf_counter() - begin:5.0f} s  {name}", flush=True)
        try:
            found = check(device, sizes)
        except Exception as error:  # the others still say something
            found = [row("failed", None, "", False, f"{type(error).__name__}: {(str(error) or '-').splitlines()[0]}")]
        rows += [{"check": name, **each} for each in found]
        _free(device)
    rows.append({"check": "all", **row("time", time.perf_counter() - begin, "s")})
    return rows


def _free(device: torch.device) -> None:
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()


def show(rows: list[Row], console: Console) -> None:
    """Print the table."""
    table = Table(box=box.SIMPLE_HEAD)
    for heading in ("check", "what", "value", "holds", "note"):
        table.add_column(heading, overflow="fold")
    for each in rows:
        value = "" if each["value"] is None else f"{each['value']:.4g} {each['unit']}"
        holds = {True: "yes", False: "NO", None: ""}[each["holds"]]
        table.add_row(each["check"], each["what"], value, holds, each["note"])
    console.print(table)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, default=Path("gpu.json"), help="where to write the numbers (gpu.json)")
    parser.add_argument("--seconds", type=float, default=SECONDS - 60, help="no check begins after this (420)")
    parser.add_argument("--toy", action="store_true", help="toy sizes on the CPU: a rehearsal")
    options = parser.parse_args()
    if not options.toy and not torch.cuda.is_available():
        print("no GPU here: nothing is measured; --toy rehearses every path on the CPU")
        return 0
    device = torch.device("cpu" if options.toy else "cuda:0")
    if device.type == "cuda":
        torch.cuda.set_device(device)  # for NCCL
    rows = run(device, TOY if options.toy else FULL, options.seconds)
    show(rows, TableConsole())
    save(options.json, device, rows)
    print(f"wrote {options.json}")
    return int(any(each["holds"] is False for each in rows))


if __name__ == "__main__":
    raise SystemExit(main())
