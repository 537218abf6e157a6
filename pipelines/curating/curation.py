"""`curate`: judge every picture, caption it, decide, write what is kept. A killed run goes on where it was."""

import io
import itertools
import sys
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from components.errors import DataError, ParameterError
from components.files import file_digest
from components.persons.curation.limits import Rules
from components.persons.curation.selection import KEPT, final_reasons
from pipelines.curating.folder import CurationFolder, require_same
from pipelines.curating.options import CurateOptions

if TYPE_CHECKING:
    from PIL import Image
    from torch import Tensor

    from components.persons.curation.candidates import Candidate, InputPicture, Judge, Matcher
    from components.persons.curation.captioners import Captioner

_PATHS = ("detector", "captioner", "probe", "templates", "matcher")


def curate(options: CurateOptions) -> dict[str, int]:
    """Do what the options say, print what became of the pictures, and return reason -> number.

    Raises DataError for a source or model that is not there.
    """
    folder, sources = _sources(options.source)
    output = CurationFolder(options.output)
    with output.claim(_settings(options)):
        judge = _judge(options, folder)
        _judge_all(judge, sources, output, options)
        columns = [(candidate.reason, candidate.match, candidate.hash) for candidate in output.candidates()]
        reasons = final_reasons(
            [reason for reason, _, _ in columns],
            [match for _, match, _ in columns],
            [value for _, _, value in columns],
            min_match=options.least_match,
            keep_fraction=options.keep_fraction,
            near=options.near_duplicates,
        )
        counts = Counter(reasons)
        if not counts[KEPT]:
            told = ", ".join(f"{number} {reason}" for reason, number in counts.most_common())
            raise DataError(
                f"{options.source}: none of {len(reasons)} candidates is kept ({told}): loosen the rules, in another --output"
            )
        output.conclude(reasons, _write(judge, output, reasons, options))
    print(f"{options.output}: {counts[KEPT]:,} of {len(reasons):,} candidates kept")
    for reason, number in counts.most_common():
        if reason != KEPT:
            print(f"  {number:,} {reason}")
    return dict(counts)


def _sources(path: Path) -> "tuple[Path, Iterator[InputPicture]]":
    """The folder that addresses are relative to, and the pictures of a dataset, a manifest, or a plain folder."""
    from components.persons.curation.candidates import InputPicture, pictures_in
    from components.persons.published.readers import find_dataset

    if not path.exists():
        raise DataError(f"{path} does not exist: give a folder of pictures, a manifest, or a dataset")
    try:
        found = find_dataset(path)
    except DataError:
        if not path.is_dir():
            raise
        return path, pictures_in(path)
    records = (InputPicture(record.image_path, record.captions, record.identity, record.split) for record in found)
    return found.folder, records


def _judge_all(
    judge: "Judge", sources: "Iterator[InputPicture]", output: CurationFolder, options: CurateOptions
) -> None:
    from rich.progress import Progress, TextColumn, TimeElapsedColumn

    done = output.judged()
    for expected in output.addresses():
        require_same(expected, getattr(next(sources, None), "address", "nothing"), options.source)
    if done:
        print(f"going on after {done:,} pictures")
    columns = TextColumn("{task.completed:,} pictures"), TimeElapsedColumn()
    with Progress(*columns, disable=not sys.stdout.isatty()) as bar:
        task = bar.add_task("", total=None, completed=done)
        while batch := list(itertools.islice(sources, options.batch)):
            if not (options.captioner or options.probe) and not any(source.captions for source in batch):
                raise ParameterError(f"{options.source} has no captions: give --captioner or --probe to write some")
            output.record([source.address for source in batch], judge.judge(batch, done))
            done += len(batch)
            bar.advance(task, len(batch))


