"""Candidates for a training set: pictures judged by the rules, captioned, and matched with their captions.

A `Candidate` has the reason why it is dropped, or None so far. What needs all candidates at once (best matches, near duplicates) is
decided afterwards, by `components.persons.curation.selection.final_reasons`.
"""

import hashlib
import itertools
import os
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from PIL import Image

from components.errors import DataError, ParameterError
from components.persons.curation.captioners import Captioner
from components.persons.curation.keypoints import Detection, Detector
from components.persons.curation.limits import Rules
from components.persons.curation.near_duplicates import difference_hash
from components.persons.curation.rules import NOBODY, person_reason, size_reason
from components.persons.curation.templates import is_unfilled
from components.persons.pictures import PictureReader
from components.persons.pixels import decode_rgb
from components.persons.published.fields import good_captions
from components.persons.published.locations import PictureFolder, UnusablePathError
from components.persons.records import SPLITS
from components.text_files import read_lines

UNREADABLE, UNKNOWN_SPLIT = "cannot be decoded", "unknown split"
NO_CAPTION, UNFILLED = "no caption", "caption with an unfilled place"
PICTURE_SUFFIXES = frozenset(
    (".avif", ".bmp", ".dib", ".gif", ".j2k", ".jfif", ".jp2", ".jpe", ".jpeg", ".jpg", ".pbm", ".pgm", ".png", ".pnm", ".ppm",
     ".tga", ".tif", ".tiff", ".webp")
)  # fmt: skip
"""Of the formats of photos that Pillow opens."""
CAPTIONS_SUFFIX = ".txt"
Matcher = Callable[[Sequence[Image.Image], Sequence[tuple[str, ...]]], list[float]]
"""Scores how well each picture fits its captions; higher is better."""
_PEOPLE_PER_PICTURE = 1000  # at most: each person of a picture has its own number


@dataclass(frozen=True)
class InputPicture:
    """A picture to judge, with the captions it has. address: see `components.persons.pictures`, relative to the folder."""

    address: str
    captions: tuple[str, ...] = ()
    identity: int | None = None
    split: str = "train"


@dataclass(frozen=True)
class Candidate:
    """A picture, or with `box` (left, top, right, bottom) a person cropped from it. `reason` is None while not rejected.

    content: digest of its file, or of the cropped pixels; equal ones are written with equal bytes.
    """

    address: str
    box: tuple[int, int, int, int] | None = None
    width: int = 0
    height: int = 0
    reason: str | None = None
    captions: tuple[str, ...] = ()
    match: float | None = None
    hash: int = 0
    content: str = ""
    identity: int | None = None
    split: str = "train"


def pictures_in(folder: Path, others: Counter[str] | None = None) -> Iterator[InputPicture]:
    """Yield every picture file below a folder, sorted by folder and name, each with the captions in the text file beside it.

    The text file has the picture's name with the suffix .txt, and one caption per line. `others` counts by suffix the files that
    are neither. Raises DataError where there is no picture.
    """
    found, others = False, Counter() if others is None else others
    seen: set[str] = set()  # a link may lead back to where the walk has been
    for place, folders, files in os.walk(folder, followlinks=True):
        if os.path.realpath(place) in seen:
            folders.clear()
            continue
        seen.add(os.path.realpath(place))
        folders.sort()
        names = sorted(name for name in files if Path(name).suffix.lower() in PICTURE_SUFFIXES)
        texts = {Path(name).with_suffix(CAPTIONS_SUFFIX).name for name in names} & set(files)
        others.update(Path(name).suffix.lower() or name for name in set(files) - set(names) - texts)
        for name in names:
            found = True
            file = Path(place) / name
            text = file.with_suffix(CAPTIONS_SUFFIX)
            captions = _captions_in(text) if text.name in texts else ()
            yield InputPicture(file.relative_to(folder).as_posix(), captions)
    if not found:
        kinds = f"; it holds {summary(others)}: convert them" if others else ""
        raise DataError(f"{folder} holds no pictures ({', '.join(sorted(PICTURE_SUFFIXES))}){kinds}")


def _captions_in(text: Path) -> tuple[str, ...]:
    try:
        return tuple(line.strip() for line in read_lines(text) if line.strip())
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{text}: captions cannot be read ({error}); write them in UTF-8, one per line") from error


def summary(counts: Counter[str]) -> str:
    """Return counts as text, the largest first: "3 .heic, 1 .pdf"."""
    return ", ".join(f"{number:,} {what}" for what, number in counts.most_common())


