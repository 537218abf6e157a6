import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torchvision.io import ImageReadMode, decode_image, encode_png

from components.errors import DataError, ParameterError
from components.files import file_digest
from components.gadms.embedding import embed_captions, embed_images
from components.gadms.model import WEIGHTS_FILE, DualEncoder
from components.gadms.tokenizer import CaptionTokenizer
from components.persons.shards import CaptionRow, DatasetWriter, PersonDataset
from components.search.index import GalleryIndex
from components.search.searcher import Query, Searcher
from pipelines.__main__ import main
from pipelines.search.gallery_search import search
from pipelines.search.search_options import SearchOptions
from pipelines.workspace import Workspace

HEIGHT, WIDTH = 32, 16
QUERY = "a woman in a red coat"


@pytest.fixture
def workspace(tmp_path: Path) -> Workspace:
    """Twelve pictures of noise, an untrained model, and its index."""
    with DatasetWriter(tmp_path / "data/people") as writer:
        for image in range(12):
            random = np.random.default_rng(image)
            pixels = torch.from_numpy(random.integers(0, 256, (3, HEIGHT, WIDTH), dtype=np.uint8))
            caption = CaptionRow(f"person [{image}] in a red coat, a woman")
            writer.add(
                bytes(encode_png(pixels).numpy()), [caption], identity=100 + image // 2, split="test", source="noise"
            )
    people = PersonDataset(tmp_path / "data/people")
    config = {
        "embed_dim": 16,
        "quick_gelu": True,
        "vision_cfg": {"image_size": [HEIGHT, WIDTH], "layers": 1, "width": 24, "head_width": 12, "patch_size": 8},
        "text_cfg": {"context_length": 77, "vocab_size": 49408, "width": 24, "heads": 2, "layers": 1},
    }
    rows = list(people.rows())
    tokenizer = CaptionTokenizer.from_corpus([row["caption"] for row in rows])
    encoder = DualEncoder.create(config, tokenizer=tokenizer, seed=2)
    folder = tmp_path / "models/retrieval/gadms"
    encoder.save(folder)
    vectors = embed_images(encoder, range(12), lambda ids: people.pixels(ids, HEIGHT, WIDTH))
    metadata = {key: [row[key] for row in rows] for key in ("identity", "caption")}
    model = {"weights": file_digest(folder / WEIGHTS_FILE)}
    GalleryIndex(vectors, range(12), metadata=metadata, model=model).save(tmp_path / "data/index")
    return Workspace(tmp_path, tmp_path / "runs")


def brute_force(workspace: Workspace) -> list[int]:
    """Image ids, best first, by the cosine of every picture with the query, one by one."""
    encoder = DualEncoder.load(workspace.path("models/retrieval/gadms"))
    people = PersonDataset(workspace.path("data/people"))
    (query,) = embed_captions(encoder, [QUERY])
    cosine = {}
    for image in range(12):
        (vector,) = embed_images(encoder, [image], lambda ids: people.pixels(ids, HEIGHT, WIDTH))
        cosine[image] = float(query.double() @ vector.double())
    return sorted(cosine, key=lambda image: -cosine[image])


