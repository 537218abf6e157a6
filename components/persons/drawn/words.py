"""The words of all captions of drawn people: fixed lists, whatever the preset, the seed and the noise.

A model with a vocabulary of whole words is trained once and used with every later set, so its list is not that of some training
captions. What a list lacks is said: `unknown_words`.
"""

import re
from collections import Counter
from collections.abc import Collection, Iterable, Iterator

from components.persons.drawn.captions import FILLER, SHORT_VOCABULARY, WITHOUT_CLOTHES
from components.persons.drawn.lexicon import (
    NOUN_PHRASES,
    OPENINGS,
    OPENINGS_WITH_HAIR,
    PRONOUNS,
    SENTENCES,
    SUBJECTS,
    SYNONYMS,
    VIEWS,
)


def words_of(caption: str) -> list[str]:
    """Return the words of a caption in lower case, with punctuation only inside words ("t-shirt")."""
    return re.sub(r"[^\w\s'-]", " ", caption.lower()).split()


def unknown_words(captions: Iterable[str], known: Collection[str]) -> str | None:
    """Return one line on the words of `captions` that are not `known` (lower case), the most frequent first; None without any."""
    counts = Counter(word for caption in captions for word in words_of(caption))
    unknown = [(word, count) for word, count in counts.most_common() if word not in known]
    if not unknown:
        return None
    shown = ", ".join(word for word, _ in unknown[:8]) + (", ..." if len(unknown) > 8 else "")
    times = sum(count for _, count in unknown)
    return f"{len(unknown)} of {len(counts)} words, {times} times in all, are unknown to the model: {shown}"


def _expanded(templates: Iterable[str]) -> Iterator[str]:
    """Yield the fixed words of phrases, with every pronoun."""
    for token in (token for template in templates for token in template.split()):
        name = token.strip("{}").lower()
        if name.startswith("a:"):
            yield "a"
        elif name not in ("#", "%", "subject") and name not in SYNONYMS:
            for pronouns in PRONOUNS.values():
                text = token.lower()
                for slot, word in pronouns.items():
                    text = text.replace(f"{{{slot}}}", word)
                yield text


def _long_words() -> Iterator[str]:
    weighted = (SUBJECTS, *NOUN_PHRASES.values())
    plain = (OPENINGS, OPENINGS_WITH_HAIR, WITHOUT_CLOTHES, *SENTENCES.values(), *VIEWS.values(), (FILLER, "a and"))
    yield from _expanded(text for phrases in weighted for text, _ in phrases)
    yield from _expanded(text for phrases in plain for text in phrases)
    yield from (word for values in SYNONYMS.values() for words in values.values() for word in words)


LONG_VOCABULARY: tuple[str, ...] = tuple(sorted({word for text in _long_words() for word in words_of(text)}))
"""Every word of long captions, true or false."""
VOCABULARY: tuple[str, ...] = tuple(sorted({*SHORT_VOCABULARY, *LONG_VOCABULARY}))
"""Every word of all captions."""
