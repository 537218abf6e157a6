"""Curates pictures: judges and captions each, decides which to keep, and writes those as a dataset. A killed run can be resumed."""

import itertools
import sys
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from components.errors import DataError, ParameterError
from components.files import file_digest
from components.persons.curation.candidates import NO_CAPTION, Candidate, InputPicture, Judge, pictures_in, summary
from components.persons.curation.selection import EQUAL, KEPT, final_reasons, without_conflicts
from components.persons.pixels import encode_png
from components.persons.published.fields import good_captions
from components.persons.published.prepared import is_prepared
from components.persons.published.readers import find_dataset
from components.persons.published.repetitions import joined_records
from components.persons.published.validation_report import Tally, ValidationReport
from components.persons.records import RecordSource
from components.persons.shards import CaptionRow, DatasetWriter
from pipelines.curating.folder import CurationFolder, require_same
from pipelines.curating.options import CurateOptions

_PATHS = ("detector", "captioner", "probe", "templates", "matcher")


def curate(options: CurateOptions) -> dict[str, int]:
    """Write the dataset, print the number of candidates per reason, and return reason -> number.

    Where no captioner is given and no picture that the rules allow has a caption, they are written with an empty caption: `curate`
    itself reads that dataset and adds captions, `prepare` refuses it.

    Raises ParameterError for an output folder with other content, DataError for a source or model that does not exist.
    """
    others: Counter[str] = Counter()
    tally = Tally()
    folder, pictures = _open_source(options.source, others, tally)
    _require_captions_for_matcher(options)
    output = CurationFolder(options.output)
    with output.claim(_settings(options)):
        from pipelines.curating.models import make_judge

        judge = make_judge(options, folder)
        _judge_all(judge, pictures, output, options)
        uncaptioned = not _writes_captions(options) and all(found.reason for found in output.candidates())
        reasons = _final_reasons(output, options, uncaptioned)
        counts = Counter(reasons)
        if not counts[KEPT]:
            raise DataError(
                f"{options.source}: none of {len(reasons)} candidates is kept ({summary(counts)}): loosen the rules, in "
                "another --output"
            )
        image_ids = _write(judge, output, reasons, options, tally)
        dropped = {reason: number for reason, number in counts.most_common() if reason != KEPT}
        report = ValidationReport(len(reasons), counts[KEPT], dropped, (), {}, tally.counts())
        report.write(options.output)
        output.conclude(reasons, image_ids)
    print(f"{options.output}: {counts[KEPT]:,} of {len(reasons):,} candidates kept")
    for line in (*(f"  {number:,} {reason}" for reason, number in dropped.items()), *report.summary()):
        print(line)
    if others:
        print(f"files of other kinds, not read: {summary(others)}")
    if uncaptioned:
        print(
            f"no kept picture has a caption, which prepare needs: `python -m pipelines curate {options.output} --captioner MODEL "
            "--output FOLDER` writes them"
        )
    return dict(counts)


def _writes_captions(options: CurateOptions) -> bool:
    return bool(options.captioner or options.probe)


def _final_reasons(output: CurationFolder, options: CurateOptions, uncaptioned: bool) -> list[str]:
    """The reason of each candidate; `uncaptioned`: that it has no caption is none."""
    accepted = (None, NO_CAPTION) if uncaptioned else (None,)
    rows: list[tuple[Any, ...]] = [
        (one.reason, one.match, one.hash, one.content or one.address, one.identity, one.split)
        for one in output.candidates()
    ]
    found, matches, hashes, contents, identities, splits = ([row[place] for row in rows] for place in range(6))
    reasons = final_reasons(
        [None if reason in accepted else reason for reason in found],
        matches,
        hashes,
        min_match=options.least_match,
        keep_fraction=options.keep_fraction,
        near=options.near_duplicates,
    )
    return without_conflicts(reasons, contents, identities, splits)


def _open_source(path: Path, others: Counter[str], tally: Tally) -> tuple[Path, Iterator[InputPicture]]:
    """Return the folder that addresses are relative to, and the pictures of a dataset, a manifest, or a plain folder.

    `others` counts the other files of a plain folder, `tally` the pictures and captions that are listed.
    """
    found = _dataset(path)
    if found is None:
        return path, _in_folder(path, others, tally)
    if is_prepared(found.folder):
        tally.add_recorded(found.folder)
    return found.folder, _in_dataset(found, tally)


