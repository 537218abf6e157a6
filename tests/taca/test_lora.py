"""The attention-only adapter: what it covers, what its file holds, where it acts, and what it leaves alone."""

import copy
import json
import os
import pickle
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from small_transformers import FAMILIES, SMALL, flux, flux_inputs, sd3
from torch import Tensor
from workspaces import forked

from components.errors import DataError, ParameterError
from components.taca.adapter_gate import AdapterGate
from components.taca.install import enable_taca
from components.taca.lora import add_lora, load_lora, save_lora, unload_lora
from components.taca.lora_files import read_lora_settings
from components.taca.schedule import TemperatureSchedule
from pipelines.engine.forked import WARM

SCHEDULE = TemperatureSchedule(gamma=1.3, threshold=0.9)


def run(model: Any, inputs: dict[str, Any]) -> Tensor:
    with torch.no_grad():
        return model(**inputs, return_dict=False)[0]


def trained(model: Any, rank: int = 4, seed: int = 0, name: str = "taca") -> Any:
    """A model with an adapter whose B is not zero any more."""
    add_lora(model, rank=rank, seed=seed, adapter_name=name)
    source = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter_name, parameter in model.named_parameters():
            if f"lora_B.{name}." in parameter_name:
                parameter.copy_(0.3 * torch.randn(parameter.shape, generator=source))
    return model


def add_foreign(model: Any) -> None:
    """Somebody's own adapter, over feed-forward layers and attention, as diffusers' scripts make it."""
    from peft import LoraConfig

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(9)
        config = LoraConfig(r=2, lora_alpha=2, init_lora_weights=False, target_modules=["attn.to_q", "ff.net.2"])
        model.add_adapter(config, adapter_name="style")


def adapted_modules(model: Any) -> set[str]:
    return {name for name, module in model.named_modules() if hasattr(module, "lora_A")}


def test_flux_adapter_covers_double_and_single_attention_and_nothing_else() -> None:
    model = flux()
    count = add_lora(model, rank=4, seed=0)
    double = [f"{x}_proj" for x in ("add_q", "add_k", "add_v")] + ["to_add_out", "to_q", "to_k", "to_v", "to_out.0"]
    expected = {f"transformer_blocks.{i}.attn.{linear}" for i in range(2) for linear in double}
    expected |= {
        f"single_transformer_blocks.{i}.attn.{linear}" for i in range(3) for linear in ("to_q", "to_k", "to_v")
    }
    assert adapted_modules(model) == expected
    assert count == len(expected) * 4 * (64 + 64)  # every linear is 64 -> 64: A is 4 x 64, B is 64 x 4
    assert {name for name, p in model.named_parameters() if p.requires_grad} == {
        n for n, _ in model.named_parameters() if ".lora_" in n
    }


def test_sd3_adapter_leaves_the_image_only_attention_alone() -> None:
    model = sd3()
    add_lora(model, rank=4, seed=0)
    modules = adapted_modules(model)
    assert not [name for name in modules if "attn2" in name or "ff" in name]
    assert len(modules) == 3 * 8 - 1  # the last block has no to_add_out


ARCHITECTURES = Path(__file__).resolve().parents[2] / "presets" / "architectures"


@pytest.mark.parametrize(
    ("architecture", "rank", "linears", "expected"),
    [
        ("flux-dev", 64, 19 * 8 + 38 * 3, 104_595_456),  # 104.6 M
        ("flux-dev", 16, 19 * 8 + 38 * 3, 26_148_864),  # 26.1 M
        ("sd35-medium", 64, 24 * 8 - 1, 37_552_128),  # 37.6 M: the last block has no to_add_out, else it were 37.7 M
    ],
)
def test_the_adapter_of_a_published_architecture_has_the_parameters_of_its_attention_layers(
    architecture: str, rank: int, linears: int, expected: int
) -> None:
    import diffusers

    config = json.loads((ARCHITECTURES / f"{architecture}.json").read_text())
    with torch.device("meta"):
        model = getattr(diffusers, config.pop("_class_name"))(**config)
        count = add_lora(model, rank=rank, seed=0)
    width = config["num_attention_heads"] * config["attention_head_dim"]
    assert len(adapted_modules(model)) == linears
    assert count == expected == linears * rank * 2 * width


