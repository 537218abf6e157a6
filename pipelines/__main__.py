"""The command line: `python -m pipelines <verb>`."""

import argparse
import os
import signal
import sys
from pathlib import Path
from typing import Any

from components.errors import DataError
from pipelines.commands import (
    compare,
    compbench,
    cross_domain,
    curate,
    dag,
    distractors,
    doctor,
    dry_run,
    forget,
    gallery,
    gc,
    generate,
    leaderboard,
    lineage,
    preset,
    pretrain,
    promote,
    register,
    report,
    repro,
    reproduce,
    run,
    runs,
    search,
    serve,
    study,
    submit,
    sweep,
    ui,
    verify,
)
from pipelines.engine.warm import silence_import_notices
from pipelines.errors import did_you_mean, replace_unprintable, report_error
from pipelines.threads.settings import waiting_settings
from pipelines.tracking.addresses import tracking_uri
from pipelines.tracking.failures import explain, is_of_store
from pipelines.workspace import Workspace, require_project, workspace_root

# In the order of `--help`.
PIPELINE = (run, repro, preset, report, generate, curate, compbench, pretrain, dry_run, study, sweep, promote, submit)
SEARCH = (search, serve, gallery, forget)
RESULTS = (
    runs,
    ui,
    doctor,
    leaderboard,
    compare,
    cross_domain,
    distractors,
    lineage,
    verify,
    reproduce,
    gc,
    register,
    dag,
)
LISTED = 12
"""Choices that an error lists, at most."""
COMMANDS = tuple(module.COMMAND for module in (*PIPELINE, *SEARCH, *RESULTS))


def main(arguments: list[str] | None = None) -> int:
    """Run the verb that `arguments` name. Returns the exit code; argparse itself ends with 2 for unknown options."""
    replace_unprintable()
    try:
        here = Path.cwd()
    except FileNotFoundError:
        return report_error(DataError("the current folder was deleted: change to another one"))
    options = _parser(here).parse_args(arguments)
    options.workspace = workspace_root(options.workspace)
    silence_import_notices()
    os.environ.update(waiting_settings())  # before a verb loads libraries here, and for every process that it starts
    if options.command.interrupt_on_sigterm:
        signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        if not options.command.anywhere:
            require_project(options.workspace)
        options.command.run(options)
    except SystemExit:
        raise
    except (FileNotFoundError, FileExistsError, NotADirectoryError, IsADirectoryError) as error:
        # A path that was given; stages have processes of their own, which show a bug's traceback.
        return report_error(DataError(f"{error.filename}: {error.strerror}") if error.filename else error)
    except BaseException as error:
        return report_error(_explained(error, options.workspace))
    return 0


def _explained(error: BaseException, root: Path) -> BaseException:
    """Return what an error of the tracking store means; any other as it is."""
    if not isinstance(error, Exception) or not is_of_store(error):
        return error
    return explain(tracking_uri(Workspace.at(root)), error)


class _Parser(argparse.ArgumentParser):
    """Says of a word that is not among the choices which of them is near; of many choices, where they are listed."""

    def _check_value(self, action: argparse.Action, value: Any) -> None:
        if action.choices is None or value in action.choices:
            return
        known = [str(choice) for choice in action.choices]
        meant = did_you_mean(str(value), known)
        listed = f"`{self.prog} --help` lists what there is" if len(known) > LISTED else f"one of {', '.join(known)}"
        raise argparse.ArgumentError(action, f"{value!r} does not exist: {listed}{meant}")


def _parser(here: Path) -> argparse.ArgumentParser:
    parser = _Parser(prog="python -m pipelines", description="Crossmodal pipelines: TACA and GA-DMS.")
    parser.add_argument(
        "--workspace", type=Path, default=here, help="folder of params.yaml, or one below it (default: here)"
    )
    verbs = parser.add_subparsers(required=True, metavar="verb")
    for command in COMMANDS:
        about = f"{command.help[0].upper()}{command.help[1:]}."
        example = f"example: python -m pipelines {command.example}" if command.example else None
        verb = verbs.add_parser(command.verb, help=command.help, description=about, epilog=example)
        command.add_options(verb)
        verb.set_defaults(command=command)
    return parser


if __name__ == "__main__":
    sys.exit(main())
