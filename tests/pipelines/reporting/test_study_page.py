"""What the report page shows of the TACA study. The numbers are made up, and summed up by the study itself."""

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from components.errors import DataError
from pipelines.identity.closure import ROOT
from pipelines.params import load
from pipelines.reporting.charts import interval_bar
from pipelines.reporting.formats import signed
from pipelines.reporting.studies import study_views
from pipelines.reporting.study_pages import study_pages, write_study_pages
from pipelines.schema.reading import read
from pipelines.schema.taca import TacaEvaluate
from pipelines.studies import taca
from pipelines.workspace import Workspace


def made_up_results(only: str = "", study: str = "taca") -> dict[str, Any]:
    """Results in the form that the engine writes, of cells whose key holds `only`; better with gamma up to 1.4, worse beyond."""
    file = f"studies/{study}.yaml"
    plan, params = read(ROOT / file, taca.TacaPlan, file), load(ROOT / "params.yaml")
    params = params.model_copy(update={"taca_evaluate": TacaEvaluate(resamples=200)})
    cells = [cell for cell in taca.cells(plan, params) if cell.function == "draw"]
    results = {}
    for cell in cells:
        shared = np.random.default_rng(cell.settings["seed"])
        own = np.random.default_rng(sum(map(ord, cell.key)))
        number, gamma = cell.settings["prompts"], cell.settings.get("gamma", 1.0)
        reach = 1 - cell.settings.get("threshold", 1.0)
        sign = 1 if cell.settings["guidance"] == 1 else -0.6
        gain = sign * 12 * reach * ((gamma - 1) - 2 * (gamma - 1) ** 2) + (1.5 if "lora" in cell.key else 0)
        shown = np.clip(shared.normal(60, 15, 400)[:number] + gain + own.normal(0, 6, number), 0, 100)
        active = int(np.ceil(16 * reach)) if gamma != 1 else 0
        results[cell.key] = {
            "alignment": float(shown.mean()),
            "shown": shown.tolist(),
            "prompt_ids": list(range(number)),
            "steps": 16,
            "active_steps": active,
            "sigma": cell.settings.get("threshold"),
        }
    done = {key: result for key, result in results.items() if only in key}
    return {
        "study": study,
        "revision": "0123456789abcdef",
        "dirty": False,
        "done": len(done),
        "of": len(cells),
        "plan": plan.model_dump(mode="json"),
        "summary": taca.summarise(plan, params, done),
    }


def rendered(root: Path, results: Any, study: str = "taca") -> str:
    file = root / f"studies/results/{study}.json"
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(results if isinstance(results, str) else json.dumps(results))
    (page,) = write_study_pages(Workspace(root, root), study_pages(Workspace(root, root)), "now")
    return page.read_text()


@pytest.fixture(scope="module")
def whole() -> dict[str, Any]:
    return made_up_results()


def test_every_place_of_the_map_shows_its_number_and_colour(whole, tmp_path):
    html = rendered(tmp_path, whole)
    tables = re.findall(r'<table class="map">.*?</table>', html, re.DOTALL)
    assert len(tables) == 2
    largest = max(abs(row["difference"]["mean"]) for rows in whole["summary"]["map"].values() for row in rows)
    for table, guidance in zip(tables, ("guidance 1", "guidance 2.5"), strict=True):
        rows = whole["summary"]["map"][guidance]
        places = re.findall(r'<td class="(up|down)( sure)?( default)?" style="--s:([\d.]+)"[^>]*>([^<]*)</td>', table)
        wanted = sorted(rows, key=lambda row: (row["gamma"], -row["threshold"]))
        assert len(places) == len(wanted) == 25
        for (kind, sure, default, share, number), row in zip(places, wanted, strict=True):
            mean, low, high = (row["difference"][key] for key in ("mean", "low", "high"))
            assert number == signed(mean)
            assert kind == ("up" if mean >= 0 else "down")
            assert bool(sure) == (low > 0 or high < 0)
            assert float(share) == pytest.approx((abs(mean) / largest) ** 0.5, abs=0.006)
            assert bool(default) == ((row["gamma"], row["threshold"]) == (1.2, 0.8))
        assert "16/16 steps" in table


def test_arms_and_variants_show_a_dot_for_each_seed(whole, tmp_path):
    html = rendered(tmp_path, whole)
    before, _, after = html.partition('id="details"')[2].partition("γ and threshold")
    arms = len(re.findall('class="seed"', before))
    assert arms == 2 * (4 + 3) * (2 + 5)  # two guidances; four means and three differences; seeds of both phases
    assert len(re.findall('class="seed"', after)) == 2 * 6 * 2  # the default schedule and five variants, two seeds
    for name in ("as it was chosen", "carried by the rule"):
        assert after.count(f"<th>{name}</th>") == 2
    assert "0123456789" in html
    assert "So far" not in html
    assert all(name in html for name in ("bias: logits + log γ", "text queries × image keys", "TACA + LoRA"))


def test_a_study_of_the_same_kind_that_has_only_arms_shows_them(tmp_path):
    html = rendered(tmp_path, made_up_results(study="wording"), "wording")
    assert html.count("<h3>The four arms") == 2
    assert "γ and threshold" not in html
    assert "Controls and other schedules" not in html
    assert "The threshold at another size" not in html


def test_arms_are_compared_over_the_seeds_that_all_of_them_have():
    results = made_up_results()["summary"]["arms"]["guidance 1"]
    assert {tuple(row["seeds"]) for row in results.values()} == {(0, 1, 10, 11, 12, 13, 14)}
    results = made_up_results(only="/taca/guidance-1/seed-1")["summary"]["arms"]["guidance 1"]
    assert results == {}  # nothing to compare it with


def test_an_unfinished_study_is_shown_as_far_as_it_is(tmp_path):
    results = made_up_results(only="guidance-1/seed-0")
    html = rendered(tmp_path, results)
    assert f"So far {results['done']} of {results['of']} measurements." in html
    assert "1 seeds" in html
    assert "guidance 2.5" not in html.partition('id="details"')[2]
    nothing = rendered(tmp_path, {**made_up_results(only="no such cell"), "revision": None, "dirty": None})
    assert "So far 0 of" in nothing
    assert "revision" not in nothing


def test_without_results_there_is_nothing_to_show_and_a_broken_file_is_named(tmp_path):
    assert study_views(Workspace(tmp_path, tmp_path)) == {}
    for text in ("{", "{}", "[]"):
        with pytest.raises(DataError, match=r"studies/results/taca\.json: cannot be read .* study taca"):
            rendered(tmp_path, text)


def test_a_seeds_dot_lies_where_its_value_is_on_the_axis():
    svg = interval_bar({"mean": 1.0, "low": 0.0, "high": 2.0}, (-4.0, 4.0), "taca", 108, [-4.0, 0.0, 4.0, 9.0])
    dots = [float(x) for x in re.findall(r'class="seed" cx="([\d.]+)"', svg)]
    assert dots == [4.0, 54.0, 104.0, 104.0]  # a value beyond the axis lies at its end
    assert "by seed -4.0, 0.0, 4.0, 9.0" in svg
