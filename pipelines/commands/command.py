"""What a verb of the command line declares."""

import argparse
from collections.abc import Callable
from dataclasses import dataclass, fields
from typing import TypeVar

Options = TypeVar("Options")


def no_options(parser: argparse.ArgumentParser) -> None:
    """Add nothing: for a verb without options of its own."""


@dataclass(frozen=True)
class Command:
    """A verb. `run` receives the parsed options, among them `workspace`, a Path."""

    verb: str
    help: str
    run: Callable[[argparse.Namespace], None]
    add_options: Callable[[argparse.ArgumentParser], None] = no_options
    interrupt_on_sigterm: bool = False
    """Whether SIGTERM raises KeyboardInterrupt as Ctrl-C does, so that results are summarised or a remote job is stopped."""


def typed(kind: type[Options], options: argparse.Namespace) -> Options:
    """Return `options` as the dataclass `kind`, whose fields are named as the options are."""
    return kind(**{field.name: getattr(options, field.name) for field in fields(kind)})  # type: ignore[arg-type]
