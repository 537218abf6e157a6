"""The pages of studies and their claims on the front page. The numbers are made up."""

import json
import re
from pathlib import Path
from typing import Any

import pytest

from components.errors import DataError
from pipelines.identity.closure import ROOT
from pipelines.reporting.charts import contrast_chart
from pipelines.reporting.formats import environment, signed
from pipelines.reporting.study_pages import study_pages, write_study_pages
from pipelines.workspace import Workspace

PLAN = """
question: Is it so?
claim: It is so, and nothing else.
controls: ["`none` masks nothing.", Fresh <people>.]
scope: Small people.
labels: {wet: in the rain}
cost: {train: 7}
contrasts:
  - {title: one over other, arm: one, minus: other, at: [wet, dry], expect: more}
"""


def interval(mean: float, seeds: int) -> dict[str, Any]:
    return {"mean": mean, "low": mean - 1, "high": mean + 1, "by_seed": [mean] * seeds, "seeds": list(range(seeds))}


def contrast(condition: str, status: str, screen: float | None, confirm: float | None, **more: Any) -> dict[str, Any]:
    return {
        "title": "one over other",
        "arm": "one",
        "minus": "other",
        "expect": "more",
        "margin": 0.0,
        "condition": condition,
        "status": status,
        "screen": None if screen is None else interval(screen, 2),
        "confirm": None if confirm is None else interval(confirm, 5),
        "planned": {"screen": 0, "confirm": 0},
        **more,
    }


def results(**more: Any) -> dict[str, Any]:
    rows = [
        contrast("wet", "holds", 3.0, 2.5),
        contrast("dry", "open", 0.5, -0.4),
        contrast("dry", "open", 1.5, 7.5, title="asked", expect=None),
    ]
    arms = {"wet": {"sdm/one": {"screen": interval(40, 2)}, "sdm/other": {"screen": interval(30, 2)}}}
    arms["wet"]["sdm/one"]["confirm"] = interval(41, 5)  # which decide
    curve = {"wet": {"one": [{"steps": 100, "mean": 41.0}, {"steps": 400, "mean": 48.0}]}}
    summary = {
        "unit": "R@1",
        "claim": "open",
        "contrasts": rows,
        "start": interval(20, 1),
        "arms": arms,
        "curve": curve,
    }
    cost = {"processor_seconds": 3600.0, "by_function": {"train": {"cells": 9, "processor_seconds_each": 6.5}}}
    phases = {"screen": {"done": 9, "of": 9}, "confirm": {"done": 3, "of": 5}}
    shared = {"revision": "0123456789abcdef", "dirty": False, "done": 12, "of": 14, "phases": phases, "cost": cost}
    return {**shared, "plan": {}, "summary": summary, **more}


def pages(root: Path, found: Any = None, plan: str = PLAN) -> tuple[str, str]:
    """The page of the study, and the claims on the front page."""
    (root / "studies/results").mkdir(parents=True, exist_ok=True)
    (root / "studies/weather.yaml").write_text(plan)
    if found is not None:
        (root / "studies/results/weather.json").write_text(json.dumps(found))
    workspace = Workspace(root, root)
    views = study_pages(workspace)
    (file,) = write_study_pages(workspace, views, "now")
    return file.read_text(), environment(root).get_template("claims.html").render(studies=views)


def test_a_study_that_was_never_measured_is_planned_and_has_no_numbers(tmp_path):
    page, front = pages(tmp_path)
    for html in (page, front):
        assert "It is so, and nothing else." in html
        assert re.search(r'class="pill open">planned<', html)
        assert "Nothing measured yet." in html
        assert 'class="span' not in html
        assert not re.search(r"\[[+−]?\d", html)
    assert "<code>none</code> masks nothing." in page
    assert "Fresh &lt;people&gt;." in page
    assert "in the rain" in page


def test_what_rounds_to_zero_has_no_sign():
    assert [signed(value) for value in (0.0, -0.04, 0.04, -0.06, 0.06)] == ["0.0", "0.0", "0.0", "−0.1", "+0.1"]


