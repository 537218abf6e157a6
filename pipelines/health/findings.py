"""What a check of the doctor returns."""

import enum
from dataclasses import dataclass


class State(enum.Enum):
    """How a thing was found. What does not count as there, and is asked for, makes the doctor exit with 3."""

    WHOLE = "there"
    DIFFERENT = "there, but differs"
    INCOMPLETE = "incomplete"
    MISSING = "not there"
    MADE = "made here"

    @property
    def is_there(self) -> bool:
        return self not in (State.INCOMPLETE, State.MISSING)


@dataclass(frozen=True)
class Finding:
    """One thing that was looked for.

    Attributes:
        subject: what.
        asked_for: whether params.yaml asks for it.
        facts: a few words on what was found, or where it was expected.
        remarks: a line each: what is missing, how to get it.
    """

    subject: str
    state: State
    asked_for: bool
    facts: str
    remarks: tuple[str, ...] = ()
