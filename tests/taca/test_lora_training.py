"""LoRA training by one process and by two, whole and sharded, at once and in parts: one and the same LoRA."""

import math
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from safetensors.torch import load_file
from small_transformers import flux, sd3
from torch import Tensor
from two_processes import in_two_processes

from components.taca.lora import add_lora, save_lora
from components.taca.schedule import TemperatureSchedule
from components.taca.velocity import VelocityTask
from components.training.accumulation import virtual_ranks
from components.training.config import LoopConfig
from components.training.context import LocalContext
from components.training.distribution import repeated_blocks
from components.training.loop import NonFiniteLossError, fit

BATCH, HALF, END = 8, 2, 3
# eps far above rounding: Adam divides by the gradient's size, and would blow up the noise of gradients that are near zero.
CONFIG = LoopConfig(
    steps=END, learning_rate=0.02, warmup_steps=1, epsilon=1e-3, clip_norm=0.5, ema_decay=0.6,
    report_every=1, checkpoint_every=HALF,
)  # fmt: skip
BF16 = replace(CONFIG, precision="bf16")


class Process(LocalContext):
    """One process of several that share a folder of checkpoints; rank 0 writes."""

    def __init__(self, rank: int, world_size: int, strategy: str, folder: Path | None = None) -> None:
        super().__init__(folder=folder)
        self.rank, self.world_size, self.strategy = rank, world_size, strategy

    def save(self, state: Mapping[str, Any], step: int) -> None:
        if self.rank == 0:
            super().save(state, step)
        if self.world_size > 1:
            dist.barrier()


class Scaled(torch.autograd.Function):
    """The identity, whose gradient is multiplied by a factor."""

    @staticmethod
    def forward(context: Any, values: Tensor, factor: float) -> Tensor:
        context.factor = factor
        return values.clone()

    @staticmethod
    def backward(context: Any, *gradients: Tensor) -> Any:
        return gradients[0] * context.factor, None


def global_batch(step: int, family: str) -> dict[str, Tensor]:
    source = torch.Generator().manual_seed(step)
    return {
        "latents": torch.randn(BATCH, *((16, 12) if family == "flux" else (3, 8, 8)), generator=source),
        "prompt_embeds": torch.randn(BATCH, 6, 24, generator=source),
        "pooled": torch.randn(BATCH, 20, generator=source),
    }


def train(
    context: Process,
    out: Path,
    *,
    family: str = "flux",
    config: LoopConfig = CONFIG,
    steps: int = END,
    base: torch.dtype = torch.float32,
    checkpointing: bool = False,
    bad: tuple[int, int] | None = None,
    steep: bool = False,
) -> VelocityTask:
    """A LoRA of rank 3, odd so that it does not divide by two processes, written to `out` with what was reported.

    bad: (virtual rank, step) of a micro-batch whose latents are not a number; if `steep`, whose gradients alone are not.
    """
    model: Any = (flux(num_layers=1, num_single_layers=1) if family == "flux" else sd3()).to(base)
    add_lora(model, rank=3, seed=0)
    if checkpointing:
        model.enable_gradient_checkpointing()
    task = VelocityTask(
        model, null_prompt_embeds=torch.full((6, 24), 0.5), null_pooled=torch.full((20,), -0.5), seed=3, sigma_low=0.6,
        rank=context.rank, world_size=context.world_size, schedule=TemperatureSchedule(gamma=1.5, threshold=0.8),
    )  # fmt: skip

    scale = [1.0]  # of what flows back through the last layer's input
    if steep:
        model.proj_out.register_forward_pre_hook(lambda layer, inputs: (Scaled.apply(inputs[0], scale[0]),))

    def part(ranks: dict[str, int]) -> Any:
        def batch(step: int) -> dict[str, Tensor]:
            rows = {
                key: value.chunk(ranks["world_size"])[ranks["rank"]]
                for key, value in global_batch(step, family).items()
            }
            is_bad = bad == (ranks["rank"], step)
            if is_bad and not steep:
                rows["latents"] = rows["latents"] * math.nan
            scale[0] = math.inf if is_bad else 1.0
            if family == "flux":
                rows["img_ids"] = torch.cartesian_prod(torch.zeros(1), torch.arange(4.0), torch.arange(4.0))
            return rows

        return batch

    parts = [part(ranks) for ranks in virtual_ranks(context, config.accumulate)]
    try:
        fit(task, parts, replace(config, steps=steps), context, decay="constant", blocks=repeated_blocks(model))
    finally:
        save_lora(model, out / f"rank-{context.rank}", {})
        torch.save(context.history, out / f"rank-{context.rank}" / "history.pt")
    return task


