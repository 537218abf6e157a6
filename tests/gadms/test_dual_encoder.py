import json
import re

import pytest
import torch
from safetensors.torch import load_file, save_file

from components.errors import DataError, ParameterError
from components.gadms.architecture import model_config
from components.gadms.embedding import embed_captions, embed_images
from components.gadms.model import CONFIG_FILE, WEIGHTS_FILE, DualEncoder
from components.gadms.tokenizer import CaptionTokenizer


def test_pooled_features_equal_those_of_open_clip(encoder, ids, pixels):
    encoder.eval()
    with torch.no_grad():
        torch.testing.assert_close(encoder.encode_image(pixels)[0], encoder.clip.encode_image(pixels))
        torch.testing.assert_close(encoder.encode_text(ids)[0], encoder.clip.encode_text(ids), atol=2e-6, rtol=0)


def test_all_tokens_are_given_and_the_padding_is_cut(encoder, ids, pixels):
    assert encoder.encode_image(pixels)[1].shape == (4, 1 + 4 * 2, 32)
    assert encoder.encode_text(ids)[1].shape == (4, int(ids.argmax(-1).max()) + 1, 32)


def test_a_caption_is_encoded_the_same_alone_and_beside_a_longer_one(encoder, ids):
    alone, _ = encoder.encode_text(ids[3:])
    torch.testing.assert_close(encoder.encode_text(ids)[0][3:], alone, atol=2e-6, rtol=0)


def test_a_seed_fixes_the_weights_and_leaves_the_global_generator_alone(config, tokenizer):
    state = torch.random.get_rng_state()
    first, second = (DualEncoder.create(config, tokenizer=tokenizer, seed=7) for _ in range(2))
    assert torch.equal(torch.random.get_rng_state(), state)
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), second.parameters(), strict=True))


def test_a_saved_folder_is_read_back_by_us_and_by_open_clip(encoder, ids, pixels, tmp_path):
    import open_clip

    encoder.eval().save(tmp_path / "a")
    ours = DualEncoder.load(tmp_path / "a").eval()
    theirs = open_clip.create_model(f"local-dir:{tmp_path / 'a'}").eval()
    with torch.no_grad():
        assert torch.equal(ours.encode_image(pixels)[0], encoder.encode_image(pixels)[0])
        torch.testing.assert_close(theirs.encode_image(pixels), encoder.encode_image(pixels)[0])
        torch.testing.assert_close(theirs.encode_text(ids), encoder.encode_text(ids)[0], atol=2e-6, rtol=0)
    ours.save(tmp_path / "b")
    for file in ("open_clip_config.json", "open_clip_model.safetensors", "vocabulary.json"):
        assert (tmp_path / "a" / file).read_bytes() == (tmp_path / "b" / file).read_bytes()


@pytest.mark.parametrize("vocabulary", ["full", "compact"])
def test_a_model_of_another_context_length_is_read_back_and_reads_as_far(vocabulary, config, tmp_path):
    config["text_cfg"]["context_length"] = 90
    compact = CaptionTokenizer.from_corpus(["man hat"], 90)
    encoder = DualEncoder.create(config, tokenizer=None if vocabulary == "full" else compact)
    assert encoder.clip.context_length == encoder.tokenizer.context_length == 90
    encoder.eval().save(tmp_path)
    again = DualEncoder.load(tmp_path).eval()
    texts = ["man " * 80 + "hat", "man " * 81]  # the 81st word is beyond CLIP's 77 tokens
    vectors = embed_captions(again, texts)
    assert torch.equal(vectors, embed_captions(encoder, texts))
    assert not torch.equal(vectors[0], vectors[1])


def test_a_tokenizer_of_another_context_than_the_architectures_is_refused(config):
    config["text_cfg"]["context_length"] = 90
    with pytest.raises(ParameterError, match=r"context_length 90 differ from the tokenizer's \d+ and 77"):
        DualEncoder.create(config, tokenizer=CaptionTokenizer.from_corpus(["man hat"]))


