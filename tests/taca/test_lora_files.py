"""LoRA files of other people: every layout gives the weight change that its own matrices say, and no key goes missing."""

import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from small_transformers import SMALL, flux, sd3
from torch import Tensor

from components.errors import DataError
from components.taca.lora import load_lora, unload_lora
from components.taca.lora_files import lora_file, read_lora, read_lora_settings
from components.taca.registry import family_of

RANK = 3
ATTENTION = ("to_q", "to_k", "to_v", "to_out.0", "add_q_proj", "add_k_proj", "add_v_proj", "to_add_out")
PEFT, KOHYA = ("lora_A", "lora_B"), ("lora_down", "lora_up")


def linear_shapes(model: Any) -> dict[str, tuple[int, int]]:
    linears = {name: m for name, m in model.named_modules() if isinstance(m, torch.nn.Linear)}
    return {name: (m.out_features, m.in_features) for name, m in linears.items()}


def matrices(shapes: dict[str, tuple[int, int]], seed: int = 0) -> dict[str, tuple[Tensor, Tensor]]:
    """Random (down, up) for each layer."""
    source = torch.Generator().manual_seed(seed)
    return {
        name: (torch.randn(RANK, into, generator=source), torch.randn(out, RANK, generator=source))
        for name, (out, into) in shapes.items()
    }


def write(path: Path, pairs: dict[str, tuple[Tensor, Tensor]], halves: tuple[str, str], alpha: float | None) -> Path:
    """A file of `<name>.<half>.weight`, and `<name>.alpha` where there is one."""
    weights: dict[str, Tensor] = {}
    for name, (down, up) in pairs.items():
        weights |= {f"{name}.{halves[0]}.weight": down, f"{name}.{halves[1]}.weight": up}
        weights |= {f"{name}.alpha": torch.tensor(alpha)} if alpha is not None else {}
    path.parent.mkdir(parents=True, exist_ok=True)
    save_file(weights, path)
    return path


def change_of(build: Any, file: Path) -> dict[str, Tensor]:
    """What merging the adapter adds to each weight, where it is not zero."""
    model = build()
    before = {name: weight.clone() for name, weight in model.state_dict().items()}
    load_lora(model, file)
    model.fuse_lora()
    unload_lora(model)
    after = model.state_dict()
    assert after.keys() == before.keys()
    return {
        name.removesuffix(".weight"): after[name] - before[name]
        for name in before
        if not torch.equal(after[name], before[name])
    }


