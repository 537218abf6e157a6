"""TACA in whole transformers: parity with an independent implementation, and leaving no trace."""

import copy
import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any
from unittest import mock

import pytest
import torch
from small_transformers import SMALL, Small, flux, flux_inputs, sd3, sd3_inputs
from torch import Tensor

from components.errors import ParameterError
from components.taca.install import disable_taca, enable_taca, taca_handle
from components.taca.schedule import TemperatureSchedule

SCHEDULE = TemperatureSchedule(gamma=1.6, threshold=0.9)
every_family = pytest.mark.parametrize("family", SMALL)
FEWER_LAYERS: dict[str, Callable[[], Any]] = {  # what compiling takes grows with their number
    "flux": lambda: flux(num_layers=1, num_single_layers=2),
    "sd3": lambda: sd3(num_layers=2, dual_attention_layers=(0,)),
}
OTHERS = [name for name in SMALL if name not in ("flux", "sd3")]


def run(model: Any, inputs: dict[str, Any]) -> Tensor:
    with torch.no_grad():
        return model(**inputs, return_dict=False)[0]


@contextmanager
def explicit_attention(
    small: Small, gamma: list[float], text: int, *, effect: str = "temperature", queries: str = "image"
) -> Iterator[list[int]]:
    """Stock models compute all attention by PyTorch's function: here it is one softmax over the whole score matrix, with
    the block of image queries x text keys changed by each sample's gamma. Yields the lengths of the sequences seen.

    gamma is rounded to float32 as the schedule's is; the comparison is of the attention, not of that constant.
    """
    factor = torch.tensor(gamma, dtype=torch.float32).double().view(-1, 1, 1, 1)
    lengths: list[int] = []

    def attend(query, key, value, attn_mask=None, dropout_p=0.0, is_causal=False, scale=None, enable_gqa=False):  # type: ignore[no-untyped-def]
        length = key.shape[2]  # (B, H, S, D)
        lengths.append(length)
        logits = query @ key.transpose(-1, -2) * (scale or query.shape[-1] ** -0.5)
        position = torch.arange(length)
        stream = position < small.prefix + text if small.text_first else position >= length - text
        words = stream & (position >= small.prefix)
        if length != max(lengths):  # SD3's second attention, over the image alone
            words = stream = torch.zeros_like(stream)
        block = (~stream)[:, None] & words[None, :] if queries == "image" else stream[:, None] & (~stream)[None, :]
        changed = logits * factor.to(logits) if effect == "temperature" else logits + factor.to(logits).log()
        logits = torch.where(block, changed, logits)
        if attn_mask is not None:
            logits = logits.masked_fill(~attn_mask, -torch.inf) if attn_mask.dtype == torch.bool else logits + attn_mask
        return logits.softmax(-1) @ value

    with mock.patch.object(torch.nn.functional, "scaled_dot_product_attention", attend):
        yield lengths


def explicit_output(small: Small, model: Any, inputs: dict[str, Any], gamma: list[float], **arm: str) -> Tensor:
    text = inputs["encoder_hidden_states"].shape[1]
    with explicit_attention(small, gamma, text, **arm) as lengths:
        out = run(model, inputs)
    assert len(lengths) >= small.layers
    return out


@every_family
@pytest.mark.parametrize("text", [3, 9])
def test_a_whole_model_equals_an_explicit_softmax_in_float64(family: str, text: int) -> None:
    small = SMALL[family]
    model = small.build().double()
    inputs = small.inputs([1.0, 0.95, 0.5], text=text, dtype=torch.float64)
    stock = run(model, inputs)
    with enable_taca(model, SCHEDULE):
        got = run(model, inputs)
    expected = explicit_output(small, model, inputs, [1.6, 1.6, 1.0])
    assert (got - expected).abs().max() < 1e-7
    assert (got[:2] - stock[:2]).abs().max() > 1e-3  # so that the agreement means something