def _dataset(path: Path) -> RecordSource | None:
    """Return the dataset or manifest at a path, None for a plain folder."""
    if not path.exists():
        raise DataError(f"{path} does not exist: give a folder of pictures, a manifest, or a dataset")
    try:
        return find_dataset(path)
    except DataError:
        if not path.is_dir():
            raise
        return None


def _in_folder(path: Path, others: Counter[str], tally: Tally) -> Iterator[InputPicture]:
    for picture in pictures_in(path, others):
        tally.add_listed(picture.split, pictures=1, captions=len(picture.captions))
        yield picture


def _in_dataset(dataset: RecordSource, tally: Tally) -> Iterator[InputPicture]:
    """The pictures as `prepare` reads them: one that is listed once per caption is one picture."""
    for record in joined_records(dataset):
        tally.add_listed(record.split, pictures=1, captions=len(record.captions))
        yield InputPicture(record.image_path, good_captions(record.captions), record.identity, record.split)


def _require_captions_for_matcher(options: CurateOptions) -> None:
    if options.matcher and not _writes_captions(options):
        found = _dataset(options.source)
        if found is None:
            captions = (caption for picture in pictures_in(options.source) for caption in picture.captions)
        else:
            captions = (caption for record in found for caption in good_captions(record.captions))
        if not any(caption.strip() for caption in captions):
            raise ParameterError(f"{options.source} has no captions for --matcher: give --captioner or --probe")


def _judge_all(judge: Judge, pictures: Iterator[InputPicture], output: CurationFolder, options: CurateOptions) -> None:
    """Judge the pictures that a killed run has not judged."""
    from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

    done = output.judged()
    for expected in output.addresses():
        require_same(expected, getattr(next(pictures, None), "address", "nothing"), options.source)
    if done:
        print(f"resuming after {done:,} pictures")
    columns = (SpinnerColumn(), TextColumn("{task.completed:,.0f} pictures"), TimeElapsedColumn())
    with Progress(*columns, disable=not sys.stdout.isatty()) as progress:
        task = progress.add_task("", total=None, completed=done)
        while batch := list(itertools.islice(pictures, options.batch)):
            output.record([picture.address for picture in batch], judge.judge(batch, done))
            done += len(batch)
            progress.advance(task, len(batch))


def _write(
    judge: Judge, output: CurationFolder, reasons: Sequence[str], options: CurateOptions, tally: Tally
) -> list[int | None]:
    """Write the kept candidates as a prepared dataset; return the image_id of each candidate, None for those that are dropped.

    `tally` counts as kept what the source lists: not a person cut out of a picture, nor a caption that is written here.
    """
    joined: dict[tuple[str, str], list[str]] = {}  # captions of equal pictures, which the kept one takes over
    for candidate, reason in zip(output.candidates(), reasons, strict=True):
        if reason == EQUAL:
            joined.setdefault((candidate.content, candidate.split), []).extend(candidate.captions)
    image_ids: list[int | None] = []
    kept = 0
    with DatasetWriter(options.output) as writer:
        for candidate, reason in zip(output.candidates(), reasons, strict=True):
            if reason != KEPT:
                image_ids.append(None)
                continue
            taken_over = dict.fromkeys(joined.get((candidate.content, candidate.split), ()))
            captions = [*candidate.captions, *(text for text in taken_over if text not in candidate.captions)]
            if candidate.box is None:
                tally.add_kept(candidate.split, captions=0 if _writes_captions(options) else len(captions))
            has_identity = candidate.identity is not None and not options.crop
            image_ids.append(
                writer.add(
                    _encoded(judge, candidate),
                    [CaptionRow(text) for text in captions or ("",)],
                    identity=int(candidate.identity or 0) if has_identity else kept,
                    split=candidate.split,
                    source=options.source.resolve().name,
                )
            )
            kept += 1
    return image_ids


def _encoded(judge: Judge, candidate: Candidate) -> bytes:
    """The bytes of the source; those of a cropped person as PNG, which is lossless."""
    if candidate.box is None:
        return judge.encoded(candidate)
    return encode_png(np.asarray(judge.pixels(candidate)))


def _settings(options: CurateOptions) -> dict[str, Any]:
    """The options that the result depends on; paths of models as the digests of their files."""
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
        raise DataError(f"--{name} {path}: does not exist, or is empty")
    return {file.relative_to(path).as_posix(): file_digest(file) for file in files}
