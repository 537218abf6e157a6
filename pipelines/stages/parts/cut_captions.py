"""Captions that are longer than a model reads: counted, and printed."""

from collections.abc import Sequence

from components.gadms.tokenizer import CONTEXT_LENGTH, CaptionTokenizer


def count_cut(tokenizer: CaptionTokenizer, captions: Sequence[str], what: str, rank: int = 0) -> int:
    """Return how many of `captions` the model does not read to their end; rank 0 prints it where there are any."""
    cut = sum(map(tokenizer.is_cut, captions))
    if rank == 0:
        print_cut(cut, len(captions), what, tokenizer.context_length)
    return cut


def print_cut(cut: int, captions: int, what: str, context_length: int = CONTEXT_LENGTH) -> None:
    """Print how many of `captions` are longer than the context; nothing where none is."""
    if cut:
        limit = f"{context_length} tokens with start and end"
        print(f"{cut:,} of {captions:,} {what} are longer than {limit}: what follows is not read", flush=True)
