"""Updates of a gallery that are killed by SIGKILL at random moments, run out of disk, read from a bucket, or use several workers.

The model is a small dual encoder, opened as any other; what a gallery must hold is computed here picture by picture.
"""

import os
import random
import shutil
import signal
import threading
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from servers import BUCKET, s3_store
from small_galleries import options, picture, workspace, write_pictures

from components.errors import DataError
from components.gadms.model import DualEncoder
from components.gadms.tokenizer import CaptionTokenizer
from components.search.encoders import open_encoder
from components.search.gallery import layout
from components.search.gallery.reading import Gallery
from pipelines.errors import InfrastructureError
from pipelines.search import gallery_update
from pipelines.search.gallery_update import update_gallery

pytestmark = [pytest.mark.faults, pytest.mark.timeout(900)]
MOMENTS = 20
CONFIG = {
    "embed_dim": 16,
    "quick_gelu": True,
    "vision_cfg": {"image_size": [16, 8], "layers": 1, "width": 24, "head_width": 24, "patch_size": 8},
    "text_cfg": {"context_length": 77, "vocab_size": 49408, "width": 24, "heads": 2, "layers": 1},
}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("model") / "small"
    DualEncoder.create(CONFIG, tokenizer=CaptionTokenizer.from_corpus(["a man in red"])).save(folder)
    return str(folder)


def vectors_by_file(gallery: Gallery) -> dict[str, np.ndarray]:
    return dict(zip(gallery.table["file"].to_pylist(), np.asarray(gallery.vectors), strict=True))


def one_by_one(source: Path, model: str) -> dict[str, np.ndarray]:
    encoder = open_encoder(model, Path("/"))
    return {file.name: encoder.pictures([Image.open(file)])[0] for file in sorted(source.glob("*.png"))}


def same(found: dict[str, np.ndarray], wanted: dict[str, np.ndarray]) -> bool:
    return found.keys() == wanted.keys() and all(np.allclose(found[name], wanted[name], atol=1e-5) for name in wanted)


def in_a_fork(gallery: Path, source: Path | None, root: Path, model: str) -> int:
    """Start an update in a fork of this process, which has imported all that it needs; return its number."""
    child = os.fork()
    if child:
        return child
    code = 1
    try:
        update_gallery(options(gallery, source, model=model), workspace(root))
        code = 0
    finally:
        os._exit(code)


class Reader(threading.Thread):
    """Opens the gallery again and again; `strange` holds what answered and was none of `answers`."""

    def __init__(self, gallery: Path, *answers: dict[str, np.ndarray]) -> None:
        super().__init__(daemon=True)
        self.gallery, self.answers = gallery, answers
        self.opened, self.strange, self.over = 0, [], False

    def run(self) -> None:
        while not self.over:
            found = vectors_by_file(Gallery.open(self.gallery))
            self.opened += 1
            if not any(same(found, answer) for answer in self.answers):
                self.strange.append(sorted(found))
            time.sleep(0.01)


def test_killed_at_random_moments_the_old_gallery_answers_or_the_new(tmp_path, model, monkeypatch):
    monkeypatch.setattr(gallery_update, "SHARD", 8)
    source, gallery = write_pictures(tmp_path / "pictures", range(60)), tmp_path / "gallery"
    update_gallery(options(gallery, source, model=model), workspace(tmp_path))
    old = one_by_one(source, model)
    (source / "3.png").unlink()
    write_pictures(source, range(60, 160))
    new = one_by_one(source, model)
    kept = tmp_path / "kept"
    shutil.copytree(gallery, kept)
    began = time.monotonic()
    assert os.waitpid(in_a_fork(gallery, None, tmp_path, model), 0)[1] == 0
    duration = time.monotonic() - began
    assert same(vectors_by_file(Gallery.open(gallery)), new)

    moments = random.Random(0)
    killed = resumed = 0
    for moment in range(MOMENTS):
        shutil.rmtree(gallery)
        shutil.copytree(kept, gallery)
        reader = Reader(gallery, old, new)
        reader.start()
        child = in_a_fork(gallery, None, tmp_path, model)
        time.sleep(duration * (moment + moments.random()) / MOMENTS)
        os.kill(child, signal.SIGKILL)
        killed += os.WIFSIGNALED(os.waitpid(child, 0)[1])
        found = vectors_by_file(Gallery.open(gallery))
        assert same(found, old) or same(found, new)
        resumed += any((gallery / layout.UNFINISHED).glob("*.parquet"))
        assert os.waitpid(in_a_fork(gallery, None, tmp_path, model), 0)[1] == 0
        reader.over = True
        reader.join()
        assert reader.opened
        assert not reader.strange
        assert same(vectors_by_file(Gallery.open(gallery)), new)
        assert not list(gallery.rglob(".*.tmp"))
    assert killed >= MOMENTS // 2
    assert resumed >= 2
    print(f"{killed} of {MOMENTS} killed before the end, {resumed} with pictures embedded")


