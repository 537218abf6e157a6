"""`reports/index.html`: one file that holds everything, made from `reports/report.json`, its pictures, and what MLflow knows.

Nothing is computed here but its look. Pictures are data URIs, drawings inline SVG, so that the file can be mailed.
"""

import base64
import datetime
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from components.errors import DataError
from components.files import write_atomically
from pipelines import params
from pipelines.graph import GADMS_ARMS, TACA_ARMS, Stage, all_stages, runs_of
from pipelines.reporting import charts, diagram
from pipelines.reporting.attention import mass_panels
from pipelines.reporting.retrieval import leaderboards, noise_panels
from pipelines.reporting.runs import Known, look_up
from pipelines.reporting.studies import seeds_bar, study_views
from pipelines.reporting.sweep_costs import sweep_costs
from pipelines.tracking.runs import flatten
from pipelines.workspace import Workspace

REPORT, FIGURES, PAGE = "reports/report.json", "reports/figures", "reports/index.html"
TEMPLATES = Path(__file__).parent / "templates"
ARM_NAMES = {
    "base": "base",
    "lora": "LoRA, γ = 1",
    "taca": "TACA",
    "taca_lora": "TACA + LoRA",
    "gadms": "GA-DMS",
    "random": "random masking",
    "contrastive": "contrastive",
    "nam": "NAM",
    "irra": "IRRA",
}
DRAWN = ("loss", "psnr", "accuracy", "contrastive", "sdm", "mtp", "noise_auc", "R@1")
"""Which of a stage's curves are drawn, by the last part of the name."""
ABOUT = {
    "prepare": "Draws people and captions (or reads a published set), checks every record, splits by identity.",
    "probe": "Trains the attribute classifier that judges generated people, on real pictures only.",
    "base_model": "Trains the small FLUX text-to-image pipeline, or pins a published one.",
    "taca_cache": "Encodes training pictures and captions once.",
    "taca_train": "Trains a LoRA above the threshold: under the temperature schedule, and at γ = 1 as a control.",
    "taca_generate": "Draws people for prompts with every arm, from the same noise, and a corpus for retrieval.",
    "taca_evaluate": "Asks the probe whether generated people show what their prompts asked for.",
    "taca_attention": "Measures how much of the image's attention goes to the text, with TACA and without.",
    "curate": "Keeps the generated people that are sharp enough and match their captions.",
    "gadms_pretrain": "Pre-trains the dual encoder on generated people, one arm per masking method.",
    "gadms_finetune": "Fine-tunes it on real people by the same method.",
    "gadms_evaluate": "Finds people of the test split by their captions; scores words of noisy captions.",
    "index": "Embeds the gallery, so that sentences can search it.",
    "train_parity": "Trains the same steps in one process and with Ray Train workers.",
    "report": "Collects all of it.",
}


def render(workspace: Workspace) -> Path:
    """Write the page and return its path. Raises DataError when the report stage has not run, ParameterError for bad params."""
    source = workspace.path(REPORT)
    if not source.is_file():
        raise DataError(f"{REPORT} is not there: run `dvc repro report`")
    report = json.loads(source.read_text(encoding="utf-8"))
    if "checks" not in report:
        raise DataError(f"{REPORT} holds no report: run `dvc repro --force report`")
    settings = params.load(workspace.path("params.yaml"))
    known = look_up(workspace, settings)
    page = (
        environment(workspace.path(FIGURES))
        .get_template("page.html")
        .render(
            report=report,
            known=known,
            taca_arms=TACA_ARMS,
            gadms_arms=GADMS_ARMS,
            stages=[stage_view(stage, report, settings, known) for stage in all_stages()],
            graph=diagram.draw(all_stages(), {stage.name: stage_label(stage, known) for stage in all_stages()}),
            alignment_axis=axis(
                interval for part in report["alignment"].values() for interval in means(part, "alignment")
            ),
            difference_axis=even(axis((i for part in report["alignment"].values() for i in differences(part)), 5)),
            retrieval_axis=axis(arm["R@1_interval"] for arm in report["retrieval"]["arms"].values()),
            retrieval_difference_axis=even(
                axis(
                    (arm["R@1_difference"] for arm in report["retrieval"]["arms"].values() if "R@1_difference" in arm),
                    5,
                )
            ),
            masses=mass_panels(report["attention"]),
            studies=study_views(workspace),
            sweeps=sweep_costs(workspace),
            curves=curve_panels(report["curves"]),
            noise_panels=noise_panels(report["curves"]),
            boards=leaderboards(
                settings.prepare.source,
                {ARM_NAMES.get(arm, arm): row for arm, row in report["retrieval"]["arms"].items()},
            ),
            parity=parity_panels(report["parity"]),
            total=sum(made.seconds or 0 for made in known.runs.values()),
            rendered=datetime.datetime.now().astimezone().strftime("%Y-%m-%d %H:%M %Z"),
        )
    )
    target = workspace.path(PAGE)
    write_atomically(target, page)
    return target


