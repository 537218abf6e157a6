"""TACA in whole pipelines: which samples it scales, at which steps, with LoRA, and what users do to a pipeline around it.

What a forward inside a pipeline did is found out without looking into it: the same call is repeated by the stock transformer and
by one that scales every sample, and each sample of the result is compared with both.
"""

import copy
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_pipelines import PIPELINES, TinyPipeline
from torch import Tensor

from components.taca import AdapterGate, TemperatureSchedule, add_lora, disable_taca, enable_taca, load_lora, save_lora
from components.taca.lora import unload_lora

EVERYWHERE = TemperatureSchedule(1.5, form="constant")
SPARED = TemperatureSchedule(1.5, form="constant", unconditional=False)
EARLY = TemperatureSchedule(1.5, threshold=0.99)  # the first of two steps
CHEAP = ("flux2-klein", "z-image")  # a pipeline of two passes, and one of one batch; the others are heavy together
every_pipeline = pytest.mark.parametrize(
    "name", [name if name in CHEAP else pytest.param(name, marks=pytest.mark.heavy) for name in PIPELINES]
)

Call = tuple[tuple[Any, ...], dict[str, Any], Tensor]


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], tuple[TinyPipeline, Any]]:
    """A pipeline by name, built once."""
    folder, pipes = tmp_path_factory.mktemp("pipelines"), {}

    def find(name: str) -> tuple[TinyPipeline, Any]:
        if name not in pipes:
            pipes[name] = PIPELINES[name].read_back(folder / name)
        return PIPELINES[name], pipes[name]

    return find


def samples(output: Any) -> Tensor:
    """The prediction of each sample."""
    predicted = output[0] if isinstance(output, tuple) else output.sample
    return torch.stack(list(predicted)) if isinstance(predicted, list) else predicted


def recorded(pipe: Any, draw: Callable[[], Any]) -> list[Call]:
    """The arguments and results of the transformer's calls while drawing."""
    calls: list[Call] = []
    arguments: list[Any] = []
    with ExitStack() as stack:
        for hook in (
            pipe.transformer.register_forward_pre_hook(
                lambda module, args, kwargs: arguments.append((args, kwargs)), with_kwargs=True, prepend=True
            ),
            pipe.transformer.register_forward_hook(
                lambda module, args, output: calls.append((*arguments.pop(), samples(output)))
            ),
        ):
            stack.callback(hook.remove)
        draw()
    return calls


def marks(pipe: Any, calls: list[Call]) -> list[str]:
    """For each call, "+" for the samples that were scaled and "-" for those that were not. Disables TACA."""
    disable_taca(pipe)
    found = []
    for args, kwargs, got in calls:
        with torch.no_grad():
            stock = samples(pipe.transformer(*args, **kwargs))
            with enable_taca(pipe, EVERYWHERE):
                scaled = samples(pipe.transformer(*args, **kwargs))
        signs = ""
        for one, plain, other in zip(got, stock, scaled, strict=True):
            near = 1e-3 * (other - plain).abs().max()
            assert near > 0
            assert min((one - plain).abs().max(), (one - other).abs().max()) < near
            signs += "-" if (one - plain).abs().max() < near else "+"
        found.append(signs)
    return found


@every_pipeline
def test_the_right_samples_are_scaled_at_the_right_steps(name: str, built: Any) -> None:
    tiny, pipe = built(name)
    stock = tiny.draw(pipe)
    for schedule, guidance, expected in (
        (EARLY, None, [calls.replace("-", "+") for calls in tiny.unguided_calls] + ["-" * len(tiny.unguided_calls[0])]),
        (EVERYWHERE, 3.0, [call.replace("-", "+") for call in tiny.guided] * 2),
        (SPARED, 3.0, [*tiny.guided] * 2),
        (SPARED, None, [*tiny.unguided_calls] * 2),
    ):
        enable_taca(pipe, schedule)
        calls = recorded(pipe, lambda guidance=guidance: tiny.draw(pipe, guidance))
        assert marks(pipe, calls) == expected
    assert torch.equal(tiny.draw(pipe), stock)


def train(pipe: Any, draw: Callable[[], Any]) -> None:
    """One step of gradient descent on the adapter, in the first call of a drawing pipeline."""
    ((args, kwargs, _), *_) = recorded(pipe, draw)
    samples(pipe.transformer(*args, **kwargs)).square().mean().backward()
    with torch.no_grad():
        for parameter in pipe.transformer.parameters():
            if parameter.grad is not None:
                parameter -= 10 * parameter.grad / parameter.grad.norm().clamp_min(1e-12)


