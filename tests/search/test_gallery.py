"""The folder of a gallery, read and written without a model."""

import hashlib
import io
import json
import os
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import torch
from PIL import Image
from small_galleries import id_of, picture, write_pictures

from components.errors import DataError
from components.persons.shards import CaptionRow, DatasetWriter
from components.search.gallery import layout
from components.search.gallery.reading import Gallery, current_version
from components.search.gallery.thumbnails import read_thumbnail, write_thumbnail
from components.search.gallery.tombstones import add_tombstones, tombstones
from components.search.gallery.unfinished import Embedded, Unfinished
from components.search.gallery.writing import remove_versions, switch, version_names, write_version
from components.search.index import GalleryIndex


def rows(folder: Path, names: list[str]) -> pa.Table:
    found = []
    for name in names:
        content = (folder / name).read_bytes()
        digest = hashlib.sha256(content).hexdigest()
        row = {"id": digest[:16], "sha256": digest, "file": name, "files": [name], "identities": []}
        found.append({**row, "width": 12, "height": 24, "bytes": len(content), "identity": None, "caption": None})
    return pa.Table.from_pylist(found, schema=layout.SCHEMA)


def write(gallery: Path, source: Path, names: list[str], vectors: np.ndarray, dtype: str = "float32") -> str:
    name = write_version(
        gallery,
        [vectors[:1], vectors[1:]],
        rows(source, names),
        dimension=vectors.shape[1],
        dtype=dtype,
        model={"name": "m", "digest": "d"},
        settings={},
        source={"kind": "folder", "location": str(source), "base": str(source)},
    )
    switch(gallery, name)
    return name


def test_a_written_version_is_read_back_and_two_are_kept(tmp_path):
    source = write_pictures(tmp_path / "pictures", range(3))
    names = ["0.png", "1.png", "2.png"]
    for number in range(1, 5):
        vectors = np.eye(3, 5, dtype=np.float32) * number
        write(tmp_path / "g", source, names, vectors, "float16" if number == 4 else "float32")
        remove_versions(tmp_path / "g")
        assert current_version(tmp_path / "g") == f"{number:06d}"
    assert sorted(version_names(tmp_path / "g")) == ["000003", "000004"]
    gallery = Gallery.open(tmp_path / "g")
    assert (gallery.size, gallery.dimension, gallery.vectors.dtype) == (3, 5, np.float16)
    np.testing.assert_array_equal(np.asarray(gallery.vectors, np.float32), np.eye(3, 5) * 4)
    assert gallery.row_of(id_of(picture(1))) == 1
    assert gallery.row_of("0" * 16) is None
    assert gallery.picture(1) == picture(1)
    with Image.open(io.BytesIO(gallery.thumbnail(1))) as small:
        assert (small.format, small.size) == ("WEBP", (12, 24))
    recorded = json.loads((gallery.folder / layout.REFERENCE).read_text())
    for name, facts in recorded["files"].items():
        assert facts["sha256"] == hashlib.sha256((gallery.folder / name).read_bytes()).hexdigest()


def test_an_original_that_changed_or_went_is_not_given_out(tmp_path):
    source = write_pictures(tmp_path / "pictures", range(2))
    write(tmp_path / "g", source, ["0.png", "1.png"], np.eye(2, dtype=np.float32))
    gallery = Gallery.open(tmp_path / "g")
    (source / "0.png").write_bytes(picture(9))
    with pytest.raises(DataError, match=r"0.png has changed since it was embedded; update the gallery"):
        gallery.picture(0)
    (source / "0.png").unlink()
    with pytest.raises(DataError, match=r"0.png no such file"):
        gallery.picture(0)
    (tmp_path / "outside.png").write_bytes(picture(0))
    os.symlink(tmp_path / "outside.png", source / "0.png")
    with pytest.raises(DataError, match=r"0.png leaves the source"):
        gallery.picture(0)


def test_a_broken_version_is_one_line_and_no_gallery_says_how_to_make_one(tmp_path):
    with pytest.raises(DataError, match="does not exist; make one: python -m pipelines gallery"):
        Gallery.open(tmp_path / "none")
    with pytest.raises(DataError, match="is not a gallery; make one"):
        Gallery.open(tmp_path)
    source = write_pictures(tmp_path / "pictures", range(2))
    name = write(tmp_path / "g", source, ["0.png", "1.png"], np.eye(2, dtype=np.float32))
    file = tmp_path / "g" / layout.VERSIONS / name / layout.VECTORS
    content = file.read_bytes()
    file.write_bytes(content[:-1])
    with pytest.raises(DataError, match=r"vectors.npy: has 143 bytes, not 144"):
        Gallery.open(tmp_path / "g")
    file.unlink()
    with pytest.raises(DataError, match="is incomplete"):
        Gallery.open(tmp_path / "g")
    file.write_bytes(b"x" * len(content))
    with pytest.raises(DataError, match="not a readable version of a gallery"):
        Gallery.open(tmp_path / "g")
    (tmp_path / "g" / layout.CURRENT).write_text("../elsewhere")
    with pytest.raises(DataError, match="names no version"):
        Gallery.open(tmp_path / "g")


