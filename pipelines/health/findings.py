"""The findings of the doctor's checks."""

import enum
from dataclasses import dataclass


class State(enum.Enum):
    """The state of a thing. If one that is asked for is not present, the doctor exits with 3."""

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
    """The result of one check.

    Attributes:
        subject: what was checked.
        asked_for: whether params.yaml asks for it.
        facts: a few words on what was found, or where it was expected.
        remarks: one line each on what is missing and how to get it.
    """

    subject: str
    state: State
    asked_for: bool
    facts: str
    remarks: tuple[str, ...] = ()
