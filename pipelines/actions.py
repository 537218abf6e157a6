"""What each verb of the command line does. Each imports what it needs, so that every one starts fast."""

import argparse

from pipelines.workspace import Workspace


def run(options: argparse.Namespace) -> None:
    from pipelines.engine.runner import run_stage

    run_stage(options.stage, Workspace.at(options.workspace))


def repro(options: argparse.Namespace) -> None:
    from pipelines.scheduling.dvc_repro import repro

    flags = [flag for flag in ("--force", "--single-item", "--dry") if getattr(options, flag[2:].replace("-", "_"))]
    repro(options.workspace.resolve(), [*flags, *options.stages], wait=options.wait)


def dag(options: argparse.Namespace) -> None:
    from pipelines.dvc_files import dvc_yaml as dag

    print(f"wrote {dag.write(options.workspace)}")


def preset(options: argparse.Namespace) -> None:
    from pipelines import presets

    if options.flags:
        print(" ".join(presets.flags(options.name, options.workspace)))
    else:
        for line in presets.apply(options.name, options.workspace):
            print(line)


def report(options: argparse.Namespace) -> None:
    from pipelines.reporting.page import render

    print(f"wrote {render(Workspace.at(options.workspace))}")


def search(options: argparse.Namespace) -> None:
    from pipelines.search.gallery_search import search

    search(options.query, Workspace.at(options.workspace), options.top, options.picture)


def generate(options: argparse.Namespace) -> None:
    from pipelines.generating.command import generate

    generate(options, Workspace.at(options.workspace))


def curate(options: argparse.Namespace) -> None:
    from pipelines.curating.command import curate

    curate(options)


def compbench(options: argparse.Namespace) -> None:
    from pipelines.evaluating.compbench import Weights, compbench

    compbench(
        options.prompts,
        options.images,
        baseline=options.baseline,
        weights=Weights(options.blip, options.clip, options.phrases, options.blip_size),
        output=options.output,
        rows=options.grid,
        per_prompt=options.per_prompt,
    )


def dry_run(options: argparse.Namespace) -> None:
    from pipelines.health.dry_run import dry_run

    dry_run(Workspace.at(options.workspace), options.preset, options.architecture)


def study(options: argparse.Namespace) -> None:
    import signal

    from pipelines.studies import engine

    signal.signal(signal.SIGTERM, signal.default_int_handler)  # ends as Ctrl-C does: what is measured is summarised
    opened = engine.open_study(options.name, Workspace.at(options.workspace))
    if options.list:
        engine.list_cells(opened, options.only)
    elif options.summary:
        engine.write_results(opened)
    else:
        engine.run_study(opened, options.only, options.workers)


def submit(options: argparse.Namespace) -> None:
    import signal

    from pipelines.jobs.submission import submit

    signal.signal(signal.SIGTERM, signal.default_int_handler)  # ends as Ctrl-C does: the job is stopped
    submit(Workspace.at(options.workspace), options.stage)


def doctor(options: argparse.Namespace) -> None:
    from pipelines.health.doctor import CHECKS, doctor

    chosen = [name for name in CHECKS if getattr(options, name)]
    doctor(Workspace.at(options.workspace), chosen, options.preset)


def leaderboard(options: argparse.Namespace) -> None:
    from pipelines.evaluating.leaderboard import show_leaderboards

    show_leaderboards(Workspace.at(options.workspace), options.dataset, options.setting)


def compare(options: argparse.Namespace) -> None:
    from pipelines.comparing.command import compare

    compare(Workspace.at(options.workspace), options.runs, options.output)


def cross_domain(options: argparse.Namespace) -> None:
    from pipelines.evaluating.cross_domain import show_cross_domain

    show_cross_domain(options.models, options.data, Workspace.at(options.workspace), options.split, options.output)


def sweep(options: argparse.Namespace) -> None:
    import signal

    from pipelines.sweeps.command import sweep

    signal.signal(signal.SIGTERM, signal.default_int_handler)  # ends as Ctrl-C does: what has ended is summed up
    sweep(options, Workspace.at(options.workspace))


def promote(options: argparse.Namespace) -> None:
    from pipelines.sweeps.promotion import promote

    promote(options, Workspace.at(options.workspace))


def lineage(options: argparse.Namespace) -> None:
    from pipelines.provenance.lineage import lineage

    lineage(options.target, Workspace.at(options.workspace))


def verify(options: argparse.Namespace) -> None:
    from pipelines.provenance.verification import verify

    verify(options.targets, Workspace.at(options.workspace))


def reproduce(options: argparse.Namespace) -> None:
    from pipelines.provenance.reproduction import reproduce

    workspace = Workspace.at(options.workspace)
    reproduce(options.target, workspace, first=options.first, whole=options.all, keep=options.keep)


def gc(options: argparse.Namespace) -> None:
    from pipelines.provenance.garbage_collection import collect

    collect(Workspace.at(options.workspace), dry=options.dry_run)


def register(options: argparse.Namespace) -> None:
    from pipelines.search.registry import register

    print(register(options.name, Workspace.at(options.workspace)))