def _write(judge: "Judge", output: CurationFolder, reasons: Sequence[str], options: CurateOptions) -> list[int | None]:
    """The kept candidates as a prepared dataset; returns the image_id of each candidate, None for those that are dropped."""
    from components.persons.shards import CaptionRow, DatasetWriter

    image_ids: list[int | None] = []
    kept = 0
    with DatasetWriter(options.output) as writer:
        for candidate, reason in zip(output.candidates(), reasons, strict=True):
            if reason != KEPT:
                image_ids.append(None)
                continue
            known = candidate.identity is not None and not options.crop
            image_ids.append(
                writer.add(
                    _encoded(judge, candidate),
                    [CaptionRow(text) for text in candidate.captions],
                    identity=int(candidate.identity or 0) if known else kept,
                    split=candidate.split,
                    source=options.source.name,
                )
            )
            kept += 1
    return image_ids


def _encoded(judge: "Judge", candidate: "Candidate") -> bytes:
    """As found; a person who was cut out as PNG, which loses nothing."""
    if candidate.box is None:
        return judge.encoded(candidate)
    file = io.BytesIO()
    judge.pixels(candidate).save(file, format="PNG", optimize=False)
    return file.getvalue()


def _settings(options: CurateOptions) -> dict[str, Any]:
    """What decides the outcome; of models, the digests of their files."""
    skipped = ("output", "batch", "device", "source", *_PATHS)
    settings = {name: value for name, value in vars(options).items() if name not in skipped}
    settings["aspect"] = list(options.aspect) if options.aspect else None
    settings["source"] = str(options.source.resolve())
    for name in _PATHS:
        path = getattr(options, name)
        settings[name] = None if path is None else _digests(path, name)
    return settings


def _digests(path: Path, name: str) -> Mapping[str, str]:
    files = sorted(file for file in path.rglob("*") if file.is_file()) if path.is_dir() else [path]
    if not path.exists() or not files:
        raise DataError(f"--{name} {path}: nothing there")
    return {file.relative_to(path).as_posix(): file_digest(file) for file in files}


def _judge(options: CurateOptions, folder: Path) -> "Judge":
    import torch

    from components.persons.curation.candidates import Judge
    from components.persons.curation.keypoints import KeypointRCNN

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


def _captioner(options: CurateOptions, device: str) -> "Captioner | None":
    import torch

    from components.persons.curation.captioners import GrammarCaptioner, VisionLanguageCaptioner
    from components.persons.curation.templates import TEMPLATES, read_templates

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
    from components.evaluation.attribute_probe import AttributeProbe

    probe = AttributeProbe.load(options.probe).to(device)

    def predict(pixels: "Tensor") -> list[dict[str, str]]:
        names = list(probe.attributes.items())
        return [
            {name: values[place] for (name, values), place in zip(names, row, strict=True)}
            for row in probe.predict(pixels).tolist()
        ]

    size = {"height": probe.height, "width": probe.width}
    return GrammarCaptioner(predict, **size, seed=options.seed, count=options.captions)


def _matcher(folder: Path, device: str) -> "Matcher":
    """Mean cosine of a picture with its captions, by a trained dual encoder."""
    import numpy as np
    import torch

    from components.gadms.embedding import embed_captions, embed_images
    from components.gadms.model import DualEncoder
    from components.persons.pixels import resized

    encoder = DualEncoder.load(folder).to(device)
    height, width = encoder.image_size

    def match(pictures: "Sequence[Image.Image]", captions: Sequence[tuple[str, ...]]) -> list[float]:
        pixels = torch.from_numpy(np.stack([resized(picture, height, width) for picture in pictures])).permute(
            0, 3, 1, 2
        )
        images = embed_images(encoder, range(len(pictures)), lambda rows: pixels[list(rows)])
        texts = embed_captions(encoder, [text for own in captions for text in own])
        owner = [i for i, own in enumerate(captions) for _ in own]
        cosines = (images[owner] * texts).sum(1).tolist()
        return [
            sum(cosine for cosine, of in zip(cosines, owner, strict=True) if of == i) / len(own)
            for i, own in enumerate(captions)
        ]

    return match
