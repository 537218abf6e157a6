"""Making and updating galleries, with a model that counts what it embeds (`tests/support/small_galleries.py`)."""

import errno
import json
import os
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from killed_at_points import killed_at_points
from small_galleries import (
    CountingEncoder,
    Place,
    content_of,
    expected,
    id_of,
    options,
    picture,
    workspace,
    write_pictures,
)

from components.errors import DataError, ParameterError
from components.search.gallery import layout, unfinished
from components.search.gallery.reading import Gallery, current_version
from components.search.gallery.thumbnails import thumbnail_path
from components.search.gallery.writing import read_left_out, version_names
from pipelines.errors import InfrastructureError
from pipelines.search import embedding, gallery_update
from pipelines.search.gallery_update import update_gallery


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Place:
    found = Place(tmp_path)
    monkeypatch.setattr(gallery_update, "open_encoder", lambda name, root, device: found.encoder)
    return found


def test_an_update_embeds_new_and_changed_pictures_only_and_removed_ones_leave(place, capsys):
    assert place.update(place.source) == 10
    assert content_of(place.gallery) == expected(place.source)
    assert place.gallery.model == {"name": "counting", "digest": "d" * 64}
    assert "version 000001 answers: 10 pictures, 10 embedded now, 0 removed" in capsys.readouterr().out

    assert place.update() == 0
    assert current_version(place.path) == "000001"  # nothing has changed: no new version

    (place.source / "0.png").unlink()
    (place.source / "1.png").rename(place.source / "sub" / "renamed.png")
    (place.source / "2.png").write_bytes(picture(100))
    write_pictures(place.source, [11])
    gone = [thumbnail_path(place.path, id_of(picture(seed))) for seed in (0, 2)]
    assert place.update() == 2
    assert content_of(place.gallery) == expected(place.source)
    assert "version 000002 answers: 10 pictures, 2 embedded now, 2 removed" in capsys.readouterr().out
    assert all(path.exists() for path in gone)  # of the version before, which readers may have open
    write_pictures(place.source, [12])
    assert place.update() == 1
    assert not any(path.exists() for path in gone)
    assert sorted(version_names(place.path)) == ["000002", "000003"]


def test_equal_bytes_have_one_vector_and_all_their_files_are_named(place, capsys):
    lines = ["file,identity,caption,camera", "0.png,7,a woman,1", "copy.png,8,in red,2", "0.png,7,a woman again,3"]
    (place.source / "list.csv").write_text("\n".join([*lines, "1.png,,,4", ""]))
    shutil.copy(place.source / "0.png", place.source / "copy.png")
    assert place.update(place.source / "list.csv") == 2
    first, second = place.gallery.table.to_pylist()
    assert (first["file"], first["files"], first["identity"]) == ("0.png", ["0.png", "copy.png"], "7")
    assert (first["identities"], first["camera"]) == (["7", "8"], 1)
    assert first["caption"] == "a woman\nin red\na woman again"
    assert (second["file"], second["identity"], second["caption"], second["camera"]) == ("1.png", None, None, 4)
    assert (first["id"], first["width"], first["height"], first["bytes"]) == (
        id_of(picture(0)),
        12,
        24,
        len(picture(0)),
    )
    printed = capsys.readouterr().out
    assert "1 file is equal to another" in printed
    assert "1 pictures have several identities, the first counts: 0.png has 7, 8" in printed
    # New captions alone make a new version, and embed nothing.
    (place.source / "list.csv").write_text("file,caption\n0.png,a man\n1.png,\n")
    assert place.update() == 0
    assert place.gallery.table["caption"].to_pylist() == ["a man", None]


