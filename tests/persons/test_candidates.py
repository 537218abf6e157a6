"""Pictures of any kind judged one by one, with detections and matches made by hand."""

from collections import Counter

import numpy as np
import pytest
from PIL import Image

from components.errors import DataError, ParameterError
from components.persons.curation.candidates import (
    NO_CAPTION,
    UNFILLED,
    UNKNOWN_SPLIT,
    UNREADABLE,
    InputPicture,
    Judge,
    pictures_in,
    rule_reasons,
)
from components.persons.curation.keypoints import KEYPOINTS, Detection
from components.persons.curation.limits import Rules
from components.persons.curation.rules import FEW_KEYPOINTS, NOBODY, SHAPE, SMALL, UNSURE
from components.persons.curation.selection import (
    DUPLICATE,
    EQUAL,
    KEPT,
    MISMATCHED,
    OTHER_SPLIT,
    Quality,
    Thresholds,
    decide,
    final_reasons,
    without_conflicts,
)
from components.persons.published.locations import LEAVES, MISSING

WHOLE = (True,) * len(KEYPOINTS)


class Told:
    """A detector that is told what is in a picture, by its width."""

    def __init__(self, people):
        self.people = people

    def detect(self, pictures):
        return [self.people.get(picture.width, []) for picture in pictures]


class Named:
    """A captioner whose captions name the picture's number and size."""

    def caption(self, pictures, numbers):
        return [
            (f"{number} of {picture.width}", "[hair] left") for picture, number in zip(pictures, numbers, strict=True)
        ]


def save(path, width, height, seed=0):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)).save(path)


@pytest.fixture
def folder(tmp_path):
    root = tmp_path / "pictures"
    for width, height in ((100, 300), (101, 300), (102, 300), (103, 300), (300, 300), (50, 150)):
        save(root / f"p/{width}.png", width, height, width)
    (root / "p/torn.jpg").write_bytes(b"torn")
    save(tmp_path / "shared disk/1.png", 100, 300)
    (root / "p/link.png").symlink_to(tmp_path / "shared disk/1.png")
    return root


def judged(judge, sources):
    return {source.address: found for source, found in zip(sources, judge.judge(sources, 0), strict=True)}


def test_every_picture_file_is_found_in_order_whatever_its_case(tmp_path):
    for name in (
        "b/2.JPG",
        "b/1.png",
        "a/9.webp",
        "x.bmp",
        "notes.txt",
        "b/.hidden",
        "b/2.heic",
        "b/3.tif",
        "b/4.jfif",
    ):
        save(tmp_path / "x.png", 2, 2)
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes((tmp_path / "x.png").read_bytes())
    (tmp_path / "b/1.txt").write_text("a\u2028man\n she \n")
    (tmp_path / "b/back").symlink_to(tmp_path)
    save(tmp_path.with_name("shared disk") / "1.png", 2, 2)
    (tmp_path / "c").symlink_to(tmp_path.with_name("shared disk"))
    others = Counter()
    found = list(pictures_in(tmp_path, others))
    assert [source.address for source in found[:5]] == ["x.bmp", "x.png", "a/9.webp", "b/1.png", "b/2.JPG"]
    assert [source.address for source in found[5:]] == ["b/3.tif", "b/4.jfif", "c/1.png"]
    assert [source.captions for source in found] == [(), (), (), ("a\u2028man", "she"), (), (), (), ()]
    assert others == {".txt": 1, ".hidden": 1, ".heic": 1}
    (tmp_path / "empty").mkdir()
    (tmp_path / "empty/photo.heic").touch()
    with pytest.raises(DataError, match=r"holds no pictures .*; it holds 1 \.heic: convert"):
        list(pictures_in(tmp_path / "empty"))


def test_each_picture_is_dropped_for_the_first_reason_that_holds(folder):
    sure, unsure = Detection((0, 0, 100, 300), 0.99, WHOLE), Detection((0, 0, 9, 9), 0.5, WHOLE)
    hidden = Detection((0, 0, 100, 300), 0.99, (True,) * 7 + (False,) * 10)
    detector = Told({100: [sure, unsure], 101: [unsure], 102: [hidden], 300: [sure], 50: [sure]})
    found = judged(Judge(folder, Rules(), detector, captioner=Named()), list(pictures_in(folder)))
    reasons = {address: [candidate.reason for candidate in candidates] for address, candidates in found.items()}
    assert reasons == {
        "p/100.png": [None], "p/101.png": [UNSURE], "p/102.png": [FEW_KEYPOINTS], "p/103.png": [NOBODY], "p/300.png": [SHAPE],
        "p/50.png": [SMALL], "p/torn.jpg": [UNREADABLE], "p/link.png": [None],
    }  # fmt: skip


