"""Read prompts from a file. A bad prompt is skipped with its line and a reason.

`.txt` (or no suffix) holds one prompt per line, as T2I-CompBench's `<category>_val.txt`. `.csv`, `.parquet` and `.jsonl` hold
rows with the column `prompt` and optionally `prompt_id`, `seed`, `negative_prompt`, and to draw from pictures `image` and
`mask`, files in the manifest's folder, relative to it; other columns are ignored.
"""

import csv
import hashlib
import io
import json
import unicodedata
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from components.errors import DataError
from components.persons.pixels import decode_rgb
from components.persons.published.locations import PictureFolder, UnusablePathError
from components.text_files import csv_rows, split_lines

SEEDS = 2**63
COLUMNS = ("prompt", "prompt_id", "seed", "negative_prompt", "image", "mask")
EXCERPT = 80


@dataclass(frozen=True)
class SourceFile:
    """A file that a picture is drawn from, and its SHA-256."""

    path: Path
    digest: str


@dataclass(frozen=True)
class Prompt:
    """A prompt. `prompt_id` defaults to the line number; with `seed` None the plan derives seeds.

    negative: None for that of the command. image, mask: what to start from, and where to paint it over; either all prompts have
    one, or none.
    """

    prompt_id: str
    text: str
    seed: int | None = None
    negative: str | None = None
    image: SourceFile | None = None
    mask: SourceFile | None = None


@dataclass(frozen=True)
class Skipped:
    """A bad prompt: its line (in Parquet its row, from 1), the reason, and its beginning."""

    line: int
    reason: str
    begins: str


@dataclass(frozen=True)
class _BadRow:
    """A line that is no row: why, and its text."""

    reason: str
    text: str


class _BadPromptError(ValueError):
    """The reason written to skipped.json."""


def read_prompts(path: Path, max_characters: int | None = None) -> tuple[list[Prompt], list[Skipped]]:
    """Read all prompts of a file, in order, and the skipped ones.

    Skipped are: empty, not text, not UTF-8, a control character, more than `max_characters`, a `prompt_id` that an earlier line
    has, a `seed` that is not a whole number from 0 to 2^63 - 1, a line that is not JSON, or has more cells than the first; an
    `image` or `mask` that is missing, outside of the folder, or no picture, and where other lines have one, a line without.
    Raises DataError when the file cannot be read, has no column `prompt`, holds no usable prompt, or a quote is not closed.
    """
    good: dict[str, tuple[int, Prompt]] = {}
    skipped = []
    folder = PictureFolder(path.parent)
    for line, row in _rows(path):
        try:
            if isinstance(row, _BadRow):
                raise _BadPromptError(row.reason)
            prompt = _prompt(line, row, max_characters, folder)
            if prompt.prompt_id in good:
                raise _BadPromptError(f"prompt_id {prompt.prompt_id!r} is that of line {good[prompt.prompt_id][0]}")
            good[prompt.prompt_id] = line, prompt
        except _BadPromptError as error:
            text = row.text if isinstance(row, _BadRow) else row.get("prompt")
            begins = "" if text is None else str(text)[:EXCERPT].encode("utf-8", "backslashreplace").decode()
            skipped.append(Skipped(line, str(error), begins))
    for field in ("image", "mask"):
        lacking = {key: line for key, (line, prompt) in good.items() if getattr(prompt, field) is None}
        if len(lacking) < len(good):  # some have one
            skipped += [
                Skipped(line, f"{field} is missing", good.pop(key)[1].text[:EXCERPT]) for key, line in lacking.items()
            ]
    skipped.sort(key=lambda one: one.line)
    if not good:
        first = f": line {skipped[0].line}: {skipped[0].reason}" if skipped else ""
        raise DataError(f"{path}: holds no prompt that can be drawn{first}")
    return [prompt for _, prompt in good.values()], skipped


def _prompt(line: int, row: Mapping[str, Any], max_characters: int | None, folder: PictureFolder) -> Prompt:
    text = _checked(row.get("prompt"), "prompt")
    if max_characters is not None and len(text) > max_characters:
        raise _BadPromptError(f"has {len(text)} characters; the limit is {max_characters}")
    given = row.get("prompt_id")
    if isinstance(given, int) and not isinstance(given, bool):
        given = str(given)
    prompt_id = str(line) if given is None else _checked(given, "prompt_id")
    negative = row.get("negative_prompt")
    return Prompt(
        prompt_id,
        text,
        _seed(row.get("seed")),
        None if _is_empty(negative) else _checked(negative, "negative_prompt"),
        _source(row.get("image"), "image", folder),
        _source(row.get("mask"), "mask", folder),
    )


