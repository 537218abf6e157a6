"""Pictures to start from: image-to-image, inpainting, and models that are given a picture (FLUX.1 Fill, Kontext, Qwen-Image-Edit).

The class that the model's folder names decides. If its call takes a picture, it is called with it; a text-to-image class is
replaced by diffusers' class for image-to-image, or with masks by that for inpainting, over the same parts.
"""

import inspect
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from PIL import Image

from components.errors import ParameterError

_PICTURE, _MASK, _STRENGTH = "image", "mask_image", "strength"
_OPTIONAL_PICTURE = ("Flux2Pipeline", "Flux2KleinPipeline", "FluxKontextPipeline")
"""Classes that take a picture, and draw without one too."""


@dataclass(frozen=True)
class SourcePicture:
    """A picture to start from (RGB), and where to paint it over (mode L: white is painted), None for everywhere."""

    image: Image.Image
    mask: Image.Image | None = None


def call_parameters(pipe: Any) -> dict[str, inspect.Parameter]:
    """Return the parameters of a pipeline's call, by name."""
    return dict(inspect.signature(type(pipe).__call__).parameters)


def needs_picture(pipe: Any) -> bool:
    """Whether a pipeline draws only from a picture."""
    return _PICTURE in call_parameters(pipe) and type(pipe).__name__ not in _OPTIONAL_PICTURE


def from_pictures(pipe: Any, *, masks: bool) -> Any:
    """Return the pipeline that draws from pictures, with masks or without, with the parts of `pipe`.

    Raises `ParameterError` where diffusers has no class for it, or the folder's own class needs a mask that is not given.
    """
    import diffusers

    name, wanted = type(pipe).__name__, {_PICTURE, _MASK} if masks else {_PICTURE}
    given = call_parameters(pipe)
    if _MASK in given and not masks:
        raise ParameterError(f"{name}: paints over a part of a picture, so every prompt needs a mask beside its image")
    if wanted <= given.keys():
        return pipe
    other = f"{name.removesuffix('Pipeline')}{'Inpaint' if masks else 'Img2Img'}Pipeline"
    kind = getattr(diffusers, other, None)
    if not isinstance(kind, type) or _PICTURE in given:
        what = "paint over a part of a picture" if masks else "start from a picture"
        raise ParameterError(f"{name}: diffusers has no class to {what} with this model ({other})")
    taken = inspect.signature(kind).parameters
    made = kind(**{part: model for part, model in pipe.components.items() if part in taken})
    made.set_progress_bar_config(disable=True)
    return made


def picture_arguments(
    pipe: Any, sources: Sequence[SourcePicture], height: int, width: int, strength: float | None
) -> dict[str, Any]:
    """Return the arguments of a pipeline's call for a batch: pictures resized to the size that is drawn, masks, and strength."""
    given = call_parameters(pipe)
    size = (width, height)
    arguments: dict[str, Any] = {_PICTURE: [source.image.resize(size, Image.Resampling.LANCZOS) for source in sources]}
    if _MASK in given:
        masks = [source.mask for source in sources]
        arguments[_MASK] = [mask.resize(size, Image.Resampling.NEAREST) for mask in masks if mask is not None]
    if strength is not None:
        arguments[_STRENGTH] = strength
    if "_auto_resize" in given:  # Kontext would choose another size, from a list
        arguments["_auto_resize"] = False
    return arguments


def resolve_strength(pipe: Any, strength: float | None) -> float | None:
    """Return the strength that a pipeline draws with: how far from the picture, in (0, 1]; None for one that starts from noise.

    By default the pipeline's own. Raises `ParameterError` for one out of range, or that the pipeline does not take.
    """
    parameter = call_parameters(pipe).get(_STRENGTH)
    if parameter is None:
        if strength is not None:
            raise ParameterError(f"strength {strength:g}: {type(pipe).__name__} starts from noise; leave it out")
        return None
    chosen = float(parameter.default) if strength is None else strength
    if not 0 < chosen <= 1:
        raise ParameterError(f"strength {chosen:g}: must be above 0, which is the picture itself, and at most 1")
    return chosen


def skipped_steps(steps: int, strength: float | None) -> int:
    """Return how many of the sampler's first steps a pipeline leaves out, as all of diffusers compute it."""
    return 0 if strength is None else int(max(steps - min(steps * strength, steps), 0))
