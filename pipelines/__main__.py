"""The command line: `python -m pipelines <verb>`."""

import argparse
import sys
from pathlib import Path

from pipelines import actions
from pipelines.curating import options as curating
from pipelines.errors import report_error
from pipelines.generating import options as generating
from pipelines.sweeps import options as sweeping


def main(arguments: list[str] | None = None) -> int:
    options = _parser().parse_args(arguments)
    try:
        options.act(options)
    except BaseException as error:
        if isinstance(error, SystemExit):
            raise
        return report_error(error)
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m pipelines", description="Crossmodal pipelines: TACA and GA-DMS.")
    parser.add_argument("--workspace", type=Path, default=Path.cwd(), help="folder of params.yaml (default: here)")
    verbs = parser.add_subparsers(required=True, metavar="verb")

    run = verbs.add_parser("run", help="bring one stage up to date (what dvc.yaml calls)")
    run.add_argument("stage", help="name, or name@arm")
    run.set_defaults(act=actions.run)

    again = verbs.add_parser("repro", help="`dvc repro`, one at a time in a checkout; clears a killed one's locks")
    again.add_argument("--wait", action="store_true", help="wait for another one that runs here")
    for flag in ("--force", "--single-item", "--dry"):
        again.add_argument(flag, action="store_true", help="as of dvc repro")
    again.add_argument("stages", nargs="*", help="as of dvc repro (default: all)")
    again.set_defaults(act=actions.repro)

    preset = verbs.add_parser("preset", help="write a preset's values into params.yaml")
    preset.add_argument("name", help="a file in presets/, without .yaml")
    preset.add_argument("--flags", action="store_true", help="print `dvc exp run -S` flags and change nothing")
    preset.set_defaults(act=actions.preset)

    report = verbs.add_parser("report", help="render reports/index.html")
    report.set_defaults(act=actions.report)

    search = verbs.add_parser("search", help="find people by a sentence")
    search.add_argument("query", help='for example "a woman in a red coat"')
    search.add_argument("--top", type=int, default=5, metavar="K", help="how many matches (default 5)")
    search.add_argument("--picture", type=Path, help="also write the matches side by side into this PNG")
    search.set_defaults(act=actions.search)

    generate = verbs.add_parser("generate", help="draw pictures for the prompts of a file, in shards")
    generating.add_options(generate)
    generate.set_defaults(act=actions.generate)

    curate = verbs.add_parser("curate", help="make a training set of people out of any pictures: judge, caption, match")
    curating.add_options(curate)
    curate.set_defaults(act=actions.curate)

    _add_compbench(verbs.add_parser("compbench", help="score folders of pictures as T2I-CompBench does"))

    dry = verbs.add_parser("dry-run", help="what a run of TACA would do and need; writes and downloads nothing")
    dry.add_argument("--preset", metavar="NAME", help="a file in presets/, laid over params.yaml")
    dry.add_argument("--architecture", type=Path, metavar="FILE", help="config.json of the transformer")
    dry.set_defaults(act=actions.dry_run)

    study = verbs.add_parser("study", help="measure what a study in studies/ has not measured yet, and sum it up")
    study.add_argument("name", help="a file in studies/, without .yaml")
    study.add_argument(
        "--only", metavar="PATTERN", help="only cells whose key matches, such as 'map/*' (and what they need)"
    )
    study.add_argument("--workers", type=int, default=1, metavar="N", help="processes that measure at once (default 1)")
    study.add_argument("--list", action="store_true", help="list the cells and which are done; measure nothing")
    study.add_argument("--summary", action="store_true", help="write the results of what is done; measure nothing")
    study.set_defaults(act=actions.study)

    sweep = verbs.add_parser("sweep", help="try configurations of a search space, several at once")
    sweeping.add_options(sweep)
    sweep.set_defaults(act=actions.sweep)

    winner = verbs.add_parser("promote", help="write a trial's parameters into params.yaml")
    winner.add_argument("run", help="MLflow run of a trial, or of a sweep: its best trial")
    winner.add_argument("--whole", action="store_true", help="also what the sweep's space had laid over params.yaml")
    winner.add_argument("--commit", action="store_true", help="commit params.yaml")
    winner.add_argument(
        "--branch", metavar="NAME", help="run the pipeline up to the trial's stages, as a DVC experiment"
    )
    winner.set_defaults(act=actions.promote)

    whole = verbs.add_parser("submit", help="run the whole `dvc repro` as one Ray job, and bring its results here")
    what = whole.add_mutually_exclusive_group()
    what.add_argument("--repro", action="store_true", help="everything (the default)")
    what.add_argument("--stage", metavar="ADDRESS", help="only this stage and what it needs")
    whole.set_defaults(act=actions.submit)

    health = verbs.add_parser("doctor", help="is what a run needs there, and how to get what is not")
    health.add_argument("--data", action="store_true", help="look at datasets only")
    health.add_argument("--weights", action="store_true", help="look at weights only")
    health.add_argument(
        "--cluster", action="store_true", help="look at the Ray cluster of jobs, from here and from each node"
    )
    health.add_argument("--preset", metavar="NAME", help="a file in presets/, laid over params.yaml")
    health.set_defaults(act=actions.doctor)

    board = verbs.add_parser("leaderboard", help="published person retrieval results, and this workspace's own")
    board.add_argument("--dataset", help="cuhk-pedes, icfg-pedes or rstpreid (default: all three)")
    board.add_argument("--setting", default="fine-tuned", help='"fine-tuned" (default) or "direct transfer"')
    board.set_defaults(act=actions.leaderboard)

    against = verbs.add_parser("compare", help="what differs between runs, by how much, and where it shows")
    against.add_argument("runs", nargs="+", metavar="RUN_ID", help="MLflow run ids; the first is the baseline")
    against.add_argument("--output", type=Path, metavar="FILE", help="of the page (default: reports/compare.html)")
    against.set_defaults(act=actions.compare)

    cross = verbs.add_parser("cross-domain", help="every model on every data set, and what is published")
    cross.add_argument(
        "models", nargs="+", type=Path, metavar="MODEL", help="model folders, such as models/retrieval/gadms"
    )
    cross.add_argument("--data", nargs="+", type=Path, required=True, metavar="DATASET", help="prepared data sets")
    cross.add_argument("--split", default="test", choices=("train", "val", "test"), help="default test")
    cross.add_argument("--output", type=Path, default=Path("results/cross_domain.json"), help="the matrix as JSON")
    cross.set_defaults(act=actions.cross_domain)

    _add_provenance(verbs)

    dag = verbs.add_parser("dag", help="write dvc.yaml from the graph")
    dag.set_defaults(act=actions.dag)
    return parser