@dataclass(frozen=True)
class Judge:
    """Judges pictures. Without a detector the rules about persons are off; without a matcher nothing is matched.

    crop: each detected person becomes a candidate, judged by the size of its box; otherwise the whole picture is one, judged by the
    person with the highest confidence. captioner: without one, pictures keep their captions.
    """

    folder: Path
    rules: Rules
    detector: Detector | None = None
    crop: bool = False
    captioner: Captioner | None = None
    matcher: Matcher | None = None
    _reader: PictureReader = field(default_factory=PictureReader, init=False, repr=False, compare=False)
    _places: PictureFolder = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "_places", PictureFolder(self.folder))
        if self.crop and self.detector is None:
            raise ParameterError("cropping people needs a detector: give its weights")

    def judge(self, sources: Sequence[InputPicture], first: int) -> list[list[Candidate]]:
        """Return the candidates of each picture; the pictures are numbered from `first` on."""
        judged: list[list[Candidate]] = [[] for _ in sources]
        accepted: list[tuple[int, Candidate, Image.Image]] = []  # place, candidate, pixels
        loaded = [self._load(source) for source in sources]
        pictures = [found[0] for found in loaded if not isinstance(found, str)]
        detected = iter(self.detector.detect(pictures) if self.detector and pictures else [[] for _ in pictures])
        for place, (source, found) in enumerate(zip(sources, loaded, strict=True)):
            if isinstance(found, str):
                judged[place].append(Candidate(source.address, reason=found))
                continue
            for candidate, pixels in self._people(source, *found, next(detected)):
                if candidate.reason is None:
                    accepted.append((place, candidate, pixels))
                else:
                    judged[place].append(candidate)
        for place, candidate in self._captioned(accepted, first):
            judged[place].append(candidate)
        return judged

    def pixels(self, candidate: Candidate) -> Image.Image:
        """Decode a candidate to RGB."""
        picture = decode_rgb(self.encoded(candidate))
        return picture.crop(candidate.box) if candidate.box else picture

    def encoded(self, candidate: Candidate) -> bytes:
        """Return the encoded picture of a candidate, before cropping. Raises UnusablePathError, and as `PictureReader.read`."""
        return self._reader.read(self._places.address(candidate.address))

    def _load(self, source: InputPicture) -> tuple[Image.Image, str] | str:
        """The picture in RGB with the digest of its file, or the reason why it is rejected."""
        if source.split not in SPLITS:
            return UNKNOWN_SPLIT
        try:
            content = self.encoded(Candidate(source.address))
            return decode_rgb(content), hashlib.sha256(content).hexdigest()
        except UnusablePathError as error:
            return error.reason
        except (DataError, OSError):
            return UNREADABLE

    def _people(
        self, source: InputPicture, picture: Image.Image, content: str, people: Sequence[Detection]
    ) -> Iterator[tuple[Candidate, Image.Image]]:
        """A picture's candidates with their pixels, each with the first rule that rejects it. content: the file's digest."""
        width, height = picture.size
        if not self.crop or not people:
            reason = _whole_reason(picture, people, self.rules, self.detector is not None)
            whole = Candidate(source.address, None, width, height, reason, source.captions)
            yield replace(whole, content=content, identity=source.identity, split=source.split), picture
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
            # The captions and the identity of the picture may be another person's.
            box = (left, top, right, bottom)
            cut = Candidate(source.address, box, right - left, bottom - top, reason if inside else NOBODY)
            pixels = picture.crop(box) if inside else picture
            digest = hashlib.sha256(repr(pixels.size).encode() + pixels.tobytes()).hexdigest()
            yield replace(cut, content=digest, split=source.split), pixels

    def _captioned(
        self, candidates: Sequence[tuple[int, Candidate, Image.Image]], first: int
    ) -> Iterator[tuple[int, Candidate]]:
        """Add captions, match and hash."""
        captions = [candidate.captions for _, candidate, _ in candidates]
        if self.captioner is not None:
            numbers, before = [], dict.fromkeys((place for place, _, _ in candidates), 0)
            for place, _, _ in candidates:
                numbers.append((first + place) * _PEOPLE_PER_PICTURE + before[place])
                before[place] += 1
            captions = self.captioner.caption([pixels for _, _, pixels in candidates], numbers)
        captions = [good_captions([text.strip() for text in texts]) for texts in captions]
        kept = [tuple(text for text in texts if not is_unfilled(text)) for texts in captions]
        reasons = [
            None if good else UNFILLED if texts else NO_CAPTION for good, texts in zip(kept, captions, strict=True)
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
    """Judge whole RGB pictures. Return for each the first rule that rejects it, or None, and its difference hash."""
    reasons: list[str | None] = []
    hashes: list[int] = []
    waiting = iter(pictures)
    while part := list(itertools.islice(waiting, batch)):
        found = detector.detect(part) if detector is not None else [[] for _ in part]
        for picture, people in zip(part, found, strict=True):
            reasons.append(_whole_reason(picture, people, rules, detector is not None))
            hashes.append(difference_hash(picture))
    return reasons, hashes


def _whole_reason(picture: Image.Image, people: Sequence[Detection], rules: Rules, detected: bool) -> str | None:
    """The first rule that rejects a picture, by its most confident person where a detector ran."""
    reason = size_reason(*picture.size, rules)
    if detected:
        reason = reason or person_reason(people[0] if people else None, rules)
    return reason
