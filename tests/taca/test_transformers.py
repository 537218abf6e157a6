"""TACA in every transformer class of diffusers: parity with an explicit softmax, and a status for each class."""

import copy
import importlib
import inspect
import pkgutil
import re
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import torch
import transformer_table
from explicit_softmax import Tiny, explicit_attention, float64_throughout, output
from tiny_transformers import TINY

from components.errors import ParameterError
from components.taca.install import disable_taca, enable_taca
from components.taca.registry import CONVENTIONS, FAMILIES, family_of
from components.taca.schedule import TemperatureSchedule
from components.taca.transformer_statuses import OTHERS

GAMMA = 1.5  # exact in float32, as the schedule holds it
SCHEDULE = TemperatureSchedule(GAMMA, 0.9)
WHAT_TO_DO = "add a family in components/taca/models/, or give it a status in components/taca/transformer_statuses.py"
CHEAP = ("flux2", "ideogram4", "lumina2", "mochi", "prx", "z-image")  # each way in which text can be placed
every_transformer = pytest.mark.parametrize("name", TINY)


@every_transformer
def test_a_whole_model_equals_the_stock_one_with_an_explicit_softmax(name: str) -> None:
    """In float64, with the models' own casts to float32 switched off. Of two samples, the second is below the threshold."""
    tiny = TINY[name]
    model = tiny.build().double()
    levels = list(tiny.levels)
    call = tiny.call(levels, torch.float64)
    with float64_throughout():
        stock = output(model, call.arguments)
        controls = {"effect": "bias", "queries": "text" if tiny.text_queries else "image"}
        for arm in ({}, controls):
            with enable_taca(model, TemperatureSchedule(GAMMA, 0.9, **arm)) as handle:
                assert handle.patched_modules == tiny.layers
                got = output(model, tiny.inputs(levels, torch.float64))
            with explicit_attention(tiny, model, call, [GAMMA, 1.0][: len(levels)], **arm) as changed:
                expected = output(model, call.arguments)
            assert sum(changed) > 0
            assert (got - expected).abs().max() < 1e-7
            assert (expected[0] - stock[0]).abs().max() > 1e-3  # so that the agreement means something
            assert (expected[1:] - stock[1:]).abs().sum() < 1e-7
        assert torch.equal(output(model, call.arguments), stock)


