"""What the report page shows of the GA-DMS study. The numbers are made up, and summed up by the study itself."""

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from components.errors import DataError
from pipelines.identity.closure import ROOT
from pipelines.params import load
from pipelines.reporting.formats import signed
from pipelines.reporting.studies import auc_map
from pipelines.reporting.study_pages import study_pages, write_study_pages
from pipelines.schema.reading import read
from pipelines.studies import gadms
from pipelines.workspace import Workspace

PEOPLE, SENTENCES = 30, 4


def made_up_results(only: str = "") -> dict[str, Any]:
    """Results in the form that the engine writes, of cells whose key holds `only`."""
    plan, params = read(ROOT / "studies/gadms.yaml", gadms.GadmsPlan, "studies/gadms.yaml"), load(ROOT / "params.yaml")
    cells = gadms.cells(plan, params)
    results: dict[str, Any] = {}
    for cell in cells:
        random = np.random.default_rng(sum(map(ord, cell.key)))
        if cell.function == "train":
            ranks = random.integers(1, 4, PEOPLE * SENTENCES)
            identity = np.repeat(np.arange(PEOPLE), SENTENCES)
            metrics = {metric: 100 * float((ranks == 1).mean()) for metric in gadms.METRICS}
            results[cell.key] = {
                "hits": (100.0 * (ranks == 1)).tolist(),
                "identity": identity.tolist(),
                "queries": 120.0,
                **metrics,
            }
        elif cell.function == "score":
            kinds = ("seen", "unseen") if cell.settings["noise"] else ("unseen",)
            names = [f"{kind}{c}/{name}" for kind in kinds for c in ("", "_colour") for name in plan.scores.scores]
            results[cell.key] = {name: float(random.uniform(0.3, 0.9)) for name in names}
        else:
            results[cell.key] = {"R@1": 1.0}
    done = {key: result for key, result in results.items() if only in key}
    return {
        "study": "gadms",
        "revision": "0123456789abcdef",
        "dirty": False,
        "done": len(done),
        "of": len(cells),
        "plan": plan.model_dump(mode="json"),
        "summary": gadms.summarise(plan, params, done),
    }


def rendered(root: Path, results: Any) -> str:
    file = root / "studies/results/gadms.json"
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(results))
    (page,) = write_study_pages(Workspace(root, root), study_pages(Workspace(root, root)), "now")
    return page.read_text()


@pytest.fixture(scope="module")
def whole() -> dict[str, Any]:
    return made_up_results()


def test_every_arm_shows_its_number_and_a_dot_for_each_seed(whole, tmp_path):
    html = rendered(tmp_path, whole)
    arms = whole["summary"]["arms"]
    plan = whole["plan"]
    for rows in arms.values():
        for row in rows.values():
            assert f'<td class="n big">{row["R@1"]:.1f}</td>' in html
            for difference in row["minus"].values():
                assert signed(difference["mean"]) in html
    shown, seeds = sum(map(len, arms.values())), len(plan["seeds"])
    assert (
        len(re.findall('class="seed"', html.partition('id="details"')[2])) == (2 * shown - len(plan["noise"])) * seeds
    )  # but random minus random
    assert "0123456789" in html
    assert "So far" not in html


def test_scores_are_shown_best_first_in_the_colour_of_their_distance_from_a_coin(whole, tmp_path):
    html = rendered(tmp_path, whole)
    tables = re.findall(r'<table class="map">.*?</table>', html, re.DOTALL)
    for table, noise in zip(tables, ("noise 0", "noise 0.2", "noise 0.4"), strict=True):
        encoders = whole["summary"]["scores"][noise]
        found = re.findall(r'<td class="(up|down)" style="--s:([\d.]+)" title="[^"]*">(\d+)</td>', table)
        values = [row for kinds in encoders.values() for kind, row in kinds.items() if kind != "seeds"]
        assert len(found) == sum(len(row) for row in values)
        for kind, share, number in found:
            assert (kind == "up") == (int(number) >= 50) or int(number) == 50
            assert float(share) == pytest.approx(2 * abs(int(number) / 100 - 0.5), abs=0.016)
        order = re.findall(r"<tr><th>([\w-]+)</th>", table.partition("<tbody>")[2])
        mean = {name: np.mean([row[name]["mean"] for row in values]) for name in order}
        assert order == sorted(order, key=lambda name: -mean[name])


def test_an_unfinished_study_is_shown_as_far_as_it_is(tmp_path):
    html = rendered(tmp_path, made_up_results(only="noise-0.2/seed-0"))
    assert "So far" in html
    assert "1 seeds" in html
    assert "<small>noise 0.4" not in html
    nothing = rendered(tmp_path, {**made_up_results(only="no such cell"), "revision": None, "dirty": None})
    assert "So far 0 of" in nothing
    assert auc_map({}) is None


def test_a_broken_file_is_named(tmp_path):
    with pytest.raises(DataError, match=r"studies/results/gadms\.json: cannot be read .* study gadms"):
        rendered(tmp_path, {"summary": {}})
