"""The flow-matching task: its loss against the formula, its data against the number of workers, and that it learns."""

import copy
import math
from typing import Any

import pytest
import torch
from small_transformers import SMALL, flux
from test_install import explicit_attention
from torch import Tensor

from components.errors import ParameterError
from components.taca.install import enable_taca, taca_handle
from components.taca.lora import add_lora
from components.taca.schedule import TemperatureSchedule
from components.taca.velocity import VelocityTask

NULL = {"null_prompt_embeds": torch.full((6, 24), 0.5), "null_pooled": torch.full((20,), -0.5)}
SCHEDULE = TemperatureSchedule(gamma=1.5, threshold=0.9)


PACKED = ("flux", "chroma", "qwen-image")
POOLED = ("flux", "sd3")
MASKED = ("chroma", "qwen-image")


def batch_of(count: int, family: str = "flux") -> dict[str, Tensor]:
    """Packed latents are 4 down by 5 across."""
    source = torch.Generator().manual_seed(4)
    shape = (20, 12) if family in PACKED else (3, 8, 10)
    batch = {
        "latents": torch.randn(count, *shape, generator=source),
        "prompt_embeds": torch.randn(count, 6, 24, generator=source),
    }
    if family in POOLED:
        batch["pooled"] = torch.randn(count, 20, generator=source)
    if family in MASKED:
        batch["text_mask"] = torch.arange(6) < torch.arange(3, 3 + count).clamp(max=6)[:, None]
    if family in PACKED:
        batch["img_ids"] = torch.cartesian_prod(torch.zeros(1), torch.arange(4.0), torch.arange(5.0))
    return batch


def null_of(family: str) -> dict[str, Tensor]:
    null = {"null_prompt_embeds": NULL["null_prompt_embeds"]}
    if family in POOLED:
        null["null_pooled"] = NULL["null_pooled"]
    if family in MASKED:
        null["null_text_mask"] = torch.arange(6) < 1
    return null


def make_task(model: Any = None, family: str = "flux", **settings: Any) -> VelocityTask:
    return VelocityTask(model if model is not None else flux(), **null_of(family), **({"seed": 3} | settings))


class Recorder(torch.nn.Module):
    """Stands where a transformer's forward does and keeps what it was given."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.calls: list[dict[str, Any]] = []
        self.answers: list[Tensor] = []
        model.register_forward_pre_hook(lambda _m, _a, kwargs: self.calls.append(kwargs), with_kwargs=True)
        model.register_forward_hook(lambda _m, _a, output: self.answers.append(output[0]))


def velocity_by_hand(model: Any, family: str, noisy: Tensor, sigma: Tensor, batch: dict[str, Tensor]) -> Tensor:
    """Each class called as its pipeline in diffusers calls it."""
    text: dict[str, Any] = {"encoder_hidden_states": batch["prompt_embeds"]}
    if family in POOLED:
        text["pooled_projections"] = batch["pooled"]
    if family in ("flux", "chroma"):
        text |= {"img_ids": batch["img_ids"], "txt_ids": torch.zeros(6, 3)}
    if family == "chroma":  # ChromaPipeline joins a mask of floats to ones for the image
        text["attention_mask"] = torch.cat([batch["text_mask"].float(), torch.ones(len(noisy), 20)], dim=1)
    if family == "qwen-image":
        text |= {"encoder_hidden_states_mask": batch["text_mask"], "img_shapes": [[(1, 4, 5)]] * len(noisy)}
    with torch.no_grad():
        return model(noisy, timestep=1000 * sigma if family == "sd3" else sigma, return_dict=False, **text)[0]


@pytest.mark.parametrize("family", list(SMALL))
def test_the_loss_is_that_of_equation_13(family: str) -> None:
    model, batch = SMALL[family].build(), batch_of(3, family)
    task = make_task(model, family, caption_dropout=0.0, sigma_low=0.2)
    loss = task(batch, step=7)["loss"]
    sigma, noise, _ = task.draw(batch["latents"].shape, 7)
    level, x0 = sigma.reshape(-1, *[1] * (noise.ndim - 1)), batch["latents"]
    velocity = velocity_by_hand(model, family, x0 - level * x0 + level * noise, sigma, batch).double()
    expected = (velocity - (noise.double() - x0.double())).pow(2).mean()
    assert loss.item() == pytest.approx(expected.item(), rel=1e-5)


@pytest.mark.parametrize("family", MASKED)
def test_the_text_mask_reaches_the_transformer_and_drops_with_its_caption(family: str) -> None:
    model, batch = SMALL[family].build(), batch_of(8, family)
    recorder, task = Recorder(model), make_task(model, family, caption_dropout=0.5)
    task(batch, 0)
    dropped = task.draw(batch["latents"].shape, 0)[2]
    assert 0 < dropped.sum() < 8
    mask = recorder.calls[0].get("encoder_hidden_states_mask", recorder.calls[0].get("attention_mask"))
    expected = torch.where(dropped[:, None], torch.arange(6) < 1, batch["text_mask"])
    assert torch.equal(mask[:, :6].bool(), expected)
    assert mask[:, 6:].all()
    unmasked = make_task(SMALL[family].build(), family, caption_dropout=0.5)
    assert unmasked(batch | {"text_mask": torch.ones(8, 6).bool()}, 0)["loss"] != task(batch, 0)["loss"]


@pytest.mark.parametrize("family", list(SMALL))
def test_a_bfloat16_model_is_trained_as_one_of_the_same_weights_in_float64(
    family: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its velocity is near that of an explicit softmax with each sample's gamma; its loss is the formula without rounding."""
    model, batch = SMALL[family].build().to(torch.bfloat16), batch_of(3, family)
    exact = copy.deepcopy(model).double()
    schedule = TemperatureSchedule(gamma=1.5, threshold=0.4)
    recorder, task = Recorder(model), make_task(model, family, caption_dropout=0.0, schedule=schedule)
    # Some families round 1000 sigma to bfloat16 themselves, which these levels survive.
    sigma, noise = torch.tensor([1.0, 0.5, 0.25]), task.draw(batch["latents"].shape, 1)[1]
    monkeypatch.setattr(task, "draw", lambda *_: (sigma, noise, torch.zeros(3, dtype=torch.bool)))
    loss, velocity = task(batch, 1)["loss"], recorder.answers[0].double()
    level = sigma.reshape(-1, *[1] * (noise.ndim - 1))
    noisy = ((1 - level) * batch["latents"] + level * noise).bfloat16().double()
    text = {name: batch[name].bfloat16().double() for name in ("prompt_embeds", "pooled") if name in batch}
    truths = []
    for gamma in ([1.5, 1.5, 1.0], [1.0, 1.0, 1.0]):
        with explicit_attention(SMALL[family], gamma, 6):
            truths.append(velocity_by_hand(exact, family, noisy, sigma, batch | text))
    error, without = ([sample.norm().item() for sample in velocity - truth] for truth in truths)
    assert all(one < 0.025 * sample.norm() for one, sample in zip(error, truths[0], strict=True))
    assert all(one < 0.4 * other for one, other in zip(error[:2], without[:2], strict=True))
    assert loss.dtype == torch.float32
    expected = (velocity - (noise.double() - batch["latents"].double())).square().mean()
    assert loss.item() == pytest.approx(expected.item(), rel=1e-6)


