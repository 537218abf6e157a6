"""TACA in whole transformers: parity with an independent implementation, and leaving no trace."""

import copy
import logging
from typing import Any

import pytest
import torch
from small_transformers import FAMILIES, FLUX_LAYERS, SD3_LAYERS, flux, flux_inputs, sd3, sd3_inputs
from torch import Tensor

from components.errors import ParameterError
from components.taca.install import disable_taca, enable_taca, taca_handle
from components.taca.schedule import TemperatureSchedule

SCHEDULE = TemperatureSchedule(gamma=1.6, threshold=0.9)
both = pytest.mark.parametrize("family", FAMILIES)


def run(model: Any, inputs: dict[str, Any]) -> Tensor:
    with torch.no_grad():
        return model(**inputs, return_dict=False)[0]


class ExplicitProcessor:
    """Both models' joint attention written out, one softmax over all logits; gamma (B,) and text length are given."""

    def __init__(self, gamma: Tensor, text: int, text_first: bool) -> None:
        self.gamma, self.text, self.text_first = gamma, text, text_first

    def __call__(
        self,
        attn: Any,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor | None = None,
        attention_mask: Tensor | None = None,
        image_rotary_emb: Any = None,
    ) -> Any:
        from diffusers.models.embeddings import apply_rotary_emb

        batch, heads = hidden_states.shape[0], attn.heads

        def split(x: Tensor) -> Tensor:  # (B, S, C) -> (B, H, S, D)
            return x.reshape(batch, x.shape[1], heads, -1).transpose(1, 2)

        parts = [
            attn.norm_q(split(attn.to_q(hidden_states))),
            attn.norm_k(split(attn.to_k(hidden_states))),
            split(attn.to_v(hidden_states)),
        ]
        if encoder_hidden_states is not None:
            added = [
                attn.norm_added_q(split(attn.add_q_proj(encoder_hidden_states))),
                attn.norm_added_k(split(attn.add_k_proj(encoder_hidden_states))),
                split(attn.add_v_proj(encoder_hidden_states)),
            ]
            pairs = zip(added, parts, strict=True) if self.text_first else zip(parts, added, strict=True)
            parts = [torch.cat(pair, dim=2) for pair in pairs]
        query, key, value = parts
        if image_rotary_emb is not None:
            query, key = (apply_rotary_emb(x, image_rotary_emb) for x in (query, key))

        length = query.shape[2]
        positions = torch.arange(length)
        is_text = positions < self.text if self.text_first else positions >= length - self.text
        logits = query @ key.transpose(-1, -2) / query.shape[-1] ** 0.5
        scaled = logits * self.gamma.to(logits).view(-1, 1, 1, 1)
        logits = torch.where(~is_text[:, None] & is_text[None, :], scaled, logits)
        out = (logits.softmax(-1) @ value).transpose(1, 2).flatten(2)
        if encoder_hidden_states is None:
            return out
        image = attn.to_out[0](out[:, ~is_text])
        text = out[:, is_text] if getattr(attn, "context_pre_only", False) else attn.to_add_out(out[:, is_text])
        return image, text


def explicit_output(model: Any, inputs: dict[str, Any], gamma: list[float], text_first: bool) -> Tensor:
    model = copy.deepcopy(model)
    text = inputs["encoder_hidden_states"].shape[1]
    # Rounded to float32 as the schedule's gamma is; the comparison is of the attention, not of that constant.
    factor = torch.tensor(gamma, dtype=torch.float32).double()
    for name, module in model.named_modules():
        if hasattr(module, "set_processor") and not name.endswith("attn2"):
            module.set_processor(ExplicitProcessor(factor, text, text_first))
    return run(model, inputs)


@both
@pytest.mark.parametrize("text", [3, 9])
def test_a_whole_model_equals_an_explicit_softmax_in_float64(family: str, text: int) -> None:
    build, make_inputs = FAMILIES[family]
    model = build().double()
    inputs = make_inputs([1.0, 0.95, 0.5], text=text, dtype=torch.float64)
    stock = run(model, inputs)
    with enable_taca(model, SCHEDULE):
        got = run(model, inputs)
    expected = explicit_output(model, inputs, [1.6, 1.6, 1.0], text_first=family == "flux")
    assert (got - expected).abs().max() < 1e-7
    assert (got[:2] - stock[:2]).abs().max() > 1e-3  # so that the agreement means something