@every_family
@pytest.mark.parametrize("effect", ["temperature", "bias"])
@pytest.mark.parametrize("queries", ["image", "text"])
def test_the_control_arms_equal_an_explicit_softmax_too(family: str, effect: str, queries: str) -> None:
    small = SMALL[family]
    model, inputs = small.build().double(), small.inputs([1.0, 0.5], dtype=torch.float64)
    with enable_taca(model, TemperatureSchedule(1.6, 0.9, effect=effect, queries=queries)):
        got = run(model, inputs)
    expected = explicit_output(small, model, inputs, [1.6, 1.0], effect=effect, queries=queries)
    assert (got - expected).abs().max() < 1e-7
    assert (got[0] - run(model, inputs)[0]).abs().max() > 1e-3


@every_family
def test_gamma_one_is_the_stock_model_bit_for_bit(family: str) -> None:
    build, make_inputs = SMALL[family].build, SMALL[family].inputs
    model, inputs = build(), make_inputs([1.0, 0.95])
    stock = run(model, inputs)
    with enable_taca(model, TemperatureSchedule(gamma=1.0, threshold=0.9)):
        assert torch.equal(run(model, inputs), stock)


@every_family
def test_rows_of_a_mixed_batch_below_the_threshold_are_stock(family: str) -> None:
    build, make_inputs = SMALL[family].build, SMALL[family].inputs
    model, inputs = build(), make_inputs([0.3, 1.0, 0.89, 0.92])
    stock = run(model, inputs)
    with enable_taca(model, SCHEDULE):
        got = run(model, inputs)
        below = run(model, make_inputs([0.3, 0.5, 0.89, 0.1]))
    # Bit for bit where a kernel rounds each row by itself; some round by the number of rows, which the split changes.
    assert (got[[0, 2]] - stock[[0, 2]]).abs().max() < 1e-5 * stock.abs().max()
    assert not torch.equal(got[1], stock[1])
    assert not torch.equal(got[3], stock[3])
    assert torch.equal(below, run(model, make_inputs([0.3, 0.5, 0.89, 0.1])))


@every_family
def test_a_sample_does_not_depend_on_the_noise_levels_beside_it(family: str) -> None:
    build, make_inputs = SMALL[family].build, SMALL[family].inputs
    model = build()
    with enable_taca(model, SCHEDULE):
        mixed, alike = run(model, make_inputs([1.0, 0.2])), run(model, make_inputs([1.0, 1.0]))
    assert (mixed[0] - alike[0]).abs().max() < 1e-5


@every_family
def test_every_joint_attention_is_patched_counted_and_reported(family: str, caplog: pytest.LogCaptureFixture) -> None:
    expected = SMALL[family].layers
    with caplog.at_level(logging.INFO, logger="components.taca"):
        handle = enable_taca(SMALL[family].build(), SCHEDULE)
    assert handle.patched_modules == expected
    assert f"patched {expected} attention modules" in caplog.text


@every_family
def test_disabling_restores_the_very_processors_and_the_outputs(family: str) -> None:
    build, make_inputs = SMALL[family].build, SMALL[family].inputs
    model, inputs = build(), make_inputs([1.0])
    before, stock = dict(model.attn_processors), run(model, inputs)
    enable_taca(model, SCHEDULE)
    assert taca_handle(model) is not None
    assert disable_taca(model)
    assert not disable_taca(model)
    after = model.attn_processors
    assert before.keys() == after.keys()
    assert all(before[name] is after[name] for name in before)
    assert torch.equal(run(model, inputs), stock)
    assert not model._forward_pre_hooks


def test_enabling_again_replaces_the_schedule() -> None:
    model, inputs = flux(), flux_inputs([1.0])
    before = dict(model.attn_processors)
    enable_taca(model, TemperatureSchedule(gamma=3.0))
    enable_taca(model, SCHEDULE)
    twice = run(model, inputs)
    disable_taca(model)
    assert all(before[name] is processor for name, processor in model.attn_processors.items())
    with enable_taca(model, SCHEDULE):
        assert torch.equal(run(model, inputs), twice)


def test_two_transformers_keep_their_own_schedules() -> None:
    one, other = flux(0), flux(0)
    inputs = flux_inputs([1.0])
    enable_taca(one, TemperatureSchedule(gamma=1.3))
    alone = run(one, inputs)
    enable_taca(other, TemperatureSchedule(gamma=2.0))
    assert torch.equal(run(one, inputs), alone)
    disable_taca(one)
    assert torch.equal(run(one, inputs), run(flux(0), inputs))
    assert not torch.equal(run(other, inputs), run(one, inputs))


