"""The models of a curation, from its options: detector, captioner and matcher, joined in a `Judge`."""

from collections.abc import Sequence
from itertools import islice
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from components.evaluation.probe.model import AttributeProbe
from components.gadms.embedding import embed_captions, embed_images
from components.gadms.model import DualEncoder
from components.persons.curation.candidates import Judge, Matcher
from components.persons.curation.captioners import Captioner, GrammarCaptioner, VisionLanguageCaptioner
from components.persons.curation.keypoints import KeypointRCNN
from components.persons.curation.limits import Rules
from components.persons.curation.templates import TEMPLATES, read_templates
from components.persons.pixels import resized
from pipelines.curating.options import CurateOptions


def make_judge(options: CurateOptions, folder: Path) -> Judge:
    """Return a judge of pictures whose addresses are relative to `folder`."""
    on_gpu = options.device == "cuda" or (options.device == "auto" and torch.cuda.is_available())
    device = "cuda" if on_gpu else "cpu"
    detector = None
    if options.detector:
        detector = KeypointRCNN(options.detector, sha256=options.detector_sha256, device=device)
    return Judge(
        folder,
        Rules(short_side=options.short_side, aspect=options.aspect, confidence=options.confidence),
        detector,
        options.crop,
        _captioner(options, device),
        _matcher(options.matcher, device) if options.matcher else None,
    )


def _captioner(options: CurateOptions, device: str) -> Captioner | None:
    if options.captioner:
        return VisionLanguageCaptioner(
            options.captioner,
            seed=options.seed,
            templates=read_templates(options.templates) if options.templates else TEMPLATES,
            count=options.captions,
            words=options.words,
            device=device,
            dtype=torch.bfloat16 if device == "cuda" else torch.float32,
        )
    if not options.probe:
        return None
    probe = AttributeProbe.load(options.probe).to(device)

    def predict(pixels: Tensor) -> list[dict[str, str]]:
        names = list(probe.attributes.items())
        return [
            {name: values[place] for (name, values), place in zip(names, row, strict=True)}
            for row in probe.predict(pixels).tolist()
        ]

    size = {"height": probe.height, "width": probe.width}
    return GrammarCaptioner(predict, **size, seed=options.seed, count=options.captions)


def _matcher(folder: Path, device: str) -> Matcher:
    """Return a function that scores pictures by the mean cosine with their captions, by the dual encoder in `folder`."""
    encoder = DualEncoder.load(folder).to(device)
    height, width = encoder.image_size

    def match(pictures: Sequence[Image.Image], captions: Sequence[tuple[str, ...]]) -> list[float]:
        shrunk = np.stack([resized(picture, height, width) for picture in pictures])
        pixels = torch.from_numpy(shrunk).permute(0, 3, 1, 2)
        images = embed_images(encoder, range(len(pictures)), lambda rows: pixels[list(rows)])
        texts = embed_captions(encoder, [text for own in captions for text in own])
        owner = [i for i, own in enumerate(captions) for _ in own]
        cosines = iter((images[owner] * texts).sum(1).tolist())
        return [sum(islice(cosines, len(own))) / len(own) for own in captions]

    return match