def assert_changes(found: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    assert found.keys() == expected.keys()
    for name in expected:
        torch.testing.assert_close(found[name], expected[name], rtol=1e-4, atol=1e-5)


def product(pair: tuple[Tensor, Tensor], scale: float = 1.0) -> Tensor:
    down, up = pair
    return (scale * up.double() @ down.double()).float()


@pytest.mark.parametrize("family", SMALL)
@pytest.mark.parametrize(
    ("prefix", "flat", "halves", "alpha"),
    [
        ("transformer.", False, PEFT, None),
        ("transformer.", False, KOHYA, 2.0),
        ("diffusion_model.", False, PEFT, None),
        ("diffusion_model.", False, KOHYA, 1.5),
        ("lora_transformer_", True, KOHYA, 1.5),
    ],
)
def test_a_file_in_diffusers_names_adds_alpha_over_rank_times_b_a(
    family: str, prefix: str, flat: bool, halves: tuple[str, str], alpha: float | None, tmp_path: Path
) -> None:
    build = SMALL[family].build
    shapes = {
        name: shape
        for name, shape in linear_shapes(build()).items()
        if re.search(r"(attn|attn2)\.to_[qkv]$|\.to_add_out$|\.to_out\.0$|add_q_proj$|ff\.net\.2$|^proj_out$", name)
    }
    assert len(shapes) > 5
    pairs = matrices(shapes)
    named = {prefix + (name.replace(".", "_") if flat else name): pair for name, pair in pairs.items()}
    file = write(tmp_path / "somebody's.safetensors", named, halves, alpha)
    scale = 1.0 if alpha is None else alpha / RANK
    assert_changes(change_of(build, file), {name: product(pair, scale) for name, pair in pairs.items()})


BFL = {  # layers of FLUX's own code, and what diffusers calls them, in order of their rows
    "double_blocks.0.img_attn.qkv": [f"transformer_blocks.0.attn.{x}" for x in ("to_q", "to_k", "to_v")],
    "double_blocks.1.txt_attn.qkv": [f"transformer_blocks.1.attn.add_{x}_proj" for x in "qkv"],
    "double_blocks.0.img_attn.proj": ["transformer_blocks.0.attn.to_out.0"],
    "double_blocks.1.txt_attn.proj": ["transformer_blocks.1.attn.to_add_out"],
    "double_blocks.0.img_mlp.0": ["transformer_blocks.0.ff.net.0.proj"],
    "double_blocks.0.txt_mlp.2": ["transformer_blocks.0.ff_context.net.2"],
    "single_blocks.2.linear2": ["single_transformer_blocks.2.proj_out"],
    "single_blocks.2.modulation.lin": ["single_transformer_blocks.2.norm.linear"],
    "img_in": ["x_embedder"],
}


@pytest.mark.parametrize("alpha", [None, 1.0, 4.0])
@pytest.mark.parametrize(
    ("prefix", "flat", "halves"),
    [("lora_unet_", True, KOHYA), ("diffusion_model.", False, PEFT), ("diffusion_model.", False, KOHYA)],
)
def test_a_file_in_the_names_of_fluxs_own_code_splits_fused_projections(
    prefix: str, flat: bool, halves: tuple[str, str], alpha: float | None, tmp_path: Path
) -> None:
    linears = linear_shapes(flux())
    fused = {name: (sum(linears[part][0] for part in parts), linears[parts[0]][1]) for name, parts in BFL.items()}
    pairs = matrices(fused)
    file = write(
        tmp_path / "kohya.safetensors",
        {prefix + (name.replace(".", "_") if flat else name): pair for name, pair in pairs.items()},
        halves,
        alpha,
    )
    expected = {}
    for name, parts in BFL.items():
        rows = product(pairs[name], 1.0 if alpha is None else alpha / RANK).split([linears[p][0] for p in parts])
        expected |= dict(zip(parts, rows, strict=True))
    assert_changes(change_of(flux, file), expected)


def test_the_fused_layer_of_a_full_size_single_block_is_split_too(tmp_path: Path) -> None:
    """The converter knows its rows for FLUX.1's own width only: q, k, v of 3072 and the 12288 of the feed-forward."""
    from diffusers import FluxTransformer2DModel

    with torch.device("meta"):
        model = FluxTransformer2DModel(num_layers=1, num_single_layers=1)
    pair = matrices({"x": (3 * 3072 + 12288, 3072)})["x"]
    file = write(tmp_path / "single.safetensors", {"lora_unet_single_blocks_0_linear1": pair}, KOHYA, 6.0)
    read = read_lora(file, model)
    weights = read.transformer
    assert read.settings == {}
    parts = [
        f"transformer.single_transformer_blocks.0.{x}" for x in ("attn.to_q", "attn.to_k", "attn.to_v", "proj_mlp")
    ]
    assert {key.rsplit(".lora_", 1)[0] for key in weights} == set(parts)
    found = torch.cat([weights[f"{part}.lora_B.weight"] @ weights[f"{part}.lora_A.weight"] for part in parts])
    torch.testing.assert_close(found, product(pair, 2.0), rtol=1e-4, atol=1e-4)


def test_the_published_layout_is_read_by_file_and_by_folder_whatever_its_name(tmp_path: Path) -> None:
    """`ldiex/TACA` has several files in one folder, with names of their own and no settings."""
    pairs = matrices({f"transformer_blocks.0.attn.{x}": (64, 64) for x in ATTENTION})
    named = {f"transformer.{name}": pair for name, pair in pairs.items()}
    first = write(tmp_path / "flux-dev-lora-rank-64.safetensors", named, PEFT, None)
    expected = {name: product(pair) for name, pair in pairs.items()}
    assert_changes(change_of(flux, first), expected)
    assert_changes(change_of(flux, tmp_path), expected)
    assert read_lora_settings(tmp_path) == read_lora_settings(first) == {}
    write(tmp_path / "flux-dev-lora-rank-16.safetensors", named, PEFT, None)
    with pytest.raises(DataError, match=r"several LoRAs, give one of flux-dev-lora-rank-16.safetensors, flux-dev"):
        load_lora(flux(), tmp_path)


@pytest.mark.parametrize(
    "settings",
    [
        {"lora_alpha": 32},
        {"lora_alpha": 32, "use_rslora": True},
        {"lora_alpha": 32, "use_dora": True},
        {"lora_alpha": 2, "alpha_pattern": {"1.attn.to_q": 12}, "rank_pattern": {"0.attn.to_q": 4}},
    ],
)
def test_a_folder_that_peft_saved_has_the_strength_that_peft_gives_it(settings: dict[str, Any], tmp_path: Path) -> None:
    from peft import LoraConfig, get_peft_model

    config = LoraConfig(r=8, target_modules=["attn.to_q"], init_lora_weights=False, **settings)
    before = flux().state_dict()
    model: Any = get_peft_model(flux(), config)
    model.save_pretrained(tmp_path)
    merged = model.merge_and_unload().state_dict()
    changed = {name for name in before if not torch.equal(merged[name], before[name])}
    assert {name.rsplit(".", 2)[1] for name in changed} == {"to_q"}
    expected = {name.removesuffix(".weight"): merged[name] - before[name] for name in changed}
    assert_changes(change_of(flux, tmp_path), expected)


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ('{"lora_alpha": null}', "lora_alpha is None: must be a number"),
        ('{"lora_alpha": 4', "cannot be read"),
        ('{"lora_alpha": 4, "peft_type": "LOHA"}', "not the settings of a LoRA"),
    ],
)
def test_settings_of_peft_that_state_no_strength_are_refused_and_without_any_alpha_is_the_rank(
    settings: str, expected: str, tmp_path: Path
) -> None:
    pairs = matrices({"transformer_blocks.0.attn.to_q": (64, 64)})
    file = write(tmp_path / "x.safetensors", {f"base_model.model.{n}": p for n, p in pairs.items()}, PEFT, None)
    assert_changes(change_of(flux, file), {name: product(pair) for name, pair in pairs.items()})
    (tmp_path / "adapter_config.json").write_text(settings)
    with pytest.raises(DataError, match=expected):
        load_lora(flux(), file)


