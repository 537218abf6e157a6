"""Load published weights into our model, accounting for every key of their files.

Three forms are read: checkpoints of IRRA and GA-DMS (`{"model": ...}`: `base_model.*` is CLIP under OpenAI's names, which are
open_clip's; beside it `cross_attn`, `cross_modal_transformer`, `ln_pre_t`, `ln_pre_i`, `ln_post` and `mlm_head`, the masked-token
decoder, and `classifier`), a plain state dict of a CLIP, and folders written by `DualEncoder.save`. Files are read as tensors only,
never as code; half precision becomes float32.
"""

import hashlib
import pickle
import re
from collections.abc import Mapping
from dataclasses import dataclass
from math import isqrt
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from components.errors import DataError, ParameterError
from components.files import file_digest
from components.gadms.decoder import CrossModalDecoder
from components.gadms.model import DECODER_FILE, WEIGHTS_FILE, DualEncoder, PositionResize, resize_positions

TOWERS = "base_model."
_POSITIONS = "visual.positional_embedding"
_DECODER = {
    "cross_attn.": "cross_attention.",
    "ln_pre_t.": "text_norm.",
    "ln_pre_i.": "image_norm.",
    "ln_post.": "final_norm.",
    "mlm_head.dense.": "head.0.",
    "mlm_head.ln.": "head.2.",
    "mlm_head.fc.": "vocabulary.",
}
_BLOCK = re.compile(r"cross_modal_transformer\.resblocks\.(\d+)\.(attn|ln_1|ln_2|mlp\.c_fc|mlp\.c_proj)\.(.+)")
_IN_BLOCK = {"attn": "self_attn", "ln_1": "norm1", "ln_2": "norm2", "mlp.c_fc": "linear1", "mlp.c_proj": "linear2"}
_DROPPED = {
    "classifier.weight": "one row per identity of its training set",
    "classifier.bias": "one number per identity of its training set",
    "input_resolution": "a number in OpenAI's files",
    "context_length": "a number in OpenAI's files",
    "vocab_size": "a number in OpenAI's files",
}
_NOT_PUBLISHED = {"logit_scale"}  # a constant in IRRA, and not trained here


