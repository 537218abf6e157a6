"""The verbs: all are found, each explains itself, and those that end early on SIGTERM do so as on Ctrl-C."""

import io
import os
import re
import shlex
import signal
from dataclasses import replace
from pathlib import Path

import pytest
from mlflow.exceptions import MlflowException
from mlflow.protos.databricks_pb2 import INVALID_PARAMETER_VALUE

import pipelines.commands
from pipelines import __main__ as program
from pipelines.errors import replace_unprintable
from pipelines.terminal.console import TableConsole
from pipelines.terminal.tables import number_table

VERBS = {command.verb: command for command in program.COMMANDS}


def test_every_file_of_commands_is_a_verb():
    files = {path.stem for path in Path(pipelines.commands.__file__).parent.glob("*.py")}
    assert {verb.replace("-", "_") for verb in VERBS} == files - {"__init__", "command"}
    assert len(VERBS) == len(program.COMMANDS)


def test_help_lists_every_verb_with_its_line(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")
    with pytest.raises(SystemExit) as ended:
        program.main(["--help"])
    assert ended.value.code == 0
    said = capsys.readouterr().out
    assert [line.split()[0] for line in said.splitlines() if re.match(r" {4}\S", line)] == list(VERBS)
    assert all(command.help in said for command in VERBS.values())


@pytest.mark.parametrize("verb", VERBS)
def test_every_verb_says_what_it_does_and_explains_its_options(verb, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")
    with pytest.raises(SystemExit) as ended:
        program.main([verb, "--help"])
    assert ended.value.code == 0
    said = capsys.readouterr().out
    assert f"python -m pipelines {verb}" in said
    assert VERBS[verb].help[1:] + "." in said
    assert VERBS[verb].example in said


@pytest.mark.parametrize("verb", [verb for verb, command in VERBS.items() if command.example])
def test_an_example_is_a_command_line_of_its_verb(verb):
    options = program._parser(Path.cwd()).parse_args(shlex.split(VERBS[verb].example))
    assert options.command is VERBS[verb]


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (["rpero"], "'rpero' does not exist: `python -m pipelines --help` lists what there is; did you mean repro?"),
        (["xyz"], "'xyz' does not exist: `python -m pipelines --help` lists what there is"),
        (
            ["distractors", "--split", "tset"],
            "argument --split: 'tset' does not exist: one of train, val, test; did you mean test?",
        ),
    ],
)
def test_a_mistyped_word_is_told_which_is_meant(words, line, capsys):
    with pytest.raises(SystemExit) as ended:
        program.main(words)
    assert ended.value.code == 2
    assert capsys.readouterr().err.splitlines()[-1].endswith(line)


@pytest.mark.parametrize(("verb", "one"), [("preset", "smoke "), ("study", "taca "), ("sweep", "gadms ")])
def test_a_verb_that_takes_a_name_lists_what_there_is_without_one(verb, one, capsys):
    assert program.main([verb]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line for line in lines if line.startswith(one)]
    assert all(len(line.split()) > 2 for line in lines)


@pytest.mark.parametrize(
    ("error", "code", "line"),
    [
        (FileNotFoundError(2, "No such file or directory", "there"), 3, "error: there: No such file or directory"),
        (TypeError("a bug"), 1, "TypeError: a bug"),
        (
            MlflowException("API request failed: Connection refused"),
            75,
            "error: the MLflow server at sqlite:///x.db does not answer",
        ),
        (
            MlflowException("Invalid name", error_code=INVALID_PARAMETER_VALUE),
            1,
            "mlflow.exceptions.MlflowException: Invalid name",
        ),
        (
            KeyboardInterrupt("probe: paused at step 700: run again to resume"),
            130,
            "probe: paused at step 700: run again",
        ),
    ],
)
def test_why_a_verb_ends_is_its_last_line_with_a_traceback_for_bugs_alone(monkeypatch, capsys, error, code, line):
    def run(options):
        raise error

    monkeypatch.setenv("MLFLOW_TRACKING_URI", "sqlite:///x.db")
    monkeypatch.setattr(program, "COMMANDS", (replace(VERBS["dag"], run=run),))
    assert program.main(["dag"]) == code
    said = capsys.readouterr().err
    assert said.splitlines()[-1].startswith(line)
    assert ("Traceback" in said) == (code == 1)
    assert len(said.splitlines()) == 1 or code == 1


@pytest.mark.parametrize("verb", VERBS)
def test_sigterm_interrupts_the_verbs_that_finish_up(verb, monkeypatch):
    """The others keep the default, which the runner of a stage replaces by its own."""
    handlers = []
    found = replace(
        VERBS[verb],
        run=lambda options: handlers.append(signal.getsignal(signal.SIGTERM)),
        add_options=lambda parser: None,
    )
    monkeypatch.setattr(program, "COMMANDS", (found,))
    before = signal.signal(signal.SIGTERM, signal.SIG_DFL)
    try:
        assert program.main([verb]) == 0
    finally:
        signal.signal(signal.SIGTERM, before)
    interrupts = verb in ("gallery", "serve", "study", "sweep", "submit")
    assert handlers == [signal.default_int_handler if interrupts else signal.SIG_DFL]


def test_a_folder_below_the_project_is_of_it_and_nothing_is_written_where_there_is_none(tmp_path, monkeypatch, capsys):
    below = tmp_path / "project/docs"
    below.mkdir(parents=True)
    (tmp_path / "project/params.yaml").touch()
    monkeypatch.chdir(below)
    places = []
    found = replace(VERBS["dag"], run=lambda options: places.append(options.workspace))
    monkeypatch.setattr(program, "COMMANDS", (found, VERBS["repro"]))
    assert program.main(["dag"]) == program.main(["--workspace", "..", "dag"]) == 0
    assert places == [tmp_path / "project"] * 2
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    assert program.main(["repro"]) == 2
    said = capsys.readouterr().err
    assert said.startswith(f"error: {tmp_path / 'elsewhere'}: no project here or in a folder above (no params.yaml)")
    assert said.count("\n") == 1
    assert list((tmp_path / "elsewhere").iterdir()) == []


@pytest.mark.parametrize("encoding", ["ascii", "latin-1"])
def test_a_terminal_without_utf8_shows_what_it_can(encoding, monkeypatch):
    said = io.TextIOWrapper(io.BytesIO(), encoding=encoding)
    monkeypatch.setattr("sys.stdout", said)

    def show(options):
        TableConsole().print(number_table("σ ≥ 0.97 “quoted”", ("元", "R@1"), [("γ", "41.25")]))

    monkeypatch.setattr(program, "COMMANDS", (replace(VERBS["dag"], run=show),))
    assert program.main(["dag"]) == 0
    said.flush()
    assert b"41.25" in said.buffer.getvalue()


def test_output_that_was_a_file_and_became_a_pipe_is_printed_to(tmp_path, monkeypatch):
    """As that of a worker that the warm process forks."""
    read_end, write_end = os.pipe()
    with open(tmp_path / "out", "w", encoding="ascii") as said:
        os.dup2(write_end, said.fileno())
        os.close(write_end)
        monkeypatch.setattr("sys.stdout", said)
        replace_unprintable()
        print("σ ≥ 0.97", flush=True)
        assert os.read(read_end, 100) == b"? ? 0.97\n"
    os.close(read_end)
