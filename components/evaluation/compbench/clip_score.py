"""CLIPScore as in T2I-CompBench: the plain cosine of picture and prompt by OpenAI's ViT-B/32 (CLIP_similarity.py).

Not scaled by 2.5, not cut at 0, without "A photo depicts" before the text. The script runs in float16 on a GPU; this is float32.
"""

import json
from collections.abc import Mapping, Sequence
from copy import deepcopy
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch.nn import functional

from components.clip_tokenizer import clip_tokenizer
from components.errors import DataError
from components.evaluation.compbench.pictures import Progress, PromptPicture, open_picture
from components.weight_files.reading import OPENAI_CONSTANTS, load_exactly, read_state, require_finite

ARCHITECTURE = "ViT-B-32-quickgelu"
CONFIG_FILE = "open_clip_config.json"
HOW_TO_GET = "download open_clip_model.safetensors of timm/vit_base_patch32_clip_224.openai from the Hugging Face hub and name it"
BATCH = 32  # pictures


class ClipScore:
    """An open_clip model with CLIP's own tokenizer, in evaluation mode. `architecture`: its name in results."""

    def __init__(self, model: Any, architecture: str = ARCHITECTURE) -> None:
        from open_clip import image_transform

        self.model = model.eval()
        self.architecture = architecture
        self.tokenizer = clip_tokenizer(model.context_length)
        if model.vocab_size != self.tokenizer.vocab_size:
            raise DataError(
                f"CLIP {architecture}: {model.vocab_size} words, but CLIP's tokenizer has {self.tokenizer.vocab_size}; {HOW_TO_GET}"
            )
        # Shorter side to the model's size by PIL's bicubic filter, then the middle square, as clip.load's `preprocess`.
        self.transform = image_transform(model.visual.image_size, is_train=False)

    @classmethod
    def open(cls, file: Path, *, device: str = "cpu") -> "ClipScore":
        """Read a weight file (safetensors, a state dict, or OpenAI's ViT-B-32.pt). The architecture is that of
        `open_clip_config.json` beside it, or else OpenAI's ViT-B/32.

        Raises DataError where the file is missing or does not fit.
        """
        from open_clip.model import CLIP

        if not file.is_file():
            raise DataError(f"{file}: no CLIP weights there; {HOW_TO_GET}")
        config, architecture = _architecture(file.parent / CONFIG_FILE)
        try:
            with torch.random.fork_rng(devices=[]):  # the initial weights draw from the global generator
                model = CLIP(**config)
            state = read_state(file)
            state = {name: tensor.float() for name, tensor in state.items() if name not in OPENAI_CONSTANTS}
            require_finite(state, file)
            load_exactly(model, state, file, architecture)
        except Exception as error:  # open_clip raises many kinds of errors for its configs
            reason = (str(error).strip() or type(error).__name__).splitlines()[0]
            raise DataError(f"{file}: not weights of {architecture} ({reason}); {HOW_TO_GET}") from error
        return cls(model.float().to(device), architecture)

    @torch.no_grad()
    def cosines(self, pictures: Sequence[Image.Image], texts: Sequence[str]) -> NDArray[np.float64]:
        """Return the cosine of each picture with its text, (N,). Raises DataError for a text longer than CLIP's context."""
        for text in texts:
            # Two places are the start and end tokens. The script stops at a longer text too; open_clip alone would cut it.
            length, room = len(self.tokenizer.encode(text)) + 2, self.model.context_length
            if length > room:
                raise DataError(f"prompt {text[:60]!r}: {length} tokens, and CLIP reads {room}; shorten it")
        device = self.model.logit_scale.device
        pixels = torch.stack([self.transform(picture) for picture in pictures]).to(device)  # (N, 3, S, S)
        seen = functional.normalize(self.model.encode_image(pixels), dim=-1)  # (N, D)
        read = functional.normalize(self.model.encode_text(self.tokenizer(list(texts)).to(device)), dim=-1)
        found: NDArray[np.float64] = (seen * read).sum(-1).double().cpu().numpy()
        return found


def score_pictures(
    clip: ClipScore,
    pictures: Sequence[PromptPicture],
    texts: Mapping[str, str],
    *,
    batch: int = BATCH,
    progress: Progress = iter,
) -> NDArray[np.float64]:
    """Return the cosine of every picture with `texts[its prompt]`, (N,)."""
    parts = [
        clip.cosines([open_picture(one) for one in part], [texts[one.prompt] for one in part])
        for part in progress([pictures[begin : begin + batch] for begin in range(0, len(pictures), batch)])
    ]
    return np.concatenate(parts)


def _architecture(file: Path) -> tuple[dict[str, Any], str]:
    """The model config and a name for it."""
    from open_clip import get_model_config

    if not file.is_file():
        return deepcopy(get_model_config(ARCHITECTURE)), ARCHITECTURE
    try:
        config = json.loads(file.read_text(encoding="utf-8"))["model_cfg"]
    except (ValueError, KeyError, TypeError) as error:
        raise DataError(f"{file}: not an open_clip config (model_cfg is needed); {HOW_TO_GET}") from error
    if "hf_model_name" in config.get("text_cfg", {}) or config.get("custom_text"):
        raise DataError(f"{file}: a CLIP with another text tower; {HOW_TO_GET}")
    published = config == get_model_config(ARCHITECTURE)
    return config, ARCHITECTURE if published else f"the model of {file.name}"
