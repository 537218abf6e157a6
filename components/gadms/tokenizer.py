"""CLIP's byte-pair tokenizer, with an optional smaller vocabulary stored beside the model.

CLIP's vocabulary of 49,408 rows takes most of a small model's time (embedding, AdamW state, masked-token head), while a person
dataset uses a few hundred rows. A *compact* vocabulary keeps the 512 byte symbols and the tokens of a corpus; any other token is
spelled with byte symbols, so that every text has an encoding without an unknown token.

Both vocabularies follow one rule, so the model code is the same: id 0 is padding, and the last three ids are mask, start of
text and end of text. In CLIP's own vocabulary that is 49405 (the rarest word, "jekyll", given up by IRRA for the
mask), 49406 and 49407. End of text is the largest id, so `ids.argmax(-1)` is the position
whose feature represents the caption.
"""

import json
from collections.abc import Iterable, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch

from components.clip_tokenizer import clip_tokenizer
from components.errors import DataError, ParameterError

VOCABULARY_FILE = "vocabulary.json"
CONTEXT_LENGTH = 77  # of CLIP, start and end tokens included
CLIP_VOCABULARY_SIZE = 49408
BYTE_SYMBOLS = 512  # 256 byte symbols inside a word and the same 256 at its end
_RESERVED = frozenset({0, CLIP_VOCABULARY_SIZE - 3})  # padding and mask: never the encoding of a text


@lru_cache(maxsize=1)
def _byte_pair_encoder() -> Any:
    return clip_tokenizer(CONTEXT_LENGTH)


class CaptionTokenizer:
    """CLIP's tokenizer over a vocabulary of `vocab_size` ids.

    `kept` are the ids of CLIP's vocabulary in this one, ascending, without the three special ids. None keeps all: encodings then
    equal open_clip's, except for texts that contain the mask's word, an isolated "!" piece, or the name of a special token.
    """

    def __init__(self, kept: Sequence[int] | None = None, context_length: int = CONTEXT_LENGTH) -> None:
        if kept is not None and (
            list(kept[:BYTE_SYMBOLS]) != list(range(BYTE_SYMBOLS)) or list(kept) != sorted(set(kept))
        ):
            raise ParameterError("vocabulary: must hold the ids 0..511 (byte symbols) first, then ascending ids")
        self.kept = None if kept is None else tuple(kept)
        self.context_length = context_length
        self.vocab_size = CLIP_VOCABULARY_SIZE if kept is None else len(kept) + 3
        self._of_word: dict[str, list[int]] = {}
        self._compact = None if kept is None else {full: compact for compact, full in enumerate(kept)}

    @classmethod
    def from_corpus(cls, captions: Iterable[str], context_length: int = CONTEXT_LENGTH) -> "CaptionTokenizer":
        """Create the compact vocabulary of `captions`: the byte symbols and every token that occurs."""
        bpe = _byte_pair_encoder()
        words = {word for caption in captions for word in caption.split()}
        seen = {token for word in words for token in bpe.encode(word)} - _RESERVED
        return cls(sorted(set(range(BYTE_SYMBOLS)) | seen), context_length)

    @property
    def mask_id(self) -> int:
        return self.vocab_size - 3

    @property
    def start_id(self) -> int:
        return self.vocab_size - 2

    @property
    def end_id(self) -> int:
        return self.vocab_size - 1

    def encode(self, text: str) -> list[int]:
        """Return the token ids of `text`, without start and end."""
        bpe = _byte_pair_encoder()
        ids: list[int] = []
        for full in bpe.encode(text):
            if self._compact is None and full not in _RESERVED:
                ids.append(full)
            elif self._compact is not None and full in self._compact and full not in _RESERVED:
                ids.append(self._compact[full])
            else:
                ids.extend(_spell(bpe.decoder[full], bpe.encoder))
        return ids

    def __call__(self, texts: str | Sequence[str]) -> torch.Tensor:
        """Return padded ids, int64 (N, context_length): start, tokens, end, zeros. Longer texts are cut, keeping the end token."""
        texts = [texts] if isinstance(texts, str) else texts
        result = torch.zeros(len(texts), self.context_length, dtype=torch.long)
        for row, text in enumerate(texts):
            ids = [self.start_id, *self.encode(text)[: self.context_length - 2], self.end_id]
            result[row, : len(ids)] = torch.tensor(ids)
        return result

    def encode_words(self, text: str) -> list[list[int]]:
        """Return the token ids of each word of `text.split()`. A word is encoded once and kept: text repair takes long."""
        words = text.split()
        for word in words:
            if word not in self._of_word:
                self._of_word[word] = self.encode(word)
        return [self._of_word[word] for word in words]

    def is_cut(self, text: str) -> bool:
        """Return whether `text` is longer than the context, so that its end is not read."""
        room = self.context_length - 2
        return (
            sum(map(len, self.encode_words(text))) > room and len(self.encode(text)) > room
        )  # text repair may join words

    def unread(self, text: str) -> str:
        """Return the end of `text` that does not fit into the context, "" where all of it does."""
        return self.decode(self.encode(text)[self.context_length - 2 :])

    def decode(self, ids: Iterable[int]) -> str:
        """Return the text of token ids; a mask is "[mask]"; start, end and padding are left out."""
        bpe = _byte_pair_encoder()
        pieces: list[str] = []
        for token in ids:
            if token == self.mask_id:
                pieces.append("[mask]</w>")
            elif 0 < token < self.mask_id:
                pieces.append(bpe.decoder[token if self.kept is None else self.kept[token]])
        symbols = bytes(bpe.byte_decoder[symbol] for symbol in "".join(pieces))
        return symbols.decode("utf-8", errors="replace").replace("</w>", " ").strip()

    def save(self, folder: Path) -> None:
        """Write `vocabulary.json` for a compact vocabulary; CLIP's own needs no file."""
        if self.kept is not None:
            content = {"base": "openai-clip-bpe", "context_length": self.context_length, "kept": list(self.kept)}
            (folder / VOCABULARY_FILE).write_text(json.dumps(content, sort_keys=True) + "\n")

    @classmethod
    def load(cls, folder: Path, context_length: int = CONTEXT_LENGTH) -> "CaptionTokenizer":
        """Read the tokenizer of a model folder: `vocabulary.json`, or CLIP's vocabulary with `context_length` where there is none.

        Raises DataError where the file is not a vocabulary.
        """
        file = Path(folder) / VOCABULARY_FILE
        if not file.exists():
            return cls(context_length=context_length)
        try:
            content = json.loads(file.read_text())
            return cls(content["kept"], content["context_length"])
        except (ValueError, KeyError, TypeError) as error:
            raise DataError(f"{file}: not a vocabulary ({error}); save the model folder again") from error


