"""Where text and image are in the sequence of a joint attention, and which block of its logits the temperature changes."""

from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor

from components.errors import ParameterError
from components.taca.config import Queries

Columns = slice | Tensor
"""Keys: a slice, in a compiled graph perhaps without an end, which is that of the keys then; or bool (B or 1, S)."""


@dataclass(frozen=True)
class Segment:
    """Query rows [start, stop). samples: bool (B, rows), True where a row is adjusted, for rows that differ by sample."""

    start: int
    stop: int
    adjusted: bool
    samples: Tensor | None = None


@dataclass(frozen=True)
class Block:
    """The block of logits that changes: the adjusted ones of all query rows, `segments` in their order, x the keys `columns`."""

    columns: Columns
    segments: tuple[Segment, ...]

    @property
    def is_empty(self) -> bool:
        """Whether no logit changes."""
        ends = self.columns
        no_column = isinstance(ends, slice) and ends.stop is not None and not has_tokens(ends.start, ends.stop)
        return no_column or not any(segment.adjusted or segment.samples is not None for segment in self.segments)


class Placement:
    """Where the text of one forward is in the keys and queries of its joint attention.

    text_tokens: the length of the text where it is one slice of the keys, so that its tokens may have temperatures of their own.
    """

    text_tokens: int | None = None

    def block(self, queries: Queries, rows: int, keys: int) -> Block | None:
        """Return the block that changes in an attention of `rows` queries over `keys` keys; None for a call to leave alone."""
        raise NotImplementedError


@dataclass(frozen=True)
class Contiguous(Placement):
    """Text is one slice of a joint sequence, in keys and queries alike; negative ends count from the end of the sequence.

    image: the image tokens, None for all that are not text; tokens that are neither stay as they are.
    """

    text: slice
    image: slice | None = None

    @property
    def text_tokens(self) -> int | None:  # type: ignore[override]
        start, stop = self.text.start or 0, self.text.stop
        if stop is None:
            return -start if start < 0 else None
        return stop - start

    def block(self, queries: Queries, rows: int, keys: int) -> Block | None:
        if rows != keys:
            raise ParameterError(f"TACA needs joint attention: {rows} queries against {keys} keys")
        text = _ends(self.text, keys)
        image = None if self.image is None else _ends(self.image, keys)
        if queries == "text":
            if image is None and text.start > 0 and text.stop < keys:
                raise ParameterError("TACA: queries = text needs the image in one piece; use queries = image here")
            columns = image or (slice(text.stop, keys) if text.start == 0 else slice(0, text.start))
            return Block(columns, segments([text], rows))
        adjusted = [slice(0, text.start), slice(text.stop, rows)] if image is None else [image]
        if self.text.stop is None and torch.compiler.is_compiling():  # whose objects hold no slice of unknown length
            return Block(slice(text.start, None), segments(adjusted, rows))
        return Block(text, segments(adjusted, rows))


@dataclass(frozen=True)
class ImageQueries(Placement):
    """Only image tokens are queries; text is one slice of the keys."""

    text: slice

    def block(self, queries: Queries, rows: int, keys: int) -> Block | None:
        return Block(_ends(self.text, keys), segments([slice(0, rows)], rows))


@dataclass(frozen=True)
class Spans(Placement):
    """Text is at places that differ by sample: tokens [start, stop) of each; all other tokens count as image."""

    spans: tuple[tuple[int, int], ...]
    device: torch.device

    def block(self, queries: Queries, rows: int, keys: int) -> Block | None:
        if len(set(self.spans)) == 1:
            return Contiguous(slice(*self.spans[0])).block(queries, rows, keys)
        position = torch.arange(keys, device=self.device)[None]
        starts, stops = (torch.tensor(ends, device=self.device)[:, None] for ends in zip(*self.spans, strict=True))
        text = (position >= starts) & (position < stops)  # (B, S)
        # Only between these ends are the rows of some samples text and those of others image.
        edges = sorted({0, rows, *(end for ends in zip(*self.spans, strict=True) for end in (min(ends), max(ends)))})
        adjusted = text if queries == "text" else ~text
        parts = []
        for start, stop in pairwise(edges):
            inside = [start < last and stop > first for first, last in self.spans]
            if any(inside) and not all(first <= start and stop <= last for first, last in self.spans):
                parts.append(Segment(start, stop, False, adjusted[:, start:stop]))
            else:
                parts.append(Segment(start, stop, any(inside) == (queries == "text")))
        return Block(~text if queries == "text" else text, tuple(parts))


@dataclass(frozen=True)
class Masked(Placement):
    """Text is where a mask says; all other tokens count as image.

    text: bool (B, S). length: all text is among so many first tokens; None if that is not known without reading the mask.
    """

    text: Tensor
    length: int | None = None

    def block(self, queries: Queries, rows: int, keys: int) -> Block | None:
        mixed = rows if self.length is None else self.length
        adjusted = self.text if queries == "text" else ~self.text
        parts = (Segment(0, mixed, False, adjusted[:, :mixed]), Segment(mixed, rows, queries == "image"))
        columns = ~self.text if queries == "text" else self.text
        return Block(columns, tuple(part for part in parts if has_tokens(part.start, part.stop)))


def segments(adjusted: list[slice], rows: int) -> tuple[Segment, ...]:
    """Return all of `rows` query rows in segments, with `adjusted` slices (in order) apart from the others."""
    parts, done = [], 0
    for part in adjusted:
        parts += [Segment(done, part.start, False), Segment(part.start, part.stop, True)]
        done = part.stop
    parts.append(Segment(done, rows, False))
    return tuple(part for part in parts if has_tokens(part.start, part.stop))


def has_tokens(start: int, stop: int) -> bool:
    """Whether there are tokens in [start, stop).

    A compiled graph may not know (Mochi cuts each text to its length); then yes, as an attention of no queries is harmless.
    """
    if torch.compiler.is_compiling():
        from torch.fx.experimental.symbolic_shapes import guard_or_true

        return guard_or_true(start < stop)
    return start < stop


def _ends(part: slice, length: int) -> slice:
    first = part.start or 0
    if part.stop is None and first >= 0:  # `slice.indices` takes no length that a compiled graph does not know
        return slice(first, length)
    start, stop, _ = part.indices(length)
    return slice(start, max(start, stop))
