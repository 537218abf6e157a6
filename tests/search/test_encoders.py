import json

import numpy as np
import open_clip
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file
from torch.nn import functional as F
from torchvision.transforms.functional import normalize, resize, to_tensor

from components.errors import DataError, ParameterError
from components.files import file_digest
from components.gadms.model import WEIGHTS_FILE, DualEncoder
from components.gadms.tokenizer import CaptionTokenizer
from components.search.encoders import OpenClipEncoder, PersonEncoder, open_encoder

TEXT = {"context_length": 16, "vocab_size": 49408, "width": 16, "heads": 1, "layers": 1}
OPENAI = {
    "embed_dim": 16,
    "quick_gelu": True,
    "vision_cfg": {"image_size": [48, 16], "layers": 2, "width": 64, "head_width": 64, "patch_size": 8},
    "text_cfg": {**TEXT, "width": 64},
}
RESNET = {
    "embed_dim": 16,
    "vision_cfg": {"image_size": 32, "layers": [1, 1, 1, 1], "width": 8, "head_width": 16, "patch_size": None},
    "text_cfg": TEXT,
}
SIGLIP = {
    "embed_dim": 16,
    "init_logit_bias": -10,
    "custom_text": True,
    "vision_cfg": {"image_size": 160, "timm_model_name": "test_vit", "timm_pool": "map", "timm_proj": "none"},
    "text_cfg": {**TEXT, "no_causal_mask": True, "proj_bias": True, "pool_type": "last"},
}
COCA = {
    "embed_dim": 16,
    "custom_text": True,
    "multimodal_cfg": {**TEXT, "mlp_ratio": 2, "attn_pooler_heads": 1},
    "vision_cfg": {
        "image_size": 16, "layers": 1, "width": 64, "patch_size": 8, "attentional_pool": True, "attn_pooler_heads": 1,
        "output_tokens": True,
    },
    "text_cfg": {**TEXT, "embed_cls": True, "output_tokens": True},
}  # fmt: skip
PREPROCESS = {"mean": [0.5, 0.4, 0.3], "std": [0.5, 0.6, 0.7], "interpolation": "bicubic", "resize_mode": "shortest"}
SENTENCES = ["a woman in a red coat", "a man"]


def portraits() -> list[Image.Image]:
    noise = np.random.default_rng(0).integers(0, 255, (2, 90, 33, 3), dtype=np.uint8)
    return [Image.fromarray(pixels) for pixels in noise]


def open_clip_folder(folder, config):
    """A folder as people have it from open_clip: the config, its own preprocessing, and weights."""
    folder.mkdir()
    content = {"model_cfg": config, "preprocess_cfg": PREPROCESS}
    (folder / "open_clip_config.json").write_text(json.dumps(content))
    torch.manual_seed(0)
    kind = (
        open_clip.CoCa
        if "multimodal_cfg" in config
        else open_clip.CustomTextCLIP
        if "custom_text" in config
        else open_clip.CLIP
    )
    model = kind(**{key: value for key, value in config.items() if key != "custom_text"}).eval()
    save_file(
        {key: tensor.contiguous() for key, tensor in model.state_dict().items()}, folder / "open_clip_model.safetensors"
    )
    return model


@pytest.mark.parametrize(
    "config", [RESNET, SIGLIP, pytest.param(COCA, marks=pytest.mark.heavy)], ids=["resnet", "siglip", "coca"]
)
def test_towers_that_training_refuses_embed_as_open_clip_does(tmp_path, config):
    model = open_clip_folder(tmp_path / "model", config)
    encoder = open_encoder("model", tmp_path)
    assert isinstance(encoder, OpenClipEncoder)
    assert (encoder.name, encoder.dimension) == ("model", 16)
    side = config["vision_cfg"]["image_size"]
    pixels = torch.stack(
        [normalize(to_tensor(resize(picture, [side, side], Image.Resampling.BICUBIC)), PREPROCESS["mean"], PREPROCESS["std"])
         for picture in portraits()]
    )  # fmt: skip
    with torch.no_grad():
        images = F.normalize(model.encode_image(pixels), dim=-1)
        texts = F.normalize(model.encode_text(open_clip.tokenize(SENTENCES, context_length=16)), dim=-1)
    np.testing.assert_allclose(encoder.pictures(portraits()), images, atol=1e-5)
    np.testing.assert_allclose(encoder.sentences(SENTENCES), texts, atol=1e-5)
    assert encoder.pictures([]).shape == encoder.sentences([]).shape == (0, 16)


