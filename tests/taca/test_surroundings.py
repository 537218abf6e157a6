"""TACA among what users of diffusers do to a transformer: offloading, feature caches, compiling, saving, watching."""

import pickle
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from small_transformers import SMALL, flux, flux_inputs
from test_install import SCHEDULE, every_family, run
from torch import Tensor

from components.taca import disable_taca, enable_taca, observe_attention
from components.taca.install import taca_handle


@pytest.mark.parametrize("kind", ["model", "layers"])
def test_offloading_hooks_change_nothing(kind: str) -> None:
    """Hooks wrap the transformer's forward (whole-model offload) or move each layer's arguments (sequential)."""
    from accelerate.hooks import AlignDevicesHook, add_hook_to_module, attach_align_device_hook

    model, inputs = flux(), flux_inputs([1.0, 0.5])
    with enable_taca(model, SCHEDULE):
        expected = run(model, inputs)
        if kind == "model":
            add_hook_to_module(model, AlignDevicesHook(execution_device="cpu", io_same_device=True))
        else:
            attach_align_device_hook(model, execution_device=torch.device("cpu"), offload=False)
        assert torch.equal(run(model, inputs), expected)
    again = flux()
    add_hook_to_module(again, AlignDevicesHook(execution_device="cpu", io_same_device=True))
    with enable_taca(again, SCHEDULE):
        assert torch.equal(run(again, inputs), expected)


def test_group_offloading_changes_nothing() -> None:
    model, inputs = flux(), flux_inputs([1.0, 0.5])
    with enable_taca(model, SCHEDULE):
        expected = run(model, inputs)
    model.enable_group_offload(torch.device("cpu"), offload_type="leaf_level")
    with enable_taca(model, SCHEDULE):
        assert torch.equal(run(model, inputs), expected)


def test_a_feature_cache_is_warned_of_once_before_and_after(caplog: pytest.LogCaptureFixture) -> None:
    from diffusers import FirstBlockCacheConfig
    from diffusers.hooks import apply_first_block_cache

    model = flux()
    with enable_taca(model, SCHEDULE):
        run(model, flux_inputs([1.0]))
        assert "feature cache" not in caplog.text
    model.enable_cache(FirstBlockCacheConfig(threshold=0.1))
    with enable_taca(model, SCHEDULE):
        assert "feature cache" in caplog.text
    for enable in (type(model).enable_cache, apply_first_block_cache):
        model = flux()
        caplog.clear()
        enable_taca(model, SCHEDULE)
        enable(model, FirstBlockCacheConfig(threshold=0.1))
        with model.cache_context("cond"):
            run(model, flux_inputs([0.5]))
            assert "feature cache" not in caplog.text
            for _ in range(2):
                run(model, flux_inputs([1.0]))
        assert caplog.text.count("feature cache") == 1
    model = flux()
    model.enable_layerwise_casting(storage_dtype=torch.bfloat16, compute_dtype=torch.float32)  # a hook, and no cache
    caplog.clear()
    with enable_taca(model, SCHEDULE):
        assert "feature cache" not in caplog.text


@every_family
def test_a_pickled_transformer_keeps_its_own_taca(family: str) -> None:
    """Ray and multiprocessing send models so."""
    model, inputs = SMALL[family].build(), SMALL[family].inputs([1.0, 0.5])
    stock = run(model, inputs)
    enable_taca(model, replace(SCHEDULE, unconditional=False))
    inputs[SMALL[family].attention_kwargs] = {"taca_unconditional": False}
    expected = run(model, inputs)
    twin = pickle.loads(pickle.dumps(model))
    disable_taca(model)
    assert torch.equal(run(twin, inputs), expected)
    assert disable_taca(twin)
    assert torch.equal(run(twin, {**inputs, SMALL[family].attention_kwargs: None}), stock)


def test_saving_with_taca_enabled_saves_the_plain_model(tmp_path: Path) -> None:
    from diffusers import FluxTransformer2DModel

    model, inputs = flux(), flux_inputs([1.0])
    stock, keys = run(model, inputs), set(model.state_dict())
    enable_taca(model, SCHEDULE)
    assert set(model.state_dict()) == keys
    model.save_pretrained(tmp_path)
    again = FluxTransformer2DModel.from_pretrained(tmp_path)
    assert taca_handle(again) is None
    assert torch.equal(run(again, inputs), stock)


@pytest.mark.slow
@pytest.mark.parametrize("family", ["flux", "qwen-image"])
def test_compiled_blocks_agree(family: str) -> None:
    """`compile_repeated_blocks`, which diffusers recommends: the adjustment is then an input of each compiled block."""
    small = SMALL[family]
    model = small.build()
    enable_taca(model, SCHEDULE)
    sigmas = ([1.0, 0.1], [0.95, 0.1], [0.5, 0.1])
    expected = [run(model, small.inputs(list(sigma))) for sigma in sigmas]
    torch._dynamo.reset()
    model.compile_repeated_blocks(fullgraph=True, backend="eager")
    got = [run(model, small.inputs(list(sigma))) for sigma in sigmas]
    assert all((a - b).abs().max() < 1e-5 * b.abs().max() for a, b in zip(got, expected, strict=True))


