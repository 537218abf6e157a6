"""Sections of pretraining/recipe.yaml: the training of the checkpoints that the repository publishes."""

from typing import Annotated, Any

from pydantic import Field

from components.persons.drawn.config import Preset
from components.settings import AboveZero, Count, Fraction, FromList, NotNegative, Positive
from components.training.numbered import OncePerSample
from pipelines.schema.section import Section

Presets = Annotated[dict[Preset, NotNegative], Field(min_length=1)]
"""How often a picture is degraded by each preset, as weights."""


class PretrainAutoencoder(Section):
    """The VAE of the generator; `channels` of each stage, between two of which pictures are halved.

    latent_noise: see `AutoencoderTask`.
    """

    presets: Presets
    latent_channels: Positive
    channels: Annotated[tuple[Positive, ...], FromList, Field(min_length=1)]
    latent_noise: Fraction
    training: OncePerSample


class PretrainGenerator(Section):
    """The small FLUX model, which learns from latents of that VAE.

    shift: of the noise levels of training, see `TextToImageTask`; that of the sampler is the small model's own.
    """

    presets: Presets
    width: Positive
    heads: Positive
    double_blocks: Positive
    single_blocks: Positive
    caption_dropout: Fraction
    shift: AboveZero
    training: OncePerSample


class PretrainDecoder(Section):
    """The decoder of the generator's VAE, against a discriminator: see `DecoderTask`.

    sampler_steps: of the generated pictures that it learns from.
    """

    presets: Presets
    sampler_steps: Positive
    weight: NotNegative
    begin: Count
    training: OncePerSample


class PretrainEncoder(Section):
    """The dual encoder, which learns from pictures of a catalogue, and its masked-token decoder."""

    presets: Presets
    architecture: dict[str, Any]
    mtp_weight: NotNegative
    temperature: Annotated[float, Field(gt=0)]
    decoder_depth: Positive
    training: OncePerSample


class PretrainProbe(Section):
    """The attribute classifier."""

    presets: Presets
    training: OncePerSample


class PretrainPublish(Section):
    """The evaluation that the model cards report, on people reserved for it, and the limit of what is published.

    people: of 4 pictures each, for retrieval. pictures: for the VAE and the probe. prompts, steps: of the generator, which draws
    every prompt `sampling_seeds` times. megabytes: of all checkpoints together.
    """

    people: Positive
    pictures: Positive
    prompts: Positive
    sampling_seeds: Positive
    steps: Positive
    megabytes: Positive
