"""`python -m pipelines repro [STAGE ...]`."""

import argparse
import os
import sys

from pipelines.commands.command import Command, typed
from pipelines.errors import StageFailedError
from pipelines.identity.closure import ROOT
from pipelines.workspace import Workspace

FLAGS = ("force", "single-item", "downstream", "pull", "dry", "wait", "keep-going", "fail-fast")


def add_options(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("stages", nargs="*", help="with what they need; a name without an arm means all its arms (default: everything)")
    add("--force", action="store_true", help="also what is up to date (a result that is in scratch is found there)")
    add("--single-item", action="store_true", help="only the named stages")
    add("--downstream", action="store_true", help="the named stages and what depends on them")
    add("--pull", action="store_true", help="fetch what is missing from the DVC remote")
    add("--dry", action="store_true", help="print what would run, why, and how long it should take")
    add("--wait", action="store_true", help="wait for another one that runs in this checkout")
    add("--jobs", type=int, metavar="N", help="at most N stages at once (default: as many as fit)")
    failing = parser.add_mutually_exclusive_group()
    failing.add_argument(
        "--keep-going", action="store_true", help="a failure stops only what depends on it (the default)"
    )
    failing.add_argument("--fail-fast", action="store_true", help="the first failure stops everything")


def run(options: argparse.Namespace) -> None:
    workspace = Workspace.at(options.workspace)
    if workspace.root != ROOT and (workspace.root / "pipelines" / "__main__.py").is_file():
        _in_its_own_code(workspace, options)
    from pipelines.scheduling.pipeline_repro import ReproOptions, repro

    if code := repro(workspace, typed(ReproOptions, options)):
        raise StageFailedError("not everything is up to date", code)  # which has been said


def _in_its_own_code(workspace: Workspace, options: argparse.Namespace) -> None:
    """Replace this process by the same command in the workspace: DVC records the code there, another checkout's is installed."""
    given = [f"--{flag}" for flag in FLAGS if getattr(options, flag.replace("-", "_"))]
    jobs = [] if options.jobs is None else ["--jobs", str(options.jobs)]
    sys.stdout.flush()
    os.chdir(workspace.root)
    os.environ.pop("PYTHONSAFEPATH", None)
    os.execv(sys.executable, [sys.executable, "-m", "pipelines", "repro", *given, *jobs, *options.stages])


COMMAND = Command(
    "repro",
    "run the stages that are not up to date, as many at a time as fit; records what `dvc repro` records",
    run,
    add_options,
    example="repro gadms_evaluate@gadms --dry",
)