def test_bad_pictures_are_listed_and_left_out(place, capsys):
    (place.source / "broken.png").write_bytes(picture(50)[:200])
    (place.source / "empty.jpg").touch()
    outside = place.root / "outside.png"
    outside.write_bytes(picture(51))
    os.symlink(outside, place.source / "link.png")
    assert place.update(place.source) == 10
    left_out = dict(read_left_out(place.gallery.folder))
    assert set(left_out) == {"broken.png", "empty.jpg", "link.png"}
    assert left_out["empty.jpg"] == "cannot be decoded: the file is empty"
    assert left_out["link.png"].startswith("leaves the source")
    assert "3 files are left out, listed in" in capsys.readouterr().out
    (place.source / "broken.png").write_bytes(picture(50))
    assert place.update() == 1
    (place.source / "link.png").unlink()
    for file in place.source.rglob("*.png"):
        file.write_bytes(b"no picture")
    with pytest.raises(DataError, match=r"none of 12 files is a readable picture; .*: cannot be decoded"):
        place.update()
    assert place.gallery.size == 11  # the former answers


def test_another_model_embeds_everything_anew_in_a_new_version(place, capsys):
    place.update(place.source)
    place.encoder = CountingEncoder("counting", "e" * 64)
    assert place.update() == 10
    assert "the model counting has changed: every picture is embedded anew" in capsys.readouterr().out
    place.encoder = CountingEncoder("other", "f" * 64)
    assert place.update(model="other") == 10
    assert "the model other is another than counting" in capsys.readouterr().out
    assert (place.gallery.model["name"], current_version(place.path)) == ("other", "000003")


def test_half_precision_is_remembered_and_cannot_become_full(place, capsys):
    place.update(place.source, half=True)
    assert place.gallery.vectors.dtype == np.float16
    write_pictures(place.source, [20])
    assert place.update() == 1
    assert place.gallery.vectors.dtype == np.float16
    for file, vector in expected(place.source).items():
        np.testing.assert_allclose(content_of(place.gallery)[file], vector, atol=1e-3)
    assert place.update(half=False) == 11
    assert "cannot become full ones" in capsys.readouterr().out
    assert content_of(place.gallery) == expected(place.source)
    assert place.update(half=True) == 0


def test_an_update_that_ends_early_keeps_what_it_embedded(place, monkeypatch, capsys):
    monkeypatch.setattr(gallery_update, "SHARD", 4)
    embed = place.encoder.pictures

    def fails(images: Any) -> Any:
        if len(place.encoder.embedded) >= 8:
            raise KeyboardInterrupt
        return embed(images)

    place.encoder.pictures = fails
    with pytest.raises(KeyboardInterrupt):
        place.update(place.source)
    with pytest.raises(DataError, match="is not a gallery"):
        Gallery.open(place.path)
    place.encoder.pictures = embed
    assert place.update() == 2  # from the source that was given then
    assert "going on from an unfinished update: 8 pictures are embedded already" in capsys.readouterr().out
    assert content_of(place.gallery) == expected(place.source)
    assert not (place.path / layout.UNFINISHED).exists()


def test_what_another_model_left_unfinished_is_dropped(place, capsys):
    vectors = np.zeros((1, 8), np.float32)
    place.update(place.source)
    left = unfinished.Unfinished(place.path)
    left.begin("another")
    left.add(unfinished.Embedded([f"{99:064d}"], [(1, 1)], [[]], vectors))
    place.update()
    assert "1 pictures that an unfinished update embedded with another model are dropped" in capsys.readouterr().out


def test_two_updates_at_once_the_second_says_so(place):
    place.update(place.source)
    import fcntl

    with open(place.path / layout.LOCK, "a") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        with pytest.raises(InfrastructureError, match="another process updates this gallery: wait for it"):
            place.update()
    assert place.update() == 0