@every_pipeline
def test_a_lora_is_trained_saved_read_by_plain_diffusers_and_gated(name: str, built: Any, tmp_path: Path) -> None:
    tiny, original = built(name)
    pipe = copy.deepcopy(original)
    if not hasattr(pipe.transformer, "add_adapter"):
        pytest.skip(f"{type(pipe.transformer).__name__} takes no adapters")
    stock = tiny.draw(pipe)
    add_lora(pipe, 2, seed=0)
    enable_taca(pipe, EARLY)
    train(pipe, lambda: tiny.draw(pipe))
    save_lora(pipe.transformer, tmp_path, EARLY.to_mapping())
    disable_taca(pipe)
    adapted = tiny.draw(pipe)
    assert (adapted - stock).abs().max() > 1e-3 * stock.abs().max()

    plain = copy.deepcopy(original)
    if hasattr(plain, "load_lora_weights"):
        plain.load_lora_weights(tmp_path)
        assert torch.equal(tiny.draw(plain), adapted)
        plain.unload_lora_weights()
    enable_taca(plain, EARLY)
    load_lora(plain, tmp_path)
    with AdapterGate(plain, "taca", 0.99):
        (_, _, first), (args, kwargs, second) = recorded(plain, lambda: tiny.draw(plain))
    unload_lora(plain)
    disable_taca(plain)
    with torch.no_grad():
        assert torch.equal(samples(plain.transformer(*args, **kwargs)), second)  # below the threshold: neither
    enable_taca(pipe, EARLY)
    assert torch.equal(recorded(pipe, lambda: tiny.draw(pipe))[0][-1], first)


@every_pipeline
def test_copies_offloading_and_two_at_once_change_nothing(name: str, built: Any) -> None:
    tiny, original = built(name)
    pipe = copy.deepcopy(original)
    stock = tiny.draw(pipe, 3.0)
    enable_taca(pipe, SPARED)
    expected = tiny.draw(pipe, 3.0)
    twin, other = copy.deepcopy(pipe), copy.deepcopy(original)
    enable_taca(other, EARLY)
    between = tiny.draw(other, 3.0)

    def draw_the_other(*args: Any, **kwargs: Any) -> dict[str, Any]:
        assert torch.equal(tiny.draw(other, 3.0), between)
        return {}

    assert torch.equal(tiny.draw(pipe, 3.0, callback_on_step_end=draw_the_other), expected)
    disable_taca(pipe)
    assert torch.equal(tiny.draw(pipe, 3.0), stock)
    twin.transformer.enable_group_offload(torch.device("cpu"), offload_type="leaf_level")
    assert torch.equal(tiny.draw(twin, 3.0), expected)


# In diffusers 0.42.1 itself, checkpointing leaves out Chroma's mask.
@pytest.mark.heavy
@pytest.mark.parametrize("name", [name for name in PIPELINES if name != "chroma"])
def test_checkpointing_recomputes_with_the_temperature_of_its_own_step(name: str, built: Any) -> None:
    """The calls of a pipeline's two steps, trained on: a whole picture is drawn between each forward and its backward."""
    tiny, original = built(name)
    pipe = copy.deepcopy(original)
    enable_taca(pipe, EARLY)
    expected = tiny.draw(pipe, 3.0)
    calls = recorded(pipe, lambda: tiny.draw(pipe, 3.0))
    gradients = []
    for checkpointing in (False, True):
        if checkpointing:
            pipe.transformer.enable_gradient_checkpointing()
        pipe.transformer.zero_grad()
        losses = [samples(pipe.transformer(*args, **kwargs)).square().mean() for args, kwargs, _ in calls]
        assert torch.equal(tiny.draw(pipe, 3.0), expected)
        sum(losses).backward()
        gradients.append([p.grad.clone() for p in pipe.transformer.parameters() if p.grad is not None])
    assert len(gradients[0]) == len(gradients[1]) > 0
    assert all(torch.equal(plain, recomputed) for plain, recomputed in zip(*gradients, strict=True))


@pytest.mark.heavy
@every_pipeline
def test_a_transformer_that_compiles_in_one_graph_draws_the_same(name: str, built: Any) -> None:
    tiny, original = built(name)
    expected = []
    for schedule in (None, EARLY):
        pipe = copy.deepcopy(original)
        if schedule:
            enable_taca(pipe, schedule)
        expected.append(tiny.draw(pipe, 3.0))
        torch._dynamo.reset()
        pipe.transformer.compile(fullgraph=True, backend="eager")
        try:
            got = tiny.draw(pipe, 3.0)
        except (torch._dynamo.exc.Unsupported, torch._dynamo.exc.UserError) as error:
            if schedule:
                raise
            pytest.skip(f"not in one graph without TACA either: {error.args[0][:80]}")
        torch.testing.assert_close(got, expected[-1], rtol=1e-4, atol=1e-4)
    assert (expected[0] - expected[1]).abs().max() > 1e-3
