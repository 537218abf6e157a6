"""The cost of TACA's attention, as ratios to plain attention in the same process.

    python benchmarks/attention.py [--json FILE] [--device cpu|cuda] [--rounds 7] [--quick]

On a CPU: float32, one thread, few heads (the ratio does not depend on their number). On a GPU: bfloat16, all heads. The methods:

    plain            one attention call, as diffusers makes it
    split            ours: image and text queries apart, text keys scaled for the image queries (components.taca.attention)
    two passes       the paper's "selective recomposition": two full calls; the image rows of one replace those of the other
    flex, eager      the released code for FLUX: flex_attention with a score modification, not compiled
    explicit         the released code for SD3: logits, softmax and product in separate operations

Then full steps of the small model with TACA on and off. Nothing is asserted. Takes about two minutes on one CPU thread.
"""

import argparse
import math
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from rich.table import Table
from timing import Timing, describe, save, take_turns
from torch import Tensor

from components.taca.attention import temperature_adjusted_attention
from pipelines.terminal.console import TableConsole

GAMMA = 1.2
ROOT = Path(__file__).resolve().parent.parent

Attention = Callable[[Tensor, Tensor, Tensor], Tensor]


@dataclass(frozen=True)
class Shape:
    """A joint sequence. `heads` are those of the model; `cpu_heads` are used on a CPU."""

    name: str
    text: int
    image: int
    head_dim: int
    heads: int
    cpu_heads: int
    text_first: bool

    @property
    def text_slice(self) -> slice:
        return slice(0, self.text) if self.text_first else slice(self.image, self.image + self.text)


SHAPES = (
    Shape("FLUX 1024x1024", 512, 4096, 128, 24, 2, text_first=True),
    Shape("FLUX 512x512", 512, 1024, 128, 24, 4, text_first=True),
    Shape("SD3.5 1024x1024", 333, 4096, 64, 24, 2, text_first=False),
)
QUICK = (Shape("a small one", 32, 256, 32, 4, 4, text_first=True),)