def test_a_first_update_that_is_killed_leaves_no_gallery_and_the_next_makes_it(tmp_path, model):
    source, gallery = write_pictures(tmp_path / "pictures", range(40)), tmp_path / "gallery"
    for seconds in (0.05, 0.2, 0.5):
        child = in_a_fork(gallery, source, tmp_path, model)
        time.sleep(seconds)
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        if (gallery / layout.CURRENT).exists():
            assert Gallery.open(gallery).size == 40
        elif gallery.exists():
            with pytest.raises(DataError, match="make one: python -m pipelines gallery"):
                Gallery.open(gallery)
    update_gallery(options(gallery, source, model=model), workspace(tmp_path))
    assert same(vectors_by_file(Gallery.open(gallery)), one_by_one(source, model))


def test_two_updates_at_the_same_time_one_says_so_and_the_other_ends(tmp_path, model):
    source, gallery = write_pictures(tmp_path / "pictures", range(80)), tmp_path / "gallery"
    child = in_a_fork(gallery, source, tmp_path, model)
    while not (gallery / layout.SOURCE).exists():
        time.sleep(0.005)
    with pytest.raises(InfrastructureError, match="another process updates this gallery"):
        update_gallery(options(gallery, source, model=model), workspace(tmp_path))
    assert os.waitpid(child, 0)[1] == 0
    assert Gallery.open(gallery).size == 80


def test_a_full_disk_is_one_line_and_with_room_the_update_goes_on(tmp_path, model, small_disk, capsys, monkeypatch):
    monkeypatch.setattr(gallery_update, "SHARD", 8)
    source, gallery = write_pictures(tmp_path / "pictures", range(300)), small_disk(1) / "gallery"
    with pytest.raises(InfrastructureError, match="No space left on device: the gallery answers as before"):
        update_gallery(options(gallery, source, model=model), workspace(tmp_path))
    small_disk(50)
    update_gallery(options(gallery, source, model=model), workspace(tmp_path))
    assert "going on from an unfinished update" in capsys.readouterr().out
    assert same(vectors_by_file(Gallery.open(gallery)), one_by_one(source, model))


def test_workers_of_ray_give_what_one_process_gives(tmp_path, model, capsys):
    source = write_pictures(tmp_path / "pictures", range(50))
    (source / "broken.png").write_bytes(picture(1)[:100])
    for name, workers in (("one", 0), ("two", 2)):
        update_gallery(options(tmp_path / name, source, model=model, workers=workers), workspace(tmp_path))
    one, two = (Gallery.open(tmp_path / name) for name in ("one", "two"))
    assert two.table.equals(one.table)
    np.testing.assert_array_equal(np.asarray(two.vectors), np.asarray(one.vectors))
    assert [two.thumbnail(row) for row in range(3)] == [one.thumbnail(row) for row in range(3)]
    assert same(vectors_by_file(two), one_by_one_readable(source, model))
    assert capsys.readouterr().out.count("1 file is left out") == 2


def one_by_one_readable(source: Path, model: str) -> dict[str, np.ndarray]:
    (source / "broken.png").unlink()
    return one_by_one(source, model)


def test_a_bucket_is_a_source(tmp_path, model, monkeypatch):
    with s3_store(tmp_path / "store") as store:
        for name, value in store.environment.items():
            monkeypatch.setenv(name, value)
        pictures = write_pictures(store.folder / "people" / "a", range(5))
        (store.folder / "people" / "list.csv").write_text("file,camera\na/1.png,3\n../secret.png,4\na/none.png,5\n")
        address = f"s3://{BUCKET}/people"
        update_gallery(options(tmp_path / "g", address, model=model), workspace(tmp_path))
        gallery = Gallery.open(tmp_path / "g")
        found = {Path(name).name: vector for name, vector in vectors_by_file(gallery).items()}
        assert same(found, one_by_one(pictures, model))
        assert gallery.picture(2) == picture(2)
        update_gallery(options(tmp_path / "m", f"{address}/list.csv", model=model), workspace(tmp_path))
        listed = Gallery.open(tmp_path / "m")
        assert listed.table.select(["file", "camera"]).to_pylist() == [{"file": "a/1.png", "camera": 3}]
        with pytest.raises(DataError, match="check the address and the rights"):
            update_gallery(options(tmp_path / "n", "s3://no-such-bucket/x", model=model), workspace(tmp_path))
    with pytest.raises(ConnectionError, match="does not answer"):
        update_gallery(options(tmp_path / "g", model=model), workspace(tmp_path))
    assert Gallery.open(tmp_path / "g").size == 5
