"""Forgetting: nothing of a picture remains in a gallery's folder or in MLflow, and no update brings it back."""

import json
import shutil
from pathlib import Path

import mlflow
import numpy as np
import pytest
import torch
from killed_at_points import killed_at_points
from small_galleries import Place, content_of, id_of, picture, workspace

from components.errors import DataError, ParameterError
from components.search.gallery import layout, unfinished
from components.search.gallery.reading import current_version
from components.search.gallery.thumbnails import thumbnail_path
from components.search.gallery.writing import read_left_out, version_names
from components.search.index import GalleryIndex
from pipelines.errors import InfrastructureError
from pipelines.search import gallery_update
from pipelines.search.forgetting import ForgetOptions, forget
from pipelines.search.mlflow_copies import Wanted
from pipelines.tracking.addresses import tracking_uri
from pipelines.tracking.runs import connect

PEOPLE = {0: "anna-7", 1: "anna-7", 2: "berta-8", 3: "berta-8", 4: "berta-8"}


@pytest.fixture
def place(tmp_path: Path, empty_store: Path, monkeypatch: pytest.MonkeyPatch) -> Place:
    """A gallery of five pictures of two people, in two versions; an MLflow store that is empty."""
    found = Place(tmp_path)
    monkeypatch.setattr(gallery_update, "open_encoder", lambda name, root, device: found.encoder)
    shutil.copy(empty_store, tmp_path / "mlflow.db")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path / 'mlflow.db'}")
    for seed, who in PEOPLE.items():
        (found.source / f"{seed}.png").rename(found.source / f"{who}_{seed}.png")
    write_list(found)
    found.update(found.source / "list.csv", half=False)
    write_list(found, "again")
    found.update()
    return found


def write_list(place: Place, caption: str = "once") -> None:
    lines = [f"{who}_{seed}.png,{who},{caption} {who}" for seed, who in PEOPLE.items()]
    (place.source / "list.csv").write_text("\n".join(["file,identity,caption", *lines, ""]))


def run(place: Place, *pictures: str, identity: tuple[str, ...] = (), dry: bool = False, skip: bool = False) -> int:
    return forget(ForgetOptions(place.path, pictures, identity, skip_mlflow=skip, dry_run=dry), workspace(place.root))


def traces(place: Place, seed: int) -> list[bytes]:
    """Every form in which a picture can be in a gallery."""
    gallery = place.gallery
    row = gallery.row_of(id_of(picture(seed)))
    assert row is not None
    vector = np.asarray(gallery.vectors[row])
    thumbnail = thumbnail_path(place.path, id_of(picture(seed))).read_bytes()
    texts = [id_of(picture(seed)), f"_{seed}.png"]
    return [*(text.encode() for text in texts), vector.tobytes(), vector.astype(np.float16).tobytes(), thumbnail[12:]]


def remaining(folder: Path, wanted: list[bytes]) -> list[str]:
    """The files whose names, bytes, or values in Parquet (which is compressed) hold one of `wanted`."""
    import pyarrow.parquet as pq

    found = []
    for file in folder.rglob("*"):
        content = str(file.relative_to(folder)).encode()
        if file.is_file() and file.name != layout.TOMBSTONES:
            content += file.read_bytes()
            if file.suffix == ".parquet":
                content += repr(pq.read_table(file).to_pylist()).encode()
        found += [str(file)] * any(each in content for each in wanted)
    return found


def test_nothing_of_a_forgotten_picture_remains_and_no_name_brings_it_back(place, capsys):
    left = unfinished.Unfinished(place.path)
    left.begin("d" * 64)
    digests = [row["sha256"] for row in place.gallery.table.to_pylist()]
    left.add(unfinished.Embedded(digests, [(12, 24)] * 5, [[]] * 5, np.asarray(place.gallery.vectors)))
    wanted = traces(place, 0)
    assert len(remaining(place.path, wanted)) >= 7  # the test sees vectors, tables and thumbnails where they are
    other = traces(place, 1)
    assert run(place, id_of(picture(0))) == 1
    assert remaining(place.path, wanted) == []
    assert remaining(place.path, other)
    assert version_names(place.path) == ["000003"]
    tombstone = (place.path / layout.TOMBSTONES).read_text()
    assert sorted(json.loads(tombstone)) == ["sha256", "when"]
    printed = capsys.readouterr().out
    assert "1 picture forgotten; version 000003 answers" in printed
    assert "the source keeps them, delete them there: anna-7_0.png" in printed

    (place.source / "other_name.png").write_bytes(picture(0))
    (place.source / "list.csv").open("a").write("other_name.png,x,y\n")
    place.update()
    assert remaining(place.path, [*wanted, b"other_name"]) == []
    assert "2 files are forgotten, and stayed out" in capsys.readouterr().out
    assert place.gallery.size == 4
    assert run(place, id_of(picture(0))) == 1  # again: nothing to do


