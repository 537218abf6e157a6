"""Pictures of any kind on their way to a training set: judged by the rules, captioned, matched with their captions.

Each becomes a `Candidate` with the reason why it is dropped, or none so far. What needs all candidates at once (the best matches,
near duplicates) is decided afterwards, by `components.persons.curation.selection.final_reasons`.
"""

import itertools
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from PIL import Image

from components.errors import DataError, ParameterError
from components.persons.curation.captioners import Captioner
from components.persons.curation.keypoints import Detection, Detector
from components.persons.curation.near_duplicates import difference_hash
from components.persons.curation.rules import NOBODY, Rules, person_reason, size_reason
from components.persons.curation.templates import unfilled
from components.persons.pictures import PictureReader, split_address
from components.persons.pixels import decode_rgb

UNREADABLE, OUTSIDE = "cannot be decoded", "path leaves the folder"
NO_CAPTION, UNFILLED = "no caption", "caption with an unfilled place"
PICTURE_SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".webp", ".bmp"})
Matcher = Callable[[Sequence[Image.Image], Sequence[tuple[str, ...]]], list[float]]
"""How well each picture fits its captions; higher is better."""
_PEOPLE_PER_PICTURE = 1000  # a number of its own for each person of a picture


@dataclass(frozen=True)
class InputPicture:
    """A picture to judge. address: as `components.persons.pictures` reads it, relative to the folder. captions: those it has."""

    address: str
    captions: tuple[str, ...] = ()
    identity: int | None = None
    split: str = "train"


@dataclass(frozen=True)
class Candidate:
    """A picture, or with `box` (left, top, right, bottom) a person cut out of one. `reason` is None while nothing is against it."""

    address: str
    box: tuple[int, int, int, int] | None = None
    width: int = 0
    height: int = 0
    reason: str | None = None
    captions: tuple[str, ...] = ()
    match: float | None = None
    hash: int = 0
    identity: int | None = None
    split: str = "train"


def pictures_in(folder: Path) -> Iterator[InputPicture]:
    """Every picture file below a folder, folder by folder in the order of names. Raises DataError where there is none."""
    found = False
    for place, folders, files in os.walk(folder):
        folders.sort()
        for name in sorted(files):
            if Path(name).suffix.lower() in PICTURE_SUFFIXES:
                found = True
                yield InputPicture((Path(place) / name).relative_to(folder).as_posix())
    if not found:
        raise DataError(f"{folder} holds no pictures ({', '.join(sorted(PICTURE_SUFFIXES))})")


