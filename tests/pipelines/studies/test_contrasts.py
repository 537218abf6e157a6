"""Contrasts named beforehand, on made-up values whose intervals are known."""

import numpy as np
import pytest

from components.evaluation.intervals import bootstrap_crossed
from pipelines.studies.contrasts import status_of, status_of_claim, summarise_contrasts
from pipelines.studies.plans import Contrast, PhaseSeeds

SEEDS = {"screen": [0, 1], "confirm": [10, 11, 12]}
BOOTSTRAP = {"resamples": 200, "seed": 0}


def row(low: float, high: float, expect: str | None, margin: float = 0.0, planned: int = 0) -> dict:
    found = {"mean": (low + high) / 2, "low": low, "high": high}
    return {"expect": expect, "margin": margin, "screen": None, "confirm": found, "planned": {"confirm": planned}}


@pytest.mark.parametrize(
    ("found", "status"),
    [
        (row(0.5, 2, "more"), "holds"),
        (row(0.5, 2, "more", 1.0), "open"),
        (row(0.5, 2, "more", 3.0), "contradicted"),
        (row(-0.5, 2, "more"), "open"),
        (row(-2, -0.5, "more"), "contradicted"),
        (row(-2, -0.5, "less"), "holds"),
        (row(-2, 0.5, "less"), "open"),
        (row(0.5, 2, "less"), "contradicted"),
        (row(-0.9, 0.9, "level", 1.0), "holds"),
        (row(0.1, 0.9, "level", 1.0), "holds"),
        (row(0.1, 1.2, "level", 1.0), "open"),
        (row(1.1, 1.9, "level", 1.0), "contradicted"),
        (row(0.5, 2, None), "open"),
        (row(0.5, 2, "more", planned=1), "part"),
    ],
)
def test_fresh_seeds_decide_by_the_whole_interval(found, status):
    assert status_of(found) == status


def test_the_screen_decides_nothing_and_what_is_not_measured_has_no_numbers():
    values = {(arm, seed): np.full(4, 50.0 + 10 * (arm == "a")) for arm in "ab" for seed in (0, 1)}
    contrast = Contrast(title="a over b", arm="a", minus="b", at=["here", "there"], expect="more")

    def at(arm, condition, seed):
        return values.get((arm, seed)) if condition == "here" else None

    here, there = summarise_contrasts([contrast], SEEDS, at, BOOTSTRAP)
    assert (here["status"], here["confirm"], here["planned"]) == ("screened", None, {"screen": 0, "confirm": 3})
    assert here["screen"]["mean"] == here["screen"]["low"] == 10
    assert (there["status"], there["screen"], there["confirm"]) == ("planned", None, None)


def test_differences_are_paired_by_seed_and_item_and_resampled_over_both():
    random = np.random.default_rng(0)
    values = {(arm, seed): random.normal(50, 10, 30) for arm in "ab" for seed in (0, 1, 10, 11)}
    del values["b", 11]
    contrast = Contrast(title="a over b", arm="a", minus="b", at=["here"])
    (found,) = summarise_contrasts([contrast], SEEDS, lambda arm, _, seed: values.get((arm, seed)), BOOTSTRAP)
    table = np.stack([values["a", seed] - values["b", seed] for seed in (0, 1)])
    expected = bootstrap_crossed(table, **BOOTSTRAP).as_dict()
    assert {name: found["screen"][name] for name in expected} == expected
    assert found["screen"]["by_seed"] == table.mean(1).tolist()
    assert (found["confirm"]["seeds"], found["planned"]["confirm"], found["status"]) == ([10], 2, "part")


@pytest.mark.parametrize(
    ("statuses", "claim"),
    [
        (["planned", "planned"], "planned"),
        (["planned", "screened"], "screened"),
        (["holds", "planned"], "part"),
        (["part", "screened"], "part"),
        (["holds", "contradicted", "planned"], "contradicted"),
        (["holds", "open"], "open"),
        (["holds", "holds"], "holds"),
    ],
)
def test_a_claim_needs_all_of_its_contrasts_and_none_against_it(statuses, claim):
    asked = {"status": "contradicted", "expect": None}
    assert status_of_claim([*({"status": status, "expect": "more"} for status in statuses), asked]) == claim


@pytest.mark.parametrize(
    ("made", "message"),
    [
        (lambda: PhaseSeeds(screen=[0, 1], confirm=[1, 2]), "confirm: seed 1 has screened already"),
        (lambda: Contrast(title="", arm="a", minus="b", at=["x"], expect="level"), "margin: `level` needs one above 0"),
        (lambda: Contrast(title="", arm="a", minus="a", at=["x"]), "a is compared with itself"),
    ],
)
def test_contrasts_that_could_show_nothing_are_refused(made, message):
    with pytest.raises(ValueError, match=message):
        made()