def test_a_folder_can_be_loaded_at_another_image_size(encoder, tmp_path):
    encoder.clip.visual.positional_embedding.data[1:] = torch.arange(4.0).repeat_interleave(2)[:, None]  # row number
    encoder.save(tmp_path)
    larger = DualEncoder.load(tmp_path, image_size=(64, 32))
    assert larger.image_size == (64, 32)
    rows = larger.clip.visual.positional_embedding[1:, 0].view(8, 4)
    torch.testing.assert_close(rows[:, 0], torch.tensor([0, 0.25, 0.75, 1.25, 1.75, 2.25, 2.75, 3.0]))
    assert (rows == rows[:, :1]).all()
    assert larger.encode_image(torch.zeros(1, 3, 64, 32))[1].shape[1] == 1 + 8 * 4
    # As many patches in another shape: each of the two new rows takes the mean of its old two.
    wide = DualEncoder.load(tmp_path, image_size=(16, 32)).clip.visual.positional_embedding[1:, 0].view(2, 4)
    torch.testing.assert_close(wide, torch.tensor([0.5, 2.5])[:, None].expand(2, 4))


def test_positions_are_fitted_bicubically_as_open_clip_does_when_asked(encoder, tmp_path):
    from open_clip.model import resize_pos_embed

    square = {**encoder.config, "vision_cfg": {**encoder.config["vision_cfg"], "image_size": [32, 32]}}
    model = DualEncoder.create(square, tokenizer=encoder.tokenizer, seed=5)
    model.save(tmp_path)
    expected = {"visual.positional_embedding": model.clip.visual.positional_embedding.detach().clone()}
    resize_pos_embed(expected, DualEncoder.load(tmp_path, image_size=(64, 32)).clip)  # takes the old grid for square
    found = DualEncoder.load(tmp_path, image_size=(64, 32), position_resize="bicubic").clip.visual.positional_embedding
    torch.testing.assert_close(found, expected["visual.positional_embedding"], atol=1e-6, rtol=0)
    plain = DualEncoder.load(tmp_path, image_size=(64, 32)).clip.visual.positional_embedding
    assert (plain - found).abs().max() > 0.01 * found.abs().max()
    with pytest.raises(ParameterError, match="allowed are bilinear, bicubic"):
        DualEncoder.load(tmp_path, image_size=(64, 32), position_resize="nearest")


def test_an_architecture_can_be_a_json_file_of_either_form(config, tokenizer, tmp_path):
    (tmp_path / "plain.json").write_text(json.dumps(config))
    (tmp_path / "wrapped.json").write_text(json.dumps({"model_cfg": config, "preprocess_cfg": {}}))
    expected = DualEncoder.create(config, tokenizer=tokenizer, seed=1).state_dict()
    for name in ("plain.json", "wrapped.json"):
        found = DualEncoder.create(str(tmp_path / name), tokenizer=tokenizer, seed=1).state_dict()
        assert all(torch.equal(found[key], tensor) for key, tensor in expected.items())
    for name, content in (("broken.json", "{"), ("list.json", "[]")):
        (tmp_path / name).write_text(content)
        with pytest.raises(ParameterError, match=name):
            DualEncoder.create(str(tmp_path / name))


def test_the_published_architecture_has_the_published_shape():
    with torch.device("meta"):
        model = DualEncoder.create("ViT-B-16-quickgelu", image_size=(384, 128))
    assert model.clip.visual.grid_size == (24, 8)
    assert model.clip.visual.positional_embedding.shape == (193, 768)
    assert round(sum(p.numel() for p in model.clip.parameters()) / 1e6, 2) == 149.62


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"vision_cfg": {"image_size": [30, 16]}}, "multiple of the patch size"),
        ({"vision_cfg": {"pool_type": "avg"}}, "class token"),
        ({"text_cfg": {"no_causal_mask": True}}, "causal"),
        ({"text_cfg": {"qk_norm": True}}, "text_cfg: qk_norm: leave out"),
        ({"text_cfg": {"scale_attn": True, "scale_heads": True}}, "text_cfg: scale_heads, scale_attn: leave out"),
        ({"text_cfg": {"scale_attn_inner": True}}, "scale_attn_inner"),
        ({"text_cfg": {"scaled_cosine_attn": True}}, "scaled_cosine_attn"),
        ({"embed_dim": 48, "text_cfg": {"proj_type": "none"}}, "proj_type 'none': leave out"),
        ({"text_cfg": {"vocab_size": 100}}, "vocab_size 100"),
    ],
)
def test_what_the_method_is_not_defined_for_is_refused(config, change, message):
    for key, value in change.items():
        config[key] = {**config[key], **value} if isinstance(value, dict) else value
    with pytest.raises(ParameterError, match=message):
        DualEncoder.create(config)