def test_a_new_adapter_changes_no_output_and_depends_on_its_seed_alone() -> None:
    stock = run(flux(), flux_inputs([1.0]))
    models = []
    for disturbance, seed in ((0, 5), (1, 5), (0, 6)):
        torch.manual_seed(disturbance)
        state = torch.random.get_rng_state()
        model = flux()
        add_lora(model, rank=8, seed=seed)
        assert torch.equal(torch.random.get_rng_state(), state)
        models.append({name: p.clone() for name, p in model.named_parameters() if "lora_A" in name})
        assert torch.equal(run(model, flux_inputs([1.0])), stock)
    assert all(torch.equal(models[0][name], models[1][name]) for name in models[0])
    assert not any(torch.equal(models[0][name], models[2][name]) for name in models[0])
    values = torch.cat([p.detach().flatten() for p in models[0].values()])
    assert values.std().item() == pytest.approx(1 / 8, rel=0.05)


def test_adapter_weights_are_float32_over_a_bfloat16_base() -> None:
    model = flux().to(torch.bfloat16)
    add_lora(model, rank=2, seed=0)
    assert {p.dtype for p in model.parameters() if p.requires_grad} == {torch.float32}
    assert run(model, flux_inputs([1.0], dtype=torch.bfloat16)).dtype == torch.bfloat16


@pytest.mark.parametrize("family", FAMILIES)
def test_a_saved_adapter_gives_the_same_output_when_loaded(family: str, tmp_path: Path) -> None:
    build, make_inputs = FAMILIES[family]
    model = trained(build())
    settings = {**SCHEDULE.to_mapping(), "base": "models/base"}
    save_lora(model, tmp_path, settings)
    fresh = build()
    enable_taca(fresh, SCHEDULE)
    assert load_lora(fresh, tmp_path) == settings | {"rank": 4}
    enable_taca(model, SCHEDULE)
    inputs = make_inputs([1.0, 0.4])
    assert torch.equal(run(fresh, inputs), run(model, inputs))
    assert not torch.equal(run(fresh, inputs), run(build(), inputs))


def test_a_plain_diffusers_pipeline_loads_the_file(tmp_path: Path) -> None:
    from diffusers import FlowMatchEulerDiscreteScheduler, FluxPipeline

    model = trained(flux(), rank=3)
    save_lora(model, tmp_path, SCHEDULE.to_mapping())
    pipe = FluxPipeline(FlowMatchEulerDiscreteScheduler(shift=3.0), None, None, None, None, None, flux())
    pipe.set_progress_bar_config(disable=True)
    embeds = torch.randn(1, 6, 24, generator=torch.Generator().manual_seed(0))

    def sample() -> Tensor:
        return pipe(
            prompt_embeds=embeds,
            pooled_prompt_embeds=embeds[:, 0, :20],
            height=64,
            width=64,
            num_inference_steps=2,
            output_type="latent",
            generator=torch.Generator().manual_seed(1),
        ).images

    before = sample()
    pipe.load_lora_weights(tmp_path)
    after = sample()
    assert (after - before).abs().max() > 1e-3
    assert torch.equal(run(pipe.transformer, flux_inputs([1.0])), run(model, flux_inputs([1.0])))
    config = next(iter(pipe.transformer.peft_config.values()))
    assert (config.r, config.lora_alpha) == (3, 3)
    pipe.unload_lora_weights()
    enable_taca(pipe.transformer, TemperatureSchedule(gamma=1.0))
    load_lora(pipe, tmp_path)
    assert torch.equal(sample(), after)


def test_the_file_is_the_same_bytes_in_every_process(tmp_path: Path, warm_address: str) -> None:
    """safetensors orders several metadata keys by a hash that differs between processes."""
    script = (
        "import sys; from pathlib import Path; from small_transformers import flux;"
        "from components.taca.lora import add_lora, save_lora; m = flux(); add_lora(m, rank=2, seed=3);"
        "save_lora(m, Path(sys.argv[1]), {'gamma': 1.2, 'threshold': 0.97, 'base': 'x', 'z': [1]})"
    )
    assert forked(script, str(tmp_path / "there"), **{**os.environ, WARM: warm_address}).wait(100) == 0
    model = flux()
    add_lora(model, rank=2, seed=3)
    here = save_lora(model, tmp_path / "here", {"z": [1], "base": "x", "gamma": 1.2, "threshold": 0.97})
    raw = here.read_bytes()
    assert raw == (tmp_path / "there" / here.name).read_bytes()
    header = json.loads(raw[8 : 8 + int.from_bytes(raw[:8], "little")])
    assert list(header["__metadata__"]) == ["lora_adapter_metadata"]