def test_ranks_may_differ_between_layers(tmp_path: Path) -> None:
    source = torch.Generator().manual_seed(0)
    ranks = {"transformer_blocks.0.attn.to_q": 2, "transformer_blocks.0.attn.to_k": 5, "proj_out": 1}
    shapes = linear_shapes(flux())
    pairs = {
        name: (
            torch.randn(rank, shapes[name][1], generator=source),
            torch.randn(shapes[name][0], rank, generator=source),
        )
        for name, rank in ranks.items()
    }
    file = write(tmp_path / "x.safetensors", {f"transformer.{n}": p for n, p in pairs.items()}, PEFT, None)
    assert_changes(change_of(flux, file), {name: product(pair) for name, pair in pairs.items()})


Q, K, V = (f"transformer_blocks.0.attn.to_{x}" for x in "qkv")


def xlabs() -> dict[str, tuple[int, ...]]:
    names = {"qkv_lora1": (64, 192), "proj_lora1": (64, 64), "qkv_lora2": (64, 192), "proj_lora2": (64, 64)}
    keys: dict[str, tuple[int, ...]] = {}
    for name, (into, out) in names.items():
        start = f"double_blocks.1.processor.{name}"
        keys |= {f"{start}.down.weight": (RANK, into), f"{start}.up.weight": (out, RANK)}
    single = "single_blocks.2.processor.qkv_lora"
    return keys | {f"{single}.down.weight": (RANK, 64), f"{single}.up.weight": (192, RANK)}


def pairs_of(*names: str, halves: tuple[str, str] = PEFT) -> dict[str, tuple[int, ...]]:
    return {f"{n}.{half}.weight": (RANK, 64) if half == halves[0] else (64, RANK) for n in names for half in halves}