def test_the_end_that_does_not_fit_is_named_by_every_tokenizer(tmp_path):
    open_clip_folder(tmp_path / "model", RESNET)
    encoder = open_encoder("model", tmp_path)
    assert encoder.unread("a man " * 7) == ""  # 14 words, start and end
    assert encoder.unread("a man " * 7 + "in blue jeans") == "in blue jeans"
    with pytest.raises(AssertionError):  # the special token's name is text, and not the end of the sentence
        np.testing.assert_allclose(
            encoder.sentences(["a man <end_of_text> in red"]),
            encoder.sentences(["a man <end_of_text> in blue"]),
            atol=1e-6,
        )


def test_a_folder_of_the_pipeline_is_known_by_the_digest_that_its_index_records(tmp_path):
    model = DualEncoder.create(OPENAI, tokenizer=CaptionTokenizer.from_corpus(SENTENCES, context_length=16))
    model.save(tmp_path / "models/retrieval/gadms")
    encoder = open_encoder("pipeline", tmp_path)
    assert isinstance(encoder, PersonEncoder)
    assert encoder.digest == file_digest(tmp_path / "models/retrieval/gadms" / WEIGHTS_FILE)
    again = open_encoder({"name": "models/retrieval/gadms", "digest": encoder.digest}, tmp_path)
    assert (encoder.name, again.name) == ("pipeline", "models/retrieval/gadms")
    pictures = portraits()
    np.testing.assert_array_equal(encoder.pictures(pictures), again.pictures(pictures))
    # one by one is the same as together
    np.testing.assert_allclose(
        np.concatenate([encoder.pictures([one]) for one in pictures]), encoder.pictures(pictures), atol=1e-6
    )
    with pytest.raises(DataError, match="not the one that made the gallery"):
        open_encoder({"name": "pipeline", "digest": "0" * 64}, tmp_path)
    larger = open_encoder("pipeline@96x32", tmp_path)
    assert larger.digest != encoder.digest
    assert larger.model.image_size == (96, 32)


def test_a_checkpoint_of_person_retrieval_needs_no_architecture(tmp_path):
    model = DualEncoder.create(OPENAI, seed=3).eval()
    state = {
        f"base_model.{name}": tensor.half() for name, tensor in model.clip.state_dict().items() if name != "logit_scale"
    }
    torch.save({"model": {**state, "classifier.weight": torch.zeros(3, 16)}}, tmp_path / "irra.pth")
    encoder = open_encoder("irra.pth", tmp_path)
    assert encoder.model.image_size == (48, 16)  # 12 patches are 6 x 2
    with torch.no_grad():
        expected, _ = model.encode_text(model.tokenizer(SENTENCES))
    np.testing.assert_allclose(encoder.sentences(SENTENCES), F.normalize(expected, dim=-1), atol=2e-3)
    assert open_encoder("irra.pth@96x32", tmp_path).model.image_size == (96, 32)
    torch.save(model.clip.state_dict(), tmp_path / "clip.pt")
    with pytest.raises(ParameterError, match=r"does not say its architecture; write ARCHITECTURE:"):
        open_encoder("clip.pt", tmp_path)


@pytest.mark.parametrize(
    ("reference", "said"),
    [
        ("pipeline", "model pipeline: .* does not exist: run"),
        ("nothing", "no such folder or file; allowed are"),
        ("ViT-B16:openai", "ViT-B16 is neither a path nor an architecture of open_clip; did you mean ViT-B-16?"),
        ("ViT-B-16:opanai", "opanai is neither a file nor a tag of ViT-B-16"),
        ("ViT-B-16:openai", "trained with another activation; use ViT-B-16-quickgelu"),
        ("empty", "open_clip_config.json missing"),
    ],
)
def test_a_wrong_reference_is_one_line(tmp_path, reference, said):
    (tmp_path / "empty").mkdir()
    with pytest.raises((DataError, ParameterError), match=said) as caught:
        open_encoder(reference, tmp_path)
    assert "\n" not in str(caught.value)


def test_broken_weights_are_one_line(tmp_path):
    open_clip_folder(tmp_path / "model", RESNET)
    weights = tmp_path / "model/open_clip_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    with pytest.raises(DataError, match="model model: cannot be opened"):
        open_encoder("model", tmp_path)
