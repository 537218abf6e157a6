"""Published weights on our model: every key has its place, and the features are those of the published forward.

Keys and shapes are stated here from the published model (IRRA's model/build.py and model/clip_model.py, which GA-DMS shares), and
the forward is restated with plain formulas in float64.
"""

import copy
import hashlib
import math
import re
from pathlib import Path

import pytest
import torch
from torchscript_archives import write_archive

from components.errors import DataError, ParameterError
from components.gadms.decoder import CrossModalDecoder
from components.gadms.methods import RetrievalConfig
from components.gadms.model import DualEncoder
from components.gadms.published import pretrained_encoder, read_published, sort_keys, weights_digest
from components.gadms.tasks import RetrievalTask

pytestmark = pytest.mark.filterwarnings("ignore:.*torch.jit.*:FutureWarning")

VOCABULARY, CONTEXT = 49408, 77
SMALL = {"vision": 128, "text": 128, "embed": 128, "layers": (2, 2, 2), "patch": 16, "grid": (6, 2), "identities": 11}
VIT_B_16 = {
    "vision": 768,
    "text": 512,
    "embed": 512,
    "layers": (12, 12, 4),
    "patch": 16,
    "grid": (24, 8),
    "identities": 11003,
}
CONFIG = {
    "embed_dim": 128,
    "quick_gelu": True,
    "vision_cfg": {"image_size": [96, 32], "layers": 2, "width": 128, "head_width": 64, "patch_size": 16},
    "text_cfg": {"context_length": CONTEXT, "vocab_size": VOCABULARY, "width": 128, "heads": 2, "layers": 2},
}


def block(prefix, width):
    return {
        f"{prefix}.attn.in_proj_weight": (3 * width, width),
        f"{prefix}.attn.in_proj_bias": (3 * width,),
        f"{prefix}.attn.out_proj.weight": (width, width),
        f"{prefix}.attn.out_proj.bias": (width,),
        f"{prefix}.ln_1.weight": (width,),
        f"{prefix}.ln_1.bias": (width,),
        f"{prefix}.mlp.c_fc.weight": (4 * width, width),
        f"{prefix}.mlp.c_fc.bias": (4 * width,),
        f"{prefix}.mlp.c_proj.weight": (width, 4 * width),
        f"{prefix}.mlp.c_proj.bias": (width,),
        f"{prefix}.ln_2.weight": (width,),
        f"{prefix}.ln_2.bias": (width,),
    }


def clip_shapes(vision, text, embed, layers, patch, grid, **_):
    shapes = {
        "positional_embedding": (CONTEXT, text),
        "text_projection": (text, embed),
        "token_embedding.weight": (VOCABULARY, text),
        "ln_final.weight": (text,),
        "ln_final.bias": (text,),
        "visual.class_embedding": (vision,),
        "visual.positional_embedding": (1 + grid[0] * grid[1], vision),
        "visual.proj": (vision, embed),
        "visual.conv1.weight": (vision, 3, patch, patch),
        **{f"visual.{norm}.{part}": (vision,) for norm in ("ln_pre", "ln_post") for part in ("weight", "bias")},
    }
    for i in range(layers[0]):
        shapes |= block(f"visual.transformer.resblocks.{i}", vision)
    for i in range(layers[1]):
        shapes |= block(f"transformer.resblocks.{i}", text)
    return shapes


def irra_shapes(embed, layers, identities, **sizes):
    shapes = {f"base_model.{k}": v for k, v in clip_shapes(embed=embed, layers=layers, **sizes).items()}
    shapes |= {
        "classifier.weight": (identities, embed),
        "classifier.bias": (identities,),
        "cross_attn.in_proj_weight": (3 * embed, embed),
        "cross_attn.in_proj_bias": (3 * embed,),
        "cross_attn.out_proj.weight": (embed, embed),
        "cross_attn.out_proj.bias": (embed,),
        "mlm_head.dense.weight": (embed, embed),
        "mlm_head.dense.bias": (embed,),
        "mlm_head.ln.weight": (embed,),
        "mlm_head.ln.bias": (embed,),
        "mlm_head.fc.weight": (VOCABULARY, embed),
        "mlm_head.fc.bias": (VOCABULARY,),
        **{f"{norm}.{p}": (embed,) for norm in ("ln_pre_t", "ln_pre_i", "ln_post") for p in ("weight", "bias")},
    }
    for i in range(layers[2]):
        shapes |= block(f"cross_modal_transformer.resblocks.{i}", embed)
    return shapes