def test_without_a_detector_nobody_is_looked_for(folder):
    found = judged(Judge(folder, Rules(), captioner=Named()), [InputPicture("p/103.png"), InputPicture("p/300.png")])
    assert [found[address][0].reason for address in found] == [None, SHAPE]


def test_what_an_annotation_file_lists_is_not_trusted(folder):
    listed = [
        InputPicture("../shared disk/1.png"),
        InputPicture("gone.png"),
        InputPicture("p/103.png", split="training"),
    ]
    found = Judge(folder, Rules(), captioner=Named()).judge(listed, 0)
    assert [candidates[0].reason for candidates in found] == [LEAVES, MISSING, UNKNOWN_SPLIT]


def test_each_person_cut_out_is_a_candidate_with_the_pixels_of_its_box(folder):
    people = [Detection((-5.0, 0.4, 90.2, 300.0), 0.99, WHOLE), Detection((200, 10, 240, 200), 0.9, WHOLE),
              Detection((400, 10, 500, 200), 0.9, WHOLE), Detection((0, 0, 100, 290), 0.8, WHOLE)]  # fmt: skip
    judge = Judge(folder, Rules(), Told({300: people}), crop=True, captioner=Named())
    found = judge.judge([InputPicture("p/100.png"), InputPicture("p/300.png", ("known.",), 7, "test")], 40)
    assert [candidate.reason for candidate in found[0]] == [NOBODY]
    by_box = {candidate.box: candidate for candidate in found[1]}
    assert {box: candidate.reason for box, candidate in by_box.items()} == {
        (0, 0, 90, 300): None, (200, 10, 240, 200): SMALL, (300, 10, 300, 200): NOBODY, (0, 0, 100, 290): UNSURE,
    }  # fmt: skip
    kept = by_box[0, 0, 90, 300]
    assert (kept.width, kept.height, kept.captions, kept.identity, kept.split) == (
        90,
        300,
        ("41000 of 90",),
        None,
        "test",
    )
    Image.open(folder / "p/300.png").save(folder / "p/300.bmp")
    ((*_, again),) = judge.judge([InputPicture("p/300.bmp")], 0)
    assert (again.box, again.content) == (kept.box, kept.content)  # written as the same PNG
    whole = np.asarray(Image.open(folder / "p/300.png"))
    assert np.array_equal(np.asarray(judge.pixels(kept)), whole[0:300, 0:90])


def test_captions_are_written_kept_or_missed(folder):
    def one(captions, captioner=None):
        return Judge(folder, Rules(), captioner=captioner).judge([InputPicture("p/100.png", captions, 3, "val")], 5)[0][
            0
        ]

    assert one((" a man. ", "", "x [top]")).captions == ("a man.",)
    assert (one(("",)).reason, one(("[top] only",)).reason) == (NO_CAPTION, UNFILLED)
    assert one((".", "None", "cut \ud83d")).reason == NO_CAPTION  # as prepare sees them
    written = one(("old",), Named())
    assert (written.captions, written.identity, written.split) == (("5000 of 100",), 3, "val")


def test_a_matcher_is_asked_about_what_is_left_and_with_its_captions(folder):
    asked = []

    def matcher(pictures, captions):
        asked.append([(picture.width, *texts) for picture, texts in zip(pictures, captions, strict=True)])
        return [0.25 * i for i in range(len(pictures))]

    judge = Judge(folder, Rules(), captioner=Named(), matcher=matcher)
    found = judge.judge([InputPicture("p/100.png"), InputPicture("p/300.png"), InputPicture("p/101.png")], 0)
    assert asked == [[(100, "0 of 100"), (101, "2000 of 101")]]
    assert [candidates[0].match for candidates in found] == [0.0, None, 0.25]


def test_cutting_out_needs_a_detector(folder):
    with pytest.raises(ParameterError, match="needs a detector"):
        Judge(folder, Rules(), crop=True)


