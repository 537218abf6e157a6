"""Which layers, which tokens and which half of guidance the temperature acts on, in whole transformers."""

from dataclasses import replace
from typing import Any

import pytest
import torch
from small_transformers import SMALL, flux, flux_inputs, qwen, qwen_inputs, sd3
from test_install import explicit_attention, explicit_output, run
from torch import Tensor

from components.errors import ParameterError
from components.taca.install import enable_taca, taca_handle
from components.taca.schedule import TemperatureSchedule

every_family = pytest.mark.parametrize("family", SMALL)


def schedule(**fields: Any) -> TemperatureSchedule:
    return TemperatureSchedule(gamma=1.6, threshold=0.9, **fields)


@pytest.mark.parametrize("family", ["flux", "chroma", "auraflow"])
def test_the_streams_partition_the_layers(family: str) -> None:
    small = SMALL[family]
    model = small.build()
    counts = []
    for streams in (("double",), ("single",), ("double", "single")):
        with enable_taca(model, schedule(streams=streams)) as handle:
            counts.append(handle.patched_modules)
    assert counts == [small.layers - small.single, small.single, small.layers]


def changed_layers(model: Any, inputs: dict[str, Any], taca: TemperatureSchedule | None) -> list[Tensor]:
    """What each joint attention gives, in order."""
    seen: list[Tensor] = []

    def keep(module: Any, args: Any, output: Any) -> None:
        seen.append(output[0] if isinstance(output, tuple) else output)

    hooks = [m.register_forward_hook(keep) for name, m in model.named_modules() if name.endswith(".attn")]
    if taca is not None:
        enable_taca(model, taca)
    run(model, inputs)
    for hook in hooks:
        hook.remove()
    if taca is not None:
        taca_handle(model).remove()
    return seen


def test_layers_before_the_first_selected_one_are_untouched() -> None:
    model, inputs = flux(), flux_inputs([1.0])
    stock = changed_layers(model, inputs, None)
    for first in range(5):
        got = changed_layers(model, inputs, schedule(layers=(first,)))
        assert [torch.equal(a, b) for a, b in zip(stock, got, strict=True)][: first + 1] == [True] * first + [False]


def test_a_selection_that_is_empty_or_does_not_exist_is_refused() -> None:
    with pytest.raises(ParameterError, match=r"layers: 5 does not exist.*has 5 \(0 to 4\)"):
        enable_taca(flux(), schedule(layers=(0, 5)))
    with pytest.raises(ParameterError, match="no layer"):
        enable_taca(flux(), schedule(streams=("single",), layers=(0, 1)))
    with pytest.raises(ParameterError, match="no layer"):
        enable_taca(sd3(), schedule(streams=("single",)))


def test_padding_is_left_alone_on_request_where_the_model_is_told_what_is_padding() -> None:
    """The model's own mask hides padding from attention anyway, so the factors themselves are looked at."""
    seen: list[Tensor] = []
    model, inputs = qwen(), qwen_inputs([1.0, 0.95], padded=2)
    with enable_taca(model, schedule(padding=False)) as handle:
        handle.joint_processors[0].observer = lambda layer, q, k, text, gamma, mask, scale: seen.append(gamma)
        run(model, inputs)
    factor = torch.tensor(1.6)
    expected = factor.repeat(2, 6)
    expected[0, 4:] = 1.0
    assert torch.equal(seen[0].view(2, 6), expected)


def test_a_mask_given_with_the_call_spares_padding_and_reaches_no_processor() -> None:
    model, inputs = flux(), flux_inputs([1.0, 0.95])
    words = torch.tensor([[1, 1, 1, 0, 0, 0], [1, 1, 1, 1, 1, 0]], dtype=torch.bool)
    with enable_taca(model, schedule(padding=False)):
        all_words = run(model, inputs | {"joint_attention_kwargs": {"taca_text_mask": torch.ones_like(words)}})
        some = run(model, inputs | {"joint_attention_kwargs": {"taca_text_mask": words}})
        none = run(model, inputs | {"joint_attention_kwargs": {"taca_text_mask": torch.zeros_like(words)}})
        with pytest.raises(ParameterError, match="padding=False needs a mask of the text"):
            run(model, inputs)
        with pytest.raises(ParameterError, match=r"shape \(2, 5\)"):
            run(model, inputs | {"joint_attention_kwargs": {"taca_text_mask": words[:, :5]}})
        # An array is a mask too, and None says that nothing is padding, as the pipelines say it of prompts of one length.
        assert torch.equal(some, run(model, inputs | {"joint_attention_kwargs": {"taca_text_mask": words.numpy()}}))
        assert torch.equal(all_words, run(model, inputs | {"joint_attention_kwargs": {"taca_text_mask": None}}))
        below = flux_inputs([0.5, 0.5]) | {"joint_attention_kwargs": {"taca_text_mask": None}}
        assert torch.equal(run(model, below), run(flux(), flux_inputs([0.5, 0.5])))
    with enable_taca(model, schedule()):
        assert torch.equal(all_words, run(model, inputs))
    assert (none - run(model, inputs)).abs().max() < 1e-4
    assert all((some - other).abs().max() > 1e-3 for other in (all_words, none))


