"""`python -m pipelines study NAME`."""

import argparse

from pipelines.commands.command import Command, print_listing
from pipelines.workspace import Workspace


def add_options(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("name", nargs="?", help="a file in studies/, without .yaml (none: list what there is)")
    add("--only", metavar="PATTERN", help="only cells whose key matches, such as 'map/*' (and what they need)")
    add("--screen", action="append_const", dest="phases", const="screen", help="only cells that look for differences")
    add("--confirm", action="append_const", dest="phases", const="confirm", help="only the contrasts, on fresh seeds")
    add("--curve", action="append_const", dest="phases", const="curve", help="only the learning curve")
    add("--workers", type=int, default=1, metavar="N", help="processes that measure at once (default 1)")
    add("--list", action="store_true", help="list the cells and which are done; measure nothing")
    add("--summary", action="store_true", help="write the results of what is done; measure nothing")


def run(options: argparse.Namespace) -> None:
    from pipelines.studies import engine
    from pipelines.studies.results import write_results

    if options.name is None:
        print_listing(engine.known(Workspace.at(options.workspace)))
        return
    measures = not (options.list or options.summary)
    study = engine.open_study(options.name, Workspace.at(options.workspace), without_inputs=not measures)
    phases = options.phases or ()
    if options.list:
        engine.list_cells(study, options.only, phases)
    elif options.summary:
        write_results(study, replace=study.missing is None)
    else:
        engine.run_study(study, options.only, options.workers, phases)


COMMAND = Command(
    "study",
    "measure what a study in studies/ has not measured yet, and summarise it",
    run,
    add_options,
    interrupt_on_sigterm=True,
    example="study taca --screen --workers 2",
)