def test_a_copy_keeps_its_own_taca() -> None:
    model, inputs = flux(), flux_inputs([1.0])
    enable_taca(model, SCHEDULE)
    twin = copy.deepcopy(model)
    with_taca = run(model, inputs)
    disable_taca(model)
    assert torch.equal(run(twin, inputs), with_taca)
    assert disable_taca(twin)
    assert torch.equal(run(twin, inputs), run(model, inputs))


@every_family
def test_gradient_checkpointing_gives_the_same_gradients_with_two_forwards_before_a_backward(family: str) -> None:
    """The recomputation of the first forward must see its own gamma, not the second's."""
    build, make_inputs = SMALL[family].build, SMALL[family].inputs
    gradients = []
    for checkpointing in (False, True):
        model = build()
        if checkpointing:
            model.enable_gradient_checkpointing()
        model.train()
        enable_taca(model, SCHEDULE)
        loss = sum(
            model(**make_inputs(sigma), return_dict=False)[0].square().mean() for sigma in ([1.0, 0.5], [0.2, 0.95])
        )
        loss.backward()
        gradients.append([p.grad.clone() for p in model.parameters() if p.grad is not None])
    assert len(gradients[0]) == len(gradients[1]) > 0
    assert all(torch.equal(plain, recomputed) for plain, recomputed in zip(*gradients, strict=True))


@every_family
def test_every_parameter_that_stock_training_reaches_is_still_reached(family: str) -> None:
    """Distributed training waits for every gradient: one that becomes None would hang it."""
    build, make_inputs = SMALL[family].build, SMALL[family].inputs
    reached = []
    for on in (False, True):
        model = build()
        if on:
            enable_taca(model, SCHEDULE)
        model(**make_inputs([1.0]), return_dict=False)[0].square().mean().backward()
        reached.append({name for name, parameter in model.named_parameters() if parameter.grad is not None})
    assert reached[0] == reached[1]


@every_family
def test_bfloat16_is_as_near_to_an_explicit_softmax_in_float64_as_the_stock_model_is(family: str) -> None:
    """The same weights and inputs, rounded to bfloat16, in float64 tell the rounding of the computation from TACA's effect."""
    small = SMALL[family]
    model = small.build().to(torch.bfloat16)
    exact_model, inputs = copy.deepcopy(model).double(), small.inputs([1.0, 0.5], dtype=torch.bfloat16)
    exact_inputs = {
        name: value.double() if isinstance(value, Tensor) and value.dtype == torch.bfloat16 else value
        for name, value in inputs.items()
    }
    inputs["timestep"] = inputs["timestep"].to(torch.bfloat16)
    exact_stock = run(exact_model, exact_inputs)
    exact = explicit_output(small, exact_model, exact_inputs, [1.6, 1.0])
    rounding = [sample.norm() for sample in run(model, inputs).double() - exact_stock]
    with enable_taca(model, SCHEDULE):
        got = run(model, inputs)
    assert got.dtype == torch.bfloat16
    error, effect = ([sample.norm() for sample in difference] for difference in (got - exact, exact - exact_stock))
    assert all(mine < 1.3 * stock for mine, stock in zip(error, rounding, strict=True))
    assert effect[0] > 5 * rounding[0]
    assert effect[1] < 1e-9 * rounding[1]


def test_the_callers_attention_arguments_are_kept_and_not_changed() -> None:
    model = flux()
    mine = {"scale": 1.0}
    with enable_taca(model, SCHEDULE):
        plain = run(model, flux_inputs([1.0]))
        given = run(model, flux_inputs([1.0]) | {"joint_attention_kwargs": mine})
    assert mine == {"scale": 1.0}
    assert torch.equal(plain, given)


def test_positional_arguments_work() -> None:
    model, inputs = flux(), flux_inputs([1.0])
    with enable_taca(model, SCHEDULE), torch.no_grad():
        assert torch.equal(model(*inputs.values(), return_dict=False)[0], run(model, inputs))


def test_sd3s_second_attention_logs_no_complaint_about_tacas_arguments(caplog: pytest.LogCaptureFixture) -> None:
    from diffusers.utils import logging as diffusers_logging

    diffusers_logging.enable_propagation()
    try:
        model = sd3()
        with caplog.at_level(logging.WARNING), enable_taca(model, SCHEDULE):
            run(model, sd3_inputs([1.0]))
    finally:
        diffusers_logging.disable_propagation()
    assert "not expected" not in caplog.text


