"""The settings of the drawn set."""

from typing import Annotated, Literal

from pydantic import Field

from components.errors import ParameterError
from components.settings import Count, Fraction, Positive, settings

Preset = Literal["clean", "cluttered", "occluded"]
PicturesPerIdentity = Annotated[int, Field(ge=4)]
"""The first four show the front, the back and both sides."""


@settings
class Degradation:
    """Strengths from 0 (off) to 1.

    Attributes:
        framing: variation of the size and the place of the person in the picture.
        lighting: brightness, contrast, colour cast and uneven light.
        blur: lens blur.
        noise: sensor noise.
        clutter: density of objects in the background.
        occlusion: probability that something stands in front of the person.
    """

    framing: Fraction = 0.5
    lighting: Fraction = 0.3
    blur: Fraction = 0.15
    noise: Fraction = 0.15
    clutter: Fraction = 0.0
    occlusion: Fraction = 0.0


PRESETS: dict[Preset, Degradation] = {
    "clean": Degradation(framing=0.4, lighting=0.2, blur=0.05, noise=0.1),
    "cluttered": Degradation(framing=0.8, lighting=0.6, blur=0.4, noise=0.4, clutter=0.8),
    "occluded": Degradation(framing=1.0, lighting=0.7, blur=0.5, noise=0.4, clutter=0.8, occlusion=0.5),
}


@settings
class DrawnConfig:
    """Number of people, size and degradation of the pictures, and noise of the captions.

    Attributes:
        train_identities, val_identities, test_identities: people per split; no combination of attributes occurs twice.
        height, width: of the pictures, height:width from 2:1 to 3:1.
        noise_rate: probability that an attribute stated in a training caption is false.
        eval_noise_rate: the same for val and test captions.
        near_duplicates: fraction of the test identities in groups that differ in exactly one attribute.
        reserve: val and test identities are those reserved for evaluation (reserved.py), which pre-training has not seen, and the
            train split has none of them.
    """

    train_identities: Positive = 400
    val_identities: Count = 50
    test_identities: Count = 100
    images_per_identity: PicturesPerIdentity = 4
    height: int = 64
    width: int = 32
    preset: Preset = "cluttered"
    noise_rate: Fraction = 0.2
    eval_noise_rate: Fraction = 0.0
    near_duplicates: Fraction = 0.3
    reserve: bool = False

    def __post_init__(self) -> None:
        check_size(self.height, self.width)


def check_size(height: int, width: int) -> None:
    """Raise ParameterError unless height:width is from 2:1 to 3:1 and the picture is at least 32 pixels high."""
    if height < 32 or not 2 * width <= height <= 3 * width:
        raise ParameterError(f"picture of {height} x {width}: height must be 32 or more, and 2 to 3 times the width")
