import json

import pytest
import torch

from components.errors import DataError, ParameterError
from components.gadms.embedding import embed_captions, embed_images
from components.gadms.model import DualEncoder


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


def test_a_folder_can_be_loaded_at_another_image_size(encoder, tmp_path):
    encoder.clip.visual.positional_embedding.data[1:] = torch.arange(4.0).repeat_interleave(2)[:, None]  # row number
    encoder.save(tmp_path)
    larger = DualEncoder.load(tmp_path, image_size=(64, 32))
    assert larger.image_size == (64, 32)
    rows = larger.clip.visual.positional_embedding[1:, 0].view(8, 4)
    torch.testing.assert_close(rows[:, 0], torch.tensor([0, 0.25, 0.75, 1.25, 1.75, 2.25, 2.75, 3.0]))
    assert (rows == rows[:, :1]).all()
    assert larger.encode_image(torch.zeros(1, 3, 64, 32))[1].shape[1] == 1 + 8 * 4


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
        ({"text_cfg": {"vocab_size": 100}}, "vocab_size 100"),
    ],
)
def test_what_the_method_is_not_defined_for_is_refused(config, change, message):
    for key, values in change.items():
        config[key].update(values)
    with pytest.raises(ParameterError, match=message):
        DualEncoder.create(config)


def test_an_unknown_architecture_and_an_empty_folder_say_so(tmp_path):
    with pytest.raises(ParameterError, match="unknown to open_clip"):
        DualEncoder.create("ViT-Z")
    with pytest.raises(DataError, match=r"open_clip_config\.json and"):
        DualEncoder.load(tmp_path)


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