def test_a_chosen_attention_backend_is_used_and_survives_removal() -> None:
    model, inputs = flux(), flux_inputs([1.0])
    with enable_taca(model, SCHEDULE):
        before = run(model, inputs)
        for module in model.modules():
            if hasattr(module, "set_attention_backend") and hasattr(module, "processor"):
                module.set_attention_backend("_native_math")
        assert (run(model, inputs) - before).abs().max() < 1e-4
    assert {str(processor._attention_backend.value) for processor in model.attn_processors.values()} == {"_native_math"}


def test_a_timestep_in_the_wrong_unit_is_refused() -> None:
    model = flux()
    with enable_taca(model, SCHEDULE), pytest.raises(ParameterError, match="noise level"):
        run(model, flux_inputs([970.0]))


def test_other_models_are_refused_by_name() -> None:
    with pytest.raises(ParameterError, match=r"Linear.*FluxTransformer2DModel"):
        enable_taca(torch.nn.Linear(2, 2), SCHEDULE)


def test_a_wrapped_transformer_is_refused_with_a_hint() -> None:
    with pytest.raises(ParameterError, match="before compiling or wrapping"):
        enable_taca(torch.nn.DataParallel(flux()), SCHEDULE)


@pytest.mark.parametrize("before", [True, False])
def test_fused_projections_of_flux_give_the_same(before: bool) -> None:
    model, inputs = flux(), flux_inputs([1.0, 0.5])
    with enable_taca(model, SCHEDULE):
        expected = run(model, inputs)
    if before:
        model.fuse_qkv_projections()
    with enable_taca(model, SCHEDULE):
        if not before:
            model.fuse_qkv_projections()
        assert (run(model, inputs) - expected).abs().max() < 1e-4


@pytest.mark.parametrize("family", ["sd3", "auraflow"])
def test_fused_processors_are_refused_and_nothing_is_changed(family: str) -> None:
    model = SMALL[family].build()
    model.fuse_qkv_projections()
    before = dict(model.attn_processors)
    with pytest.raises(ParameterError, match="fused"):
        enable_taca(model, SCHEDULE)
    assert all(before[name] is processor for name, processor in model.attn_processors.items())


def test_an_ip_adapter_is_refused_before_and_noticed_after() -> None:
    from diffusers.models.transformers.transformer_flux import FluxIPAdapterAttnProcessor

    model = flux()
    adapter = FluxIPAdapterAttnProcessor(hidden_size=64, cross_attention_dim=24)
    attention = model.transformer_blocks[0].attn
    stock = attention.processor
    attention.set_processor(adapter)
    with pytest.raises(ParameterError, match="FluxIPAdapterAttnProcessor"):
        enable_taca(model, SCHEDULE)
    attention.set_processor(stock)
    enable_taca(model, SCHEDULE)
    attention.set_processor(adapter)
    with pytest.raises(ParameterError, match="replaced by FluxIPAdapterAttnProcessor"):
        run(model, flux_inputs([1.0]))
    disable_taca(model)
    assert attention.processor is adapter


@pytest.mark.slow
@pytest.mark.parametrize("family", ["flux", "sd3", *(pytest.param(name, marks=pytest.mark.heavy) for name in OTHERS)])
def test_a_compiled_model_agrees_without_recompiling_for_every_timestep(family: str) -> None:
    make_inputs = SMALL[family].inputs
    model = FEWER_LAYERS.get(family, SMALL[family].build)()
    enable_taca(model, SCHEDULE)
    expected = [run(model, make_inputs([sigma, 0.1])) for sigma in (1.0, 0.95, 0.5)]
    torch._dynamo.reset()
    compiled = torch.compile(model, fullgraph=True, backend="eager")
    with torch._dynamo.config.patch(error_on_recompile=True):
        got = [run(compiled, make_inputs([sigma, 0.1])) for sigma in (1.0, 0.95, 0.5)]
    assert all((a - b).abs().max() < 1e-5 * b.abs().max() for a, b in zip(got, expected, strict=True))
