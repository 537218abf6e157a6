"""Models that embed pictures and sentences in one space: the pipeline's own, published person retrieval, and all of open_clip.

A picture is squashed to the model's input, as in person retrieval: open_clip's own evaluation cuts the middle out of a picture,
which takes head and feet from a person who stands. Mean, deviation and interpolation are the model's.
"""

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from components.clip_tokenizer import clip_tokenizer
from components.errors import DataError, ParameterError
from components.files import file_digest
from components.gadms.architecture import preprocess_of, require_activation
from components.gadms.embedding import embed_captions
from components.gadms.model import CONFIG_FILE, DualEncoder, weights_file
from components.gadms.published import read_published
from components.persons.pixels import resized
from components.persons.transforms import CLIP_MEAN, CLIP_STD
from components.search.model_reference import ModelReference, openai_architecture, parse_reference
from components.weight_files.reading import reason, require_finite

Vectors = NDArray[np.float32]
_SENTENCES = 64
"""Sentences encoded at once."""


class Encoder(Protocol):
    """Embeds pictures and sentences as unit vectors, float32 (B, dimension).

    `name` opens the same model again (`open_encoder`); `digest` tells models apart that give other vectors: weights, architecture,
    and how pictures are prepared.
    """

    name: str
    digest: str
    dimension: int

    def pictures(self, images: Sequence[Image.Image]) -> Vectors:
        """Embed RGB pictures, as `components.persons.pixels.decode_rgb` reads them, in one batch."""

    def sentences(self, texts: Sequence[str]) -> Vectors:
        """Embed sentences; their number is not limited."""

    def unread(self, text: str) -> str:
        """Return the end of `text` that the model does not read because its context is full; mostly ""."""


class PersonEncoder:
    """A dual encoder of `components.gadms`: the pipeline's model, or a published checkpoint of person retrieval."""

    def __init__(self, model: DualEncoder, name: str, digest: str) -> None:
        self.model = model.eval()
        self.name, self.digest, self.dimension = name, digest, model.embed_dim

    @torch.no_grad()
    def pictures(self, images: Sequence[Image.Image]) -> Vectors:
        if not images:
            return np.empty((0, self.dimension), np.float32)
        pixels = torch.from_numpy(np.stack([resized(image, *self.model.image_size) for image in images]))
        pooled, _ = self.model.encode_image(self.model.normalize_pixels(pixels.permute(0, 3, 1, 2)))
        return _unit(pooled)

    def sentences(self, texts: Sequence[str]) -> Vectors:
        return embed_captions(self.model, texts).numpy()

    def unread(self, text: str) -> str:
        return self.model.tokenizer.unread(text)


class OpenClipEncoder:
    """Any model of open_clip: ResNets, timm's and transformers' towers, SigLIP, CoCa. `tokenizer` is open_clip's of the model."""

    def __init__(self, model: Any, tokenizer: Any, name: str, digest: str, dimension: int) -> None:
        from open_clip.transform import PreprocessCfg, image_transform_v2

        self.model, self.tokenizer = model.eval(), tokenizer
        self.name, self.digest, self.dimension = name, digest, dimension
        self._prepare = image_transform_v2(PreprocessCfg(**_squashed(model)), is_train=False)

    @torch.no_grad()
    def pictures(self, images: Sequence[Image.Image]) -> Vectors:
        if not images:
            return np.empty((0, self.dimension), np.float32)
        pixels = torch.stack([self._prepare(image) for image in images]).to(self._device)
        return _unit(self.model.encode_image(pixels))

    @torch.no_grad()
    def sentences(self, texts: Sequence[str]) -> Vectors:
        parts = [np.empty((0, self.dimension), np.float32)]
        for begin in range(0, len(texts), _SENTENCES):
            ids = self.tokenizer(list(texts[begin : begin + _SENTENCES])).to(self._device)
            parts.append(_unit(self.model.encode_text(ids)))
        return np.concatenate(parts)

    def unread(self, text: str) -> str:
        """As `Encoder.unread`, for any tokenizer: the context is full where one more word changes nothing."""
        words = text.split()

        def reads(part: Sequence[str]) -> list[int]:
            return list(self.tokenizer([" ".join(part)])[0].tolist())

        whole = reads(words)
        if whole != reads([*words, "person"]):
            return ""
        low, high = 0, len(words)  # the fewest words that fill the context, between them
        while low < high:
            middle = (low + high) // 2
            low, high = (low, middle) if reads(words[:middle]) == whole else (middle + 1, high)
        return " ".join(words[low:])

    @property
    def _device(self) -> torch.device:
        return next(self.model.parameters()).device


