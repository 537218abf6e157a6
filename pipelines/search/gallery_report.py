"""What an update of a gallery prints: a bar while it works, and what was done."""

import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from components.search.gallery import layout
from components.search.gallery.merging import Picture


@contextmanager
def progress(what: str, total: int) -> Iterator[Callable[[int], None]]:
    """Show a bar in a terminal; yield a function that advances it by a number of pictures."""
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )

    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, disable=not sys.stdout.isatty()) as bar:
        task = bar.add_task(what, total=total)
        yield lambda pictures: bar.advance(task, pictures)


def report(
    gallery: Path,
    version: str,
    pictures: Sequence[Picture],
    embedded: int,
    left_out: Sequence[tuple[str, str]],
    forgotten: int,
    *,
    removed: int,
) -> None:
    """Print what an update did: one line, and one for each thing that its user should know."""
    print(
        f"{gallery}: version {version} answers: {len(pictures):,} pictures, {embedded:,} embedded now, {removed:,} removed"
    )
    if left_out:
        file, reason = left_out[0]
        where = gallery / layout.VERSIONS / version / layout.LEFT_OUT
        print(f"  {_files(len(left_out))} left out, listed in {where}; such as {file}: {reason}")
    if copies := sum(len(each.files) - 1 for each in pictures):
        print(f"  {_files(copies)} equal to another: each picture has one vector, and all its files are named")
    if several := [each for each in pictures if len(each.identities) > 1]:
        names = ", ".join(several[0].identities)
        print(
            f"  {len(several):,} pictures have several identities, the first counts: {several[0].files[0]} has {names}"
        )
    if forgotten:
        print(f"  {_files(forgotten)} forgotten, and stayed out: remove them from the source")


def _files(number: int) -> str:
    return "1 file is" if number == 1 else f"{number:,} files are"