def adapter(out: Path, rank: int = 0) -> dict[str, Tensor]:
    return load_file(out / f"rank-{rank}" / "pytorch_lora_weights.safetensors")


def losses(out: Path, rank: int = 0) -> list[float]:
    return [metrics["train/loss"] for _, metrics in torch.load(out / f"rank-{rank}" / "history.pt")]


def norms(out: Path) -> list[float]:
    """Of the gradients before clipping, which would hide a wrong scale of all of them."""
    return [metrics["train/gradient_norm"] for _, metrics in torch.load(out / "rank-0" / "history.pt")]


def alone(out: Path, folder: Path | None = None, **settings: Any) -> dict[str, Tensor]:
    train(Process(0, 1, "ddp", folder), out, **settings)
    return adapter(out)


TWO: dict[str, dict[str, Any]] = {  # what two processes train
    "ddp": {},
    "ddp in 2 parts": {"config": replace(CONFIG, accumulate=2)},
    "ddp bf16": {"config": BF16, "base": torch.bfloat16},
    "fsdp": {},
    "fsdp in 4 parts, checkpointing": {"config": replace(CONFIG, accumulate=4), "checkpointing": True},
    "fsdp sd3": {"family": "sd3"},
    "fsdp bf16": {"config": BF16, "base": torch.bfloat16, "checkpointing": True},
}


BAD: dict[str, dict[str, Any]] = {  # what two processes stop
    "ddp loss": {"config": replace(CONFIG, accumulate=2), "bad": (2, 2)},
    "fsdp loss": {"config": replace(CONFIG, accumulate=2), "bad": (2, 2)},
    "fsdp gradient": {"config": replace(CONFIG, clip_norm=0.0), "bad": (1, 2), "steep": True},
}


def one_of_two(rank: int, world_size: int, folder: str) -> None:
    root = Path(folder)
    for name, settings in TWO.items():
        task = train(Process(rank, 2, name[:4].strip()), root / name, **settings)
        if name == "fsdp":
            stored = {n: p.to_local().numel() / p.numel() for n, p in task.named_parameters() if p.numel() > 1}
            torch.save(stored, root / f"stored-{rank}.pt")
    for strategy in ("ddp", "fsdp"):
        train(
            Process(rank, 2, strategy, root / f"half {strategy}" / "checkpoints"), root / f"half {strategy}", steps=HALF
        )
        context = Process(rank, 2, strategy, root / "half alone" / f"checkpoints for {strategy}")
        train(context, root / f"alone, then {strategy}")
    for name, settings in BAD.items():
        try:
            train(Process(rank, 2, name.split()[0]), root / f"bad {name}", **settings)
        except NonFiniteLossError as error:
            (root / f"bad {name}" / f"stopped-{rank}").write_text(str(error))


@pytest.fixture(scope="module")
def two_processes(tmp_path_factory: pytest.TempPathFactory, warm_address: str) -> Path:
    """Everything that two processes train, trained once: starting them is what takes the time."""
    root = tmp_path_factory.mktemp("two")
    for strategy in ("ddp", "fsdp"):
        alone(root / "half alone", root / "half alone" / f"checkpoints for {strategy}", steps=HALF)
    in_two_processes(one_of_two, warm_address, str(root))
    return root


def assert_same(found: dict[str, Tensor], expected: dict[str, Tensor], tolerance: float = 2e-5) -> None:
    assert found.keys() == expected.keys()
    for name in expected:
        torch.testing.assert_close(
            found[name], expected[name], rtol=1e-4, atol=tolerance, msg=lambda m, n=name: f"{n}: {m}"
        )


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name, settings in TWO.items() if "base" not in settings])
def test_two_processes_train_the_lora_of_one(name: str, two_processes: Path, tmp_path: Path) -> None:
    expected = alone(tmp_path, family=TWO[name].get("family", "flux"))
    assert max(w.abs().max() for n, w in expected.items() if "lora_B" in n) > 0.01  # far from where it began
    assert_same(adapter(two_processes / name), expected)
    assert losses(two_processes / name) == pytest.approx(losses(tmp_path), rel=1e-5)
    assert norms(two_processes / name) == pytest.approx(norms(tmp_path), rel=1e-4)
    zero, one = adapter(two_processes / name), adapter(two_processes / name, rank=1)
    assert all(torch.equal(zero[key], one[key]) for key in zero)