def test_loading_a_taca_adapter_without_taca_warns(tmp_path: Path) -> None:
    save_lora(trained(flux()), tmp_path / "taca", SCHEDULE.to_mapping())
    save_lora(trained(flux()), tmp_path / "control", TemperatureSchedule(gamma=1.0).to_mapping())
    with pytest.warns(UserWarning, match="trained under TACA"):
        load_lora(flux(), tmp_path / "taca")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        load_lora(flux(), tmp_path / "control")
        model = flux()
        enable_taca(model, SCHEDULE)
        load_lora(model, tmp_path / "taca")


def test_an_adapter_from_elsewhere_has_no_settings_and_a_broken_one_is_a_data_error(tmp_path: Path) -> None:
    from safetensors.torch import save_file

    save_file({"transformer.x.lora_A.weight": torch.zeros(1, 1)}, tmp_path / "pytorch_lora_weights.safetensors")
    assert read_lora_settings(tmp_path) == {}
    with pytest.raises(DataError, match="nowhere"):
        read_lora_settings(tmp_path / "nowhere")
    (tmp_path / "pytorch_lora_weights.safetensors").write_bytes(b"not a file of weights")
    with pytest.raises(DataError, match="not a LoRA adapter"):
        read_lora_settings(tmp_path)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("family", SMALL)
def test_below_the_threshold_a_gated_adapter_has_no_effect_at_all(family: str, dtype: torch.dtype) -> None:
    build, make_inputs = SMALL[family].build, SMALL[family].inputs
    model, plain = trained(build().to(dtype)), build().to(dtype)
    low, high = make_inputs([0.5, 0.2], dtype=dtype), make_inputs([1.0, 0.9], dtype=dtype)
    ungated_low, ungated_high = run(model, low), run(model, high)
    assert ungated_low.dtype == dtype
    gate = AdapterGate(model, "taca", threshold=0.9)
    assert torch.equal(run(model, low), run(plain, low))
    assert torch.equal(run(model, high), ungated_high)
    assert not torch.equal(ungated_high, run(plain, high))
    gate.remove()
    assert torch.equal(run(model, low), ungated_low)
    assert not torch.equal(ungated_low, run(plain, low))


def test_gating_touches_no_other_adapter_and_no_trainable_flag() -> None:
    foreign_only = flux()
    add_foreign(foreign_only)
    low = flux_inputs([0.5])
    model = flux()
    add_foreign(model)
    trained(model)
    flags = {name: p.requires_grad for name, p in model.named_parameters()}
    scales = {name: dict(m.scaling) for name, m in model.named_modules() if hasattr(m, "scaling")}
    with AdapterGate(model, "taca", threshold=0.9):
        assert torch.equal(run(model, low), run(foreign_only, low))
        assert not torch.equal(run(model, flux_inputs([1.0])), run(foreign_only, flux_inputs([1.0])))
    assert flags == {name: p.requires_grad for name, p in model.named_parameters()}
    assert scales == {name: dict(m.scaling) for name, m in model.named_modules() if hasattr(m, "scaling")}
    assert set(model.active_adapters()) == {"style", "taca"}


def test_loading_and_unloading_keep_another_adapter_as_it_was(tmp_path: Path) -> None:
    save_lora(trained(flux()), tmp_path, TemperatureSchedule(gamma=1.0).to_mapping())
    model, inputs = flux(), flux_inputs([0.5])
    add_foreign(model)
    model.set_adapters("style", 0.5)
    before = run(model, inputs)
    load_lora(model, tmp_path)
    assert set(model.active_adapters()) == {"style", "taca"}
    with AdapterGate(model, "taca", threshold=0.9):
        assert torch.equal(run(model, inputs), before)
    unload_lora(model)
    assert model.active_adapters() == ["style"]
    assert torch.equal(run(model, inputs), before)