def test_what_the_empty_prompt_lacks_is_named() -> None:
    with pytest.raises(ParameterError, match=r"pass all that LatentCache.null_caption\(\) returns"):
        VelocityTask(flux(), null_prompt_embeds=NULL["null_prompt_embeds"], seed=0)(batch_of(2), 0)


def test_a_perfect_velocity_has_no_loss() -> None:
    task, batch = make_task(caption_dropout=0.0), batch_of(2)
    _, noise, _ = task.draw(batch["latents"].shape, 0)
    task.transformer.register_forward_hook(lambda *_: (noise - batch["latents"],))
    assert task(batch, 0)["loss"].item() == 0


@pytest.mark.parametrize("step", [0, 5])
def test_all_ranks_together_see_what_one_rank_sees(step: int) -> None:
    whole = make_task(caption_dropout=0.5).draw(torch.Size((8, 20, 12)), step)
    for world_size in (2, 4):
        ranks = [make_task(caption_dropout=0.5, rank=r, world_size=world_size) for r in range(world_size)]
        parts = [task.draw(torch.Size((8 // world_size, 20, 12)), step) for task in ranks]
        for drawn, pieces in zip(whole, zip(*parts, strict=True), strict=True):
            assert torch.equal(drawn, torch.cat(pieces))


def test_the_mean_of_the_ranks_losses_is_the_whole_batchs_loss() -> None:
    model, batch = flux(), batch_of(4)
    whole = make_task(model)(batch, 2)["loss"]
    losses = []
    for rank in range(2):
        part = {name: x if name == "img_ids" else x[2 * rank : 2 * rank + 2] for name, x in batch.items()}
        losses.append(make_task(model, rank=rank, world_size=2)(part, 2)["loss"])
    assert (sum(losses) / 2).item() == pytest.approx(whole.item(), rel=1e-5)


def test_draws_change_with_step_and_seed_and_ignore_global_random_state() -> None:
    shape = torch.Size((4, 20, 12))
    torch.manual_seed(0)
    first = make_task().draw(shape, 1)
    torch.manual_seed(1)
    assert all(torch.equal(a, b) for a, b in zip(first, make_task().draw(shape, 1), strict=True))
    assert not torch.equal(first[1], make_task().draw(shape, 2)[1])
    assert not torch.equal(first[1], make_task(seed=8).draw(shape, 1)[1])


def test_noise_levels_for_the_adapter_are_uniform_above_the_threshold() -> None:
    sigma = make_task(sigma_low=0.97).draw(torch.Size((20000, 1, 1)), 0)[0]
    assert sigma.min() >= 0.97
    assert sigma.max() <= 1
    assert sigma.mean().item() == pytest.approx(0.985, abs=2e-4)
    assert sigma.std().item() == pytest.approx(0.03 / math.sqrt(12), rel=0.02)


@pytest.mark.parametrize("low", [0.0, 0.6])
def test_noise_levels_of_the_whole_range_are_shifted_as_a_samplers_are(low: float) -> None:
    """Undoing the shift, sigma / (s - (s - 1) sigma), must leave a uniform variable."""
    sigma = make_task(shift=3.0, sigma_low=low).draw(torch.Size((20000, 1, 1)), 0)[0].double()
    assert sigma.min() >= low
    time = sigma / (3 - 2 * sigma)
    bottom = low / (3 - 2 * low)
    uniform = ((time - bottom) / (1 - bottom)).sort().values
    assert (
        uniform - torch.linspace(0, 1, 20000).double()
    ).abs().max() < 0.015  # Kolmogorov-Smirnov, far beyond p = 1e-3


def test_dropped_captions_get_both_embeddings_of_the_empty_prompt() -> None:
    model = flux()
    recorder, batch = Recorder(model), batch_of(16)
    task = make_task(model, caption_dropout=0.5)
    task(batch, 0)
    dropped = task.draw(batch["latents"].shape, 0)[2]
    assert 0 < dropped.sum() < 16
    call = recorder.calls[0]
    for row in range(16):
        prompt = NULL["null_prompt_embeds"] if dropped[row] else batch["prompt_embeds"][row]
        pooled = NULL["null_pooled"] if dropped[row] else batch["pooled"][row]
        assert torch.equal(call["encoder_hidden_states"][row], prompt)
        assert torch.equal(call["pooled_projections"][row], pooled)


def test_the_schedule_acts_on_each_sample_by_its_own_noise_level() -> None:
    outputs = []
    for schedule in (None, SCHEDULE):
        model = flux()
        recorder = Recorder(model)
        task = make_task(model, schedule=schedule, caption_dropout=0.0, sigma_low=0.8)
        assert (taca_handle(model) is not None) == (schedule is not None)
        task(batch_of(8), 0)
        outputs.append(recorder.answers[0])
        sigma = task.draw(torch.Size((8, 20, 12)), 0)[0]
    changed = (outputs[0] - outputs[1]).abs().amax((1, 2)) > 0
    assert 0 < changed.sum() < 8
    assert torch.equal(changed, sigma >= 0.9)


def test_a_task_without_a_schedule_leaves_taca_as_the_caller_set_it() -> None:
    model = flux()
    handle = enable_taca(model, SCHEDULE)
    make_task(model)
    assert taca_handle(model) is handle


def test_a_guidance_distilled_model_is_given_its_guidance() -> None:
    model = flux(guidance_embeds=True)
    recorder = Recorder(model)
    make_task(model, guidance=2.5)(batch_of(2), 0)
    assert recorder.calls[0]["guidance"].tolist() == [2.5, 2.5]


def test_a_bfloat16_model_is_trained_on_float32_noise_levels_and_loss() -> None:
    model = flux().to(torch.bfloat16)
    recorder = Recorder(model)
    loss = make_task(model, schedule=SCHEDULE)(batch_of(2), 0)["loss"]
    assert recorder.calls[0]["timestep"].dtype == torch.float32
    assert recorder.calls[0]["hidden_states"].dtype == torch.bfloat16
    assert loss.dtype == torch.float32


def test_training_the_adapter_under_taca_lowers_the_loss_and_moves_nothing_else() -> None:
    model = flux()
    add_lora(model, rank=4, seed=0)
    task = make_task(model, sigma_low=0.9, schedule=SCHEDULE, caption_dropout=0.1)
    frozen = {name: p.clone() for name, p in model.named_parameters() if not p.requires_grad}
    optimizer = torch.optim.AdamW([p for p in task.parameters() if p.requires_grad], lr=5e-3)
    batch = batch_of(8)

    def measured() -> float:
        with torch.no_grad():
            return sum(task(batch, step)["loss"].item() for step in range(100, 104)) / 4

    before = measured()
    for step in range(30):
        optimizer.zero_grad()
        task(batch, step)["loss"].backward()
        optimizer.step()
    assert measured() < 0.9 * before
    assert all(torch.equal(p, frozen[name]) for name, p in model.named_parameters() if name in frozen)


def test_a_checkpoint_of_the_task_does_not_hold_the_empty_prompt() -> None:
    assert not [name for name in make_task().state_dict() if "null" in name]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"sigma_low": 1.0}, "sigma_low"),
        ({"shift": 0.0}, "shift"),
        ({"caption_dropout": 1.5}, "caption_dropout"),
        ({"rank": 2, "world_size": 2}, "rank"),
    ],
)
def test_a_wrong_setting_is_a_parameter_error(settings: dict[str, float], message: str) -> None:
    with pytest.raises(ParameterError, match=message):
        make_task(**settings)


def test_embeddings_of_another_text_length_than_the_empty_prompts_are_refused() -> None:
    batch = batch_of(2) | {"prompt_embeds": torch.zeros(2, 9, 24)}
    with pytest.raises(ParameterError, match="text length"):
        make_task()(batch, 0)