def test_a_file_of_captions_that_could_not_be_read_is_not_named_any_more(place):
    for seed, who in PEOPLE.items():
        (place.source / f"{who}_{seed}.txt").write_bytes(b"caf\xe9")
    place.update(place.source)
    named = [file for file, _ in read_left_out(place.gallery.folder)]
    assert {"anna-7_0.txt", "anna-7_1.txt"} < set(named)
    run(place, id_of(picture(0)))
    assert read_left_out(place.gallery.folder) != []
    assert remaining(place.path, [b"anna-7_0"]) == []
    assert remaining(place.path, [b"anna-7_1.txt"])


def test_a_person_is_forgotten_by_identity_in_older_versions_and_unfinished_updates_too(place):
    wanted = [trace for seed in (0, 1) for trace in traces(place, seed)] + [b"anna-7"]
    (place.source / "list.csv").write_text("file,identity\nberta-8_2.png,berta-8\n")
    place.update()  # anna is in the version before alone
    left = unfinished.Unfinished(place.path)
    left.begin("d" * 64)
    left.add(unfinished.Embedded([f"{9:064d}"], [(1, 1)], [["anna-7"]], np.ones((1, 8), np.float32)))
    assert run(place, identity=("anna-7",)) == 3
    assert remaining(place.path, wanted) == []
    assert content_of(place.gallery).keys() == {"berta-8_2.png"}
    write_list(place)
    place.update()
    assert sorted(place.gallery.table["identity"].to_pylist()) == ["berta-8"] * 3


def test_an_unknown_name_forgets_nothing(place):
    before = current_version(place.path)
    with pytest.raises(DataError, match=r"has no picture ffff, no identity carla; nothing is forgotten"):
        run(place, id_of(picture(0)), "ffff", identity=("carla", "berta-8"))
    with pytest.raises(ParameterError, match="give --picture ID or --identity ID"):
        run(place)
    assert (current_version(place.path), place.gallery.size) == (before, 5)
    assert run(place, identity=("berta-8",), dry=True) == 3
    assert place.gallery.size == 5
    assert not (place.path / layout.TOMBSTONES).exists()
    assert run(place, *map(id_of, map(picture, range(5)))) == 5
    assert (place.gallery.size, place.gallery.vectors.shape) == (0, (0, 8))


def logged_model(place: Place, name: str, folder: Path) -> str:
    """A model in MLflow whose artifacts hold `folder`, registered as version 1 of `name`."""
    tracker = connect(workspace(place.root))
    model = tracker.client.create_logged_model(tracker.experiment, name)
    tracker.client.log_model_artifacts(model.model_id, str(folder))
    tracker.client.finalize_logged_model(model.model_id, "READY")
    tracker.client.create_registered_model(name)
    mlflow.set_tracking_uri(tracking_uri(tracker.workspace))  # the registry asks there; another test may have set it
    tracker.client.create_model_version(name, f"models:/{model.model_id}", model_id=model.model_id)
    mlflow.set_tracking_uri(None)
    return str(model.model_id)


def test_copies_in_mlflow_are_deleted_and_only_those(place, tmp_path, capsys):
    logged = tmp_path / "logged"
    shutil.copytree(place.gallery.folder, logged / "index")
    logged_model(place, "whole", logged)
    vectors = torch.from_numpy(np.array(place.gallery.vectors))
    for name, rows, weights in (("same", [1, 0], "d" * 64), ("without", [2, 3], "d" * 64), ("foreign", [0], "e" * 64)):
        folder = tmp_path / name
        metadata = {"identity": rows, "caption": [f"{name} {row}" for row in rows]}
        GalleryIndex(vectors[rows], rows, metadata=metadata, model={"weights": weights}).save(
            folder / "artifacts" / "index"
        )
        logged_model(place, name, folder)
    index = tmp_path / "data" / "index"
    shutil.copytree(tmp_path / "same" / "artifacts" / "index", index)
    store = tmp_path / "mlartifacts"
    wanted = traces(place, 0)
    assert len(remaining(store, wanted)) >= 3
    run(place, id_of(picture(0)), dry=True)
    printed = capsys.readouterr().out
    assert "would be deleted in MLflow: whole version 1, which holds 1 picture of them" in printed
    run(place, id_of(picture(0)))
    (kept,) = remaining(store, wanted)  # of another model, by its vector alone; it is named
    assert GalleryIndex.open(Path(kept).parent).model == {"weights": "e" * 64}
    printed = capsys.readouterr().out
    assert "deleted in MLflow: whole version 1, which held 1 picture of them" in printed
    assert "deleted in MLflow: same version 1, which held 1 picture of them" in printed
    assert "in MLflow, not checked, as another model made their index: foreign version 1" in printed
    assert "data/index holds 1 of them, and is made by the pipeline" in printed
    client = connect(workspace(place.root)).client
    assert {each.name for each in client.search_model_versions()} == {"without", "foreign"}