def weights_by_layer(tiny: Tiny, model: Any) -> dict[str, str]:
    """Whether the keys of text and image are computed by the same linear layer, by joint module, as the real class computes them.

    A layer that computes all of a module's keys from one sequence is fed as many tokens as its attention has keys.
    """
    found: dict[str, str] = {}
    fed: list[int] = []
    keys: list[int] = []
    stock = torch.nn.functional.scaled_dot_product_attention

    def attend(query: torch.Tensor, key: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
        keys.append(key.shape[-2])
        return stock(query, key, *args, **kwargs)

    def decide(name: str) -> None:
        found[name] = "single" if max(keys) == max(fed) else "double"
        fed.clear()

    for name, module in model.named_modules():
        if re.fullmatch(tiny.joint, name):
            module.register_forward_pre_hook(lambda *_: keys.clear())
            for linear, layer in module.named_modules():
                if isinstance(layer, torch.nn.Linear) and re.search("k_proj|to_k|qkv", linear):
                    layer.register_forward_hook(lambda _, args, output: fed.append(args[0].shape[-2]))
            module.register_forward_hook(lambda *_, name=name: decide(name))
    with mock.patch.object(torch.nn.functional, "scaled_dot_product_attention", attend):
        output(model, tiny.inputs(list(tiny.levels)))
    return found


@pytest.mark.parametrize(
    "name", [name for name in TINY if name != "flux2-kv-cached"]
)  # has keys that no layer computes
def test_a_stream_is_single_where_text_and_image_share_the_weights_of_their_keys(name: str) -> None:
    tiny = TINY[name]
    model = tiny.build()
    weights = weights_by_layer(tiny, model)
    assert len(weights) == tiny.layers
    family = FAMILIES[tiny.transformer]
    assert {layer: family.stream(layer, model.config) for layer in weights} == weights
    for stream in ("double", "single"):
        schedule = TemperatureSchedule(GAMMA, 0.9, streams=(stream,))
        if stream in weights.values():
            with enable_taca(model, schedule) as handle:
                assert handle.patched_modules == list(weights.values()).count(stream)
        else:
            other = {"double": "single", "single": "double"}[stream]
            with pytest.raises(ParameterError, match=f"its layers, in order, are {tiny.layers} {other}$"):
                enable_taca(model, schedule)


# In diffusers 0.42.1 itself, checkpointing is wrong with FLUX.2's cached references (one dictionary for all blocks) and Chroma's
# mask (left out), and fails for HunyuanImage (arguments by name).
NOT_CHECKPOINTED = ("flux2-kv-extract", "flux2-kv-cached", "chroma", "hunyuan-image")


@pytest.mark.parametrize(
    "name",
    [
        name if name in CHEAP else pytest.param(name, marks=pytest.mark.heavy)
        for name in TINY
        if name not in NOT_CHECKPOINTED
    ],
)
def test_checkpointing_copies_and_other_models_do_not_mix_up(name: str) -> None:
    """Of two forwards before a backward, the recomputation of the first sees its own gamma, and the copy keeps its schedule."""
    tiny = TINY[name]
    model = tiny.build().train()
    enable_taca(model, SCHEDULE)
    twin = copy.deepcopy(model)
    expected = output(twin, tiny.inputs(list(tiny.levels)))
    gradients = []
    for checkpointing in (False, True):
        if checkpointing:
            model.enable_gradient_checkpointing()
        model.zero_grad()
        losses = []
        for levels in (tiny.levels, [0.2] * len(tiny.levels)):
            predicted = model(**tiny.inputs(list(levels)), return_dict=False)[0]
            losses.append(sum(sample.square().mean() for sample in predicted))
            assert torch.equal(output(twin, tiny.inputs(list(tiny.levels))), expected)
        sum(losses).backward()
        gradients.append([p.grad.clone() for p in model.parameters() if p.grad is not None])
    assert len(gradients[0]) == len(gradients[1]) > 0
    assert all(torch.equal(plain, recomputed) for plain, recomputed in zip(*gradients, strict=True))
    disable_taca(model)
    assert torch.equal(output(twin, tiny.inputs(list(tiny.levels))), expected)


@pytest.mark.heavy
@every_transformer
def test_what_compiles_in_one_graph_does_so_with_taca_and_for_every_timestep(name: str) -> None:
    tiny, size = TINY[name], len(TINY[name].levels)
    model = tiny.build()
    calls = [tiny.inputs([1.0, 0.5][:size]), tiny.inputs([0.95, 0.1][:size]), tiny.inputs([0.5, 0.2][:size])]
    torch._dynamo.reset()
    try:
        output(torch.compile(model, fullgraph=True, backend="eager"), copy.deepcopy(calls[0]))
    except (torch._dynamo.exc.Unsupported, torch._dynamo.exc.UserError) as error:
        pytest.skip(f"not in one graph without TACA either: {error.args[0][:80]}")
    enable_taca(model, SCHEDULE)
    expected = [output(model, copy.deepcopy(call)) for call in calls]
    torch._dynamo.reset()
    compiled = torch.compile(model, fullgraph=True, backend="eager")
    with torch._dynamo.config.patch(error_on_recompile=True):
        got = [output(compiled, copy.deepcopy(call)) for call in calls]
    assert all((a - b).abs().max() < 1e-5 * b.abs().max() for a, b in zip(got, expected, strict=True))


@pytest.mark.parametrize("name", [name for name in TINY if not TINY[name].text_queries])
def test_text_that_does_not_see_the_image_has_no_text_queries(name: str) -> None:
    with pytest.raises(ParameterError, match="queries = text"):
        enable_taca(TINY[name].build(), TemperatureSchedule(GAMMA, queries="text"))


def transformer_classes() -> set[str]:
    """Every model class that diffusers has among its transformers and UNets, exported or not, and in modular pipelines."""
    from diffusers import ModelMixin
    from diffusers.models import transformers, unets

    names = {name for name, value in vars(transformers).items() if inspect.isclass(value)}
    for package in (transformers, unets):
        for module in pkgutil.iter_modules(package.__path__, f"{package.__name__}."):
            classes = vars(importlib.import_module(module.name)).items()
            names |= {
                name
                for name, value in classes
                if inspect.isclass(value) and issubclass(value, ModelMixin) and value.__module__ == module.name
            }
    return names - {"MotionAdapter"} | modular_transformers()  # layers that are put into a UNet


def modular_transformers() -> set[str]:
    """The classes that modular pipelines name as their transformer."""
    import diffusers

    sources = (Path(diffusers.__path__[0]) / "modular_pipelines").rglob("*.py")
    spec = re.compile(r'ComponentSpec\(\s*"\w*transformer\w*",\s*([A-Z]\w+)')
    return {name for source in sources for name in spec.findall(source.read_text())}


def unknown_classes() -> list[str]:
    return [
        f"unknown class {name}: {WHAT_TO_DO}"
        for name in sorted(transformer_classes() - FAMILIES.keys() - OTHERS.keys())
    ]


def test_every_transformer_class_has_a_status_and_one_only(monkeypatch: pytest.MonkeyPatch) -> None:
    import diffusers
    from diffusers.models import transformers

    assert not unknown_classes()
    assert not FAMILIES.keys() & OTHERS.keys()
    assert {tiny.transformer for tiny in TINY.values()} == FAMILIES.keys()
    assert len(modular_transformers()) > 10
    for name in OTHERS:  # none that diffusers has dropped
        assert name in transformer_classes() or hasattr(diffusers, name)
    monkeypatch.setattr(transformers, "NewTransformer2DModel", type("NewTransformer2DModel", (), {}), raising=False)
    assert unknown_classes() == [f"unknown class NewTransformer2DModel: {WHAT_TO_DO}"]


@pytest.mark.parametrize(
    ("name", "line"),
    [
        (
            "WanTransformer3DModel",
            "TACA has no meaning for WanTransformer3DModel: its text comes through a cross-attention of its own",
        ),
        ("PriorTransformer", "TACA does not support PriorTransformer: it predicts one embedding"),
        (
            "FluxControlNetModel",
            "TACA does not support FluxControlNetModel: it only steers another transformer; enable TACA on that",
        ),
    ],
)
def test_another_class_is_told_why(name: str, line: str) -> None:
    model: Any = type("Derived", (type(name, (torch.nn.Module,), {}),), {})()
    with pytest.raises(ParameterError) as caught:
        family_of(model)
    assert line in str(caught.value).replace("Derived", name)
    assert "\n" not in str(caught.value)


@pytest.fixture(scope="module")
def places() -> dict[str, str]:
    return transformer_table.places_of_text()


def test_the_table_in_the_docs_is_that_of_the_code(places: dict[str, str]) -> None:
    page = transformer_table.PAGE.read_text()
    assert transformer_table.without_measurements(page) == transformer_table.without_measurements(
        transformer_table.with_table(page, places)
    ), f"docs/transformers.md is out of date; run {transformer_table.COMMAND}"


def test_the_models_in_the_guide_are_those_of_the_code(places: dict[str, str]) -> None:
    """The rows of the families that can be trained and drawn with, and the pipelines whose folders are read."""
    page = (transformer_table.ROOT / "docs/taca.md").read_text()
    rows = re.findall(r"^\| ([\w-]+) \| `(\w+)` \| .+ \| (.+) \| (\d+) \|$", page, re.MULTILINE)
    stated = {transformer: (name, text, float(noise)) for name, transformer, text, noise in rows}
    trained = {name: family for name, family in FAMILIES.items() if family.conventions}
    assert stated.keys() == trained.keys()
    for transformer, (name, text, noise) in stated.items():
        family = trained[transformer]
        assert (name, noise) == (family.name, family.timesteps[1])
        assert text.startswith(places[transformer])
        assert ("mask" in text) == (family.text_mask is not None)
    (folders,) = re.findall(r"and `generate` take folders of (.*?);", page, re.DOTALL)
    assert set(re.findall(r"`(\w+)`", folders)) == CONVENTIONS.keys()
