"""The command line: `python -m pipelines <verb>`. Each verb imports what it needs, so that every one starts fast."""

import argparse
import sys
import traceback
from pathlib import Path

from pipelines.errors import StageFailedError, exit_code, speaks_for_itself
from pipelines.workspace import Workspace


def main(arguments: list[str] | None = None) -> int:
    options = _parser().parse_args(arguments)
    try:
        options.act(options)
    except BaseException as error:
        if isinstance(error, SystemExit):
            raise
        if isinstance(error, StageFailedError):
            pass  # the stage's process has said why
        elif speaks_for_itself(error):
            print(f"error: {error or type(error).__name__}", file=sys.stderr)
        else:
            traceback.print_exc()
        return exit_code(error)
    return 0


def _run(options: argparse.Namespace) -> None:
    from pipelines.runner import run_stage

    run_stage(options.stage, Workspace.at(options.workspace))


def _dag(options: argparse.Namespace) -> None:
    from pipelines import dag

    print(f"wrote {dag.write(options.workspace)}")


def _preset(options: argparse.Namespace) -> None:
    from pipelines import presets

    if options.flags:
        print(" ".join(presets.flags(options.name, options.workspace)))
    else:
        for line in presets.apply(options.name, options.workspace):
            print(line)


def _report(options: argparse.Namespace) -> None:
    from pipelines.reporting.page import render

    print(f"wrote {render(Workspace.at(options.workspace))}")


def _search(options: argparse.Namespace) -> None:
    from pipelines.searching import search

    search(options.query, Workspace.at(options.workspace), options.top, options.picture)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m pipelines", description="Crossmodal pipelines: TACA and GA-DMS.")
    parser.add_argument("--workspace", type=Path, default=Path.cwd(), help="folder of params.yaml (default: here)")
    verbs = parser.add_subparsers(required=True, metavar="verb")

    run = verbs.add_parser("run", help="bring one stage up to date (what dvc.yaml calls)")
    run.add_argument("stage", help="name, or name@arm")
    run.set_defaults(act=_run)

    preset = verbs.add_parser("preset", help="write a preset's values into params.yaml")
    preset.add_argument("name", help="a file in presets/, without .yaml")
    preset.add_argument("--flags", action="store_true", help="print `dvc exp run -S` flags and change nothing")
    preset.set_defaults(act=_preset)

    report = verbs.add_parser("report", help="render reports/index.html")
    report.set_defaults(act=_report)

    search = verbs.add_parser("search", help="find people by a sentence")
    search.add_argument("query", help='for example "a woman in a red coat"')
    search.add_argument("--top", type=int, default=5, metavar="K", help="how many matches (default 5)")
    search.add_argument("--picture", type=Path, help="also write the matches side by side into this PNG")
    search.set_defaults(act=_search)

    dag = verbs.add_parser("dag", help="write dvc.yaml from the graph")
    dag.set_defaults(act=_dag)
    return parser


if __name__ == "__main__":
    sys.exit(main())
