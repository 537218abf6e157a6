"""What a stage run needs to be up to date: the words that the scheduler, DVC's side and the views share."""

import enum
from dataclasses import dataclass


class Need(enum.StrEnum):
    """In the order in which they are looked for: the first that holds is taken."""

    UNCHANGED = "unchanged"
    CHECK_OUT = "in DVC's cache"
    RESTORE = "in DVC's run cache"
    FOUND = "finished in scratch"
    RUN = "to run"


@dataclass(frozen=True)
class Decision:
    """What a stage run needs, and why it is not up to date (`taca.gamma: 1.2 -> 1.3`); no reasons for one that is unchanged."""

    need: Need
    reasons: tuple[str, ...] = ()
