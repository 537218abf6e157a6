"""What a verb of the command line declares."""

import argparse
from collections.abc import Callable, Mapping
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
    example: str = ""
    """A command line, shown below the options in `VERB --help`."""
    anywhere: bool = False
    """Whether it also works outside a checkout of the project."""
    interrupt_on_sigterm: bool = False
    """Whether SIGTERM raises KeyboardInterrupt as Ctrl-C does, so that results are summarised or a remote job is stopped."""


def print_listing(about: Mapping[str, str]) -> None:
    """Print a line for each name that a verb takes, with what it stands for."""
    width = max(map(len, about), default=0)
    for name, words in about.items():
        print(f"{name:<{width}}  {words}")


def typed(kind: type[Options], options: argparse.Namespace) -> Options:
    """Return `options` as the dataclass `kind`, whose fields are named as the options are."""
    return kind(**{field.name: getattr(options, field.name) for field in fields(kind)})  # type: ignore[arg-type]