def random_state(shapes, dtype=torch.float32):
    generator = torch.Generator().manual_seed(0)
    state = {}
    for name, shape in shapes.items():
        scale = 0.4 / math.sqrt(shape[-1]) if len(shape) > 1 else 0.2
        norm = (".ln_" in f".{name}" or ".ln." in name) and name.endswith("weight")
        state[name] = (torch.randn(shape, generator=generator) * scale + (1.0 if norm else 0.0)).to(dtype)
    return state


def norm(x, state, name):
    mean, variance = x.mean(-1, keepdim=True), x.var(-1, keepdim=True, unbiased=False)
    return (x - mean) / torch.sqrt(variance + 1e-5) * state[f"{name}.weight"] + state[f"{name}.bias"]


def attention(query, other, state, name, causal=False):
    """Multi-head attention, 64 numbers a head, one head after the other."""
    width = query.shape[-1]
    weights, biases = state[f"{name}.in_proj_weight"].chunk(3), state[f"{name}.in_proj_bias"].chunk(3)
    q, k, v = (x @ w.T + b for x, w, b in zip((query, other, other), weights, biases, strict=True))
    parts = []
    for start in range(0, width, 64):
        head = slice(start, start + 64)
        logits = q[..., head] @ k[..., head].transpose(1, 2) / 8
        if causal:
            future = torch.ones(logits.shape[-2:], dtype=torch.bool).triu(1)
            logits = logits.masked_fill(future, -torch.inf)
        parts.append(logits.softmax(-1) @ v[..., head])
    return torch.cat(parts, -1) @ state[f"{name}.out_proj.weight"].T + state[f"{name}.out_proj.bias"]


def quick_gelu(x):
    return x * torch.sigmoid(1.702 * x)


def blocks(x, state, name, count, causal=False):
    for i in range(count):
        at = f"{name}.resblocks.{i}"
        normed = norm(x, state, f"{at}.ln_1")
        x = x + attention(normed, normed, state, f"{at}.attn", causal)
        inner = norm(x, state, f"{at}.ln_2") @ state[f"{at}.mlp.c_fc.weight"].T + state[f"{at}.mlp.c_fc.bias"]
        x = x + quick_gelu(inner) @ state[f"{at}.mlp.c_proj.weight"].T + state[f"{at}.mlp.c_proj.bias"]
    return x


def published_image(state, pixels, sizes):
    """All tokens, projected: (B, 1 + P, D)."""
    patch, (rows, columns) = sizes["patch"], sizes["grid"]
    kernel = state["base_model.visual.conv1.weight"].flatten(1)
    squares = pixels.unfold(2, patch, patch).unfold(3, patch, patch)  # (B, 3, rows, columns, p, p)
    patches = squares.permute(0, 2, 3, 1, 4, 5).reshape(len(pixels), rows * columns, -1) @ kernel.T
    first = state["base_model.visual.class_embedding"].expand(len(pixels), 1, -1)
    x = torch.cat([first, patches], 1) + state["base_model.visual.positional_embedding"]
    x = norm(x, state, "base_model.visual.ln_pre")
    x = blocks(x, state, "base_model.visual.transformer", sizes["layers"][0])
    return norm(x, state, "base_model.visual.ln_post") @ state["base_model.visual.proj"]


def published_text(state, ids, sizes):
    """All tokens, projected: (B, 77, D)."""
    x = state["base_model.token_embedding.weight"][ids] + state["base_model.positional_embedding"]
    x = blocks(x, state, "base_model.transformer", sizes["layers"][1], causal=True)
    return norm(x, state, "base_model.ln_final") @ state["base_model.text_projection"]