@pytest.mark.parametrize("family", ["chroma", "qwen-image"])
def test_without_a_mask_nothing_is_padding_in_models_that_take_one(family: str) -> None:
    small = SMALL[family]
    model, inputs = small.build(), small.inputs([1.0, 0.95])
    inputs |= {name: None for name in ("encoder_hidden_states_mask", "attention_mask") if name in inputs}
    with enable_taca(model, schedule(padding=False)):
        spared = run(model, inputs)
    with enable_taca(model, schedule()):
        assert torch.equal(run(model, inputs), spared)


@pytest.mark.parametrize("padding", [True, False])
@pytest.mark.parametrize("family", ["flux", "chroma", "qwen-image"])
def test_picture_tokens_behind_the_text_count_as_image(family: str, padding: bool) -> None:
    """FLUX.1 Redux appends a picture to the text. The oracle is the explicit softmax whose text is the first four tokens."""
    small = SMALL[family]
    model, inputs = small.build(), small.inputs([1.0, 0.95])
    inputs |= {name: None for name in ("encoder_hidden_states_mask", "attention_mask") if name in inputs}
    extra = {small.attention_kwargs: {"taca_text_mask": torch.ones(2, 4, dtype=torch.bool)}}
    seen: set[tuple[int, int]] = set()
    with enable_taca(model, schedule(text_length=4, padding=padding)) as handle:
        handle.joint_processors[0].observer = lambda layer, q, k, text, *rest: seen.add((text.start, text.stop))
        got = run(model, inputs | extra)
    assert seen == {(0, 4)}
    with explicit_attention(small, [1.6, 1.6], 4):
        assert (got - run(model, inputs)).abs().max() < 1e-4
    with explicit_attention(small, [1.6, 1.6], 6):
        assert (got - run(model, inputs)).abs().max() > 1e-2
    with enable_taca(model, schedule(text_length=99)):  # a text shorter than that is text
        short = run(model, inputs)
    with enable_taca(model, schedule()):
        assert torch.equal(run(model, inputs), short)


def test_registers_of_auraflow_carry_no_text_and_are_left_alone() -> None:
    """Parity with the explicit softmax says so already; here the oracle with scaled registers must disagree."""
    small = SMALL["auraflow"]
    model, inputs = small.build().double(), small.inputs([1.0], dtype=torch.float64)
    with enable_taca(model, schedule()):
        got = run(model, inputs)
    scaled = explicit_output(replace(small, prefix=0), model, inputs, [1.6])
    assert (got - explicit_output(small, model, inputs, [1.6])).abs().max() < 1e-7
    assert (got - scaled).abs().max() > 1e-3


@pytest.mark.parametrize("family", ["flux", "qwen-image"])
def test_the_unconditional_pass_is_spared_on_request(family: str) -> None:
    small = SMALL[family]
    model, inputs = small.build(), small.inputs([1.0])
    stock = run(model, inputs)
    with enable_taca(model, schedule()):
        scaled = run(model, inputs)
    with enable_taca(model, schedule(unconditional=False)):
        with model.cache_context("cond"):
            assert torch.equal(run(model, inputs), scaled)
        with model.cache_context("uncond"):
            assert (run(model, inputs) - stock).abs().max() < 1e-4
        with pytest.raises(ParameterError, match="does not say which samples are unconditional"):
            run(model, inputs)
    assert "cache_context" not in model.__dict__
    with model.cache_context("uncond"):
        assert torch.equal(run(model, inputs), stock)


def test_training_knows_no_unconditional_pass() -> None:
    model, inputs = flux(), flux_inputs([1.0])
    with enable_taca(model, schedule()):
        scaled = run(model, inputs)
    with enable_taca(model, schedule(unconditional=False)):
        assert torch.equal(model(**inputs, return_dict=False)[0].detach(), scaled)


@pytest.mark.parametrize("family", ["sd3", "auraflow"])
def test_the_unconditional_half_of_a_batch_is_spared_on_request(family: str) -> None:
    small = SMALL[family]
    model, inputs = small.build(), small.inputs([1.0, 1.0])
    stock = run(model, inputs)
    with enable_taca(model, schedule()):
        scaled = run(model, inputs)
    says = small.attention_kwargs
    with enable_taca(model, schedule(unconditional=False)):
        got = run(model, inputs | {says: {"taca_unconditional": torch.tensor([True, False])}})
        unguided = run(model, inputs | {says: {"taca_unconditional": False}})
        with pytest.raises(ParameterError, match="does not say which samples are unconditional"):
            run(model, inputs)
    rounding = 1e-5 * stock.abs().max()
    assert (got[0] - stock[0]).abs().max() < rounding < (scaled[0] - stock[0]).abs().max()
    assert (got[1] - scaled[1]).abs().max() < rounding
    assert torch.equal(unguided, scaled)


def test_a_pipeline_without_a_transformer_is_refused() -> None:
    with pytest.raises(ParameterError, match="has no transformer"):
        enable_taca(object(), schedule())
