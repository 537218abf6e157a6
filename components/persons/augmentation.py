"""The settings of data augmentation."""

from components.settings import Count, Fraction, settings


@settings
class AugmentationConfig:
    """What is done to training pictures: see `transforms.py`.

    flip: probability of a horizontal flip; 0 where captions tell left from right. pad: zero pixels added on each side before a
    crop to the old size (10 at 384 x 128). erase: probability of erasing a box.
    """

    flip: Fraction = 0.0
    pad: Count = 10
    erase: Fraction = 0.5