def test_the_best_matches_stay_and_of_near_duplicates_the_best():
    reasons = [None, SMALL, None, None, None, None]
    matches = [0.1, None, 0.5, 0.4, 0.4, 0.9]
    hashes = [0, 0, 0b1, 0b11, 0xFF00, 0xFF01]
    assert final_reasons(reasons, matches, hashes) == [KEPT, SMALL, *[KEPT] * 4]
    assert final_reasons(reasons, matches, hashes, min_match=0.4) == [MISMATCHED, SMALL, *[KEPT] * 4]
    assert final_reasons(reasons, matches, hashes, keep_fraction=0.6) == [
        MISMATCHED,
        SMALL,
        KEPT,
        KEPT,
        MISMATCHED,
        KEPT,
    ]
    assert final_reasons(reasons, matches, hashes, near=1) == [DUPLICATE, SMALL, KEPT, DUPLICATE, DUPLICATE, KEPT]
    with pytest.raises(ParameterError, match="keep_fraction"):
        final_reasons(reasons, matches, hashes, keep_fraction=0.0)
    with pytest.raises(ParameterError, match="give one for each picture"):
        final_reasons(reasons, matches, near=1)  # all without a hash are not all alike


def test_of_equal_contents_the_last_split_is_kept_and_people_stay_in_one_split():
    """Against what is asked for, on random sets: no conflict is left, and nothing is dropped without one."""

    def conflicts(chosen):
        two_splits = [a for a in chosen for b in chosen if a[1] == b[1] is not None and a[2] != b[2]]
        equal = [
            (a, b)
            for place, a in enumerate(chosen)
            for b in chosen[:place]
            if a[0] == b[0] and (a[2] != b[2] or a[2] == "train")
        ]
        return bool(two_splits or equal)

    random = np.random.default_rng(0)
    for _ in range(200):
        people = [
            (str(random.integers(4)), [None, 1, 2][random.integers(3)], ("train", "val", "test")[random.integers(3)])
            for _ in range(7)
        ]
        before = [SMALL if random.random() < 0.2 else KEPT for _ in people]
        after = without_conflicts(before, *map(list, zip(*people, strict=True)))
        kept = [i for i, reason in enumerate(after) if reason == KEPT]
        assert not conflicts([people[i] for i in kept])
        for i, reason in enumerate(after):
            assert (reason == SMALL) == (before[i] == SMALL)
            if reason == EQUAL:
                assert conflicts([people[j] for j in sorted([*kept, i])])
            if reason == OTHER_SPLIT:
                own = [people[j][2] for j, other in enumerate(before) if other == KEPT and people[j][1] == people[i][1]]
                assert max(map(own.count, own)) >= own.count(people[i][2]) < len(own)
    assert without_conflicts([KEPT] * 3, "aaa", [1, 2, 3], ["train", "train", "test"]) == [EQUAL, EQUAL, KEPT]
    assert without_conflicts([KEPT] * 3, "abc", [1, 1, 1], ["test", "test", "train"]) == [KEPT, KEPT, OTHER_SPLIT]
    assert without_conflicts([KEPT] * 2, "ab", [1, 1], ["test", "train"]) == [OTHER_SPLIT, KEPT]
    assert without_conflicts([KEPT] * 3, "aaa", [1, 2, 3], ["test"] * 3) == [KEPT] * 3


def test_generated_pictures_are_refused_by_rule_before_quality_and_quality_before_match():
    measured = Quality(np.array([9.0, 9, 1, 9, 9]), np.array([9.0, 9, 9, 1, 9]))
    reasons = decide(
        measured, [0.5] * 5, Thresholds(5.0, 5.0), 1.0, refused=[None, SMALL, SMALL, None, None], hashes=[3] * 5, near=0
    )
    assert reasons == [KEPT, SMALL, SMALL, "flat", DUPLICATE]
    with pytest.raises(DataError, match="none of 5 generated pictures is kept") as error:
        decide(measured, [0.5] * 5, Thresholds(5.0, 5.0), 1.0, refused=[SHAPE] * 5)
    assert f"5 {SHAPE}" in str(error.value)


def test_rules_on_open_pictures_are_those_on_files(folder):
    pictures = [Image.open(folder / f"p/{width}.png").convert("RGB") for width in (100, 300, 103)]
    detector = Told({100: [Detection((0, 0, 1, 1), 0.99, WHOLE)]})
    reasons, hashes = rule_reasons(iter(pictures), Rules(), detector, batch=2)
    assert reasons == [None, SHAPE, NOBODY]
    assert len(set(hashes)) == 3
    assert rule_reasons(pictures, Rules())[0] == [None, SHAPE, None]