def test_a_copy_of_a_version_opens_without_what_was_around_it(tmp_path):
    source = write_pictures(tmp_path / "pictures", range(2))
    write(tmp_path / "gallery", source, ["0.png", "1.png"], np.eye(2, dtype=np.float32))
    opened = Gallery.open(tmp_path / "gallery")
    copy = Gallery.open_copy(opened.folder.rename(tmp_path / "copy"))
    assert copy.table.equals(opened.table)
    assert copy.vectors.tolist() == np.eye(2).tolist()
    (tmp_path / "copy" / layout.TABLE).unlink()
    with pytest.raises(DataError, match=rf"copy: not a version of a gallery \(.*{layout.TABLE} missing\)"):
        Gallery.open_copy(tmp_path / "copy")


def test_the_pipelines_index_opens_as_a_gallery(tmp_path):
    with DatasetWriter(tmp_path / "people") as writer:
        for seed in range(3):
            writer.add(picture(seed), [CaptionRow(f"person {seed}")], identity=seed // 2, split="test", source="x")
    metadata = {"identity": [1, 0], "caption": ["person 2", "person 0"]}
    GalleryIndex(torch.eye(2, 4), [2, 0], metadata=metadata, model={"weights": "w"}).save(tmp_path / "index")
    gallery = Gallery.open(tmp_path / "index")
    assert (gallery.size, gallery.dimension, gallery.model["digest"]) == (2, 4, "w")
    assert gallery.table.select(["id", "identity", "caption"]).to_pylist() == [
        {"id": "2", "identity": "1", "caption": "person 2"},
        {"id": "0", "identity": "0", "caption": "person 0"},
    ]
    assert (gallery.row_of("0"), gallery.row_of("1")) == (1, None)
    assert gallery.picture(0) == picture(2)
    assert gallery.thumbnail(0)[:4] == b"RIFF"
    before = current_version(tmp_path / "index")
    GalleryIndex(torch.eye(1, 4), [0], metadata={"identity": [0], "caption": ["x"]}).save(tmp_path / "index")
    assert current_version(tmp_path / "index") != before


def test_what_an_update_embedded_outlives_it_and_single_pictures_can_be_removed(tmp_path):
    vectors = np.arange(12, dtype=np.float32).reshape(4, 3)
    unfinished = Unfinished(tmp_path)
    unfinished.begin("m")
    unfinished.add(Embedded(["a", "b"], [(1, 2), (3, 4)], [["7"], []], vectors[:2]))
    unfinished.add(Embedded(["c", "d"], [(5, 6), (7, 8)], [["7", "8"], ["9"]], vectors[2:]))
    (unfinished.folder / "000003.npy").write_bytes(b"of a killed process")
    again = Unfinished(tmp_path)
    assert not (unfinished.folder / "000003.npy").exists()
    assert (again.belongs_to("m"), again.belongs_to("other"), len(again)) == (True, False, 4)
    np.testing.assert_array_equal(again.vectors(["d", "a"]), vectors[[3, 0]])
    assert set(again.digests_of(["7"])) == {"a", "c"}
    again.remove(["a", "d"])
    left = Unfinished(tmp_path)
    assert left.sizes == {"b": (3, 4), "c": (5, 6)}
    np.testing.assert_array_equal(left.vectors(["c", "b"]), vectors[[2, 1]])
    left.discard()
    assert len(Unfinished(tmp_path)) == 0


def test_a_thumbnail_that_a_crash_cut_off_is_none(tmp_path):
    from components.search.gallery.thumbnails import encode_thumbnail

    content = encode_thumbnail(Image.new("RGB", (1000, 20)))
    write_thumbnail(tmp_path, "abcd", content)
    assert read_thumbnail(tmp_path, "abcd") == content
    with Image.open(io.BytesIO(content)) as small:
        assert small.size == (256, 5)
    for cut in (b"", content[:20], content[:-1]):
        write_thumbnail(tmp_path, "abcd", cut)
        assert read_thumbnail(tmp_path, "abcd") is None


def test_tombstones_hold_digests_and_days_alone_and_a_broken_file_stops_an_update(tmp_path):
    add_tombstones(tmp_path, ["b" * 64, "a" * 64])
    add_tombstones(tmp_path, ["b" * 64, "c" * 64])
    lines = [json.loads(line) for line in (tmp_path / layout.TOMBSTONES).read_text().splitlines()]
    assert [sorted(line) for line in lines] == [["sha256", "when"]] * 3
    assert tombstones(tmp_path) == {"a" * 64, "b" * 64, "c" * 64}
    (tmp_path / layout.TOMBSTONES).write_text("{")
    with pytest.raises(DataError, match="it keeps forgotten pictures out"):
        tombstones(tmp_path)