def _source(value: Any, name: str, folder: PictureFolder) -> SourceFile | None:
    """Return a picture's file, checked to be one that can be decoded; None where the row has none."""
    if _is_empty(value):
        return None
    try:
        path = Path(folder.address(_checked(value, name)))
        content = path.read_bytes()
        decode_rgb(content)
    except OSError as error:
        raise _BadPromptError(f"{name} {value}: cannot be read ({error.strerror or error})") from None
    except UnusablePathError as error:
        raise _BadPromptError(f"{name} {value}: {error.reason} ({error})") from None
    except DataError as error:
        raise _BadPromptError(f"{name} {value}: {error}") from None
    return SourceFile(path, hashlib.sha256(content).hexdigest())


def _is_empty(value: Any) -> bool:
    return value is None or value == "" or value != value  # NaN is how pandas writes a missing text


def _checked(value: Any, name: str) -> str:
    """Return text without surrounding space; raises _BadPromptError if it is not usable."""
    if value is None:
        raise _BadPromptError(f"{name} is missing")
    if not isinstance(value, str):
        raise _BadPromptError(f"{name} is not text but {type(value).__name__}")
    try:
        value.encode("utf-8")
    except UnicodeEncodeError:
        raise _BadPromptError(f"{name} is not UTF-8") from None
    text = value.strip()
    if not text:
        raise _BadPromptError(f"{name} is empty")
    for character in text:
        if unicodedata.category(character) == "Cc" and character not in "\t\n\r":
            raise _BadPromptError(f"{name} has the control character U+{ord(character):04X}")
    return text


def _seed(value: Any) -> int | None:
    if _is_empty(value):
        return None
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    try:
        seed = int(value) if isinstance(value, int | str) and not isinstance(value, bool) else -1
    except ValueError:
        seed = -1
    if not 0 <= seed < SEEDS:
        raise _BadPromptError(f"seed {value!r} is not a whole number from 0 to 2^63 - 1")
    return seed


def _rows(path: Path) -> Iterator[tuple[int, Mapping[str, Any] | _BadRow]]:
    """Yield (line, row) of a file."""
    readers = {"": _text_rows, ".txt": _text_rows, ".csv": _csv_rows, ".jsonl": _json_rows, ".parquet": _parquet_rows}
    if path.suffix.lower() not in readers:
        raise DataError(f"{path}: prompts are read from .txt, .csv, .jsonl and .parquet")
    try:
        yield from readers[path.suffix.lower()](path)
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror or error})") from error


def _text(path: Path) -> str:
    """Read a file as text. Bytes that are not UTF-8 become lone surrogates, which `_checked` finds."""
    return path.read_bytes().decode("utf-8", "surrogateescape").removeprefix("\ufeff")


def _text_rows(path: Path) -> Iterator[tuple[int, Mapping[str, Any]]]:
    for number, line in enumerate(split_lines(_text(path)), 1):
        yield number, {"prompt": line}


def _json_rows(path: Path) -> Iterator[tuple[int, Mapping[str, Any] | _BadRow]]:
    for number, line in enumerate(split_lines(_text(path)), 1):
        try:
            row = json.loads(line)
        except (ValueError, RecursionError):
            row = None
        yield number, row if isinstance(row, dict) else _BadRow("is not a JSON object", line)


def _csv_rows(path: Path) -> Iterator[tuple[int, Mapping[str, Any] | _BadRow]]:
    rows = csv_rows(io.StringIO(_text(path), newline=""))
    try:
        _, names = next(rows, (0, []))
        _require_prompt(path, names)
        for line, cells in rows:  # a quoted prompt may span several lines and is numbered by the first
            if any(cells[len(names) :]):
                reason = f"has {len(cells)} cells, the first line {len(names)}; a prompt with a comma needs quotes"
                yield line, _BadRow(reason, ",".join(cells))
            else:
                yield line, dict(zip(names, cells, strict=False))
    except csv.Error as error:
        raise DataError(f"{path}: {error}") from error


def _parquet_rows(path: Path) -> Iterator[tuple[int, Mapping[str, Any]]]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        file = pq.ParquetFile(path)
        _require_prompt(path, file.schema_arrow.names)
        columns = [name for name in COLUMNS if name in file.schema_arrow.names]
        number = 0
        for batch in file.iter_batches(columns=columns):
            for row in range(batch.num_rows):
                number += 1
                yield number, {name: _value(batch[name][row]) for name in columns}
    except pa.ArrowException as error:
        raise DataError(f"{path}: not Parquet ({' '.join(str(error).split())})") from error


def _value(scalar: Any) -> Any:
    try:
        return scalar.as_py()
    except UnicodeDecodeError:
        return scalar.as_buffer().to_pybytes().decode("utf-8", "surrogateescape")


def _require_prompt(path: Path, names: Sequence[str]) -> None:
    if "prompt" not in names:
        raise DataError(f"{path}: has no column `prompt`, only {', '.join(map(str, names)) or 'nothing'}")
    if twice := [column for column in COLUMNS if names.count(column) > 1]:
        raise DataError(f"{path}: has two columns {twice[0]!r}; rename one")