def published_prediction(state, text, image, sizes):
    """Logits at every position: (B, 77, vocabulary)."""
    keys = norm(image, state, "ln_pre_i")
    x = attention(norm(text, state, "ln_pre_t"), keys, state, "cross_attn")
    x = norm(blocks(x, state, "cross_modal_transformer", sizes["layers"][2]), state, "ln_post")
    x = quick_gelu(x @ state["mlm_head.dense.weight"].T + state["mlm_head.dense.bias"])
    return norm(x, state, "mlm_head.ln") @ state["mlm_head.fc.weight"].T + state["mlm_head.fc.bias"]


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    """A checkpoint as IRRA's Checkpointer writes it, with random values."""
    file = tmp_path_factory.mktemp("published") / "best.pth"
    state = random_state(irra_shapes(**SMALL))
    torch.save({"model": state, "optimizer": {"state": {}, "param_groups": []}, "scheduler": {}, "epoch": 3}, file)
    return file, state


def test_features_and_predictions_are_those_of_the_published_forward(checkpoint, started):
    exact = {name: tensor.double() for name, tensor in checkpoint[1].items()}
    encoder, decoder = started, ask_for(started, decoder_depth=2).decoder
    captions = ["a man in a red coat", "a woman " + "with a long blue dress " * 30]  # the second fills all 77 positions
    ids = encoder.tokenizer(captions)
    pixels = torch.randn(2, 3, 96, 32, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        pooled_image, image = encoder.encode_image(pixels)
        pooled_text, text = encoder.encode_text(ids)
        expected_image, expected_text = (
            published_image(exact, pixels.double(), SMALL),
            published_text(exact, ids, SMALL),
        )
        at = torch.zeros(ids.shape, dtype=torch.bool)
        at[0, 3] = at[1, 40] = True
        logits = decoder(text, image, None, at)  # IRRA attends to padding too
        expected = published_prediction(exact, expected_text, expected_image, SMALL)[at]
    torch.testing.assert_close(image.double(), expected_image, atol=2e-5, rtol=1e-5)
    torch.testing.assert_close(pooled_image.double(), expected_image[:, 0], atol=2e-5, rtol=1e-5)
    torch.testing.assert_close(text.double(), expected_text, atol=2e-5, rtol=1e-5)
    torch.testing.assert_close(pooled_text[1].double(), expected_text[1, 76], atol=2e-5, rtol=1e-5)
    torch.testing.assert_close(pooled_text[0].double(), expected_text[0, ids[0].argmax()], atol=2e-5, rtol=1e-5)
    torch.testing.assert_close(logits.double(), expected, atol=5e-5, rtol=1e-4)


@pytest.fixture(scope="module")
def started(checkpoint):
    """An encoder of the checkpoint."""
    return read_published(checkpoint[0]).encoder(CONFIG).eval()


def ask_for(encoder, **method):
    return RetrievalTask(encoder, RetrievalConfig(name="irra", **method), captions=2, identities=2).eval()


def test_training_goes_on_from_the_decoder_of_a_checkpoint_and_passes_it_on(started, tmp_path):
    expected = started.decoder_weights
    task = ask_for(started, decoder_depth=2)
    assert all(torch.equal(tensor, expected[name]) for name, tensor in task.decoder.state_dict().items())
    with torch.no_grad():
        task.decoder.vocabulary.bias.fill_(3)
    task.save(tmp_path)
    saved = DualEncoder.load(tmp_path).decoder_weights
    assert set(saved) == set(expected)
    assert (saved["vocabulary.bias"] == 3).all()
    assert torch.equal(saved["head.0.weight"], expected["head.0.weight"])
    new = ask_for(started, decoder_depth=2, decoder_start="new").decoder.state_dict()
    assert not torch.equal(new["head.0.weight"], expected["head.0.weight"])
    RetrievalTask(task.encoder, RetrievalConfig(name="contrastive"), captions=2).save(tmp_path)
    assert DualEncoder.load(tmp_path).decoder_weights is None  # it was trained with other weights of the encoder


def test_a_decoder_of_another_depth_or_size_is_refused_in_one_line(started):
    with pytest.raises(
        ParameterError, match="decoder_depth = 1: the decoder of the pretrained weights has 2 blocks; set it"
    ):
        ask_for(started, decoder_depth=1)
    for change, message in (
        (torch.zeros(9, 128), r"vocabulary.weight is \[9, 128\], not \[49408, 128\]"),
        (torch.full((VOCABULARY, 128), torch.nan), "hold NaN or infinity, vocabulary.weight among them"),
    ):
        encoder = copy.copy(started)
        encoder.decoder_weights = {**started.decoder_weights, "vocabulary.weight": change}
        with pytest.raises(DataError, match=message):
            ask_for(encoder, decoder_depth=2)


def test_with_padding_the_prediction_loss_is_that_of_the_released_code(checkpoint, started):
    """All 77 tokens of a caption are attended to, those after its end too."""
    exact = {name: tensor.double() for name, tensor in checkpoint[1].items()}
    task = ask_for(started, decoder_depth=2, decoder_padding=True)
    pixels = torch.randn(2, 3, 96, 32, generator=torch.Generator().manual_seed(1))
    ids = task.encoder.tokenizer(["a man in a red coat with a bag", "a woman in blue"])
    batch = {"pixels": pixels, "ids": ids, "identities": torch.arange(2), "caption_index": torch.arange(2)}
    with torch.no_grad():
        found = task(batch, 0)
        copies, _ = task.scorer.mask(task.encoder, task.decoder, batch, *task.encoder.encode_image(pixels), 0)
        text = published_text(exact, copies.prediction_ids, SMALL)
        logits = published_prediction(exact, text, published_image(exact, pixels.double(), SMALL), SMALL)
        expected = torch.nn.functional.cross_entropy(logits.flatten(0, 1), copies.labels.flatten(), ignore_index=0)
        without = ask_for(started, decoder_depth=2)(batch, 0)
    assert copies.prediction_chosen.any()
    assert found["mtp"].item() == pytest.approx(expected.item(), abs=1e-4)
    assert found["sdm"].item() == pytest.approx(without["sdm"].item(), abs=1e-4)  # exact with and without padding
    assert abs(without["mtp"].item() - expected.item()) > 1e-3


def our_name(name):
    """The name in a task of a parameter of a checkpoint."""
    found = sort_keys({"base_model.any": torch.ones(1), name: torch.ones(1)}, Path("w"))
    if found.decoder:
        return f"decoder.{next(iter(found.decoder))}"
    return name if found.dropped else f"encoder.clip.{name.removeprefix('base_model.')}"


def test_every_parameter_has_the_rate_and_the_decay_of_the_released_optimiser(checkpoint, started):
    """IRRA's `build_optimizer`, asked by the published names."""
    task = ask_for(started, decoder_depth=2, head_lr_factor=5.0, bias_lr_factor=2.0, decay_gains=True)
    groups = {id(p): group for group in task.parameter_groups(1.0) for p in group["params"]}
    ours, asked = dict(task.named_parameters()), set()
    for name in checkpoint[1]:
        factor, decays = 1.0, "bias" not in name
        if "cross" in name:
            factor = 5.0
        if "bias" in name:
            factor = 2.0
        if "classifier" in name or "mlm_head" in name:
            factor = 5.0
        parameter = ours[our_name(name)]
        group = groups[id(parameter)]
        assert (group["lr"], "weight_decay" not in group) == (factor, decays), name
        asked.add(id(parameter))
    assert asked == set(groups)


def test_every_key_is_used_or_dropped_for_a_reason(checkpoint):
    file, state = checkpoint
    published = read_published(file)
    assert len(published.towers) + len(published.decoder) + len(published.dropped) == len(state)
    assert set(published.dropped) == {"classifier.weight", "classifier.bias"}
    assert all(published.dropped.values())


def test_the_published_size_has_exactly_the_shapes_of_our_model_and_its_parameter_count():
    shapes = irra_shapes(**VIT_B_16)
    assert shapes["base_model.visual.positional_embedding"] == (193, 768)
    assert (
        round(sum(math.prod(shape) for shape in shapes.values()) / 1e6, 1) == 194.5
    )  # published of IRRA on CUHK-PEDES
    with torch.device("meta"):
        state = {name: torch.empty(shape) for name, shape in shapes.items()}
        published = sort_keys(state, Path("best.pth"))
        encoder = published.encoder("ViT-B-16-quickgelu", image_size=(384, 128))
        decoder = CrossModalDecoder(encoder.embed_dim, encoder.clip.vocab_size, depth=4)
    ours = {name: tuple(tensor.shape) for name, tensor in encoder.clip.state_dict().items()}
    theirs = {name: tuple(tensor.shape) for name, tensor in published.towers.items()}
    assert {name: shape for name, shape in ours.items() if name != "logit_scale"} == theirs
    assert {n: t.shape for n, t in decoder.state_dict().items()} == {n: t.shape for n, t in published.decoder.items()}


def test_half_precision_and_the_prefix_of_several_gpus_are_undone(tmp_path, checkpoint):
    _, state = checkpoint
    torch.save({"model": {f"module.{name}": value.half() for name, value in state.items()}}, tmp_path / "w.pth")
    found = read_published(tmp_path / "w.pth")
    name = "visual.proj"
    assert found.towers[name].dtype == torch.float32
    torch.testing.assert_close(found.towers[name], state[f"base_model.{name}"].half().float())


def test_a_plain_clip_file_is_read_too_and_a_square_grid_is_fitted(tmp_path):
    square = {**SMALL, "grid": (4, 4)}
    state = random_state(clip_shapes(**square))
    extra = {"logit_scale": torch.tensor(4.6), "input_resolution": torch.tensor(64), "vocab_size": torch.tensor(9)}
    torch.save({**state, **extra}, tmp_path / "clip.pt")
    published = read_published(tmp_path / "clip.pt")
    assert set(published.dropped) == {"input_resolution", "vocab_size"}
    encoder = published.encoder(CONFIG)
    assert encoder.clip.logit_scale.item() == pytest.approx(4.6)
    assert torch.equal(encoder.clip.visual.proj, state["visual.proj"])
    old = state["visual.positional_embedding"]
    grid = old[1:].T.reshape(1, -1, 4, 4)
    fitted = torch.nn.functional.interpolate(grid, size=(6, 2), mode="bilinear", align_corners=False)
    positions = encoder.clip.visual.positional_embedding
    torch.testing.assert_close(positions[1:], fitted[0].flatten(1).T)
    assert torch.equal(positions[0], old[0])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"other_layer.fc.weight": (4, 4)}, "1 keys are of no known model: other_layer.fc.weight"),
        ({"text_model.final.weight": (4, 4)}, "layout of transformers' CLIPModel"),
        ({"base_model.visual.proj": None}, r"visual.proj is missing \(1 in all\)"),
        ({"base_model.visual.proj": (128, 64)}, r"visual.proj is \[128, 64\], not \[128, 128\]"),
        ({"base_model.visual.positional_embedding": (11, 128)}, "10 patches are neither a square, nor 2:1, nor 3:1"),
        ({"base_model.visual.positional_embedding": ()}, r"positional_embedding is \[\], not \[13, 128\]"),
        ({"base_model.extra": (1,)}, "extra is not a part of it"),
    ],
)
def test_a_key_without_a_place_or_of_another_size_is_named_in_one_line(checkpoint, change, message):
    state = {**checkpoint[1], **{name: torch.zeros(shape or ()) for name, shape in change.items()}}
    state = {name: value for name, value in state.items() if change.get(name, ()) is not None}
    with pytest.raises(DataError, match=message) as caught:
        sort_keys(state, Path("w.pth")).encoder(CONFIG)
    assert "\n" not in str(caught.value)