LAYOUTS: dict[str, tuple[str, dict[str, tuple[int, ...]]]] = {
    "XLabs": ("flux", xlabs()),
    "diffusers before PEFT": (
        "flux",
        pairs_of(f"transformer.{Q}", f"transformer.{V}", halves=("lora.down", "lora.up")),
    ),
    "diffusers' first": (
        "sd3",
        {f"transformer.{Q}_lora.down.weight": (RANK, 64), f"transformer.{Q}_lora.up.weight": (64, RANK)},
    ),
    "with biases": ("flux", pairs_of(f"transformer.{Q}") | {f"transformer.{Q}.lora_B.bias": (64,)}),
    "PEFT's DoRA": ("flux", pairs_of(f"transformer.{Q}") | {f"transformer.{Q}.lora_magnitude_vector": (64,)}),
    "Qwen by ComfyUI": (
        "qwen-image",
        {f"diffusion_model.{Q}.lora_down.weight": (RANK, 64), f"diffusion_model.{Q}.lora_up.weight": (64, RANK)}
        | {f"diffusion_model.{Q}.alpha": ()},
    ),
    "Qwen by musubi": ("qwen-image", pairs_of(f"lora_unet_{Q.replace('.', '_')}", halves=KOHYA)),
    "named default": (
        "qwen-image",
        {f"{Q}.lora_A.default.weight": (RANK, 64), f"{Q}.lora_B.default.weight": (64, RANK)},
    ),
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_layout_is_read_as_diffusers_own_loader_reads_it(layout: str, tmp_path: Path) -> None:
    from diffusers.loaders import lora_pipeline

    family, shapes = LAYOUTS[layout]
    source = torch.Generator().manual_seed(0)
    weights = {
        key: torch.randn(shape, generator=source) if shape else torch.tensor(1.5) for key, shape in shapes.items()
    }
    file = tmp_path / "x.safetensors"
    save_file(weights, file)
    small = SMALL[family]
    ours, theirs, inputs = small.build(), small.build(), small.inputs([1.0])
    before = ours(**inputs, return_dict=False)[0]
    load_lora(ours, file)
    loader = getattr(lora_pipeline, family_of(theirs).lora_reader or "")
    read = loader.lora_state_dict(dict(weights))
    read = {key if key.startswith("transformer.") else f"transformer.{key}": tensor for key, tensor in read.items()}
    theirs.load_lora_adapter(read, prefix="transformer", adapter_name="taca")
    after = ours(**inputs, return_dict=False)[0]
    torch.testing.assert_close(after, theirs(**inputs, return_dict=False)[0], rtol=1e-4, atol=1e-3)
    assert (after - before).abs().max() > 0.1


def test_a_fused_layer_whose_matrix_is_block_diagonal_is_read_by_its_blocks(tmp_path: Path) -> None:
    """sd-scripts writes separate q, k and v so, with three times the rank; diffusers' reader finds out from the zeros."""
    down, up = matrices({"x": (192, 64)})["x"]
    down, up = torch.cat([down] * 3), torch.block_diag(*up.split(64))
    name = "lora_unet_double_blocks_0_img_attn_qkv"
    file = write(tmp_path / "x.safetensors", {name: (down, up)}, KOHYA, 3.0)
    weights = read_lora(file, flux()).transformer
    assert {len(tensor) for key, tensor in weights.items() if "lora_A" in key} == {RANK}
    rows = product((down, up), 3.0 / 9).split(64)
    assert_changes(change_of(flux, file), dict(zip((Q, K, V), rows, strict=True)))


@pytest.mark.parametrize("zero", [True, False])
def test_what_diffusers_leaves_out_is_left_out_only_if_it_is_zero(zero: bool, tmp_path: Path) -> None:
    name = "lora_unet_double_blocks_0_img_attn_proj"
    extra = {f"{name}.diff_b": torch.zeros(64) if zero else torch.ones(64)}
    file = tmp_path / "x.safetensors"
    save_file(
        {f"{name}.lora_down.weight": torch.ones(3, 64), f"{name}.lora_up.weight": torch.ones(64, 3)} | extra, file
    )
    if zero:
        assert list(change_of(flux, file)) == ["transformer_blocks.0.attn.to_out.0"]
        return
    with pytest.raises(DataError, match=r"1 keys are not LoRA keys .*differences of whole weights"):
        load_lora(flux(), file)


@pytest.mark.parametrize(
    ("family", "key", "name"),
    [
        ("flux", "transformer.proj_out.dora_scale", "a DoRA"),
        ("flux", "lora_unet_double_blocks_0_img_attn_qkv.hada_w1_a", "a LoHa"),
        ("qwen-image", "diffusion_model.transformer_blocks.0.attn.to_q.lokr_w1", "a LoKr"),
        ("sd3", "transformer_blocks.0.attn.to_q.oft_R.weight", "an OFT adapter"),
        ("flux", "double_blocks.0.img_attn.norm.query_norm.scale", "a control LoRA of FLUX for another model, or cut"),
        ("sd3", "lora_unet_joint_blocks_0_x_block_attn_qkv.lora_down.weight", "kohya's names of Stable Diffusion 3"),
        (
            "flux",
            "lora_unet_down_blocks_0_attentions_0_proj_in.lora_down.weight",
            "a LoRA of Stable Diffusion 1, 2 or XL",
        ),
        ("auraflow", "something.else", "a LoRA for another model, or of an unknown layout"),
    ],
)
def test_a_layout_that_is_not_read_is_refused_by_its_name(family: str, key: str, name: str, tmp_path: Path) -> None:
    weights = {key: torch.ones(3, 64)}
    if key.endswith("lora_down.weight"):
        weights[key.replace("lora_down", "lora_up")] = torch.ones(64, 3)
    save_file(weights, tmp_path / "x.safetensors")
    model = SMALL[family].build()
    with pytest.raises(DataError, match=name) as caught:
        load_lora(model, tmp_path / "x.safetensors")
    assert "\n" not in str(caught.value)
    assert not [module for module, _ in model.named_modules() if "lora" in module]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"transformer.transformer_blocks.7.attn.to_q.lora_A.weight": (3, 64),
          "transformer.transformer_blocks.7.attn.to_q.lora_B.weight": (64, 3)},
         r"1 of 2 layers are not in FluxTransformer2DModel \(transformer.transformer_blocks.7.attn.to_q\)"),
        ({"lora_unet_input_blocks_4_proj.lora_down.weight": (3, 64), "lora_unet_input_blocks_4_proj.lora_up.weight": (64, 3)},
         r"1 of 2 layers are not in .*input_blocks_4_proj"),
        ({"transformer.proj_out.dora_scale": (12, 1)}, r"1 keys are not LoRA keys \(transformer.proj_out.dora_scale\)"),
        ({"transformer.norm.diff": (3,)}, "1 keys are not LoRA keys"),
        ({"transformer.proj_out.lora_A.weight": (3, 64), "transformer.proj_out.lora_B.weight": (12, 3),
          "transformer.proj_out.lora_magnitude_vector": (12,)}, "a DoRA without the lora_magnitude_vector of 1 layers"),
        ({"transformer.proj_out.lora_A.weight": (3, 64)}, "proj_out needs two matrices"),
        ({"transformer.proj_out.lora_A.weight": (3, 64), "transformer.proj_out.lora_B.weight": (12, 4)}, "ranks differ"),
        ({"transformer.proj_out.lora_A.weight": (3, 32), "transformer.proj_out.lora_B.weight": (12, 3)},
         "proj_out maps 32 to 12 channels, this model's maps 64 to 12"),
        ({"diffusion_model.transformer_blocks.0.attn.to_q.lora_A.weight": (3, 64),
          "diffusion_model.transformer_blocks.0.attn.to_q.lora_B.weight": (64, 3)},
         "transformer_blocks.0.attn.to_q twice"),
        ({"transformer.transformer_blocks.0.attn.to_q.lora_down.weight": (3, 64)}, "has the same layer and half as another key"),
    ],
)  # fmt: skip
def test_a_key_that_would_be_passed_over_is_one_clear_error(
    change: dict[str, tuple[int, ...]], message: str, tmp_path: Path
) -> None:
    good = {"transformer.transformer_blocks.0.attn.to_q.lora_A.weight": (3, 64)}
    good |= {"transformer.transformer_blocks.0.attn.to_q.lora_B.weight": (64, 3)}
    file = tmp_path / "x.safetensors"
    save_file({key: torch.zeros(shape) for key, shape in (good | change).items()}, file)
    model = flux()
    with pytest.raises(DataError, match=message) as caught:
        load_lora(model, file)
    assert "\n" not in str(caught.value)
    assert str(file) in str(caught.value)
    assert not [name for name, _ in model.named_modules() if "lora" in name]