OTHER_KINDS = {
    "RN50": "model RN50: its image tower is a ResNet",
    "coca_ViT-B-32": "CoCa's text decoder",
    "ViT-B-16-SigLIP": "timm's vit_base_patch16_siglip_224",
    "convnext_base": "timm's convnext_base",
    "EVA02-B-16": "timm's eva02_base_patch16_clip_224",
    "ViTamin-B": "timm's vitamin_base_224",
    "roberta-ViT-B-32": "text tower is transformers' roberta-base",
    "ViT-L-14-CLIPA": "its tokenizer is another than CLIP's",
    "vit-b-16": "unknown to open_clip (did you mean ViT-B-16?)",
    "a9": "unknown to open_clip; open_clip.list_models() names all",
}


@pytest.mark.parametrize("name", OTHER_KINDS)
def test_architectures_that_are_not_trained_are_refused_by_what_they_have(name):
    with torch.device("meta"), pytest.raises(ParameterError, match=re.escape(OTHER_KINDS[name])) as caught:
        DualEncoder.create(name, image_size=(384, 128))
    assert "\n" not in str(caught.value)


def test_every_architecture_of_open_clip_is_taken_as_a_plain_clip_or_refused_in_one_line():
    import open_clip

    def refusal(name):
        try:
            model_config(name)
        except ParameterError as error:
            return str(error)
        return None

    refused = {name: refusal(name) for name in open_clip.list_models()}
    plain = {name for name, message in refused.items() if message is None}
    for name, message in refused.items():
        if message is not None:
            assert message.startswith(f"model {name}: ")
            assert "\n" not in message
            config = open_clip.get_model_config(name)  # why open_clip builds no plain CLIP of it
            parts = {*config["text_cfg"], *config["vision_cfg"], *config}
            other = {
                "timm_model_name",
                "hf_model_name",
                "hf_tokenizer_name",
                "tokenizer_kwargs",
                "custom_text",
                "multimodal_cfg",
            }
            assert parts & other or isinstance(config["vision_cfg"]["layers"], list)
    assert {"ViT-B-32", "ViT-B-16", "ViT-B-16-quickgelu", "ViT-L-14-336", "ViT-H-14", "ViT-bigG-14"} <= plain
    assert not [name for name in plain if name.startswith(("RN", "coca", "EVA", "convnext")) or "SigLIP" in name]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"text_cfg": None}, "model config: text_cfg missing"),
        ({"vision_cfg": {"widht": 24}}, "vision_cfg.widht is unknown to open_clip, did you mean width?"),
        ({"vision_cfg": {"width": "wide"}}, "model config: cannot be built (TypeError"),
        ({"text_cfg": {"heads": 5}}, "model config: cannot be built ("),
        ({"text_cfg": {"context_length": "long"}}, "model config: cannot be built ("),
        ({"text_cfg": {"pool_type": "last"}}, "not read at the end token (pool_type last)"),
        ({"vision_cfg": {"patch_size": "8"}}, "image_size [32, 16] and patch_size 8: [height, width] and a number"),
        ({"vision_cfg": {"patch_size": 0}}, "and patch_size 0: "),
        ({"vision_cfg": {"image_size": "64"}}, "image_size 64 and patch_size 8"),
        ({"vision_cfg": {"image_size": [64, 32, 3]}}, "image_size [64, 32, 3]"),
        ({"vision_cfg": 3}, "vision_cfg and text_cfg must be objects"),
        ({"init_logit_bias": -10}, "SigLIP's loss"),
    ],
)
def test_a_mistake_in_a_config_is_named_in_one_line(config, change, message):
    for key, value in change.items():
        config[key] = {**config[key], **value} if isinstance(value, dict) else value
    config = {key: value for key, value in config.items() if value is not None}
    with pytest.raises(ParameterError, match=re.escape(message)) as caught:
        DualEncoder.create(config)
    assert "\n" not in str(caught.value)


def edited(section="model_cfg", **changes):
    """A change of a folder's config."""

    def change(folder):
        content = json.loads((folder / CONFIG_FILE).read_text())
        content[section].update(changes)
        (folder / CONFIG_FILE).write_text(json.dumps(content))

    return change