@dataclass(frozen=True)
class Judge:
    """What pictures are judged by. Without a detector the rules about persons are off, without a matcher nothing is matched.

    crop: each detected person becomes a picture, judged by the size of its box; else a picture is judged whole, by its surest
    person. captioner: without one, pictures keep the captions that they have.
    """

    folder: Path
    rules: Rules
    detector: Detector | None = None
    crop: bool = False
    captioner: Captioner | None = None
    matcher: Matcher | None = None
    _reader: PictureReader = field(default_factory=PictureReader, init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        if self.crop and self.detector is None:
            raise ParameterError("cutting people out needs a detector: give its weights")

    def judge(self, sources: Sequence[InputPicture], first: int) -> list[list[Candidate]]:
        """For each of some pictures, of which the first has the number `first`, its candidates."""
        judged: list[list[Candidate]] = [[] for _ in sources]
        open_: list[
            tuple[int, Candidate, Image.Image]
        ] = []  # place, candidate, pixels of those that nothing is against
        loaded = [self._load(source) for source in sources]
        pictures = [picture for picture in loaded if isinstance(picture, Image.Image)]
        detected = iter(self.detector.detect(pictures) if self.detector and pictures else [[] for _ in pictures])
        for place, (source, picture) in enumerate(zip(sources, loaded, strict=True)):
            if isinstance(picture, str):
                judged[place].append(Candidate(source.address, reason=picture))
                continue
            for candidate, pixels in self._people(source, picture, next(detected)):
                if candidate.reason is None:
                    open_.append((place, candidate, pixels))
                else:
                    judged[place].append(candidate)
        for place, candidate in self._described(open_, first):
            judged[place].append(candidate)
        return judged

    def pixels(self, candidate: Candidate) -> Image.Image:
        """A candidate as an RGB picture."""
        picture = decode_rgb(self.encoded(candidate))
        return picture.crop(candidate.box) if candidate.box else picture

    def encoded(self, candidate: Candidate) -> bytes:
        """The bytes of the picture that a candidate is, or is cut out of."""
        file, row = split_address(candidate.address)
        path = str(self.folder / file)
        return self._reader.read(path if row is None else f"{path}#{row}")

    def _load(self, source: InputPicture) -> Image.Image | str:
        """The picture in RGB, or the reason why there is none."""
        file = self.folder / split_address(source.address)[0]
        if not file.resolve().is_relative_to(self.folder.resolve()):
            return OUTSIDE
        try:
            return self.pixels(Candidate(source.address))
        except Exception:  # Pillow raises OSError, SyntaxError, ValueError, struct.error, ... on broken files
            return UNREADABLE

    def _people(
        self, source: InputPicture, picture: Image.Image, people: Sequence[Detection]
    ) -> Iterator[tuple[Candidate, Image.Image]]:
        """A picture's candidates with their pixels, each with the first reason that the rules give."""
        width, height = picture.size
        if not self.crop or not people:
            reason = _whole_reason(picture, people, self.rules, self.detector is not None)
            whole = Candidate(source.address, None, width, height, reason, source.captions)
            yield replace(whole, identity=source.identity, split=source.split), picture
            return
        for person in people[:_PEOPLE_PER_PICTURE]:
            left, top = (
                min(max(0, round(edge)), most) for edge, most in zip(person.box[:2], (width, height), strict=True)
            )
            right, bottom = (
                min(max(0, round(edge)), most) for edge, most in zip(person.box[2:], (width, height), strict=True)
            )
            inside = right > left and bottom > top
            reason = size_reason(right - left, bottom - top, self.rules) or person_reason(person, self.rules)
            # Who is cut out of a picture is not known to be whom its captions are about, nor to be its identity.
            box = (left, top, right, bottom)
            cut = Candidate(source.address, box, right - left, bottom - top, reason if inside else NOBODY)
            yield cut, picture.crop(box) if inside else picture

    def _described(
        self, candidates: Sequence[tuple[int, Candidate, Image.Image]], first: int
    ) -> Iterator[tuple[int, Candidate]]:
        """With captions, match and hash."""
        captions = [candidate.captions for _, candidate, _ in candidates]
        if self.captioner is not None:
            numbers, before = [], dict.fromkeys((place for place, _, _ in candidates), 0)
            for place, _, _ in candidates:
                numbers.append((first + place) * _PEOPLE_PER_PICTURE + before[place])
                before[place] += 1
            captions = self.captioner.caption([pixels for _, _, pixels in candidates], numbers)
        kept = [tuple(text.strip() for text in texts if text.strip() and not unfilled(text)) for texts in captions]
        reasons = [
            None if good else UNFILLED if any(texts) else NO_CAPTION for good, texts in zip(kept, captions, strict=True)
        ]
        matches: list[float | None] = [None] * len(kept)
        matched = [i for i, reason in enumerate(reasons) if reason is None]
        if self.matcher is not None and matched:
            scores = self.matcher([candidates[i][2] for i in matched], [kept[i] for i in matched])
            for i, score in zip(matched, scores, strict=True):
                matches[i] = float(score)
        for (place, candidate, pixels), texts, reason, match in zip(candidates, kept, reasons, matches, strict=True):
            yield place, replace(candidate, captions=texts, reason=reason, match=match, hash=difference_hash(pixels))


def rule_reasons(
    pictures: Iterable[Image.Image], rules: Rules, detector: Detector | None = None, *, batch: int = 16
) -> tuple[list[str | None], list[int]]:
    """For each RGB picture, judged whole: the first reason that the rules give to drop it, or None; and its difference hash."""
    reasons: list[str | None] = []
    hashes: list[int] = []
    waiting = iter(pictures)
    while part := list(itertools.islice(waiting, batch)):
        found = detector.detect(part) if detector is not None else [[] for _ in part]
        for picture, people in zip(part, found, strict=True):
            reasons.append(_whole_reason(picture, people, rules, detector is not None))
            hashes.append(difference_hash(picture))
    return reasons, hashes


def _whole_reason(picture: Image.Image, people: Sequence[Detection], rules: Rules, looked: bool) -> str | None:
    """Why a picture, judged by its surest person where somebody was looked for, is dropped."""
    reason = size_reason(*picture.size, rules)
    if looked:
        reason = reason or person_reason(people[0] if people else None, rules)
    return reason
