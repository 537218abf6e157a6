"""Load published weights into our model, accounting for every key of their files.

Three forms are read: checkpoints of IRRA and GA-DMS (`{"model": ...}`: `base_model.*` is CLIP under OpenAI's names, which are
open_clip's; beside it `cross_attn`, `cross_modal_transformer`, `ln_pre_t`, `ln_pre_i`, `ln_post` and `mlm_head`, the masked-token
decoder, and `classifier`), the weights of a CLIP (a state dict, or OpenAI's own TorchScript archive), and model folders. Files are
read as tensors only, never as code; half precision becomes float32.
"""

import hashlib
import logging
import re
from collections.abc import Mapping
from dataclasses import dataclass
from math import isqrt
from pathlib import Path
from typing import Any

from torch import Tensor

from components.errors import DataError, ParameterError
from components.files import file_digest
from components.gadms.architecture import grid_of, model_config, require_architecture
from components.gadms.model import DECODER_FILE, DualEncoder, PositionResize, resize_positions, weights_file
from components.weight_files.reading import OPENAI_CONSTANTS, load_exactly, read_state, require_finite

logger = logging.getLogger(__name__)

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
    "classifier": "one row per identity of its training set",
    **dict.fromkeys(OPENAI_CONSTANTS, "a constant of the architecture, in OpenAI's archives"),
    "logit_scale": "a constant in IRRA",
    "visul_emb_layer": "RDE's second embedding, of selected tokens, which this model does not have",
    "texual_emb_layer": "RDE's second embedding, of selected tokens, which this model does not have",
}
_ANCHOR = "visual.conv1.weight"  # a key of every CLIP with a vision transformer
_NOT_PUBLISHED = {"logit_scale"}  # a constant in IRRA, and not trained here


