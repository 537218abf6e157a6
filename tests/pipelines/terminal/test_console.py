"""What the terminal shows is whole, in 80 columns, in a pipe, and without UTF-8."""

import io

import pytest
from rich.table import Table

from pipelines.terminal.console import TableConsole

NUMBERS = [f"{1234567.891 + place:.3f}" for place in range(8)]
WORDS = "a sentence of several words " * 4


def printed(monkeypatch, columns: int | None, **options: object) -> str:
    monkeypatch.delenv("COLUMNS", raising=False)
    if columns:
        monkeypatch.setenv("COLUMNS", str(columns))
    table = Table(title="numbers")
    table.add_column("text")
    for place in range(len(NUMBERS)):
        table.add_column(f"n{place}", justify="right")
    table.add_row(WORDS, *NUMBERS)
    console = TableConsole(file=io.StringIO(), **options)
    console.print(table)
    return str(console.file.getvalue())  # type: ignore[attr-defined]


@pytest.mark.parametrize(("columns", "terminal"), [(80, True), (80, False), (30, True), (None, False), (200, True)])
def test_no_number_of_a_table_is_cut_or_broken_and_no_word_lost(monkeypatch, columns, terminal):
    text = printed(monkeypatch, columns, force_terminal=terminal, color_system=None)
    assert all(number in text for number in NUMBERS)
    assert "\u2026" not in text
    assert text.count("sentence") == WORDS.count("sentence")


def test_a_pipe_has_one_line_per_row(monkeypatch):
    assert WORDS.strip() in printed(monkeypatch, None)
    console = TableConsole(file=io.StringIO())
    console.print(WORDS)
    assert console.file.getvalue().count("\n") == 1  # type: ignore[attr-defined]
