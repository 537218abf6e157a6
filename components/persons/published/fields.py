"""Fields of annotation files: captions, identities and splits, whatever type a JSON, CSV or Parquet file has for them.

A missing value (null, NaN) and a value of another type never become text: `str(None)` is a word that a model would learn.
"""

import re
from collections.abc import Sequence
from decimal import Decimal
from typing import Any

EMPTY, NOT_ENCODABLE = "empty caption", "caption not encodable"
"""Why a caption is left out."""
MAX_IDENTITY = 2**63 - 1
"""The largest number of the manifest's column `identity` (int64)."""
_EXACT_FLOAT = 2**53
"""Above it a float does not tell neighbouring integers apart."""
_MISSING = frozenset(("none", "null", "nan", "n/a", "na"))
"""How programs write a missing value as text; none of them is a caption."""


def text(value: Any) -> str:
    """Return a text without space at its ends; empty for a value that is not a text."""
    return value.strip() if isinstance(value, str) else ""


def split_name(value: Any) -> str:
    """Return the name of a split: "Train " is "train"; empty for a missing value."""
    return "" if value is None else str(value).strip().lower()


def identity_number(value: Any) -> int:
    """Return an identity as a number of 64 bits: 7 of 7, "0007", 7.0 or "7.0". Raises ValueError, which says what to write."""
    number = _whole_number(value)
    if number is None:
        raise ValueError(f"identity {value!r} is not a whole number: number the people 0, 1, 2, ...")
    if abs(number) > MAX_IDENTITY:
        raise ValueError(
            f"identity {value} has more than 64 bits (at most {MAX_IDENTITY}): number the people 0, 1, 2, ..."
        )
    return number


def _whole_number(value: Any) -> int | None:
    """None also for a number that has lost digits: a float above 2^53, or a spreadsheet's 2.02E+19."""
    if isinstance(value, int) and not isinstance(value, bool):
        return value
    if isinstance(value, float):
        return int(value) if value.is_integer() and abs(value) <= _EXACT_FLOAT else None
    if isinstance(value, Decimal):
        return int(value) if value.is_finite() and value == value.to_integral_value() else None
    written = text(value)
    return int(written.split(".")[0]) if re.fullmatch(r"[+-]?\d{1,40}(\.0+)?", written, re.ASCII) else None


def good_captions(captions: Sequence[str]) -> tuple[str, ...]:
    """Return the captions that can be used."""
    return tuple(caption for caption in captions if caption_fault(caption) is None)


def caption_fault(caption: str) -> tuple[str, str] | None:
    """Return why a caption cannot be used, as one of the two reasons and a detail; None for a good one."""
    if not any(letter.isalnum() for letter in caption) or caption.lower() in _MISSING:
        return EMPTY, f"is {caption[:40]!r}" if caption else "is empty, or no text"
    try:
        caption.encode("utf-8")
    except UnicodeEncodeError as error:
        code = ord(caption[error.start])
        return NOT_ENCODABLE, f"holds U+{code:04X} at character {error.start}: half of a character, cut off"
    return None