def methods(shape: Shape, device: torch.device) -> dict[str, Attention]:
    """The attentions to compare; tensors are (B, S, H, D)."""
    from diffusers.models.attention_dispatch import dispatch_attention_fn
    from torch.nn.attention.flex_attention import flex_attention

    gamma = torch.full((1, 1, 1, 1), GAMMA, device=device)  # a float32 tensor, as in the processors
    text = shape.text_slice
    image = slice(shape.text, None) if shape.text_first else slice(0, shape.image)

    def split(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        return temperature_adjusted_attention(query, key, value, gamma, text)

    def two_passes(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        scaled = key.clone()
        scaled[:, text] = (key[:, text] * gamma).to(key.dtype)
        out = dispatch_attention_fn(query, key, value)
        out[:, image] = dispatch_attention_fn(query, scaled, value)[:, image]
        return out

    def is_text(index: Tensor) -> Tensor:
        return (index >= text.start) & (index < text.stop)

    def score(logit: Tensor, b: Tensor, h: Tensor, q: Tensor, k: Tensor) -> Tensor:
        return torch.where(~is_text(q) & is_text(k), logit * GAMMA, logit)

    def flex(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        turned = (tensor.transpose(1, 2) for tensor in (query, key, value))
        return flex_attention(*turned, score_mod=score).transpose(1, 2)  # type: ignore[union-attr]

    def explicit(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        q, k, v = (tensor.transpose(1, 2) for tensor in (query, key, value))
        logits = q @ k.transpose(-2, -1) / math.sqrt(q.shape[-1])  # (B, H, S, S)
        factor = torch.ones(q.shape[2], k.shape[2], device=device, dtype=q.dtype)
        factor[image, text] = GAMMA
        return ((logits * factor).softmax(-1) @ v).transpose(1, 2)

    return {
        "plain": lambda q, k, v: dispatch_attention_fn(q, k, v),
        "split": split,
        "two passes": two_passes,
        "flex, eager": flex,
        "explicit": explicit,
    }


def measure(shape: Shape, device: torch.device, rounds: int, budget: float) -> list[dict[str, Any]]:
    """Time forward, and forward with backward, of every method on one shape."""
    heads = shape.heads if device.type == "cuda" else shape.cpu_heads
    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    source = torch.Generator().manual_seed(0)
    size = (1, shape.text + shape.image, heads, shape.head_dim)
    tensors = [torch.randn(size, generator=source).to(device, dtype) for _ in range(4)]
    inputs, gradient = tensors[:3], tensors[3]
    attentions = methods(shape, device)

    @torch.no_grad()
    def forward(attend: Attention) -> Tensor:
        return attend(*inputs)

    def both(attend: Attention) -> tuple[Tensor, ...]:
        leaves = [tensor.detach().requires_grad_() for tensor in inputs]
        return torch.autograd.grad(attend(*leaves), leaves, gradient)

    rows = []
    reference = forward(attentions["split"]).double()
    for mode, run in (("forward", forward), ("forward + backward", both)):
        found = take_turns(
            {name: lambda a=attend, r=run: r(a) for name, attend in attentions.items()},  # type: ignore[misc]
            device,
            rounds=rounds,
            budget=budget,
        )
        for name, timing in found.items():
            row = _row(shape.name, mode, name, timing, found["plain"])
            if mode == "forward" and name != "plain" and not timing.failure:
                row["difference"] = float((forward(attentions[name]).double() - reference).abs().max())
            rows.append({**row, "heads": heads, "text": shape.text, "image": shape.image, "head_dim": shape.head_dim})
    return rows


def measure_steps(device: torch.device, rounds: int) -> list[dict[str, Any]]:
    """Time full steps of the small model with every sample above the threshold: TACA on against off."""
    from components.taca.install import enable_taca
    from components.taca.lora import add_lora
    from components.taca.schedule import TemperatureSchedule
    from components.taca.velocity import VelocityTask

    batch, name = 16, ""
    kinds: dict[str, Callable[[], object]] = {}
    for kind in ("plain", "split"):
        transformer, name = _small_transformer()
        add_lora(transformer.to(device), 16, seed=0)
        if kind == "split":
            enable_taca(transformer, TemperatureSchedule(gamma=GAMMA, threshold=0.5))
        sample = _sample(transformer.config, batch, device)
        null = {"null_prompt_embeds": sample["prompt_embeds"][0], "null_pooled": sample["pooled"][0]}
        task = VelocityTask(transformer, **null, seed=0, sigma_low=0.5).to(device)
        optimizer = torch.optim.AdamW([p for p in task.parameters() if p.requires_grad], lr=1e-4)

        def train(task: Any = task, sample: Any = sample, optimizer: Any = optimizer) -> None:
            optimizer.zero_grad(set_to_none=True)
            task(sample, 0)["loss"].backward()
            optimizer.step()

        @torch.no_grad()
        def forward(task: Any = task, sample: Any = sample) -> None:
            task(sample, 0)

        kinds |= {f"forward/{kind}": forward, f"training step/{kind}": train}
    rows = []
    for mode in ("forward", "training step"):
        pair = {kind: kinds[f"{mode}/{kind}"] for kind in ("plain", "split")}
        found = take_turns(pair, device, rounds=3 * rounds, budget=20)
        rows += [_row(name, mode, kind, timing, found["plain"]) for kind, timing in found.items()]
    return rows


def _small_transformer() -> tuple[Any, str]:
    """The transformer of the default: the trained one if it exists, else one of the same shape with random weights."""
    from diffusers import FluxTransformer2DModel

    folder = ROOT / "models/base/transformer"
    if folder.is_dir():
        return FluxTransformer2DModel.from_pretrained(folder, local_files_only=True), "small model, batch 16"
    from components.taca.toy.config import TinyConfig
    from components.taca.toy.pipeline import build_tiny_pipeline

    return build_tiny_pipeline(TinyConfig(), ("word",), 0).transformer, "small model (random), batch 16"


def _sample(config: Any, batch: int, device: torch.device) -> dict[str, Tensor]:
    """A batch of the default size: 64x32 pictures, 128 image and 24 text tokens."""
    source = torch.Generator().manual_seed(0)
    sizes = {
        "latents": (batch, 128, config.in_channels),
        "prompt_embeds": (batch, 24, config.joint_attention_dim),
        "pooled": (batch, config.pooled_projection_dim),
    }
    sample = {name: torch.randn(size, generator=source).to(device) for name, size in sizes.items()}
    grid = torch.cartesian_prod(torch.zeros(1), torch.arange(16.0), torch.arange(8.0))
    return sample | {"img_ids": grid.to(device)}


def _row(shape: str, mode: str, method: str, timing: Timing, plain: Timing) -> dict[str, Any]:
    row: dict[str, Any] = {"shape": shape, "mode": mode, "method": method}
    if timing.failure:
        return row | {"failure": timing.failure}
    return row | {
        "milliseconds": 1000 * timing.minimum,
        "median_milliseconds": 1000 * timing.median,
        "ratio": timing.minimum / plain.minimum,
        "median_ratio": timing.median / plain.median,
        "repetitions": len(timing.seconds),
    }


def show(rows: list[dict[str, Any]], device: torch.device, console: TableConsole) -> None:
    """Print the table."""
    table = Table(title=" · ".join(f"{key} {value}" for key, value in describe(device).items()), title_justify="left")
    for heading in ("what", "mode", "method", "ratio", "of medians", "ms", "median ms", "n", "remarks"):
        table.add_column(heading, justify="left" if heading in ("what", "mode", "method", "remarks") else "right")
    last = None
    for row in rows:
        group = (row["shape"], row["mode"])
        if last is not None and group != last:
            table.add_section()
        cells = ["", ""] if group == last else list(group)
        last = group
        if "failure" in row:
            table.add_row(*cells, row["method"], *[""] * 5, f"fails: {row['failure'][:60]}")
            continue
        difference = f"differs from split by {row['difference']:.0e} at most" if "difference" in row else ""
        table.add_row(
            *cells,
            row["method"],
            f"{row['ratio']:.2f}",
            f"{row['median_ratio']:.2f}",
            f"{row['milliseconds']:.1f}",
            f"{row['median_milliseconds']:.1f}",
            str(row["repetitions"]),
            difference,
        )
    console.print(table)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, help="also write the numbers to this file")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--rounds", type=int, default=7, help="repetitions of each method (slow ones: fewer)")
    parser.add_argument("--quick", action="store_true", help="one small shape, as a smoke test")
    options = parser.parse_args()
    device = torch.device(options.device)
    torch.set_num_threads(1)
    warnings.filterwarnings(
        "ignore", message="flex_attention called without torch.compile"
    )  # this is the method that is measured
    rows = []
    for shape in QUICK if options.quick else SHAPES:
        rows += measure(shape, device, options.rounds, budget=3.0)
    rows += measure_steps(device, options.rounds)
    show(rows, device, TableConsole())
    if options.json:
        save(options.json, device, rows)


if __name__ == "__main__":
    main()
