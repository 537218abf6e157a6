"""`reports/index.html`, made from `reports/report.json`, its pictures, and MLflow's runs, and a page for each study beside it.

It computes no results. Pictures are data URIs and drawings inline SVG, so that each file can be mailed.
"""

import datetime
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from components.errors import DataError
from components.files import write_atomically
from pipelines import params
from pipelines.errors import REPRO_COMMAND
from pipelines.graph import GADMS_ARMS, TACA_ARMS, Stage, all_stages, runs_of
from pipelines.reporting import charts, diagram
from pipelines.reporting.attention import mass_panels
from pipelines.reporting.charts import axis, centred, ends
from pipelines.reporting.formats import ARM_NAMES, duration, environment
from pipelines.reporting.retrieval import leaderboards, noise_panels
from pipelines.reporting.runs import FoundRuns, attach, look_up
from pipelines.reporting.study_pages import PAGES, study_pages, write_study_pages
from pipelines.reporting.sweep_costs import sweep_costs
from pipelines.tracking.runs import flatten
from pipelines.workspace import Workspace

REPORT, FIGURES, PAGE = "reports/report.json", "reports/figures", "reports/index.html"
CURVES = ("loss", "psnr", "accuracy", "contrastive", "sdm", "mtp", "noise_auc", "R@1")
"""The curves that are drawn, by the last part of their name."""


def render(workspace: Workspace) -> Path:
    """Write the page and return its path. Raises DataError when the report stage has not run, ParameterError for bad params."""
    source = workspace.path(REPORT)
    if not source.is_file():
        raise DataError(f"{REPORT} does not exist: run `{REPRO_COMMAND} report`")
    report = json.loads(source.read_text(encoding="utf-8"))
    if "checks" not in report or "dataset" not in report["retrieval"]:
        raise DataError(f"{REPORT} holds no report: run `{REPRO_COMMAND} --force report`")
    settings = params.load(workspace.path("params.yaml"))
    found = look_up(workspace, settings)
    page = environment(workspace.path(FIGURES)).get_template("page.html")
    studies = study_pages(workspace)
    rendered = datetime.datetime.now().astimezone().strftime("%Y-%m-%d %H:%M %Z")
    text = page.render(
        report=report,
        found=found,
        taca_arms=TACA_ARMS,
        gadms_arms=GADMS_ARMS,
        stages=[stage_view(stage, report, settings, found) for stage in all_stages()],
        graph=diagram.draw(all_stages(), {stage.name: stage_label(stage, found) for stage in all_stages()}),
        **result_axes(report),
        masses=mass_panels(report["attention"]),
        studies=studies,
        sweeps=sweep_costs(workspace),
        curves=curve_panels(report["curves"]),
        noise_panels=noise_panels(report["curves"]),
        boards=leaderboards(report["retrieval"], ARM_NAMES),
        parity=parity_panels(report["parity"]),
        total=sum(run.seconds or 0 for run in found.runs.values()),
        rendered=rendered,
    )
    target = workspace.path(PAGE)
    write_atomically(target, text)
    write_study_pages(workspace, studies, rendered)
    if found.problem is None:
        attach(workspace, target, workspace.path(PAGES))
    return target


def result_axes(report: Mapping[str, Any]) -> dict[str, charts.Limits]:
    """The axes of the result tables, common to all guidance scales."""
    drawn = [arm for part in report["alignment"].values() for arm in part["arms"].values()]
    searched = report["retrieval"]["arms"].values()
    return {
        "alignment_axis": axis(ends(arm["alignment"] for arm in drawn)),
        "difference_axis": centred(axis(ends(arm["difference"]["mean"] for arm in drawn if "difference" in arm), 5)),
        "retrieval_axis": axis(ends(arm["R@1_interval"] for arm in searched)),
        "retrieval_difference_axis": centred(
            axis(ends(arm["R@1_difference"] for arm in searched if "R@1_difference" in arm), 5)
        ),
    }


def stage_view(
    stage: Stage, report: Mapping[str, Any], settings: params.Parameters, found: FoundRuns
) -> dict[str, Any]:
    """One stage on the page: a row per arm, metrics as a table of arms, and the parameters that it reads."""
    addresses = [run.address for run in runs_of(stage)]
    metrics = {address: flatten(report["metrics"].get(address, {})) for address in addresses}
    names = sorted({name for row in metrics.values() for name in row})
    return {
        "name": stage.name,
        "about": stage.about,
        "rows": [
            {
                "arm": run.arm,
                "address": run.address,
                "fingerprint": found.fingerprints.get(run.address, ""),
                "run": found.runs.get(run.address),
            }
            for run in runs_of(stage)
        ],
        "arms": [run.arm or "all" for run in runs_of(stage)],
        "metrics": [(name, [metrics[address].get(name) for address in addresses]) for name in names],
        "parameters": flatten(settings.only(stage.reads)),
        "label": stage_label(stage, found),
    }


def stage_label(stage: Stage, found: FoundRuns) -> diagram.Label:
    """The duration of a stage over all arms, or that no run was found."""
    runs = [found.runs[run.address] for run in runs_of(stage) if run.address in found.runs]
    if not runs:
        return diagram.Label("run not found", "unknown")
    seconds = sum(run.seconds or 0 for run in runs)
    arms = f" · {len(stage.arms)} arms" if stage.arms else ""
    kind = "finished" if len(runs) == len(runs_of(stage)) else "partial"
    return diagram.Label(duration(seconds) + arms, kind)


def curve_panels(curves: Mapping[str, Mapping[str, Sequence[Any]]]) -> list[dict[str, Any]]:
    """The charts of each stage, one curve per arm; a chart equal to an earlier one is left out."""
    stages: dict[str, dict[str, Mapping[str, Sequence[Any]]]] = {}
    for address, table in curves.items():
        name, _, arm = address.partition("@")
        stages.setdefault(name, {})[arm or "all"] = table
    panels = []
    for stage in (stage.name for stage in all_stages() if stage.name in stages):
        arms = {arm: stages[stage][arm] for arm in (*TACA_ARMS, *GADMS_ARMS, "all") if arm in stages[stage]}
        columns = sorted({column for table in arms.values() for column in table if column.rpartition("/")[2] in CURVES})
        columns.sort(key=lambda column: CURVES.index(column.rpartition("/")[2]))
        seen: list[Any] = []
        drawn = []
        for column in columns:
            series = {arm: (table["step"], table[column]) for arm, table in arms.items() if column in table}
            if list(series.values()) in seen:
                continue
            seen.append(list(series.values()))
            drawn.append({"title": column, "svg": charts.line_chart(series, f"{stage}: {column}")})
        if drawn:  # a stage that copies published weights trains nothing
            panels.append({"stage": stage, "arms": [arm for arm in arms if arm != "all"], "charts": drawn})
    return panels


def parity_panels(parity: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The two loss curves of each method in one chart."""
    return [
        {
            "method": method,
            "worst": 100 * row["largest_relative_difference"],
            "distributed": row["name"].replace("_", " "),
            "svg": charts.line_chart(
                {"local": (row["step"], row["local"]), "distributed": (row["step"], row["distributed"])},
                f"{method}: loss in one process and with workers",
            ),
        }
        for method, row in parity.items()
    ]