def test_kohyas_names_of_sd3_are_refused_as_diffusers_has_no_converter_for_them(tmp_path: Path) -> None:
    pairs = matrices({"lora_unet_joint_blocks_0_x_block_attn_qkv": (192, 64)})
    file = write(tmp_path / "x.safetensors", pairs, KOHYA, 1.0)
    with pytest.raises(DataError, match="1 of 1 layers are not in SD3Transformer2DModel"):
        load_lora(sd3(), file)


def test_what_is_no_safetensors_file_is_refused_in_one_line(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no LoRA there"):
        lora_file(tmp_path)
    pickled = tmp_path / "lora.bin"
    torch.save({}, pickled)
    with pytest.raises(DataError, match=r"only \.safetensors"):
        load_lora(flux(), pickled)
    torn = tmp_path / "torn.safetensors"
    torn.write_bytes(b"not a file of weights")
    with pytest.raises(DataError, match="not a LoRA adapter"):
        load_lora(flux(), torn)


def test_settings_that_contradict_the_weights_are_a_data_error_and_leave_the_model_alone(tmp_path: Path) -> None:
    pair = matrices({"transformer.transformer_blocks.0.attn.to_q": (64, 64)})[
        "transformer.transformer_blocks.0.attn.to_q"
    ]
    settings = {"transformer.r": 7, "transformer.lora_alpha": 7, "transformer.target_modules": ["attn.to_q"]}
    keys = [f"transformer.transformer_blocks.0.attn.to_q.{half}.weight" for half in PEFT]
    file = tmp_path / "x.safetensors"
    save_file(dict(zip(keys, pair, strict=True)), file, {"lora_adapter_metadata": json.dumps(settings)})
    model = flux()
    with pytest.raises(DataError, match="settings do not fit its weights"):
        load_lora(model, file)
    assert "taca" not in getattr(model, "peft_config", {})


def test_another_adapter_in_the_model_does_not_hide_a_layer(tmp_path: Path) -> None:
    pairs = matrices({"transformer_blocks.0.attn.to_q": (64, 64)})
    file = write(tmp_path / "x.safetensors", {f"transformer.{n}": p for n, p in pairs.items()}, PEFT, None)
    model = flux()
    load_lora(model, file, "first")
    load_lora(model, file, "second")
    assert set(model.active_adapters()) == {"first", "second"}


DOWN_UP = ("lora_down.weight", "lora_up.weight")


@pytest.mark.parametrize(
    ("family", "error", "shapes"),
    [
        ("flux", ValueError, {f"lora_unet_foo.{half}": (3, 3) for half in DOWN_UP}),
        ("flux", KeyError, {f"base_model.model.x.{half}": (3, 3) for half in ("lora_A.weight", "lora_B.weight")}),
        ("flux", AssertionError, {f"lora_unet_single_blocks_0_linear1.{half}": (3, 3) for half in DOWN_UP}),
        ("flux", NotImplementedError, {f"lora_transformer_foo.{half}": (3, 3) for half in DOWN_UP}),
        ("flux", AttributeError, {"double_blocks.processor.qkv_lora1.down.weight": (3, 3)}),
        (
            "flux",
            RuntimeError,
            {
                f"double_blocks.0.processor.qkv_lora1.{half}.weight": shape
                for half, shape in (("down", (3, 64)), ("up", (64, 3)))
            },
        ),
        ("qwen-image", ValueError, {"diffusion_model.x.y": (3, 3)}),
        ("qwen-image", KeyError, {"diffusion_model.x.lora_down.weight": (3, 3), "diffusion_model.y": (3,)}),
        (
            "qwen-image",
            RuntimeError,
            {f"diffusion_model.x.{half}": (3, 3) for half in DOWN_UP}
            | {"diffusion_model.x.alpha": (2,), "diffusion_model.y": (3,)},
        ),
    ],
)
def test_what_diffusers_reader_raises_for_another_layout_is_one_clear_error(
    family: str, error: type[Exception], shapes: dict[str, tuple[int, ...]], tmp_path: Path
) -> None:
    from diffusers.loaders import lora_pipeline

    weights = {key: torch.ones(shape) for key, shape in shapes.items()}
    model = SMALL[family].build()
    reader = family_of(model).lora_reader
    with pytest.raises(error) as raised:
        getattr(lora_pipeline, reader or "").lora_state_dict(dict(weights))
    assert raised.type is error
    save_file(weights, tmp_path / "x.safetensors")
    with pytest.raises(DataError) as caught:
        load_lora(model, tmp_path / "x.safetensors")
    assert "\n" not in str(caught.value)
