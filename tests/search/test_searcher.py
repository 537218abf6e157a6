import numpy as np
import pyarrow as pa
import pytest
from PIL import Image

from components.errors import DataError, ParameterError
from components.search.filters import Filter
from components.search.gallery.reading import Gallery
from components.search.gallery.writing import switch, write_version
from components.search.reranking import reranked
from components.search.searcher import Query, Searcher

WORDS = ("red", "blue", "coat", "bag")


class WordEncoder:
    """A sentence is its known words, a picture the brightness of its four pixels: a space in which right answers are seen."""

    name, digest, dimension = "words", "d1", 4

    def sentences(self, texts):
        return unit(np.array([[word in text for word in WORDS] for text in texts], np.float32))

    def pictures(self, images):
        return unit(np.array([np.asarray(image.convert("L")).reshape(-1) for image in images], np.float32))

    def unread(self, text):
        return ""


def unit(values):
    return values / np.linalg.norm(values, axis=-1, keepdims=True).astype(np.float32)


def picture(*pixels):
    return Image.fromarray(np.array(pixels, np.uint8).reshape(2, 2))


@pytest.fixture
def searcher(tmp_path):
    """Five pictures: red coat, red bag, blue coat, blue bag, and a red coat again."""
    contents = np.array([[1, 0, 1, 0], [1, 0, 0, 1], [0, 1, 1, 0], [0, 1, 0, 1], [1, 0, 1, 0]], np.float32)
    rows = [
        {"id": f"p{row}", "sha256": f"{row:064}", "file": f"{row}.png", "identity": str(row // 2)} for row in range(5)
    ]
    table = pa.Table.from_pylist(rows).append_column("camera", pa.array([1, 2, 1, 2, 1]))
    version = write_version(
        tmp_path, [unit(contents)], table, dimension=4, dtype="float16", model={"name": "words", "digest": "d1"},
        settings={}, source={"kind": "folder", "base": str(tmp_path)},
    )  # fmt: skip
    switch(tmp_path, version)
    return Searcher(Gallery.open(tmp_path), WordEncoder())


def ids(matches):
    return [match.id for match in matches]


def test_a_sentence_finds_what_it_says_with_scores_and_columns(searcher):
    first, second = searcher.search([Query(("a red coat",)), Query(("a blue bag",))], 3)
    assert ids(first)[:2] == ["p0", "p4"]  # equal pictures, in the order of the gallery
    assert first[0].score == pytest.approx(1, abs=1e-3)
    assert first[0].metadata["camera"] == 1
    assert second[0].id == "p3"


def test_several_sentences_are_met_together(searcher):
    assert ids(searcher.search([Query(("red", "a bag"))], 1)[0]) == ["p1"]
    vector = searcher.embed([Query(("red", "a bag"))])[0]
    np.testing.assert_allclose(vector, unit(np.array([1, 0, 0, 1], np.float32)), atol=1e-6)


def test_a_picture_and_a_sentence_are_weighed(searcher):
    blue = picture(0, 255, 0, 0)
    assert ids(searcher.search([Query(("red",), picture=blue, weight=0.1)], 1)[0]) == ["p0"]
    assert ids(searcher.search([Query(("red",), picture=blue, weight=0.9)], 1)[0]) == ["p2"]
    assert ids(searcher.search([Query(("a coat",), picture=blue)], 1)[0]) == ["p2"]
    alone = searcher.search([Query(picture=blue)], 2)[0]
    assert ids(alone) == ["p2", "p3"]


def test_a_picture_of_the_gallery_finds_others(searcher):
    assert ids(searcher.search([Query(like="p0")], 2)[0]) == ["p4", "p1"]
    assert ids(searcher.search([Query(("a bag",), like="p0", weight=0.4)], 1)[0]) == ["p1"]
    assert len(searcher.search([Query(like="p0")], 99)[0]) == 4


def test_a_filter_leaves_the_k_best_of_the_others(searcher):
    where = Filter.parse("camera=2")
    assert ids(searcher.search([Query(("a red coat",))], 5, where=where)[0]) == ["p1", "p3"]
    assert searcher.search([Query(("red",))], 5, where=Filter.parse("camera=9"))[0] == []


def test_re_ranking_changes_the_order_and_not_the_scores(searcher):
    plain, ranked = (searcher.search([Query(("a red coat",))], 5, rerank=rerank)[0] for rerank in (False, True))
    assert {match.id: match.score for match in ranked} == {match.id: match.score for match in plain}
    pool = searcher.gallery.vectors[[match.row for match in plain]]
    order = reranked(searcher.embed([Query(("a red coat",))])[0], pool, is_picture=False)
    assert ids(ranked) == [plain[place].id for place in order]
    assert len(searcher.search([Query(like="p0")], 2, rerank=True)[0]) == 2


@pytest.mark.parametrize(
    ("query", "said"),
    [
        (Query(), "nothing is sought"),
        (Query((" ",)), "the sentence is empty"),
        (Query(picture=picture(1, 2, 3, 4), like="p0"), "two pictures"),
        (Query(like="p9"), "no picture with the id 'p9'"),
        (Query(("red",), weight=1.5), "weight 1.5"),
    ],
)
def test_a_query_that_cannot_be_is_one_line(searcher, query, said):
    with pytest.raises(ParameterError, match=said):
        searcher.search([query])


def test_another_model_may_not_search(searcher):
    other = WordEncoder()
    other.digest = "d2"
    with pytest.raises(DataError, match="was made by another model than words"):
        Searcher(searcher.gallery, other)
    with pytest.raises(ParameterError, match="k = 0"):
        searcher.search([Query(("red",))], 0)