@dataclass(frozen=True)
class Published:
    """A file's tensors under the names of our modules; `dropped`: its other keys, each with the reason."""

    file: Path
    towers: Mapping[str, Tensor]
    decoder: Mapping[str, Tensor]
    dropped: Mapping[str, str]

    def encoder(
        self,
        architecture: Mapping[str, Any] | str,
        *,
        image_size: tuple[int, int] | None = None,
        position_resize: PositionResize = "bilinear",
    ) -> DualEncoder:
        """Load the towers into a model of `architecture`, with the decoder beside them. Raises DataError where they do not fit."""
        model = DualEncoder.create(architecture, image_size=image_size)
        state = dict(self.towers)
        if _POSITIONS in state:
            grid = model.clip.visual.grid_size
            resize_positions(state, self._grid(len(state[_POSITIONS]) - 1, grid), grid, position_resize)
        self._fill(model.clip, state, "retrieval.architecture", optional=_NOT_PUBLISHED)
        model.decoder_weights = self.decoder or None
        return model

    def masked_token_decoder(self) -> CrossModalDecoder | None:
        """Load the decoder, with the depth and vocabulary of the file; None for a file without one."""
        if not self.decoder:
            return None
        depth = len({name.split(".")[1] for name in self.decoder if name.startswith("blocks.")})
        vocabulary, width = self._of_decoder("vocabulary.weight").shape
        decoder = CrossModalDecoder(width, vocabulary, depth=depth)
        self._fill(decoder, self.decoder, "the decoder")
        return decoder

    def _of_decoder(self, name: str) -> Tensor:
        if name not in self.decoder:
            raise DataError(f"{self.file}: its decoder has no {name}; the file is incomplete")
        return self.decoder[name]

    def _grid(self, patches: int, ours: tuple[int, int]) -> tuple[int, int]:
        """Rows and columns of the position embedding: the model's, a square, or 3:1 as in person retrieval (384 x 128)."""
        if patches == ours[0] * ours[1]:
            return ours
        if isqrt(patches) ** 2 == patches:
            return isqrt(patches), isqrt(patches)
        columns = isqrt(patches // 3)
        if 3 * columns**2 == patches:
            return 3 * columns, columns
        raise DataError(f"{self.file}: {patches} patches are neither a square nor 3:1; give its own image_size")

    def _fill(
        self,
        module: nn.Module,
        state: Mapping[str, Tensor],
        whose: str,
        optional: frozenset[str] | set[str] = frozenset(),
    ) -> None:
        """Load `state`. Raises DataError naming what does not fit."""
        own = module.state_dict()
        wrong = [f"{name} is missing" for name in own if name not in state and name not in optional]
        wrong += [f"{name} is not a part of it" for name in state if name not in own]
        wrong += [
            f"{name} is {list(tensor.shape)}, not {list(own[name].shape)}"
            for name, tensor in state.items()
            if name in own and tensor.shape != own[name].shape
        ]
        if wrong:
            raise DataError(f"{self.file}: does not fit {whose}: {'; '.join(wrong[:3])} ({len(wrong)} in all)")
        module.load_state_dict(dict(state), strict=False)


def read_published(file: Path) -> Published:
    """Read a file of weights. Raises DataError for a file of another form, or with an unknown key."""
    return sort_keys(_tensors(file), file)


def sort_keys(state: Mapping[str, Tensor], file: Path) -> Published:
    """Sort the keys of a state dict into used and dropped ones. Raises DataError, naming `file`, for any other key."""
    towers: dict[str, Tensor] = {}
    decoder: dict[str, Tensor] = {}
    dropped: dict[str, str] = {}
    unknown = []
    irra = any(name.startswith(TOWERS) for name in state)
    for name, tensor in state.items():
        ours = _decoder_name(name) if irra else None
        if name in _DROPPED:
            dropped[name] = _DROPPED[name]
        elif ours is not None:
            decoder[ours] = tensor.float()
        elif name.startswith(TOWERS) or not irra:
            towers[name.removeprefix(TOWERS)] = tensor.float()
        else:
            unknown.append(name)
    if unknown:
        shown = ", ".join(unknown[:5])
        raise DataError(f"{file}: {len(unknown)} keys are of no known model: {shown}")
    return Published(file, towers, decoder, dropped)


def _decoder_name(name: str) -> str | None:
    """Our name of a key of the decoder; None for other keys."""
    block = _BLOCK.fullmatch(name)
    if block:
        return f"blocks.{block[1]}.{_IN_BLOCK[block[2]]}.{block[3]}"
    return next(
        (ours + name.removeprefix(theirs) for theirs, ours in _DECODER.items() if name.startswith(theirs)), None
    )


def _tensors(file: Path) -> Mapping[str, Tensor]:
    """The state dict of a file, unwrapped from a checkpoint and from DistributedDataParallel."""
    try:
        if file.suffix == ".safetensors":
            from safetensors.torch import load_file

            content: Any = load_file(file)
        else:
            content = torch.load(file, map_location="cpu", weights_only=True)
    except (OSError, RuntimeError, ValueError, EOFError, pickle.UnpicklingError) as error:
        raise DataError(f"{file}: not a file of weights ({str(error).splitlines()[0]})") from error
    for key in ("model", "state_dict"):
        if isinstance(content, Mapping) and isinstance(content.get(key), Mapping):
            content = content[key]
    if (
        not isinstance(content, Mapping)
        or not content
        or not all(isinstance(value, Tensor) for value in content.values())
    ):
        raise DataError(f'{file}: holds no state dict, neither at the top nor under "model" or "state_dict"')
    wrapped = all(name.startswith("module.") for name in content)
    return {name.removeprefix("module.") if wrapped else name: value for name, value in content.items()}


def pretrained_encoder(
    architecture: Mapping[str, Any] | str,
    pretrained: str,
    *,
    root: Path,
    sha256: str | None,
    image_size: tuple[int, int],
    position_resize: PositionResize = "bilinear",
) -> DualEncoder:
    """Load the encoder named `pretrained`: an open_clip tag of `architecture`, or a file or model folder below `root`.

    A folder has its own architecture. Files and folders are pinned by `sha256`, so that a result states what it depends on. Raises
    ParameterError or DataError with what to do.
    """
    import open_clip

    place = root / pretrained
    if isinstance(architecture, str) and open_clip.get_pretrained_cfg(architecture, pretrained):
        return DualEncoder.from_pretrained(
            architecture, pretrained, image_size=image_size, position_resize=position_resize
        )
    if place.is_dir():
        _require_pinned(place, pretrained, sha256)
        return DualEncoder.load(place, image_size=image_size, position_resize=position_resize)
    if place.is_file():
        _require_pinned(place, pretrained, sha256)
        published = read_published(place)
        return published.encoder(architecture, image_size=image_size, position_resize=position_resize)
    tags = ", ".join(open_clip.list_pretrained_tags_by_model(architecture)) if isinstance(architecture, str) else ""
    raise DataError(
        f"pretrained = {pretrained}: no such file or folder, and not a tag of the architecture ({tags or 'it has none'})"
    )


def weights_digest(place: Path) -> str:
    """The SHA-256 that pins weights: of a file, or of a model folder's weights.

    With a masked-token decoder in the folder it is that of both files' digests, one after the other, as training goes on from both.
    Raises DataError for a folder without weights.
    """
    if not place.is_dir():
        return file_digest(place)
    weights, decoder = place / WEIGHTS_FILE, place / DECODER_FILE
    if not weights.is_file():
        raise DataError(f"{place}: not a model folder, {weights.name} is missing")
    if not decoder.is_file():
        return file_digest(weights)
    return hashlib.sha256(f"{file_digest(weights)}{file_digest(decoder)}".encode()).hexdigest()


def _require_pinned(place: Path, pretrained: str, sha256: str | None) -> None:
    found = weights_digest(place)
    if sha256 is None:
        raise ParameterError(f"pretrained_sha256 is null: set it to {found}, the digest of {pretrained}")
    if sha256 != found:
        raise DataError(f"{pretrained}: its SHA-256 is {found}; expected is pretrained_sha256 = {sha256}")