def test_the_backend_chosen_for_a_model_reaches_every_layer_and_stays() -> None:
    from diffusers.models.attention_dispatch import AttentionBackendName, attention_backend

    for family in SMALL:
        model = SMALL[family].build()
        # The model's setter also sets the process's default, which this block restores for the tests after it.
        with attention_backend("native"), enable_taca(model, SCHEDULE) as handle:
            model.set_attention_backend("_native_math")
            chosen = {getattr(p, "_attention_backend", None) for p in handle.joint_processors}
            # The stock processors of SD3 and AuraFlow call PyTorch's function whatever the backend; so do ours.
            assert chosen == {None if family in ("sd3", "auraflow") else AttentionBackendName._NATIVE_MATH}
            run(model, SMALL[family].inputs([1.0]))


def test_forwards_of_one_transformer_in_several_threads_keep_their_own_temperatures() -> None:
    from concurrent.futures import ThreadPoolExecutor

    model = flux()
    enable_taca(model, SCHEDULE)
    inputs = [flux_inputs([sigma]) for sigma in (1.0, 0.5, 0.95, 0.1)]
    expected = [run(model, arguments) for arguments in inputs]
    with ThreadPoolExecutor(4) as pool:
        got = list(pool.map(lambda index: run(model, inputs[index % 4]), range(24)))
    assert all(torch.equal(out, expected[index % 4]) for index, out in enumerate(got))


def test_a_forward_that_fails_leaves_no_temperature_behind() -> None:
    from components.taca.interception import running

    model, inputs = flux(), flux_inputs([1.0])
    enable_taca(model, SCHEDULE)
    with pytest.raises(RuntimeError):
        run(model, inputs | {"hidden_states": inputs["hidden_states"][..., :5]})
    assert running().adjustment is None
    assert running().layer is None


@pytest.mark.slow
@pytest.mark.heavy
def test_a_compiled_model_trains_as_an_uncompiled_one_under_checkpointing() -> None:
    gradients = []
    for compiled in (False, True):
        model = flux()
        model.enable_gradient_checkpointing()
        model.train()
        enable_taca(model, SCHEDULE)
        if compiled:
            torch._dynamo.reset()
            model.compile(fullgraph=True, backend="aot_eager")
        loss = sum(
            model(**flux_inputs(sigma), return_dict=False)[0].square().mean() for sigma in ([1.0, 0.5], [0.2, 0.95])
        )
        loss.backward()
        gradients.append([p.grad for p in model.parameters() if p.grad is not None])
    assert len(gradients[0]) == len(gradients[1])
    assert all((a - b).abs().max() < 1e-4 * b.abs().max() for a, b in zip(*gradients, strict=True))


Seen = dict[str, list[Any]]


def watch(model: Any, inputs: dict[str, Any]) -> tuple[Seen, Tensor]:
    seen: Seen = {}

    def observer(layer, query, key, text, gamma, mask, scale):  # type: ignore[no-untyped-def]
        seen.setdefault(layer, []).append((query, key, text, gamma, mask, scale))

    with observe_attention(model, observer):
        out = run(model, inputs)
    return seen, out


@every_family
def test_every_joint_layer_is_observed_with_taca_off_and_on(family: str) -> None:
    small = SMALL[family]
    model, inputs = small.build(), small.inputs([1.0, 0.5])
    processors = dict(model.attn_processors)
    stock = run(model, inputs)
    off, out = watch(model, inputs)
    assert len(off) == small.layers
    assert (out - stock).abs().max() < 1e-5 * stock.abs().max()
    assert all(gamma is None for calls in off.values() for *_, gamma, _, _ in calls)
    assert all(model.attn_processors[name] is processor for name, processor in processors.items())

    enable_taca(model, SCHEDULE)
    scaled = run(model, inputs)
    on, out = watch(model, inputs)
    assert torch.equal(out, scaled)
    assert on.keys() == off.keys()
    text = inputs["encoder_hidden_states"].shape[1] + small.prefix
    for query, key, where, gamma, _, _ in (call for calls in on.values() for call in calls):
        assert query.shape == key.shape
        start, stop, _ = where.indices(key.shape[1])
        assert stop - start == text
        assert (start == 0) == small.text_first
        assert gamma[0].max().item() == pytest.approx(1.6)
        assert gamma[1].max().item() == 1.0
    disable_taca(model)


def test_an_observed_query_and_key_are_those_that_attention_uses() -> None:
    from unittest import mock

    from diffusers.models import attention_dispatch

    model, inputs = flux(), flux_inputs([0.5])
    used = []
    stock = attention_dispatch.dispatch_attention_fn

    def keep(query, key, value, **options):  # type: ignore[no-untyped-def]
        used.append((query, key))
        return stock(query, key, value, **options)

    with mock.patch("diffusers.models.transformers.transformer_flux.dispatch_attention_fn", keep):
        run(model, inputs)
    seen, _ = watch(model, inputs)
    assert len(used) == len(seen)
    for (query, key), ((observed_query, observed_key, *_),) in zip(used, seen.values(), strict=True):
        assert torch.equal(query, observed_query)
        assert torch.equal(key, observed_key)