@pytest.mark.parametrize("dimension", [8, 64, 512])
def test_a_copy_is_found_by_vectors_of_half_precision_and_no_other_picture_is(tmp_path, dimension):
    vectors = np.random.default_rng(0).standard_normal((400, dimension)).astype(np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    GalleryIndex(torch.from_numpy(vectors[:300]), range(300), model={"weights": "w"}).save(tmp_path)
    for kind in (np.float32, np.float16):
        held = vectors[100:].astype(kind).astype(np.float32)
        assert Wanted(frozenset("x"), held, "w").count_in_index(tmp_path) == 200


def test_without_mlflow_nothing_is_forgotten_unless_it_is_skipped(place, monkeypatch, capsys):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    with pytest.raises(InfrastructureError, match="does not answer"):
        run(place, id_of(picture(0)))
    assert place.gallery.size == 5
    run(place, id_of(picture(0)), skip=True)
    assert place.gallery.size == 4
    assert "not looked for (--skip-mlflow)" in capsys.readouterr().out
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{place.root / 'none.db'}")
    run(place, id_of(picture(1)))
    assert not (place.root / "none.db").exists()  # no store is made for the question


def test_the_approximate_index_is_built_again_without_the_picture(place, monkeypatch, capsys):
    import faiss

    from components.search import approximate
    from pipelines.search import forgetting

    monkeypatch.setattr(approximate, "MIN_SIZE", 4)
    monkeypatch.setattr(approximate, "QUERIES", 4)
    monkeypatch.setattr(approximate, "_PER_LIST", 4)
    monkeypatch.setattr(place.encoder, "sentences", lambda texts: np.eye(8, dtype=np.float32))
    place.update(approximate=True)
    assert set(place.gallery.approximate["recall@10"]) == {"pictures", "sentences"}
    monkeypatch.setattr(forgetting, "open_encoder", lambda model, root: place.encoder)
    run(place, id_of(picture(0)), skip=True)
    assert faiss.read_index(str(place.gallery.folder / layout.APPROXIMATE)).ntotal == place.gallery.size == 4
    assert set(place.gallery.approximate["recall@10"]) == {"pictures", "sentences"}
    monkeypatch.undo()
    run(place, id_of(picture(1)), skip=True)
    assert place.gallery.approximate["kind"] == "none"


def test_the_pipelines_own_index_says_what_to_do(place, tmp_path):
    GalleryIndex(torch.eye(2), [0, 1], model={"weights": "w"}).save(tmp_path / "index")
    with pytest.raises(DataError, match="is made by the pipeline, which would make it again: take the pictures out of"):
        forget(ForgetOptions(tmp_path / "index", ["0"], [], skip_mlflow=False, dry_run=False), workspace(tmp_path))
    with pytest.raises(DataError, match="is not a gallery"):
        forget(ForgetOptions(tmp_path, ["0"], [], skip_mlflow=False, dry_run=False), workspace(tmp_path))


@pytest.mark.parametrize("every", [5, pytest.param(1, marks=pytest.mark.heavy)])
def test_a_forgetting_that_is_killed_at_any_point_is_completed_by_the_next_update(place, every):
    kept = place.root / "kept"
    shutil.copytree(place.path, kept)
    wanted = traces(place, 0)
    done = []
    for number in killed_at_points(lambda: run(place, id_of(picture(0)), skip=True), every):
        assert place.gallery.size in (4, 5)
        done.append(bool((place.path / layout.TOMBSTONES).exists()))
        if number % 2:
            place.update()
        else:
            run(place, id_of(picture(0)), skip=True)
        if done[-1] or not number % 2:
            assert remaining(place.path, wanted) == []
        shutil.rmtree(place.path)
        shutil.copytree(kept, place.path)
    assert done == sorted(done)
    assert len(done) > 10 / every