def _add_provenance(verbs: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    lineage = verbs.add_parser("lineage", help="where a result comes from, back to the raw input")
    lineage.add_argument("target", help="an MLflow run id, a path that a stage wrote, or a stage")
    lineage.set_defaults(act=actions.lineage)

    verify = verbs.add_parser(
        "verify", help="do files, dvc.lock, manifests and MLflow runs still agree, back to the raw input"
    )
    verify.add_argument("targets", nargs="*", metavar="PATH", help="paths that stages write, or stages (default: all)")
    verify.set_defaults(act=actions.verify)

    again = verbs.add_parser("reproduce", help="run a run's stage again in a clean worktree, and compare every number")
    again.add_argument("target", help="an MLflow run id, a path that a stage wrote, or a stage")
    again.add_argument("--from", dest="first", metavar="STAGE", help="begin with this stage upstream of it")
    again.add_argument("--all", action="store_true", help="begin with the raw input")
    again.add_argument("--keep", action="store_true", help="leave the worktree there, to look at")
    again.set_defaults(act=actions.reproduce)

    gc = verbs.add_parser("gc", help="free scratch that no present result or open sweep needs")
    gc.add_argument("--dry-run", action="store_true", help="say what would be freed, and free nothing")
    gc.set_defaults(act=actions.gc)

    register = verbs.add_parser("register", help="put the text search (model and index) into MLflow's model registry")
    register.add_argument("--name", default="person-search", help="of the registered model (default person-search)")
    register.set_defaults(act=actions.register)


def _add_compbench(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--prompts", required=True, type=Path, help="a <category>_val.txt, or a folder of them")
    parser.add_argument(
        "--images",
        required=True,
        type=Path,
        help="folder of <prompt>_000000.png, ...; for several categories one in it for each",
    )
    parser.add_argument("--baseline", type=Path, help="pictures to compare with, laid out like --images")
    parser.add_argument("--blip", type=Path, help="folder of BLIP's VQA model, for BLIP-VQA")
    parser.add_argument(
        "--blip-size", type=int, metavar="PIXELS", help="BLIP's pictures (default: the model's; paper: 480)"
    )
    parser.add_argument("--clip", type=Path, help="weights of OpenAI's ViT-B/32 for open_clip, for CLIPScore")
    parser.add_argument("--phrases", type=Path, help="JSON, prompt -> its noun phrases (default: spaCy finds them)")
    parser.add_argument("--output", type=Path, default=Path("results/compbench"), help="default results/compbench")
    parser.add_argument("--grid", type=int, default=8, metavar="N", help="prompts in grid.png (default 8)")
    parser.add_argument(
        "--per-prompt", type=int, default=10, metavar="N", help="pictures expected of a prompt (default 10)"
    )
    parser.set_defaults(act=actions.compbench)


if __name__ == "__main__":
    sys.exit(main())