def test_openais_archive_is_read_as_its_tensors(tmp_path):
    state = random_state(clip_shapes(**SMALL), torch.float16)
    numbers = {
        "input_resolution": torch.tensor(96),
        "context_length": torch.tensor(77),
        "vocab_size": torch.tensor(VOCABULARY),
    }
    write_archive(tmp_path / "ViT-B-16.pt", {**state, **numbers, "logit_scale": torch.tensor(4.6)})
    published = read_published(tmp_path / "ViT-B-16.pt")
    assert set(published.dropped) == {*numbers, "attn_mask"}
    clip = published.encoder(CONFIG).clip.state_dict()
    assert {name: tensor.dtype for name, tensor in clip.items()} == dict.fromkeys(clip, torch.float32)
    assert all(torch.equal(clip[name], tensor.float()) for name, tensor in state.items())


def test_a_prefix_of_all_keys_and_what_other_methods_add_are_accounted_for(checkpoint):
    state = {f"model.{name}": tensor for name, tensor in checkpoint[1].items()}
    rde = {"texual_emb_layer.mlp.layers.0.weight": torch.ones(1), "visul_emb_layer.fc.weight": torch.ones(1)}
    state |= {f"model.{name}": tensor for name, tensor in rde.items()}
    found, plain = sort_keys(state, Path("w")), sort_keys(checkpoint[1], Path("w"))
    assert (set(found.towers), set(found.decoder)) == (set(plain.towers), set(plain.decoder))
    assert set(found.dropped) == {*plain.dropped, *rde}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"quick_gelu": False}, "quick_gelu is False; .* was trained with True"),
        ({"vision_cfg": {**CONFIG["vision_cfg"], "head_width": 32}}, "vision_cfg.head_width is 32; .* trained with 64"),
        ({"text_cfg": {**CONFIG["text_cfg"], "heads": 4}}, "text_cfg.heads is 4; .* trained with 2"),
    ],
)
def test_a_checkpoint_is_refused_for_towers_that_would_compute_something_else(checkpoint, change, message):
    with pytest.raises(ParameterError, match=message):
        sort_keys(checkpoint[1], Path("w")).encoder({**CONFIG, **change})
    towers = {
        name.removeprefix("base_model."): t for name, t in checkpoint[1].items() if name.startswith("base_model.")
    }
    sort_keys(towers, Path("w")).encoder({**CONFIG, **change})  # of a CLIP of any code, which may be so