@dataclass(frozen=True)
class Published:
    """A file's tensors under the names of our modules; `dropped`: its other keys, each with the reason.

    `openai`: it was written by OpenAI's code of CLIP, which IRRA and GA-DMS share.
    """

    file: Path
    towers: Mapping[str, Tensor]
    decoder: Mapping[str, Tensor]
    dropped: Mapping[str, str]
    openai: bool = False

    def encoder(
        self,
        architecture: Mapping[str, Any] | str,
        *,
        image_size: tuple[int, int] | None = None,
        position_resize: PositionResize = "bilinear",
    ) -> DualEncoder:
        """Load the towers into a model of `architecture`, with the decoder beside them. Raises DataError where they do not fit."""
        model = DualEncoder.create(architecture, image_size=image_size)
        if self.openai:
            self._require_openai_towers(model.config)
        state = dict(self.towers)
        if _POSITIONS in state and state[_POSITIONS].ndim == 2:
            grid, declared = model.clip.visual.grid_size, grid_of(model_config(architecture))
            resize_positions(state, self._grid(len(state[_POSITIONS]) - 1, declared, grid), grid, position_resize)
        load_exactly(model.clip, state, self.file, "retrieval.architecture", optional=_NOT_PUBLISHED)
        model.decoder_weights = self.decoder or None
        return model

    def _require_openai_towers(self, config: Mapping[str, Any]) -> None:
        """Refuse other activations and heads than OpenAI's, which fit the same tensors and compute other features."""
        vision, text = config["vision_cfg"], config["text_cfg"]
        values = {
            "quick_gelu": (bool(config.get("quick_gelu")), True),
            "vision_cfg.head_width": (vision.get("head_width", 64), 64),
            "text_cfg.heads": (text.get("heads", 8), text.get("width", 512) // 64),
        }
        for key, (found, wanted) in values.items():
            if found != wanted:
                raise ParameterError(
                    f"retrieval.architecture: {key} is {found}; {self.file} was trained with {wanted}, as ViT-B-16-quickgelu"
                )

    def _grid(self, patches: int, declared: tuple[int, int], ours: tuple[int, int]) -> tuple[int, int]:
        """Rows and columns of the position embedding, of which a file says the product alone.

        They are those that the architecture declares, a square, or 2:1 or 3:1 as in person retrieval (256 x 128, 384 x 128), and
        those of the model only where none of these fits: 192 patches are 24 x 8 for a model of 12 x 16 too.
        """
        portrait = [(ratio * isqrt(patches // ratio), isqrt(patches // ratio)) for ratio in (1, 2, 3)]
        for rows, columns in (declared, *portrait, ours):
            if rows * columns == patches:
                return rows, columns
        raise DataError(
            f"{self.file}: {patches} patches are neither a square, nor 2:1, nor 3:1; state the image_size of these weights in "
            "retrieval.architecture"
        )


def read_published(file: Path) -> Published:
    """Read a file of weights. Raises DataError for a file of another form, or with an unknown key."""
    published = sort_keys(read_state(file), file)
    require_finite({**published.towers, **published.decoder}, file)
    return published


def sort_keys(state: Mapping[str, Tensor], file: Path) -> Published:
    """Sort the keys of a state dict into used and dropped ones. Raises DataError, naming `file`, for any other key."""
    towers: dict[str, Tensor] = {}
    decoder: dict[str, Tensor] = {}
    dropped: dict[str, str] = {}
    unknown = []
    state = _without_prefix(state)
    if any(name.startswith(("text_model.", "vision_model.")) for name in state):
        raise DataError(
            f"{file}: has the layout of transformers' CLIPModel; give these weights as an open_clip tag or file"
        )
    irra = any(name.startswith(TOWERS) for name in state)
    for name, tensor in state.items():
        ours = _decoder_name(name) if irra else None
        reason = _drop_reason(name, irra)
        if reason is not None:
            dropped[name] = reason
        elif ours is not None:
            decoder[ours] = tensor.float()
        elif name.startswith(TOWERS) or not irra:
            towers[name.removeprefix(TOWERS)] = tensor.float()
        else:
            unknown.append(name)
    if unknown:
        shown = ", ".join(unknown[:5])
        raise DataError(f"{file}: {len(unknown)} keys are of no known model: {shown}")
    return Published(file, towers, decoder, dropped, irra or any(name in dropped for name in OPENAI_CONSTANTS))


def _without_prefix(state: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
    """Undo a prefix of all keys, such as Lightning's `model.`, by the place of a key that every CLIP has."""
    found = [name.removesuffix(_ANCHOR) for name in state if name.endswith(f".{_ANCHOR}")]
    prefix = found[0].removesuffix(TOWERS) if len(found) == 1 else ""
    if not prefix or not all(name.startswith(prefix) for name in state):
        return state
    return {name.removeprefix(prefix): tensor for name, tensor in state.items()}


def _drop_reason(name: str, irra: bool) -> str | None:
    """Why a key is not used; None for a key that is."""
    if name == "logit_scale" and not irra:
        return None
    return _DROPPED.get(name.partition(".")[0]) or _DROPPED.get(name.rpartition(".")[2])


def _decoder_name(name: str) -> str | None:
    """Our name of a key of the decoder; None for other keys."""
    block = _BLOCK.fullmatch(name)
    if block:
        return f"blocks.{block[1]}.{_IN_BLOCK[block[2]]}.{block[3]}"
    return next(
        (ours + name.removeprefix(theirs) for theirs, ours in _DECODER.items() if name.startswith(theirs)), None
    )


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

    A folder has its own architecture, which must be the given one. Files and folders are pinned by `sha256`, so that a result
    states what it depends on. Raises ParameterError or DataError with what to do.
    """
    import open_clip

    place = root / pretrained
    if isinstance(architecture, str) and open_clip.get_pretrained_cfg(architecture, pretrained):
        return DualEncoder.from_pretrained(
            architecture, pretrained, image_size=image_size, position_resize=position_resize
        )
    if place.is_dir():
        _require_pinned(place, pretrained, sha256)
        encoder = DualEncoder.load(place, image_size=image_size, position_resize=position_resize)
        require_architecture(model_config(architecture, image_size), encoder.config, pretrained)
        return encoder
    if place.is_file():
        _require_pinned(place, pretrained, sha256)
        published = read_published(place)
        encoder = published.encoder(architecture, image_size=image_size, position_resize=position_resize)
        if not published.openai:
            quick = bool(encoder.config.get("quick_gelu"))
            logger.warning(
                "%s: does not say its activation; quick_gelu is %s, as in retrieval.architecture",
                pretrained,
                str(quick).lower(),
            )
        return encoder
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
    weights, decoder = weights_file(place), place / DECODER_FILE
    if not decoder.is_file():
        return file_digest(weights)
    return hashlib.sha256(f"{file_digest(weights)}{file_digest(decoder)}".encode()).hexdigest()


def _require_pinned(place: Path, pretrained: str, sha256: str | None) -> None:
    found = weights_digest(place)
    if sha256 is None:
        raise ParameterError(f"pretrained_sha256 is null: set it to {found}, the digest of {pretrained}")
    if sha256 != found:
        raise DataError(f"{pretrained}: its SHA-256 is {found}; expected is pretrained_sha256 = {sha256}")