def open_encoder(reference: str | Mapping[str, Any], root: Path, *, device: torch.device | str = "cpu") -> Encoder:
    """Open a model by its reference (`components.search.model_reference`), or by what a gallery records: {"name", "digest"}.

    Raises ParameterError where the reference names nothing, DataError where the model cannot be read, or where its digest is not
    the recorded one.
    """
    recorded = None if isinstance(reference, str) else reference.get("digest")
    name = reference if isinstance(reference, str) else str(reference.get("name", ""))
    wanted = parse_reference(name, Path(root))
    if wanted.folder:
        encoder = _of_folder(wanted, wanted.folder, device)
    elif wanted.file:
        encoder = _of_file(wanted, wanted.file, device)
    else:
        encoder = _of_open_clip(wanted, wanted.hub or str(wanted.architecture), wanted.tag, device)
    if recorded is not None and recorded != encoder.digest:
        raise DataError(
            f"model {name}: is not the one that made the gallery (digest {encoder.digest[:12]}, recorded {recorded[:12]}): give "
            "the model that did, or update the gallery with this one"
        )
    return encoder


def _of_folder(wanted: ModelReference, folder: Path, device: torch.device | str) -> Encoder:
    weights_file(folder)  # a folder of weights, or one line
    if preprocess_of(folder / CONFIG_FILE) != _ours():
        return _of_open_clip(wanted, f"local-dir:{folder}", None, device)
    model = DualEncoder.load(folder, image_size=wanted.image_size).to(device)
    weights = file_digest(weights_file(folder))  # alone, as the stage `index` records it
    digest = weights if wanted.image_size is None else _digest(weights, wanted.image_size)
    return PersonEncoder(model, wanted.name, digest)


def _of_file(wanted: ModelReference, file: Path, device: torch.device | str) -> Encoder:
    published = read_published(file)
    if not published.openai:
        if wanted.architecture:
            return _of_open_clip(wanted, wanted.architecture, str(file), device)
        raise ParameterError(
            f"model {file}: the file does not say its architecture; write ARCHITECTURE:{file}, such as ViT-B-16:{file}"
        )
    if wanted.architecture and "visual.conv1.weight" not in published.towers:
        return _of_open_clip(wanted, wanted.architecture, str(file), device)
    config = openai_architecture(published.towers, file)
    model = published.encoder(wanted.architecture or config, image_size=wanted.image_size or _size_of(config))
    return PersonEncoder(model.to(device), wanted.name, _digest(file_digest(file), model.config))


def _of_open_clip(
    wanted: ModelReference, name: str, weights: str | None, device: torch.device | str
) -> OpenClipEncoder:
    import open_clip

    if wanted.tag:
        require_activation(name, open_clip.get_model_config(name) or {}, wanted.tag)
    try:
        config = open_clip.get_model_config(name)
        model = open_clip.create_model(
            name, weights, device=device, force_image_size=wanted.image_size, require_pretrained=True
        )
        tokenizer = _tokenizer(open_clip.get_tokenizer(name), config)
    except Exception as error:  # open_clip, timm, transformers, the hub, torch and safetensors each raise their own
        raise DataError(f"model {wanted.name}: cannot be opened ({reason(error)})") from error
    state = model.state_dict()
    require_finite({key: tensor for key, tensor in state.items() if tensor.is_floating_point()}, f"model {wanted.name}")
    digest = _digest(_state_digest(state), config, _squashed(model))
    return OpenClipEncoder(model, tokenizer, wanted.name, digest, int(config["embed_dim"]))


def _tokenizer(tokenizer: Any, config: Mapping[str, Any]) -> Any:
    """The model's tokenizer, as sentences of people need it.

    CLIP's own becomes the one that reads the name of a special token as text. Of a tokenizer that drops words at random or by kind
    for training (`reduction_mask`) the dropping is left out: a long sentence is cut at its end.
    """
    if getattr(tokenizer, "reduction_fn", None) is not None:
        tokenizer.reduction_fn = None
    plain = type(tokenizer).__name__ == "SimpleTokenizer" and not config["text_cfg"].get("tokenizer_kwargs")
    return clip_tokenizer(tokenizer.context_length) if plain else tokenizer


def _squashed(model: Any) -> dict[str, Any]:
    """How pictures are prepared: the model's own settings, but for the resizing (see the top of this file)."""
    return {**model.visual.preprocess_cfg, "resize_mode": "squash"}


def _ours() -> dict[str, Any]:
    """What `DualEncoder.save` writes on the preparation of pictures."""
    return {"mean": list(CLIP_MEAN), "std": list(CLIP_STD), "interpolation": "bilinear", "resize_mode": "squash"}


def _size_of(config: Mapping[str, Any]) -> tuple[int, int]:
    height, width = config["vision_cfg"]["image_size"]
    return height, width


def _digest(*parts: Any) -> str:
    return hashlib.sha256(json.dumps(parts, sort_keys=True, default=str).encode()).hexdigest()


def _state_digest(state: Mapping[str, Tensor]) -> str:
    """The SHA-256 of a state dict by names, types, shapes and values, whatever the file that held it."""
    found = hashlib.sha256()
    for name, tensor in sorted(state.items()):
        found.update(f"{name} {tensor.dtype} {list(tensor.shape)}\n".encode())
        found.update(tensor.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().data)
    return found.hexdigest()


def _unit(vectors: Tensor) -> Vectors:
    return F.normalize(vectors.float(), dim=-1).cpu().numpy()
