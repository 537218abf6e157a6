"""The dual encoder: an open_clip model that returns every token, saved in a folder that open_clip can read.

Inference is plain CLIP: the cosine of the image's class token with the text's end token. Training also needs all projected tokens
(for the masked-token decoder) and pictures that are not square, which open_clip's own `encode_*` do not support.
"""

import json
from collections.abc import Mapping
from copy import deepcopy
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from components.errors import DataError, ParameterError
from components.gadms.architecture import (
    build,
    config_file,
    context_length_of,
    grid_of,
    model_config,
    preprocess_of,
    require_normalisation,
    require_tag,
    require_towers,
)
from components.gadms.tokenizer import CaptionTokenizer
from components.persons.transforms import CLIP_MEAN, CLIP_STD, normalise
from components.weight_files.reading import load_exactly, read_state, reason, require_finite

CONFIG_FILE = "open_clip_config.json"
WEIGHTS_FILE = "open_clip_model.safetensors"
_OTHER_WEIGHTS_FILE = "open_clip_pytorch_model.bin"  # of open_clip, before safetensors
DECODER_FILE = "masked_token_decoder.safetensors"
_POSITIONS = "visual.positional_embedding"
PositionResize = Literal["bilinear", "bicubic"]


class DualEncoder(nn.Module):
    """An image tower and a text tower with a common embedding space.

    `config` is an open_clip model config (embed_dim, vision_cfg with image_size [H, W], text_cfg, quick_gelu).
    The constructor draws weights from the global generator: use `create`, `from_pretrained` or `load`.

    `decoder_weights` is the state of the masked-token decoder that was trained with these weights, None where there is none. It is
    no part of the encoder, and training goes on from it (`components.gadms.tasks`).
    """

    decoder_weights: Mapping[str, Tensor] | None = None

    def __init__(self, config: Mapping[str, Any], tokenizer: CaptionTokenizer | None = None) -> None:
        super().__init__()
        self.config = deepcopy(dict(config))
        self.tokenizer = tokenizer or CaptionTokenizer(context_length=context_length_of(self.config))
        self.clip = build(self.config)
        require_towers(self.clip, self.tokenizer, self.config["text_cfg"])

    @classmethod
    def create(
        cls,
        config: Mapping[str, Any] | str,
        *,
        image_size: tuple[int, int] | None = None,
        tokenizer: CaptionTokenizer | None = None,
        seed: int = 0,
    ) -> "DualEncoder":
        """Create a model with random weights. `config` is a dict, a JSON file, or the name of an open_clip architecture.

        `image_size` is (height, width). With a compact `tokenizer` the config takes its vocabulary size. The state of the global
        generator is restored.
        """
        chosen = model_config(config, image_size)
        if tokenizer is not None:
            chosen["text_cfg"]["vocab_size"] = tokenizer.vocab_size
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            return cls(chosen, tokenizer)

    @classmethod
    def from_pretrained(
        cls,
        name: str,
        weights: str,
        *,
        image_size: tuple[int, int] | None = None,
        position_resize: PositionResize = "bilinear",
    ) -> "DualEncoder":
        """Create an open_clip architecture with published weights: a tag such as "openai" (for a file: `pretrained_encoder`).

        For another `image_size` (height, width) the position embedding is resized, "bilinear" as IRRA does or "bicubic" as
        open_clip does. Raises ParameterError where the tag was trained with another activation (OpenAI's weights need a
        "-quickgelu" architecture, and silently lose some points in another), or with another normalisation than CLIP's.
        """
        import open_clip

        config = model_config(name, image_size)
        require_tag(name, config, weights)
        model = cls.create(config)
        try:
            source = open_clip.create_model(name, pretrained=weights)
        except Exception as error:  # open_clip, the hub, torch and safetensors each raise their own
            raise DataError(f"weights {weights} for {name}: {reason(error)}") from error
        state = source.state_dict()
        require_finite(state, f"weights {weights} for {name}")
        resize_positions(state, source.visual.grid_size, model.clip.visual.grid_size, position_resize)
        model.clip.load_state_dict(state)
        return model

    @classmethod
    def load(
        cls,
        folder: str | Path,
        *,
        image_size: tuple[int, int] | None = None,
        position_resize: PositionResize = "bilinear",
    ) -> "DualEncoder":
        """Read a folder written by `save`, or any open_clip folder of a plain CLIP. Raises DataError for another folder."""
        folder = Path(folder)
        weights = weights_file(folder)
        try:
            config = model_config(config_file(folder / CONFIG_FILE))
            require_normalisation(preprocess_of(folder / CONFIG_FILE), weights.name)
        except ParameterError as error:
            raise DataError(f"{folder}: not a folder of a dual encoder: {error}") from error
        tokenizer = CaptionTokenizer.load(folder, context_length_of(config))
        model = cls.create(config, image_size=image_size, tokenizer=tokenizer)
        state = {name: tensor.float() for name, tensor in read_state(weights).items()}
        require_finite(state, weights)
        resize_positions(state, grid_of(config), model.clip.visual.grid_size, position_resize)
        load_exactly(model.clip, state, weights, f"{CONFIG_FILE} beside it")
        if (folder / DECODER_FILE).exists():
            model.decoder_weights = read_state(folder / DECODER_FILE)
        return model

    def save(self, folder: str | Path, *, decoder: Mapping[str, Tensor] | None = None) -> None:
        """Write the config, the weights (fp32 as trained) and a compact vocabulary; the same model gives the same bytes.

        `decoder`: the state of the masked-token decoder that was trained with them, for a training that goes on from this folder.
        `open_clip.create_model("local-dir:<folder>")` reads the encoder.
        """
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        preprocess = {"mean": CLIP_MEAN, "std": CLIP_STD, "interpolation": "bilinear", "resize_mode": "squash"}
        content = {"model_cfg": self.config, "preprocess_cfg": preprocess}
        (folder / CONFIG_FILE).write_text(json.dumps(content, indent=2, sort_keys=True) + "\n")
        _write(self.clip.state_dict(), folder / WEIGHTS_FILE)
        (folder / DECODER_FILE).unlink(missing_ok=True)
        if decoder is not None:
            _write(decoder, folder / DECODER_FILE)
        self.tokenizer.save(folder)

    @property
    def image_size(self) -> tuple[int, int]:
        """(height, width) in pixels."""
        height, width = self.clip.visual.image_size
        return height, width

    @property
    def embed_dim(self) -> int:
        return int(self.config["embed_dim"])

    @property
    def device(self) -> torch.device:
        return self.clip.logit_scale.device

    def checkpoint_activations(self, enable: bool = True) -> None:
        """Checkpoint activations in both towers: recompute each block in the backward pass, to save memory."""
        self.clip.set_grad_checkpointing(enable)

    def normalize_pixels(self, pixels: Tensor) -> Tensor:
        """uint8 (B, 3, H, W) -> float32 on the encoder's device, with CLIP's mean and standard deviation."""
        return normalise(pixels.to(self.device))

    def encode_image(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        """Normalised pixels (B, 3, H, W) -> pooled (B, D) and all projected tokens (B, 1 + P, D), the class token first."""
        visual = self.clip.visual
        hidden = visual.transformer(visual._embeds(pixels))
        tokens = visual.ln_post(hidden) @ visual.proj
        return tokens[:, 0], tokens

    def encode_text(self, ids: Tensor, *, padding: bool = False) -> tuple[Tensor, Tensor]:
        """Ids (B, T) -> pooled (B, D) and all projected tokens (B, L, D), with L the longest caption of the batch.

        Cutting the padding is exact: attention is causal, so tokens up to the end token do not see what follows it. With `padding`
        its tokens are returned too, L = T. Neither output is normalised.
        """
        end = ids.argmax(dim=-1)  # (B,) the end token has the largest id
        hidden = self.embed_tokens(ids if padding else ids[:, : int(end.max()) + 1])
        length = hidden.shape[1]
        hidden = self.clip.transformer(hidden, attn_mask=self.clip.attn_mask[:length, :length])
        tokens = self.project_text(hidden)
        return tokens[torch.arange(len(ids), device=ids.device), end], tokens

    def embed_tokens(self, ids: Tensor) -> Tensor:
        """Token plus position embedding, (B, L) -> (B, L, text width)."""
        return self.clip.token_embedding(ids) + self.clip.positional_embedding[: ids.shape[1]]

    def project_text(self, hidden: Tensor) -> Tensor:
        """Final layer norm and projection, (..., text width) -> (..., D)."""
        hidden = self.clip.ln_final(hidden)
        projection = self.clip.text_projection
        return projection(hidden) if isinstance(projection, nn.Linear) else hidden @ projection


def weights_file(folder: Path) -> Path:
    """The weights of a model folder. Raises DataError where it is not one."""
    if not (folder / CONFIG_FILE).is_file():
        raise DataError(f"{folder}: not a folder of a dual encoder, {CONFIG_FILE} missing")
    for name in (WEIGHTS_FILE, _OTHER_WEIGHTS_FILE):
        if (folder / name).is_file():
            return folder / name
    raise DataError(f"{folder}: not a folder of a dual encoder, {WEIGHTS_FILE} missing (or {_OTHER_WEIGHTS_FILE})")


def _write(state: Mapping[str, Tensor], file: Path) -> None:
    from safetensors.torch import save_file

    save_file({name: tensor.detach().cpu().contiguous() for name, tensor in sorted(state.items())}, file)


def resize_positions(
    state: dict[str, Tensor], old: tuple[int, int], new: tuple[int, int], how: PositionResize = "bilinear"
) -> None:
    """Resize the image position embedding (1 + P, W) of a state, in place, to another grid of (rows, columns).

    bilinear: without antialiasing, as IRRA. bicubic: with antialiasing, as open_clip (which assumes that the old grid is square);
    it changes zero-shot results by points.
    """
    if how not in ("bilinear", "bicubic"):
        raise ParameterError(f"position_resize = {how!r}: allowed are bilinear, bicubic")
    positions = state.get(_POSITIONS)
    if tuple(old) == tuple(new) or positions is None or positions.shape[:-1] != (1 + old[0] * old[1],):
        return  # where it does not fit, whoever loads the state names it
    class_position, patches = positions[:1], positions[1:]
    grid = patches.float().T.reshape(1, -1, *old)
    resized = F.interpolate(grid, size=tuple(new), mode=how, align_corners=False, antialias=how == "bicubic")
    state[_POSITIONS] = torch.cat([class_position, resized.flatten(2)[0].T.to(class_position.dtype)])
