"""Filters on the columns of a gallery: `camera=3`, `identity!=17`, `width>=64`, `caption~coat`.

    column=value   column!=value    equal, not equal; several values: camera=3|4 (one of them), camera!=3|4 (none of them)
    column<value   <=  >  >=        numbers by size, dates by time, text by the alphabet
    column~text    column!~text     text contains, does not contain, upper and lower case alike
    column=        column!=         nothing is known there, something is

A picture of which the column says nothing meets only `!=`, `!~` and `column=`: it is not of camera 3 as far as is known.
"""

import difflib
import re
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from components.errors import ParameterError

_CONDITION = re.compile(r"\s*([^=!<>~]+?)\s*(!=|!~|<=|>=|=|<|>|~)(.*)", re.DOTALL)
_ORDERED = {"<": pc.less, "<=": pc.less_equal, ">": pc.greater, ">=": pc.greater_equal}


@dataclass(frozen=True)
class Condition:
    """One condition: a column, an operator of the table above, and the text after it."""

    column: str
    operator: str
    value: str


@dataclass(frozen=True)
class Filter:
    """Conditions that a picture must all meet."""

    conditions: tuple[Condition, ...]

    @classmethod
    def parse(cls, *texts: str) -> "Filter":
        """Parse conditions. Raises ParameterError for one of another form."""
        found = []
        for text in texts:
            parts = _CONDITION.fullmatch(text)
            if parts is None:
                raise ParameterError(
                    f"filter {text!r}: not a column, an operator and a value; write camera=3, identity!=17, width>=64, caption~coat"
                )
            condition = Condition(parts[1], parts[2], parts[3].strip())
            if not condition.value and condition.operator not in ("=", "!="):
                raise ParameterError(f"filter {text!r}: a value after {condition.operator} is needed")
            found.append(condition)
        return cls(tuple(found))

    def mask(self, table: pa.Table) -> NDArray[np.bool_]:
        """Return which rows meet all conditions, (N,). Raises ParameterError for a column or a value that does not fit."""
        allowed = np.ones(table.num_rows, dtype=bool)
        for condition in self.conditions:
            allowed &= _meets(table, condition)
        return allowed


def filterable(table: pa.Table) -> list[str]:
    """Return the names of the columns that filters know: all but lists and binary ones."""
    return [field.name for field in table.schema if _is_plain(field.type)]


def _is_plain(kind: pa.DataType) -> bool:
    return not (pa.types.is_nested(kind) or pa.types.is_binary(kind) or pa.types.is_large_binary(kind))


def _meets(table: pa.Table, condition: Condition) -> NDArray[np.bool_]:
    names = filterable(table)
    if condition.column not in names:
        close = difflib.get_close_matches(condition.column, names, n=1)
        hint = f"; did you mean {close[0]}?" if close else ""
        raise ParameterError(f"filter: the gallery has no column {condition.column!r}, but {', '.join(names)}{hint}")
    column = table[condition.column]
    if pa.types.is_dictionary(column.type):
        column = column.cast(column.type.value_type)
    operator, negated = condition.operator, condition.operator.startswith("!")
    if not condition.value:
        found = pc.is_null(column, nan_is_null=True)
        if pa.types.is_string(column.type) or pa.types.is_large_string(column.type):
            found = pc.or_(found, pc.equal(pc.fill_null(column, ""), ""))
    elif operator.endswith("~"):
        found = pc.match_substring(column.cast(pa.string()), condition.value, ignore_case=True)
    elif operator in _ORDERED:
        column, value = _comparable(column, condition, condition.value)
        found = _ORDERED[operator](column, value)
    else:
        found = None
        for text in condition.value.split("|"):
            typed, value = _comparable(column, condition, text.strip())
            one = pc.fill_null(pc.equal(typed, value), False)
            found = one if found is None else pc.or_(found, one)
    mask: NDArray[np.bool_] = pc.fill_null(found, False).to_numpy()
    return ~mask if negated else mask


def _comparable(column: Any, condition: Condition, text: str) -> tuple[Any, pa.Scalar]:
    """The column and the value in one type: the column's, or for a number such as 2.5 beside whole ones, float64."""
    kind = column.type
    try:
        return column, pa.scalar(text).cast(kind)
    except (pa.ArrowException, ValueError):
        pass
    try:
        if pa.types.is_integer(kind):
            return column.cast(pa.float64()), pa.scalar(float(text))
    except ValueError:
        pass
    raise ParameterError(
        f"filter {condition.column}{condition.operator}{condition.value}: {text!r} cannot be compared with a column of type {kind}"
    )