def test_search_prints_the_best_matches_of_all_pictures(workspace, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "160")
    search(SearchOptions((QUERY,), top=4), workspace)
    printed = capsys.readouterr().out
    lines = [line for line in printed.splitlines() if "person [" in line]
    assert [int(line.split("person [")[1].split("]")[0]) for line in lines] == brute_force(workspace)[:4]
    assert all(str(100 + image // 2) in line for image, line in zip(brute_force(workspace), lines, strict=False))
    assert "12 pictures searched" in printed
    assert "was not used" not in printed
    search(SearchOptions(("red " * 76 + "<end_of_text> hat",), top=1), workspace)
    assert "its end was not used: “red < end _ of _ text > hat”" in capsys.readouterr().out


def test_the_picture_shows_the_matches_side_by_side(workspace, tmp_path):
    path = tmp_path / "out" / "found.png"
    search(SearchOptions((QUERY,), top=3, picture=path), workspace)
    sheet = decode_image(str(path), mode=ImageReadMode.RGB)
    people = PersonDataset(workspace.path("data/people"))
    gap = 4
    for place, expected in enumerate(people.pixels(brute_force(workspace)[:3], HEIGHT, WIDTH)):
        left = gap + place * (WIDTH + gap)
        assert torch.equal(sheet[:, gap : gap + HEIGHT, left : left + WIDTH], expected)


def test_a_missing_index_says_what_to_run(tmp_path):
    with pytest.raises(DataError, match="data/index does not exist: run `python -m pipelines repro index`"):
        search(SearchOptions((QUERY,)), Workspace(tmp_path, tmp_path))


def test_an_index_of_another_model_is_refused(workspace):
    folder = workspace.path("models/retrieval/gadms")
    encoder = DualEncoder.load(folder)
    DualEncoder.create(encoder.config, tokenizer=encoder.tokenizer, seed=3).save(folder)
    with pytest.raises(DataError, match="not the one that made the gallery"):
        search(SearchOptions((QUERY,)), workspace)


def test_no_column_of_a_gallery_takes_the_place_of_rank_and_score(workspace, capsys):
    index = GalleryIndex.open(workspace.path("data/index"))
    metadata = {**index.metadata, "rank": [70] * 12, "score": [80] * 12}
    GalleryIndex(index.embeddings, index.image_ids, metadata=metadata, model=index.model).save(
        workspace.path("data/index")
    )
    found = asked(workspace, capsys, QUERY, "--top", "3")
    assert [match["rank"] for match in found] == [1, 2, 3]
    assert all(-1 <= match["score"] <= 1 for match in found)


@pytest.mark.parametrize(("query", "top"), [("  ", 5), (QUERY, 0)])
def test_nonsense_is_a_parameter_error(workspace, query, top):
    with pytest.raises(ParameterError):
        search(SearchOptions((query,), top=top), workspace)


def asked(workspace: Workspace, capsys: pytest.CaptureFixture[str], *arguments: str) -> list[dict[str, Any]]:
    """The matches of the verb, as its --json gives them."""
    capsys.readouterr()
    assert main(["--workspace", str(workspace.root), "search", "--json", *arguments]) == 0
    return list(json.loads(capsys.readouterr().out)["matches"])


def test_the_verb_answers_in_json_with_filters_and_by_pictures(workspace, tmp_path, capsys):
    best = brute_force(workspace)
    found = asked(workspace, capsys, QUERY, "--top", "3")
    assert [int(match["id"]) for match in found] == best[:3]
    assert found[0]["caption"] == f"person [{best[0]}] in a red coat, a woman"
    kept = asked(workspace, capsys, QUERY, "--where", "identity=101|103", "--top", "9")
    assert [int(match["id"]) for match in kept] == [image for image in best if image // 2 in (1, 3)]
    (tmp_path / "seven.png").write_bytes(PersonDataset(workspace.path("data/people")).image_bytes(7))
    by_file = asked(workspace, capsys, "--like", str(tmp_path / "seven.png"))
    assert (by_file[0]["id"], by_file[0]["score"]) == ("7", pytest.approx(1, abs=1e-5))
    others = [each["id"] for each in by_file[1:]]
    assert len(others) == 4
    assert [each["id"] for each in asked(workspace, capsys, "--like", "7", "--top", "4")] == others
    again = asked(workspace, capsys, QUERY, "--rerank", "--top", "12")
    assert sorted(int(match["id"]) for match in again) == list(range(12))


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (["--like", "nowhere.png"], 3, "neither the id of a picture of the gallery nor a file"),
        (["--like", __file__], 3, "cannot be decoded"),
        ([QUERY, "--where", "camera=3"], 2, "no column 'camera'"),
        ([QUERY, "--gallery", "nowhere"], 3, "nowhere: does not exist"),
        ([], 2, "nothing is sought"),
    ],
)
def test_a_mistake_is_one_line(workspace, capsys, arguments, code, said):
    assert main(["--workspace", str(workspace.root), "search", *arguments]) == code
    printed = capsys.readouterr().err
    assert said in printed
    assert len(printed.strip().splitlines()) == 1


def test_the_registered_model_ranks_as_the_search_does(workspace):
    """The class that MLflow calls, on the folders that `register` hands over."""
    from pipelines.search.served_model import PersonSearch

    model = PersonSearch()
    folders = {"encoder": str(workspace.path("models/retrieval/gadms")), "index": str(workspace.path("data/index"))}
    model.load_context(SimpleNamespace(artifacts=folders, model_config={"model": "{encoder}"}))
    answer = model.predict(None, {"query": [QUERY, "a man"]}, {"top": 12})
    searcher = Searcher.open(workspace.path("data/index"), workspace.root)
    for row, sentence in enumerate([QUERY, "a man"]):
        (matches,) = searcher.search([Query((sentence,))], 12)
        assert answer["image_ids"][row] == [int(match.id) for match in matches]
        # Not bit for bit: some processors multiply one vector by another kernel than two.
        assert answer["scores"][row] == pytest.approx([match.score for match in matches], rel=1e-6)
    assert answer["image_ids"][0] == brute_force(workspace)
