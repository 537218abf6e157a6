"""The settings of the small model."""

from typing import Annotated

from components.errors import ParameterError
from components.settings import Count, FromList, Positive, settings


@settings
class TinyShape:
    """The shape of the small transformer. Widths are per token; the picture size is free (a multiple of 4).

    width: heads x head width. double_blocks: joint attention, text and image with their own weights. single_blocks: text and
    image concatenated, shared weights. latent_channels: of the autoencoder.
    """

    width: Positive = 128
    heads: Positive = 4
    double_blocks: Positive = 1
    single_blocks: Count = 2
    latent_channels: Positive = 8

    def __post_init__(self) -> None:
        if self.width % self.heads or (self.width // self.heads) % 4:
            raise ParameterError(
                f"width {self.width} over {self.heads} heads must give a head width that is a multiple of 4"
            )

    @property
    def rope_axes(self) -> tuple[int, int, int]:
        """Rotary width of the (unused, row, column) axes: even, and summing to the head width."""
        head = self.width // self.heads
        spatial = 2 * (3 * head // 16)
        return head - 2 * spatial, spatial, spatial


@settings
class TinyConfig(TinyShape):
    """The whole small model.

    text_tokens: length of the T5 sequence, padded; CLIP's has two more for begin and end. vae_channels: of each stage; one
    downsampling between two stages, scale 2. shift: of the sampler's noise levels, as for FLUX at 1024x1024.
    """

    text_width: Positive = 64
    text_layers: Positive = 2
    text_heads: Positive = 4
    text_tokens: Positive = 24
    vae_channels: Annotated[tuple[Positive, ...], FromList] = (16, 16)
    shift: float = 3.0

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.text_width % self.text_heads:
            raise ParameterError(f"text_width {self.text_width} must divide by text_heads {self.text_heads}")