def test_a_page_says_what_was_found_when_it_holds_and_what_it_cost(tmp_path):
    page, front = pages(tmp_path, results())
    assert re.search(
        r'in the rain</span>.*?\+2\.5 <small>\[\+1\.5, \+3\.5\]</small>.*?pill yes">holds', page, re.DOTALL
    )
    assert re.search(r'pill open">not confirmed</span> one over other \(dry\)', page)
    assert "asked" in page.partition("Asked besides")[2]
    assert "asked" not in front  # only what is claimed
    assert "12 of 14 measurements, 60 minutes of processor time." in page
    assert re.search(r"<th>train</th>.*?6\.5.*?7<", page)
    assert re.search(r"<th>confirm</th><td class=\"n\">3</td><td class=\"n\">2</td>", page)
    assert "0123456789" in page
    assert ">41.0</td>" in page
    assert ">30.0</td>" in page  # of two seeds alone
    assert "400 steps" in page
    assert 'href="studies/weather.html"' in front
    assert front.index("not confirmed") < front.index("It is so")


def test_contrasts_that_are_being_confirmed_are_among_those_of_when_it_holds(tmp_path):
    found = results()
    found["summary"]["contrasts"] = [
        contrast("wet", "part", 3.0, 2.5),
        contrast("dry", "part", 0.5, 0.4, title="asked", expect=None),
    ]
    page, _ = pages(tmp_path, found)
    assert re.search(r'pill open">being confirmed</span> one over other \(in the rain\)', page)
    assert "measured" not in re.findall(r'class="pill [a-z]+">([^<]*)', page)


def test_every_page_is_one_file_without_anything_from_elsewhere(tmp_path):
    page, _ = pages(tmp_path, results())
    assert not re.findall(r'(?:src|href)="(?!#|\.\./index\.html|[\w-]+\.html)[^"]*"|url\(|@import|https?://', page)
    assert "prefers-color-scheme: dark" in page
    assert 'name="viewport"' in page


def test_the_drawing_shows_screen_fresh_seeds_and_what_is_claimed_where_they_are():
    svg = contrast_chart({**contrast("wet", "holds", 0.0, 5.0), "margin": 2.5}, (-10.0, 10.0), 212)
    x = {value: 6 + 200 * (value + 10) / 20 for value in (-1, 0, 1, 2.5, 4, 5, 6)}
    assert f'class="span screen" x1="{x[-1]}" x2="{x[1]}"' in svg
    assert f'class="span confirm" x1="{x[4]}" x2="{x[6]}"' in svg
    assert f'class="asked" x1="{x[2.5]}"' in svg
    assert svg.count('class="seed"') == 7
    level = contrast_chart(contrast("wet", "open", None, None, expect="level", margin=1.0), (-10.0, 10.0), 212)
    assert f'class="margin" x="{x[-1]}"' in level
    assert "planned" in level
    assert 'class="dot' not in level


def test_results_that_are_no_results_are_named_and_old_pages_go(tmp_path):
    pages(tmp_path, results())
    old = tmp_path / "reports/studies/gone.html"
    old.write_text("")
    pages(tmp_path, results())
    assert not old.exists()
    broken = results()
    del broken["summary"]["contrasts"][0]["status"]
    with pytest.raises(DataError, match=r"studies/results/weather\.json: cannot be shown .* study weather --summary"):
        pages(tmp_path, broken)
    (tmp_path / "studies/results/weather.json").write_text("{")
    with pytest.raises(DataError, match=r"weather\.json: cannot be read"):
        study_pages(Workspace(tmp_path, tmp_path))


def test_the_repositorys_own_studies_have_pages_in_the_order_of_the_claims(tmp_path):
    for name in ("studies", "reports"):
        (tmp_path / name).mkdir()
    (tmp_path / "studies").rmdir()
    (tmp_path / "studies").symlink_to(ROOT / "studies")
    views = study_pages(Workspace(tmp_path, tmp_path))
    assert [view["name"] for view in views] == [
        "factorial",
        "confusion",
        "chain",
        "taca",
        "wording",
        "protocol",
        "gadms",
    ]
    for view in views:
        assert view["question"]
        assert view["controls"]
        assert (
            bool(view["claim"]) == bool(view["contrasts"]) == (view["name"] != "gadms")
        )  # which claimed nothing beforehand
        assert view["front"]
    assert len(write_study_pages(Workspace(tmp_path, tmp_path), views, "now")) == len(views)