def test_weights_that_are_not_numbers_are_refused(checkpoint, tmp_path):
    name = "base_model.text_projection"
    torch.save({"model": {**checkpoint[1], name: checkpoint[1][name] * torch.nan}}, tmp_path / "w.pth")
    with pytest.raises(DataError, match="tensors hold NaN or infinity, text_projection among them"):
        read_published(tmp_path / "w.pth")


@pytest.mark.parametrize(
    ("declared", "size", "grid", "old"),
    [
        ((64, 64), (192, 64), (24, 8), (24, 8)),  # 24 x 8 as in person retrieval
        ((64, 64), (96, 128), (12, 16), (24, 8)),  # as many patches in another shape
        ((96, 128), (192, 64), (24, 8), (12, 16)),  # of the shape that the architecture declares
        ((64, 64), (112, 112), (14, 14), (24, 8)),
        ((64, 64), (32, 64), (4, 8), (8, 4)),  # 2:1
        ((64, 64), (48, 56), (6, 7), (6, 7)),  # no known shape, so the model's
    ],
)
def test_a_position_grid_of_another_shape_is_resized_from_its_own(config, declared, size, grid, old):
    config["vision_cfg"]["image_size"] = list(declared)
    config["vision_cfg"]["patch_size"] = 8
    state = DualEncoder.create(config, image_size=(8 * old[0], 8 * old[1])).clip.state_dict()
    ours = sort_keys(state, Path("w")).encoder(config, image_size=size).clip.visual
    assert ours.grid_size == grid
    theirs = state["visual.positional_embedding"]
    image = theirs[1:].T.reshape(1, -1, *old)
    fitted = torch.nn.functional.interpolate(image, size=grid, mode="bilinear", align_corners=False)[0].flatten(1).T
    torch.testing.assert_close(ours.positional_embedding, torch.cat([theirs[:1], fitted]))


