import pytest

from components.errors import DataError, ParameterError
from components.evaluation.leaderboard import DATASETS, METRICS, leaderboard, published_results


def test_every_published_number_has_a_source_and_is_a_percentage_that_grows_with_k():
    results = published_results()
    assert len(results) > 80
    for result in results:
        assert result.source
        assert set(result.metrics) <= set(METRICS)
        assert all(0 < value < 100 for value in result.metrics.values())
        ranks = [result.metrics[name] for name in ("R@1", "R@5", "R@10") if name in result.metrics]
        assert ranks == sorted(ranks)
        assert result.metrics.get("mINP", 0) <= result.metrics.get("mAP", 100)


def test_no_method_is_listed_twice_in_the_same_setting():
    keys = [(r.method, r.dataset, r.setting, r.pretraining) for r in published_results()]
    assert len(keys) == len(set(keys))


@pytest.mark.parametrize(
    ("method", "pretraining", "first"),
    [("IRRA", None, (73.38, 63.46, 60.20)), ("GA-DMS (IRRA)", "WebPerson 5M", (77.60, 69.51, 71.25))],
)
def test_the_numbers_are_those_of_the_papers(method, pretraining, first):
    for dataset, expected in zip(DATASETS, first, strict=True):
        (found,) = [r for r in leaderboard(dataset) if (r.method, r.pretraining) == (method, pretraining)]
        assert found.metrics["R@1"] == expected


def test_own_results_stand_where_their_rank_1_puts_them():
    rows = leaderboard("cuhk-pedes", own={"mine": {"R@1": 77.0, "mAP": 60.0, "queries": 6156.0}})
    ranks = [row.metrics["R@1"] for row in rows]
    assert ranks == sorted(ranks, reverse=True)
    (mine,) = [row for row in rows if row.own]
    assert (mine.method, mine.metrics) == ("mine", {"R@1": 77.0, "mAP": 60.0})
    assert rows.index(mine) not in (0, len(rows) - 1)


def source_of(**metrics):
    (mine,) = [row for row in leaderboard("cuhk-pedes", own={"mine": {"R@1": 70.0, **metrics}}) if row.own]
    assert mine.is_comparable == (mine.source == "computed here")
    return mine.source


def test_a_result_on_another_test_split_than_the_published_one_says_how_it_differs():
    whole = {"pictures": 0, "captions": 0}
    assert source_of() == "computed here"
    assert source_of(queries=6155.0, queries_without_match=1.0, gallery=3074, left_out=whole) == "computed here"
    assert source_of(queries=6000.0) == "computed here, on another test split, 6,000 captions (published 6,156)"
    assert source_of(queries=6156.0, gallery=3073).endswith("3,073 pictures (published 3,074)")
    assert source_of(left_out={"pictures": 2, "captions": 0}).endswith("2 pictures left out")


def test_results_on_another_set_are_refused():
    with pytest.raises(ParameterError, match="own results 'mine' are on 'drawn'"):
        leaderboard("cuhk-pedes", own={"mine": {"R@1": 70.0, "dataset": "drawn"}})


def test_settings_are_kept_apart():
    assert {row.setting for row in leaderboard("rstpreid", "direct transfer")} == {"direct transfer"}
    assert max(row.metrics["R@1"] for row in leaderboard("rstpreid", "direct transfer")) == 58.85


def test_what_is_unknown_or_without_rank_1_is_refused():
    with pytest.raises(ParameterError, match="datasets are cuhk-pedes"):
        leaderboard("market-1501")
    with pytest.raises(ParameterError, match="settings fine-tuned"):
        leaderboard("rstpreid", "zero-shot")
    with pytest.raises(ParameterError, match="'mine' have no R@1"):
        leaderboard("rstpreid", own={"mine": {"mAP": 1.0}})


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("[", "not readable YAML"),
        ("- {method: A, venue: B, setting: fine-tuned, pretraining: null, results: {rstpreid: [1, 2, 3, 4, 5]}}", "no source"),
        ("- {method: A, venue: B, setting: fine-tuned, pretraining: null, source: C, results: {rstpreid: [1]}}", "expected R@1"),
    ],
)  # fmt: skip
def test_a_file_that_is_not_of_its_form_is_refused(tmp_path, text, says):
    (tmp_path / "x.yaml").write_text(text)
    with pytest.raises(DataError, match=says):
        published_results(tmp_path / "x.yaml")