def weights(change):
    return lambda folder: save_file(change(load_file(folder / WEIGHTS_FILE)), folder / WEIGHTS_FILE)


def cut_off(folder):
    (folder / WEIGHTS_FILE).write_bytes((folder / WEIGHTS_FILE).read_bytes()[:5000])


BROKEN_FOLDERS = {
    "without a config": (lambda f: (f / CONFIG_FILE).unlink(), "open_clip_config.json missing"),
    "without weights": (lambda f: (f / WEIGHTS_FILE).unlink(), "open_clip_model.safetensors missing"),
    "config cut off": (lambda f: (f / CONFIG_FILE).write_text('{"model_cfg": {'), "not a readable JSON model config"),
    "a config of something else": (
        lambda f: (f / CONFIG_FILE).write_text('{"a": 1}'),
        "embed_dim, text_cfg, vision_cfg",
    ),
    "no object": (lambda f: (f / CONFIG_FILE).write_text('{"model_cfg": 3}'), "its model_cfg is not an object"),
    "SigLIP's": (edited(custom_text=True, init_logit_bias=-10), "a module of its own (custom_text)"),
    "a text tower of transformers": (edited(text_cfg={"hf_model_name": "roberta-base"}), "transformers' roberta-base"),
    "trained on other pixels": (
        edited("preprocess_cfg", std=[0.5, 0.5, 0.5]),
        "open_clip_model.safetensors: trained on pixels with std [0.5, 0.5, 0.5]; use weights with CLIP's (0.26862954, ",
    ),
    "weights cut off": (cut_off, "not a readable file of weights, or damaged"),
    "a key less": (weights(lambda s: {n: t for n, t in s.items() if n != "visual.proj"}), "visual.proj is missing"),
    "of another picture size": (
        edited(vision_cfg={"image_size": 64, "width": 48, "layers": 2, "head_width": 24, "patch_size": 8}),
        "visual.positional_embedding is [9, 48], not [65, 48]",
    ),
    "not numbers": (weights(lambda s: {**s, "visual.proj": s["visual.proj"] / 0}), "visual.proj among them"),
    "a vocabulary that is no text": (lambda f: (f / "vocabulary.json").write_bytes(b"\xff\xfe{"), "not a vocabulary"),
}


@pytest.mark.parametrize("kind", BROKEN_FOLDERS)
def test_a_folder_that_is_not_a_whole_model_is_refused_in_one_line(kind, encoder, tmp_path):
    change, message = BROKEN_FOLDERS[kind]
    encoder.save(tmp_path)
    change(tmp_path)
    with pytest.raises(DataError, match=re.escape(message)) as caught:
        DualEncoder.load(tmp_path)
    assert "\n" not in str(caught.value)
    assert str(tmp_path) in str(caught.value)


def test_a_folder_of_open_clip_from_before_safetensors_is_read(encoder, tmp_path):
    encoder.save(tmp_path)
    torch.save(load_file(tmp_path / WEIGHTS_FILE), tmp_path / "open_clip_pytorch_model.bin")
    (tmp_path / WEIGHTS_FILE).unlink()
    (tmp_path / CONFIG_FILE).write_text(json.dumps(encoder.config))  # without model_cfg, as open_clip reads it too
    found = DualEncoder.load(tmp_path).state_dict()
    assert all(torch.equal(found[name], tensor) for name, tensor in encoder.state_dict().items())


def test_embeddings_do_not_depend_on_batching_and_the_mode_is_restored(encoder, captions, ids, pixels):
    encoder.train()
    sentences = embed_captions(encoder, captions, batch_size=3)
    raw = (pixels * 40 + 128).clamp(0, 255).to(torch.uint8)
    images = embed_images(encoder, range(4), lambda rows: raw[list(rows)], batch_size=3)
    assert encoder.training
    with torch.no_grad():
        expected = torch.nn.functional.normalize(encoder.encode_text(ids)[0], dim=-1)
        pictures = torch.nn.functional.normalize(encoder.encode_image(encoder.normalize_pixels(raw))[0], dim=-1)
    torch.testing.assert_close(sentences, expected, atol=2e-6, rtol=0)
    torch.testing.assert_close(images, pictures, atol=2e-6, rtol=0)