@both
def test_gamma_one_is_the_stock_model_bit_for_bit(family: str) -> None:
    build, make_inputs = FAMILIES[family]
    model, inputs = build(), make_inputs([1.0, 0.95])
    stock = run(model, inputs)
    with enable_taca(model, TemperatureSchedule(gamma=1.0, threshold=0.9)):
        assert torch.equal(run(model, inputs), stock)


@both
def test_rows_of_a_mixed_batch_below_the_threshold_are_stock_bit_for_bit(family: str) -> None:
    build, make_inputs = FAMILIES[family]
    model, inputs = build(), make_inputs([0.3, 1.0, 0.89, 0.92])
    stock = run(model, inputs)
    with enable_taca(model, SCHEDULE):
        got = run(model, inputs)
        below = run(model, make_inputs([0.3, 0.5, 0.89, 0.1]))
    assert torch.equal(got[[0, 2]], stock[[0, 2]])
    assert not torch.equal(got[1], stock[1])
    assert not torch.equal(got[3], stock[3])
    assert torch.equal(below, run(model, make_inputs([0.3, 0.5, 0.89, 0.1])))


@both
def test_a_sample_does_not_depend_on_the_noise_levels_beside_it(family: str) -> None:
    build, make_inputs = FAMILIES[family]
    model = build()
    with enable_taca(model, SCHEDULE):
        mixed, alike = run(model, make_inputs([1.0, 0.2])), run(model, make_inputs([1.0, 1.0]))
    assert (mixed[0] - alike[0]).abs().max() < 1e-5


@pytest.mark.parametrize(("build", "expected"), [(flux, FLUX_LAYERS), (sd3, SD3_LAYERS)])
def test_every_joint_attention_is_patched_counted_and_reported(
    build: Any, expected: int, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO, logger="components.taca"):
        handle = enable_taca(build(), SCHEDULE)
    assert handle.patched_modules == expected
    assert f"patched {expected} attention modules" in caplog.text


@both
def test_disabling_restores_the_very_processors_and_the_outputs(family: str) -> None:
    build, make_inputs = FAMILIES[family]
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


@both
def test_gradient_checkpointing_gives_the_same_gradients_with_two_forwards_before_a_backward(family: str) -> None:
    """The recomputation of the first forward must see its own gamma, not the second's."""
    build, make_inputs = FAMILIES[family]
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


@both
def test_every_parameter_that_stock_training_reaches_is_still_reached(family: str) -> None:
    """Distributed training waits for every gradient: one that becomes None would hang it."""
    build, make_inputs = FAMILIES[family]
    reached = []
    for on in (False, True):
        model = build()
        if on:
            enable_taca(model, SCHEDULE)
        model(**make_inputs([1.0]), return_dict=False)[0].square().mean().backward()
        reached.append({name for name, parameter in model.named_parameters() if parameter.grad is not None})
    assert reached[0] == reached[1]


@both
def test_bfloat16_runs_and_stays_near_float32(family: str) -> None:
    build, make_inputs = FAMILIES[family]
    exact_model = build()
    with enable_taca(exact_model, SCHEDULE):
        exact = run(exact_model, make_inputs([1.0, 0.5]))
    model = build().to(torch.bfloat16)
    inputs = make_inputs([1.0, 0.5], dtype=torch.bfloat16)
    inputs["timestep"] = inputs["timestep"].to(torch.bfloat16)
    with enable_taca(model, SCHEDULE):
        got = run(model, inputs)
    assert got.dtype == torch.bfloat16
    assert (got.float() - exact).norm() < 0.1 * exact.norm()


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


@pytest.mark.parametrize("family", FAMILIES)
def test_fused_projections_are_refused_and_nothing_is_changed(family: str) -> None:
    model = FAMILIES[family][0]()
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
@both
def test_a_compiled_model_agrees_without_recompiling_for_every_timestep(family: str) -> None:
    build, make_inputs = FAMILIES[family]
    model = build()
    enable_taca(model, SCHEDULE)
    expected = [run(model, make_inputs([sigma, 0.1])) for sigma in (1.0, 0.95, 0.5)]
    torch._dynamo.reset()
    compiled = torch.compile(model, fullgraph=True, backend="eager")
    with torch._dynamo.config.patch(error_on_recompile=True):
        got = [run(compiled, make_inputs([sigma, 0.1])) for sigma in (1.0, 0.95, 0.5)]
    assert all((a - b).abs().max() < 1e-4 for a, b in zip(got, expected, strict=True))
