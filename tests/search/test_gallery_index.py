import json

import pytest
import torch

from components.errors import DataError, ParameterError
from components.files import file_digest
from components.gadms.model import WEIGHTS_FILE, DualEncoder
from components.gadms.tokenizer import CaptionTokenizer
from components.search.index import GalleryIndex
from components.search.query import TextSearch

CONFIG = {
    "embed_dim": 16,
    "quick_gelu": True,
    "vision_cfg": {"image_size": [16, 8], "layers": 1, "width": 24, "head_width": 24, "patch_size": 8},
    "text_cfg": {"context_length": 77, "vocab_size": 49408, "width": 24, "heads": 2, "layers": 1},
}


def random_index(count: int = 50, dimension: int = 16) -> GalleryIndex:
    embeddings = torch.randn(count, dimension, generator=torch.Generator().manual_seed(0))
    names = [f"picture {row}" for row in range(count)]
    return GalleryIndex(embeddings, range(1000, 1000 + count), metadata={"name": names}, model={"digest": "abc"})


@pytest.mark.parametrize("chunk", [3, 16, 1000])
@pytest.mark.parametrize("k", [1, 7, 500])
def test_search_equals_a_stable_full_sort(chunk, k):
    generator = torch.Generator().manual_seed(1)
    corners = torch.randint(0, 2, (200, 4), generator=generator).float() * 2 - 1  # equal vectors, equal scores
    index = GalleryIndex(corners, range(200))
    queries = torch.randint(0, 2, (9, 4), generator=generator).float() * 2 - 1
    hits = index.search(queries, k, chunk=chunk)
    scores, rows = ((queries / 2) @ (corners / 2).T).sort(dim=1, descending=True, stable=True)
    assert torch.equal(hits.rows, rows[:, :k])
    torch.testing.assert_close(hits.scores, scores[:, :k])
    assert torch.equal(hits.image_ids, hits.rows)


def test_a_picture_finds_itself_and_carries_its_metadata():
    index = random_index()
    hits = index.search(3 * index.embeddings[17], 1)
    assert hits.image_ids.tolist() == [[1017]]
    assert hits.scores.item() == pytest.approx(1)


def test_a_saved_index_is_the_same_and_the_same_bytes(tmp_path):
    index = random_index()
    index.save(tmp_path / "a")
    opened = GalleryIndex.open(tmp_path / "a")
    assert (opened.metadata, opened.model) == (index.metadata, index.model)
    queries = torch.randn(4, 16, generator=torch.Generator().manual_seed(2))
    assert torch.equal(opened.search(queries, 5).image_ids, index.search(queries, 5).image_ids)
    index.save(tmp_path / "b")
    for file in sorted((tmp_path / "a").iterdir()):
        assert file.read_bytes() == (tmp_path / "b" / file.name).read_bytes()


def test_bad_input_is_named(tmp_path):
    with pytest.raises(DataError, match=r"50 embeddings but \{'name': 49\}"):
        GalleryIndex(torch.ones(50, 2), range(50), metadata={"name": ["x"] * 49})
    with pytest.raises(DataError, match=r"run the index stage"):
        GalleryIndex.open(tmp_path)
    index = random_index()
    with pytest.raises(ParameterError, match="another model"):
        index.search(torch.ones(3))
    with pytest.raises(ParameterError, match="k = 0"):
        index.search(torch.ones(16), 0)
    index.save(tmp_path)
    (tmp_path / "index.json").write_text(json.dumps({"format": 99}))
    with pytest.raises(DataError, match="format 99"):
        GalleryIndex.open(tmp_path)


@pytest.mark.parametrize("file", ["index.json", "metadata.parquet", "embeddings.safetensors"])
def test_a_file_of_an_index_that_is_cut_off_is_one_line(tmp_path, file):
    random_index().save(tmp_path)
    for content in (b"", b"{", (tmp_path / file).read_bytes()[:-20]):
        (tmp_path / file).write_bytes(content)
        with pytest.raises(DataError, match=r"not a readable gallery index \(.+\); run the index stage again"):
            GalleryIndex.open(tmp_path)


def test_a_sentence_finds_the_picture_whose_vector_is_its_own(tmp_path):
    sentences = ["a man in red", "a woman with a bag", "green shoes"]
    encoder = DualEncoder.create(CONFIG, tokenizer=CaptionTokenizer.from_corpus(sentences))
    encoder.save(tmp_path / "model")
    with torch.no_grad():
        vectors = encoder.eval().encode_text(encoder.tokenizer(sentences))[0]
    model = {"weights": file_digest(tmp_path / "model" / WEIGHTS_FILE)}
    GalleryIndex(vectors, [7, 8, 9], metadata={"caption": sentences}, model=model).save(tmp_path / "index")
    search = TextSearch.open(tmp_path / "model", tmp_path / "index")
    for sentence, image_id in zip(sentences, [7, 8, 9], strict=True):
        best = search(sentence, k=2)[0]
        assert (best.image_id, best.metadata["caption"]) == (image_id, sentence)
        assert best.score == pytest.approx(1, abs=1e-5)
    assert (search.unread("a man"), search.unread("a man " * 38)) == ("", "man")
    with pytest.raises(DataError, match="vectors of 3 numbers"):
        TextSearch(encoder, GalleryIndex(torch.ones(2, 3), [1, 2]))


def test_an_index_that_other_weights_made_is_not_opened(tmp_path):
    tokenizer = CaptionTokenizer.from_corpus(["a man"])
    encoder = DualEncoder.create(CONFIG, tokenizer=tokenizer)
    encoder.save(tmp_path / "model")
    GalleryIndex(torch.eye(16), range(16), model={"weights": file_digest(tmp_path / "model" / WEIGHTS_FILE)}).save(
        tmp_path / "own"
    )
    TextSearch.open(tmp_path / "model", tmp_path / "own")
    GalleryIndex(torch.eye(16), range(16), model={"name": "x"}).save(tmp_path / "named")
    with pytest.raises(DataError, match=r"named does not name the weights"):
        TextSearch.open(tmp_path / "model", tmp_path / "named")
    DualEncoder.create(CONFIG, tokenizer=tokenizer, seed=9).save(tmp_path / "other")
    with pytest.raises(DataError, match=r"own was made by another model than .*other"):
        TextSearch.open(tmp_path / "other", tmp_path / "own")