def test_folders_that_are_no_galleries_are_not_written_to(place, tmp_path):
    other = write_pictures(tmp_path / "mine", [1])
    for folder, source, message in (
        (other, place.source, "is not empty, and not a gallery"),
        (other / "1.png", place.source, "is a file"),
        (tmp_path / "new", None, "is a new gallery: give the SOURCE"),
    ):
        with pytest.raises(ParameterError, match=message):
            update_gallery(options(folder, source), workspace(tmp_path))
    assert [file.name for file in other.iterdir()] == ["1.png"]
    place.update(place.source)
    with pytest.raises(ParameterError, match="is in the gallery itself"):
        place.update(place.path / "thumbnails")
    with pytest.raises(ParameterError, match="give SOURCE too"):
        place.update(columns=("a",))
    with pytest.raises(DataError, match="does not exist: give a folder"):
        place.update(tmp_path / "nothing")
    assert place.update() == 0  # a source that is none was not remembered
    with pytest.raises(DataError, match="does not exist: give a folder"):
        update_gallery(options(tmp_path / "new", tmp_path / "nothing"), workspace(tmp_path))
    assert not (tmp_path / "new").exists()
    for text in ("{", "[1]", '{"model": "x"}', '{"model": "x", "source": {"kind": 1}}'):
        (place.path / layout.SOURCE).write_text(text)
        with pytest.raises(DataError, match=r"source.json: cannot be read .* give SOURCE again"):
            place.update()


def test_a_gallery_within_its_source_does_not_list_itself(place):
    place.path = place.source / "gallery"
    assert place.update(place.source) == 10
    write_pictures(place.source, [30])
    assert place.update() == 1


def test_a_full_disk_is_one_line_and_the_former_version_answers(place, monkeypatch):
    place.update(place.source)
    write_pictures(place.source, [40, 41])

    def full(*_: Any, **__: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    for module, name in (
        (unfinished, "write_vectors"),
        (gallery_update, "write_thumbnail"),
        (gallery_update, "write_version"),
    ):
        with monkeypatch.context() as patch:
            patch.setattr(module, name, full)
            with pytest.raises(InfrastructureError, match="No space left on device: the gallery answers as before"):
                place.update()
        assert place.gallery.size == 10
    place.update()
    assert content_of(place.gallery) == expected(place.source)


@pytest.mark.parametrize("every", [9, pytest.param(1, marks=pytest.mark.heavy)])
def test_killed_at_any_point_the_old_version_answers_or_the_new(place, monkeypatch, every):
    monkeypatch.setattr(gallery_update, "SHARD", 2)
    place.update(place.source)
    old = expected(place.source)
    (place.source / "3.png").unlink()
    write_pictures(place.source, [60, 61, 62])
    new = expected(place.source)
    kept = place.root / "kept"
    shutil.copytree(place.path, kept)

    def again() -> None:
        update_gallery(options(place.path, batch=2), workspace(place.root))

    answers = []
    for _ in killed_at_points(again, every):
        found = content_of(place.gallery)
        assert found in (old, new)
        answers.append(found == new)
        again()  # from whatever was left
        assert content_of(place.gallery) == new
        assert not list(place.path.rglob(".*.tmp")) + list((place.path / layout.UNFINISHED).glob("*"))
        assert json.loads((place.gallery.folder / layout.REFERENCE).read_text())["size"] == 12
        shutil.rmtree(place.path)
        shutil.copytree(kept, place.path)
    assert answers == sorted(answers)  # the old one up to a point, from there on the new
    assert len(answers) > 20 / every
    assert set(answers) == {False, True}


@pytest.mark.parametrize(
    ("text", "kind", "message"),
    [
        (
            "UserCodeException\nTraceback\ncomponents.errors.DataError: model x: is not the one",
            DataError,
            "model x: is not the one",
        ),
        ("a\nConnectionError: s3://b: does not answer\n", ConnectionError, "s3://b: does not answer"),
        ("The actor died unexpectedly", InfrastructureError, "run the command again"),
        ("UserCodeException: ZeroDivisionError: x", RuntimeError, "ZeroDivisionError"),
    ],
)
def test_an_error_of_a_worker_is_what_the_worker_raised(text, kind, message):
    found = embedding._cause(RuntimeError(text))
    assert type(found) is kind
    assert message in str(found)


def test_a_gpu_that_is_not_there_is_one_line(place):
    if not torch.cuda.is_available():
        with pytest.raises(ParameterError, match="--device cuda: PyTorch finds no GPU here"):
            place.update(place.source, device="cuda")