def test_weights_that_are_no_tag_are_pinned_by_their_digest(checkpoint, encoder, config, tmp_path):
    file, _ = checkpoint
    digest = hashlib.sha256(file.read_bytes()).hexdigest()

    def ask(pretrained, sha256, root=file.parent):
        return pretrained_encoder(CONFIG, pretrained, root=root, sha256=sha256, image_size=(96, 32))

    with pytest.raises(ParameterError, match=f"set it to {digest}, the digest of best.pth"):
        ask("best.pth", None)
    with pytest.raises(DataError, match=f"its SHA-256 is {digest}"):
        ask("best.pth", "0" * 64)
    assert torch.equal(ask("best.pth", digest).clip.visual.proj, checkpoint[1]["base_model.visual.proj"])
    encoder.save(tmp_path / "model")
    weights = hashlib.sha256((tmp_path / "model/open_clip_model.safetensors").read_bytes()).hexdigest()
    loaded = pretrained_encoder(config, "model", root=tmp_path, sha256=weights, image_size=encoder.image_size)
    assert torch.equal(loaded.clip.text_projection, encoder.clip.text_projection)
    with pytest.raises(DataError, match="no such file or folder, and not a tag"):
        ask("nothing.pth", None)


def test_a_tag_is_refused_for_an_architecture_with_another_activation():
    with pytest.raises(
        ParameterError, match="openai for ViT-B-16: trained with another activation; use ViT-B-16-quickgelu"
    ):
        DualEncoder.from_pretrained("ViT-B-16", "openai", image_size=(384, 128))