def test_what_is_trainable_stays_so_by_name_where_loading_replaces_parameters_or_fails(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Offloading puts other parameter objects in place of those that were there."""
    save_lora(trained(flux()), tmp_path, TemperatureSchedule(gamma=1.0).to_mapping())
    model = flux()
    add_lora(model, rank=2, seed=0, adapter_name="mine")
    model.proj_out.requires_grad_(True)
    before = {name: p.requires_grad for name, p in model.named_parameters()}
    load = model.load_lora_adapter

    def load_and_replace(*args: Any, **keywords: Any) -> None:
        load(*args, **keywords)
        for module in model.modules():
            for name, parameter in list(module._parameters.items()):
                if parameter is not None:
                    module._parameters[name] = torch.nn.Parameter(parameter.detach().clone(), requires_grad=False)

    monkeypatch.setattr(model, "load_lora_adapter", load_and_replace)
    load_lora(model, tmp_path)
    after = {name: p.requires_grad for name, p in model.named_parameters()}
    assert before == {name: after[name] for name in before}
    unload_lora(model)
    assert before == {name: p.requires_grad for name, p in model.named_parameters()}

    def fail(*args: Any, **keywords: Any) -> None:
        model.requires_grad_(False)
        raise RuntimeError("out of room")

    monkeypatch.setattr(model, "load_lora_adapter", fail)
    with pytest.raises((RuntimeError, DataError), match="out of room"):
        load_lora(model, tmp_path)
    assert before == {name: p.requires_grad for name, p in model.named_parameters()}


def test_unloading_the_only_adapter_leaves_a_plain_model_that_can_load_again(tmp_path: Path) -> None:
    save_lora(trained(flux()), tmp_path, TemperatureSchedule(gamma=1.0).to_mapping())
    model, inputs = flux(), flux_inputs([0.5])
    names = [name for name, _ in model.named_parameters()]
    for _ in range(2):
        load_lora(model, tmp_path)
        assert not torch.equal(run(model, inputs), run(flux(), inputs))
        unload_lora(model)
        assert torch.equal(run(model, inputs), run(flux(), inputs))
        assert [name for name, _ in model.named_parameters()] == names


def test_a_gate_recovers_when_a_forward_fails() -> None:
    model = trained(flux())
    inputs = flux_inputs([0.5])
    with_adapter = run(model, inputs)
    with AdapterGate(model, "taca", threshold=0.9), pytest.raises(RuntimeError):
        run(model, inputs | {"pooled_projections": torch.zeros(1, 3)})
    assert torch.equal(run(model, inputs), with_adapter)


def test_a_gate_refuses_what_it_cannot_do_right() -> None:
    model = trained(flux())
    with pytest.raises(ParameterError, match="no LoRA adapter 'other'; loaded are: taca"):
        AdapterGate(model, "other", threshold=0.9)
    with pytest.raises(ParameterError, match="threshold"):
        AdapterGate(model, "taca", threshold=970)
    with AdapterGate(model, "taca", threshold=0.9):
        with pytest.raises(ParameterError, match="mixes"):
            run(model, flux_inputs([1.0, 0.5]))
        model.enable_gradient_checkpointing()
        with pytest.raises(ParameterError, match="checkpointing"):
            model(**flux_inputs([0.5]))
        model(**flux_inputs([1.0]))


def test_taca_gate_and_adapter_work_together_in_either_order() -> None:
    outputs = []
    for order in (0, 1):
        model = trained(flux())
        if order:
            enable_taca(model, SCHEDULE)
        gate = AdapterGate(model, "taca", threshold=0.9)
        if not order:
            enable_taca(model, SCHEDULE)
        outputs.append((run(model, flux_inputs([1.0])), run(model, flux_inputs([0.5]))))
        gate.remove()
    assert torch.equal(outputs[0][0], outputs[1][0])
    assert torch.equal(outputs[0][1], run(flux(), flux_inputs([0.5])))


def test_a_bad_rank_or_a_taken_name_is_a_parameter_error(tmp_path: Path) -> None:
    model = flux()
    with pytest.raises(ParameterError, match="rank"):
        add_lora(model, rank=0, seed=0)
    add_lora(model, rank=2, seed=0)
    with pytest.raises(ParameterError, match="already exists"):
        add_lora(model, rank=2, seed=0)
    save_lora(model, tmp_path, {})
    with pytest.raises(ParameterError, match="already exists"):
        load_lora(model, tmp_path)


def test_a_gate_over_a_fused_adapter_is_refused_before_and_after() -> None:
    model = trained(flux())
    gate = AdapterGate(model, "taca", threshold=0.9)
    model.fuse_lora(adapter_names=["taca"])
    for sigma in (0.5, 1.0):
        with pytest.raises(ParameterError, match=r"taca is fused into the weights.*unfuse_lora"):
            run(model, flux_inputs([sigma]))
    gate.remove()
    with pytest.raises(ParameterError, match="fused"):
        AdapterGate(model, "taca", threshold=0.9)
    model.unfuse_lora()
    with AdapterGate(model, "taca", threshold=0.9):
        assert (run(model, flux_inputs([0.5])) - run(flux(), flux_inputs([0.5]))).abs().max() < 1e-3
        fuse_without_asking(model)
        with pytest.raises(ParameterError, match="fused projections"):
            run(model, flux_inputs([0.5]))


def fuse_without_asking(model: Any) -> None:
    """As diffusers does in a model whose adapters its own loader loaded."""
    type(model).fuse_qkv_projections(model)


def test_fusing_projections_under_an_adapter_is_refused_and_allowed_once_it_is_merged_or_gone(tmp_path: Path) -> None:
    save_lora(trained(flux()), tmp_path, TemperatureSchedule(gamma=1.0).to_mapping())
    loaded, inputs = flux(), flux_inputs([1.0])
    load_lora(loaded, tmp_path)
    expected = run(loaded, inputs)
    for model in (trained(flux()), copy.deepcopy(loaded), pickle.loads(pickle.dumps(loaded))):
        with pytest.raises(ParameterError, match=r"LoRA taca is over the projections .* call fuse_lora\(\) first"):
            model.fuse_qkv_projections()
        assert torch.equal(run(model, inputs), expected)
        model.fuse_lora()
        model.fuse_qkv_projections()
        assert model.transformer_blocks[0].attn.fused_projections
        assert (run(model, inputs) - expected).abs().max() < 1e-3 * expected.abs().max()
    assert not loaded.transformer_blocks[0].attn.fused_projections
    unload_lora(loaded)
    loaded.fuse_qkv_projections()
    assert loaded.transformer_blocks[0].attn.fused_projections


def fuse_projections(model: Any) -> None:
    model.fuse_qkv_projections()


def disable(model: Any) -> None:
    add_foreign(model)
    model.disable_lora()


def fuse_another(model: Any) -> None:
    add_foreign(model)
    model.fuse_lora()


@pytest.mark.parametrize(
    ("hinder", "message"),
    [
        (fuse_projections, "fused projections .* unfuse_qkv_projections"),
        (disable, "disabled.* enable_lora"),
        (fuse_another, "style is fused into its layers.* unload_lora"),
    ],
)
def test_an_adapter_that_would_do_nothing_is_refused_and_changes_nothing(
    hinder: Any, message: str, tmp_path: Path
) -> None:
    save_lora(trained(flux()), tmp_path, TemperatureSchedule(gamma=1.0).to_mapping())
    model = flux()
    hinder(model)
    before, names = run(model, flux_inputs([1.0])), [name for name, _ in model.named_parameters()]
    for add in (lambda: load_lora(model, tmp_path), lambda: add_lora(model, rank=2, seed=0)):
        with pytest.raises(ParameterError, match=message) as caught:
            add()
        assert "\n" not in str(caught.value)
    assert [name for name, _ in model.named_parameters()] == names
    assert torch.equal(run(model, flux_inputs([1.0])), before)


def test_projections_that_are_fused_after_loading_are_noticed_under_taca() -> None:
    model = trained(flux())
    enable_taca(model, SCHEDULE)
    expected = run(model, flux_inputs([1.0]))
    fuse_without_asking(model)
    with pytest.raises(ParameterError, match="fused after a LoRA was loaded"):
        run(model, flux_inputs([0.5]))
    model.unfuse_qkv_projections()
    model.fuse_lora()
    model.fuse_qkv_projections()  # of the weights with the LoRA in them
    assert (run(model, flux_inputs([1.0])) - expected).abs().max() < 1e-3 * expected.abs().max()


def test_a_weight_scales_the_change_of_an_adapter(tmp_path: Path) -> None:
    save_lora(trained(flux()), tmp_path, TemperatureSchedule(gamma=1.0).to_mapping())
    model, whole = flux(), flux()
    layer = "transformer_blocks.0.attn.to_q"
    for target, weight in ((whole, 1.0), (model, -0.5)):
        load_lora(target, tmp_path, weight=weight)
        target.fuse_lora()
    base = flux().get_submodule(layer).weight
    changes = [target.get_submodule(layer).base_layer.weight - base for target in (whole, model)]
    assert changes[0].abs().max() > 0.1
    torch.testing.assert_close(changes[1], -0.5 * changes[0], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("given", ["pipeline", "transformer"])
def test_layers_of_an_adapter_are_offloaded_with_the_others(given: str, tmp_path: Path) -> None:
    """On a GPU a layer without a hook would stay on the CPU beside a base that was moved."""
    from diffusers import FlowMatchEulerDiscreteScheduler, FluxPipeline

    save_lora(trained(flux()), tmp_path, TemperatureSchedule(gamma=1.0).to_mapping())
    expected = run(trained(flux()), flux_inputs([1.0]))
    model = flux()
    pipe = FluxPipeline(FlowMatchEulerDiscreteScheduler(), None, None, None, None, None, model)
    model.enable_group_offload(torch.device("cpu"), offload_type="leaf_level")
    stock = run(model, flux_inputs([1.0]))
    for _ in range(2):
        load_lora(pipe if given == "pipeline" else model, tmp_path)
        added = [module for name, module in model.named_modules() if name.endswith(("lora_A.taca", "lora_B.taca"))]
        assert len(added) == 50
        assert all(module._diffusers_hook.get_hook("group_offloading") for module in added)
        assert torch.equal(run(model, flux_inputs([1.0])), expected)
        unload_lora(model)
        assert torch.equal(run(model, flux_inputs([1.0])), stock)


def test_sequential_offloading_needs_the_pipeline(tmp_path: Path) -> None:
    from accelerate import cpu_offload

    save_lora(trained(flux()), tmp_path, TemperatureSchedule(gamma=1.0).to_mapping())
    model = flux()
    cpu_offload(model, torch.device("cpu"))
    with pytest.raises(ParameterError, match=r"sequential offloading: give the pipeline"):
        load_lora(model, tmp_path)


@pytest.mark.parametrize("first", ["fp8", "adapter"])
def test_an_adapter_over_a_base_in_fp8(first: str, tmp_path: Path) -> None:
    """Layerwise casting in either order; loaded after it, the adapter keeps the precision that computes."""
    save_lora(trained(flux()), tmp_path, TemperatureSchedule(gamma=1.0).to_mapping())
    inputs = flux_inputs([1.0], dtype=torch.bfloat16)

    def cast(model: Any) -> None:
        model.enable_layerwise_casting(storage_dtype=torch.float8_e4m3fn, compute_dtype=torch.bfloat16)

    exact, base, model = (flux().to(torch.bfloat16) for _ in range(3))
    load_lora(exact, tmp_path)
    cast(base)
    enable_taca(model, TemperatureSchedule(gamma=1.0))
    for step in (cast, lambda m: load_lora(m, tmp_path))[:: 1 if first == "fp8" else -1]:
        step(model)
    if first == "fp8":
        kept = {name: p for name, p in model.named_parameters() if ".lora_" in name}
        assert {p.dtype for p in kept.values()} == {torch.bfloat16}
        assert all(torch.equal(p, exact.get_parameter(name)) for name, p in kept.items())
    error, effect = run(model, inputs) - run(exact, inputs), run(base, inputs) - run(exact, inputs)
    assert error.float().norm() < 0.5 * effect.float().norm()
    with AdapterGate(model, "taca", threshold=0.9):
        low = flux_inputs([0.5], dtype=torch.bfloat16)
        assert torch.equal(run(model, low), run(base, low))


def test_a_dora_over_a_base_in_fp8_is_one_clear_error(tmp_path: Path) -> None:
    from safetensors.torch import save_file

    layer = "transformer.transformer_blocks.0.attn.to_q"
    halves = {"lora_A.weight": (2, 64), "lora_B.weight": (64, 2), "lora_magnitude_vector": (64,)}
    save_file({f"{layer}.{half}": torch.ones(shape) for half, shape in halves.items()}, tmp_path / "x.safetensors")
    model = flux().to(torch.bfloat16)
    model.enable_layerwise_casting(storage_dtype=torch.float8_e4m3fn, compute_dtype=torch.bfloat16)
    with pytest.raises(ParameterError, match="a DoRA needs norms of the weights, which are stored in fp8"):
        load_lora(model, tmp_path / "x.safetensors")