@pytest.mark.slow
def test_fsdp_stores_a_part_of_every_tensor_in_each_process(two_processes: Path) -> None:
    zero, one = (torch.load(two_processes / f"stored-{rank}.pt") for rank in (0, 1))
    assert zero.keys() == one.keys()
    assert any("lora_A" in name for name in zero)
    assert any("time_text_embed" in name for name in zero)  # the rest of the transformer, outside of its blocks
    assert all(zero[name] + one[name] == pytest.approx(1) for name in zero)
    assert all(0.3 <= part <= 0.7 for name, part in zero.items())  # of 3 rows one process has 2


@pytest.mark.slow
def test_over_a_bfloat16_base_both_strategies_train_the_same_float32_lora(two_processes: Path, tmp_path: Path) -> None:
    expected = alone(tmp_path, config=BF16, base=torch.bfloat16)
    assert {weight.dtype for weight in expected.values()} == {torch.float32}
    for name in ("ddp bf16", "fsdp bf16"):
        found = adapter(two_processes / name)
        moved = {key: weight for key, weight in expected.items() if "lora_B" in key}
        error = math.sqrt(sum(float((found[key] - moved[key]).square().sum()) for key in moved))
        size = math.sqrt(sum(float(weight.square().sum()) for weight in moved.values()))
        assert error < 0.05 * size, name
        assert losses(two_processes / name) == pytest.approx(losses(tmp_path), rel=0.01)


@pytest.mark.slow
@pytest.mark.parametrize("strategy", ["ddp", "fsdp"])
def test_a_run_goes_on_with_another_number_of_processes_and_the_other_strategy(
    strategy: str, two_processes: Path, tmp_path: Path
) -> None:
    expected = alone(tmp_path / "undisturbed")
    assert_same(adapter(two_processes / f"alone, then {strategy}"), expected)
    assert len(losses(two_processes / f"alone, then {strategy}")) == END - HALF
    found = alone(tmp_path / "resumed", two_processes / f"half {strategy}" / "checkpoints")
    assert losses(tmp_path / "resumed") == pytest.approx(losses(tmp_path / "undisturbed")[HALF:], rel=1e-5)
    assert_same(found, expected)


@pytest.mark.slow
@pytest.mark.parametrize("name", BAD)
def test_one_bad_micro_batch_stops_both_processes_before_the_step(
    name: str, two_processes: Path, tmp_path: Path
) -> None:
    for rank in (0, 1):
        found = (two_processes / f"bad {name}" / f"stopped-{rank}").read_text()
        assert f"the {name.split()[1]} is not finite at step 3" in found
    before = alone(tmp_path, steps=2, config=replace(CONFIG, ema_decay=0.0, clip_norm=BAD[name]["config"].clip_norm))
    assert_same(adapter(two_processes / f"bad {name}"), before)


@pytest.mark.parametrize(("family", "accumulate"), [("flux", 2), ("flux", 8), ("sd3", 4)])
def test_a_batch_in_parts_gives_the_step_of_the_whole_batch(family: str, accumulate: int, tmp_path: Path) -> None:
    expected = alone(tmp_path / "whole", family=family)
    found = alone(tmp_path / "parts", family=family, config=replace(CONFIG, accumulate=accumulate))
    assert_same(found, expected)
    assert losses(tmp_path / "parts") == pytest.approx(losses(tmp_path / "whole"), rel=1e-5)
    assert norms(tmp_path / "parts") == pytest.approx(norms(tmp_path / "whole"), rel=1e-4)


def test_checkpointed_activations_give_the_same_lora(tmp_path: Path) -> None:
    assert_same(alone(tmp_path / "checkpointed", checkpointing=True), alone(tmp_path / "stored"), tolerance=1e-6)


def test_the_saved_adapter_is_the_average_of_the_weights_over_the_steps(tmp_path: Path) -> None:
    config = replace(CONFIG, ema_decay=0.6, checkpoint_every=1)
    start = alone(tmp_path / "start", config=replace(config, learning_rate=1e-30, ema_decay=0.0), steps=1)
    expected = {name: weight.double() for name, weight in start.items()}
    for step in range(END):
        weights = alone(tmp_path / f"{step}", config=replace(config, ema_decay=0.0), steps=step + 1)
        decay = min(0.6, (1 + step) / (10 + step))
        expected = {name: decay * value + (1 - decay) * weights[name].double() for name, value in expected.items()}
    found = alone(tmp_path / "averaged", config=config)
    assert_same(found, {name: value.float() for name, value in expected.items()}, tolerance=1e-6)
    assert not torch.equal(found["transformer.transformer_blocks.0.attn.to_q.lora_B.weight"],
                           weights["transformer.transformer_blocks.0.attn.to_q.lora_B.weight"])  # fmt: skip
