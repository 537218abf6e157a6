"""Tiny models with random weights, saved in the formats of the published ones."""

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

WORDS = "a an green blue red bench bowl cake apple sheep car wooden floor rubber band the chair ? yes no"
VOCABULARY = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *WORDS.split()]
START = len(VOCABULARY)  # [DEC], then [ENC], as BLIP appended them to BERT's vocabulary
CLIP_CONFIG = {
    "embed_dim": 16,
    "quick_gelu": True,
    "vision_cfg": {"image_size": 32, "layers": 1, "width": 32, "head_width": 16, "patch_size": 16},
    "text_cfg": {"context_length": 77, "vocab_size": 49408, "width": 16, "heads": 2, "layers": 1},
}


def small_blip() -> Any:
    """A BlipForQuestionAnswering of 32 x 32 pixels whose answers differ between pictures and between questions."""
    from transformers import BlipConfig, BlipForQuestionAnswering

    sizes = {"num_hidden_layers": 2, "num_attention_heads": 2, "hidden_size": 32, "intermediate_size": 48}
    text = {"vocab_size": START + 2, "bos_token_id": START, "max_position_embeddings": 64, "sep_token_id": 3}
    config = BlipConfig(text_config={**sizes, **text}, vision_config={**sizes, "image_size": 32, "patch_size": 16})
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(7)
        model = BlipForQuestionAnswering(config).eval()
        for parameter in model.parameters():
            if parameter.ndim > 1:  # not the norms: they would silence what goes through them
                parameter.data.normal_(0, 0.4)
    return model


def save_small_blip(folder: Path) -> Path:
    """The model and its tokenizer as `save_pretrained` writes them; the tokenizer names neither [DEC] nor [ENC]."""
    from transformers import BertTokenizer

    small_blip().save_pretrained(folder)
    vocabulary = {word: place for place, word in enumerate(VOCABULARY)}
    BertTokenizer(vocab=vocabulary, do_lower_case=True).save_pretrained(folder)
    return folder


def save_small_clip(folder: Path) -> Path:
    """An open_clip folder: config and weights; returns the weight file."""
    from open_clip.model import CLIP

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        model = CLIP(**CLIP_CONFIG)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "open_clip_config.json").write_text(json.dumps({"model_cfg": CLIP_CONFIG, "preprocess_cfg": {}}))
    save_file(model.state_dict(), folder / "open_clip_model.safetensors")
    return folder / "open_clip_model.safetensors"