def test_a_tag_that_was_trained_on_other_pixels_than_clips_is_refused():
    message = r"laion2b_s32b_b82k for ViT-L-14: trained on pixels with mean \(0.5, 0.5, 0.5\); use weights with CLIP's"
    with pytest.raises(ParameterError, match=message):
        DualEncoder.from_pretrained("ViT-L-14", "laion2b_s32b_b82k", image_size=(224, 224))


@pytest.fixture
def folder(encoder, tmp_path):
    """What asks for a model folder of the fixture `config` with another architecture and size."""
    encoder.save(tmp_path / "model")
    digest = weights_digest(tmp_path / "model")

    def ask(architecture, image_size=(32, 16)):
        return pretrained_encoder(architecture, "model", root=tmp_path, sha256=digest, image_size=image_size)

    return ask


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"embed_dim": 64}, "embed_dim is 64 (the folder's: 32)"),
        ({"quick_gelu": False}, "quick_gelu is False (the folder's: True)"),
        ({"vision_cfg": {"head_width": 12}}, "vision_cfg.head_width is 12 (the folder's: 24)"),
        (
            {"text_cfg": {"layers": 6, "ls_init_value": 0.1}},
            "text_cfg.layers is 6 (the folder's: 3), text_cfg.ls_init_value",
        ),
        ({"text_cfg": {"heads": None}}, "text_cfg.heads is 8 (the folder's: 4)"),  # left out: open_clip's default
    ],
)
def test_another_architecture_than_that_of_a_model_folder_is_refused_by_its_keys(change, message, config, folder):
    for key, value in change.items():
        changed = {**config[key], **value} if isinstance(value, dict) else value
        config[key] = {k: v for k, v in changed.items() if v is not None} if isinstance(value, dict) else changed
    with pytest.raises(ParameterError, match=re.escape(message)) as caught:
        folder(config)
    assert str(caught.value).startswith("retrieval.architecture: not that of the model folder model: ")
    assert "\n" not in str(caught.value)


def test_a_model_folder_may_have_other_sizes_and_defaults_that_one_side_leaves_out(config, folder):
    config["vision_cfg"] |= {"image_size": [64, 32], "mlp_ratio": 4.0}
    config["text_cfg"] |= {"context_length": 60, "vocab_size": 49408, "qk_norm": False}
    assert folder(config, (64, 32)).image_size == (64, 32)


def test_a_plain_state_dict_is_read_with_a_line_on_its_activation(checkpoint, started, tmp_path, caplog):
    def told(file):
        caplog.clear()
        pretrained_encoder(CONFIG, file.name, root=file.parent, sha256=weights_digest(file), image_size=(96, 32))
        return [record.getMessage() for record in caplog.records]

    torch.save(started.clip.state_dict(), tmp_path / "plain.pt")
    assert told(tmp_path / "plain.pt") == [
        "plain.pt: does not say its activation; quick_gelu is true, as in retrieval.architecture"
    ]
    assert told(checkpoint[0]) == []