def _spell(piece: str, encoder: dict[str, int]) -> list[int]:
    """Spell a token in byte symbols: "red</w>" -> r, e, d</w>. Id 0 (the symbol "!" inside a word) becomes "!</w>" (256)."""
    ended = piece.endswith("</w>")
    symbols = list(piece.removesuffix("</w>"))
    if ended:
        symbols[-1] += "</w>"
    return [encoder[symbol] or encoder["!</w>"] for symbol in symbols]


def token_word_alignment(caption: str, tokenizer: CaptionTokenizer, ids: torch.Tensor | None = None) -> torch.Tensor:
    """Return for each position of `tokenizer(caption)` the index of its word in `caption.split()`; int64 (context_length,).

    -1 at start, end and padding, and from the first token on where encoding word by word differs from encoding the caption (only
    where text repair joins words). `ids`, int64 (context_length,), are those of the caption where they are known.
    """
    words = [(token, index) for index, word in enumerate(tokenizer.encode_words(caption)) for token in word]
    alignment = torch.full((tokenizer.context_length,), -1, dtype=torch.long)
    inside = (tokenizer(caption)[0] if ids is None else ids)[1:-1].tolist()
    for position, (token, (expected, index)) in enumerate(zip(inside, words, strict=False), start=1):
        if token != expected:
            break
        alignment[position] = index
    return alignment


def word_token_mask(alignment: torch.Tensor, words: Iterable[int]) -> torch.Tensor:
    """True at the tokens of the chosen `words` (indices into `caption.split()`); bool, of the shape of `alignment`."""
    return torch.isin(alignment, torch.tensor(sorted(set(words)), dtype=torch.long))