def environment(figures: Path) -> Environment:
    """Jinja with the filters that the templates use. A name that is missing is an error, not a hole in the page."""
    made = Environment(
        loader=FileSystemLoader(TEMPLATES),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    made.filters |= {
        "number": number,
        "signed": signed,
        "duration": duration,
        "words": lambda name: str(name).replace("_", " "),
        "arm": lambda name: ARM_NAMES.get(name, name),
        "picture": lambda name: data_uri(figures / name),
        "shares": shares,
        "certain": certain,
    }
    made.globals |= {
        "interval_bar": charts.interval_bar,
        "seeds_bar": seeds_bar,
        "style": (TEMPLATES / "style.css").read_text(encoding="utf-8"),
    }
    return made


def stage_view(stage: Stage, report: Mapping[str, Any], settings: params.Parameters, known: Known) -> dict[str, Any]:
    """What the page says of one stage: a row for each arm, metrics as a table of arms, the parameters it reads."""
    addresses = [run.address for run in runs_of(stage)]
    metrics = {address: flatten(report["metrics"].get(address, {})) for address in addresses}
    names = sorted({name for row in metrics.values() for name in row})
    return {
        "name": stage.name,
        "about": ABOUT.get(stage.name, ""),
        "rows": [
            {
                "arm": run.arm,
                "address": run.address,
                "fingerprint": known.fingerprints.get(run.address, ""),
                "made": known.runs.get(run.address),
            }
            for run in runs_of(stage)
        ],
        "arms": [run.arm or "all" for run in runs_of(stage)],
        "metrics": [(name, [metrics[address].get(name) for address in addresses]) for name in names],
        "parameters": flatten(settings.only(stage.reads)),
        "label": stage_label(stage, known),
    }


def stage_label(stage: Stage, known: Known) -> diagram.Label:
    """How long the stage took over its arms, or that no run was found."""
    made = [known.runs[run.address] for run in runs_of(stage) if run.address in known.runs]
    if not made:
        return diagram.Label("run not found", "unknown")
    seconds = sum(run.seconds or 0 for run in made)
    arms = f" · {len(stage.arms)} arms" if stage.arms else ""
    kind = "finished" if len(made) == len(runs_of(stage)) else "partial"
    return diagram.Label(duration(seconds) + arms, kind)


def curve_panels(curves: Mapping[str, Mapping[str, Sequence[Any]]]) -> list[dict[str, Any]]:
    """For each stage its charts, the arms laid over each other; a chart that repeats another is left out."""
    stages: dict[str, dict[str, Mapping[str, Sequence[Any]]]] = {}
    for address, table in curves.items():
        name, _, arm = address.partition("@")
        stages.setdefault(name, {})[arm or "all"] = table
    panels = []
    for stage in (stage.name for stage in all_stages() if stage.name in stages):
        arms = {arm: stages[stage][arm] for arm in (*TACA_ARMS, *GADMS_ARMS, "all") if arm in stages[stage]}
        columns = sorted({column for table in arms.values() for column in table if column.rpartition("/")[2] in DRAWN})
        columns.sort(key=lambda column: DRAWN.index(column.rpartition("/")[2]))
        seen: list[Any] = []
        drawn = []
        for column in columns:
            series = {arm: (table["step"], table[column]) for arm, table in arms.items() if column in table}
            if list(series.values()) in seen:
                continue
            seen.append(list(series.values()))
            drawn.append({"title": column, "svg": charts.line_chart(series, f"{stage}: {column}")})
        panels.append({"stage": stage, "arms": [arm for arm in arms if arm != "all"], "charts": drawn})
    return panels


def parity_panels(parity: Mapping[str, Any]) -> list[dict[str, Any]]:
    """For each method its two loss curves over each other."""
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


def means(part: Mapping[str, Any], key: str) -> list[Mapping[str, float]]:
    return [arm[key] for arm in part["arms"].values()]


def differences(part: Mapping[str, Any]) -> list[Mapping[str, float]]:
    return [arm["difference"]["mean"] for arm in part["arms"].values() if "difference" in arm]


def axis(intervals: Any, step: float = 10) -> tuple[float, float]:
    """A round axis that holds all intervals."""
    found = list(intervals)
    if not found:
        return (0, 100)
    return charts.scale(min(i["low"] for i in found), max(i["high"] for i in found), step)


def even(limits: tuple[float, float]) -> tuple[float, float]:
    """The same axis with 0 in its middle."""
    reach = max(abs(limits[0]), abs(limits[1]))
    return -reach, reach


def number(value: Any) -> str:
    """A number as people read it; a dash for none."""
    if value is None:
        return "–"
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return str(value)
    if isinstance(value, int) or value == int(value):
        return f"{int(value):,}".replace(",", "\u202f") if abs(value) >= 10_000 else str(int(value))
    if abs(value) < 1e-3:
        return "< 0.001" if value > 0 else "> −0.001"
    return f"{value:.1f}" if abs(value) >= 10 else f"{value:.3g}"


def signed(value: float) -> str:
    return f"{value:+.1f}".replace("-", "−")


def duration(seconds: float | None) -> str:
    if seconds is None:
        return "–"
    return f"{seconds:.1f} s" if seconds < 60 else f"{int(seconds // 60)} min {int(seconds % 60)} s"


def certain(interval: Mapping[str, float]) -> str:
    """The class of a difference: better or worse where its interval leaves out 0."""
    return "better" if interval["low"] > 0 else "worse" if interval["high"] < 0 else "even"


def shares(words: Sequence[Mapping[str, Any]], scores: Sequence[float | None]) -> list[dict[str, Any]]:
    """A caption's words with a score of each, placed between the caption's least (0) and greatest (1)."""
    values = [score or 0.0 for score in scores]
    low, high = min(values), max(values)
    placed = [(value - low) / (high - low or 1) for value in values]
    return [{**word, "score": value, "share": share} for word, value, share in zip(words, values, placed, strict=True)]


def data_uri(path: Path) -> str:
    return "data:image/png;base64," + base64.b64encode(path.read_bytes()).decode()
