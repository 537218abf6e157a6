"""Captions of a drawn person, from the attributes that the picture shows.

`short_caption` is a compact, regular language for a word-level tokenizer: every shown attribute once, at most `SHORT_MAX_WORDS`
words. `compose` writes prose with synonyms, varied order and detail, 10 to 60 words, and records which attribute each word states,
for caption noise.

Random numbers are drawn in a fixed layout, one stream per group of attributes, so that the same seed with one value replaced gives
the same sentence with the word of that value replaced.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from components.persons.drawn.lexicon import (
    GROUPS,
    MENTIONED,
    NOUN_PHRASES,
    OPENINGS,
    OPENINGS_WITH_HAIR,
    PRONOUNS,
    SENTENCES,
    SHORT_WORDS,
    SUBJECTS,
    SYNONYMS,
    VIEWS,
)

SHORT_MAX_WORDS = 24
LONG_WORDS = (10, 60)
_SHORT_GLUE = ("a", "view", "of", "person", "with", "hair", "no", "hat", "bag")
SHORT_VOCABULARY: tuple[str, ...] = tuple(
    sorted({*_SHORT_GLUE, *(w for words in SHORT_WORDS.values() for w in words.values() if w != "none")})
)
"""Every word of short captions."""


@dataclass(frozen=True)
class Word:
    """A word of a caption with its punctuation; `attribute` is the one whose value it states, or ""."""

    text: str
    attribute: str = ""


@dataclass(frozen=True)
class Caption:
    """A caption as words, with `words[i].text == text.split()[i]`."""

    words: tuple[Word, ...]

    @property
    def text(self) -> str:
        return " ".join(word.text for word in self.words)

    @property
    def stated(self) -> frozenset[str]:
        """The attributes the caption states."""
        return frozenset(word.attribute for word in self.words if word.attribute)


def short_caption(shown: Mapping[str, str], rng: np.random.Generator) -> str:
    """Every attribute in `shown` exactly once, e.g. "front view of slim tan woman with long black hair ...".

    At most SHORT_MAX_WORDS words of SHORT_VOCABULARY, no punctuation; the order of the groups varies.
    """
    words = dict(SHORT_WORDS)

    def phrase(*names: str) -> list[str]:
        return [words[name][shown[name]] for name in names if name in shown]

    groups = {
        "hair": [*phrase("hair_length", "hair_colour"), "hair"] if "hair_length" in shown else [],
        "hat": ["no", "hat"] if shown.get("hat") == "none" else phrase("hat_colour", "hat"),
        "upper": phrase("upper_pattern", "upper_colour", "upper_kind"),
        "lower": phrase("lower_pattern", "lower_colour", "lower_kind"),
        "shoes": phrase("shoe_colour", "shoe_kind"),
        "bag": ["no", "bag"] if shown.get("bag") == "none" else phrase("bag_side", "bag_colour", "bag"),
    }
    order = _SHORT_ORDERS[int(rng.integers(len(_SHORT_ORDERS)))]
    sentence = [*phrase("view"), "view", "of"] if "view" in shown else []
    sentence += phrase("build", "skin", "gender") if "gender" in shown else [*phrase("build", "skin"), "person"]
    body = [word for group in order for word in groups[group]]
    return " ".join([*sentence, "with", *body] if body else sentence)


_SHORT_ORDERS = (
    ("hair", "hat", "upper", "lower", "shoes", "bag"),
    ("upper", "lower", "shoes", "hair", "hat", "bag"),
    ("bag", "hat", "hair", "upper", "lower", "shoes"),
    ("upper", "bag", "lower", "shoes", "hat", "hair"),
)


def compose(shown: Mapping[str, str], seed: int) -> Caption:
    """Write a long caption, 10 to 60 words, about some of the attributes in `shown`, with the attribute that each word states.

    Two `shown` with the same keys give, for one seed, captions that differ only in the words for the values that differ
    (and in the article, where singular and plural clothes change places).
    """
    table = np.random.default_rng(seed).random((len(_STREAMS), 16))
    streams = {name: iter(table[i]) for i, name in enumerate(_STREAMS)}
    # A picture that shows little gives a short caption: then every attribute is mentioned.
    for detail in (1.0, 2.0):
        words = _prose(shown, streams, detail)
        if len(words) >= LONG_WORDS[0]:
            return Caption(words)
        streams = {name: iter(table[i]) for i, name in enumerate(_STREAMS)}
    return Caption((*words, *map(Word, FILLER.split())))


WITHOUT_CLOTHES = ("the picture shows {subject} with %", "the picture shows {subject} in the street")
"""How a caption opens that mentions nothing worn, with hair and without."""
FILLER = "Nothing more can be made out in this picture."
_STREAMS = ("plan", "subject", "opening", *GROUPS)
_WORN = ("upper", "lower", "shoes", "hat")
Streams = Mapping[str, Iterator[float]]


def _prose(shown: Mapping[str, str], streams: Streams, detail: float) -> tuple[Word, ...]:
    plan = streams["plan"]
    chances = {group: next(plan) for group in GROUPS}
    places = {group: next(plan) for group in GROUPS}
    mentioned = [
        group
        for group, names in GROUPS.items()
        if shown.get(names[0], "none") != "none" and chances[group] < MENTIONED[group] * detail
    ]
    mentioned.sort(key=lambda group: places[group])
    worn = [group for group in mentioned if group in _WORN]
    # The sentence opens with one to three things worn, mostly the larger garments.
    worn.sort(key=lambda group: places[group] + (group in ("shoes", "hat")) * 0.6)
    opening = worn[: 1 + int(next(plan) * 2.6)]
    with_hair = "hair" in mentioned and next(streams["opening"]) < 0.6
    sentences = [_opening(shown, streams, opening, with_hair)]
    said = {*opening, "hair"} if with_hair else {*opening}
    sentences += [_sentence(shown, streams[group], group) for group in mentioned if group not in said]
    return tuple(word for sentence in sentences for word in _punctuate(sentence))


def _opening(shown: Mapping[str, str], streams: Streams, worn: Sequence[str], with_hair: bool) -> list[Word]:
    subject = _fill(_choose(SUBJECTS, shown, streams["subject"]), shown, streams["subject"])
    things: list[Word] = []
    for index, group in enumerate(worn):
        if index:
            things = [*things, Word("and")] if index == len(worn) - 1 else [*things[:-1], _comma(things[-1])]
        things += _noun_phrase(shown, streams[group], group)
    hair = _noun_phrase(shown, streams["hair"], "hair") if with_hair else []
    templates = OPENINGS_WITH_HAIR if with_hair else OPENINGS
    template = templates[int(next(streams["opening"]) * len(templates))]
    if not worn:
        template = WITHOUT_CLOTHES[0 if with_hair else 1]
    parts: dict[str, list[Word]] = {"{subject}": subject, "#": things, "%": hair}
    return [word for token in template.split() for word in parts.get(token, [Word(token)])]


def _sentence(shown: Mapping[str, str], stream: Iterator[float], group: str) -> list[Word]:
    if group == "view":
        templates = VIEWS[shown["view"]]
        return _fill(templates[int(next(stream) * len(templates))], shown, stream)
    phrase = _noun_phrase(shown, stream, group)
    templates = SENTENCES[group]
    frame = _fill(templates[int(next(stream) * len(templates))], shown, stream)
    return [word for part in frame for word in (phrase if part.text == "#" else [part])]


def _noun_phrase(shown: Mapping[str, str], stream: Iterator[float], group: str) -> list[Word]:
    return _fill(_choose(NOUN_PHRASES[group], shown, stream), shown, stream)


def _choose(weighted: Sequence[tuple[str, float]], shown: Mapping[str, str], stream: Iterator[float]) -> str:
    """One of the phrases whose attributes are all shown; the last one where none is."""
    possible = [(text, weight) for text, weight in weighted if all(name in shown for name in _slots(text))]
    total = sum(weight for _, weight in possible)
    target = next(stream) * total
    for text, weight in possible:
        target -= weight
        if target < 0:
            return text
    return possible[-1][0] if possible else weighted[-1][0]


def _slots(text: str) -> list[str]:
    return [token[1:-1].removeprefix("a:") for token in text.split() if token.startswith("{")]


def _fill(template: str, shown: Mapping[str, str], stream: Iterator[float]) -> list[Word]:
    """Replace the slots of a phrase; each attribute takes one number of `stream`, whatever its value."""
    pronouns = PRONOUNS[shown.get("gender", "")]
    words: list[Word] = []
    for token in template.split():
        name = token[1:-1] if token.startswith("{") and token.endswith("}") else ""
        if name in SYNONYMS:
            choices = SYNONYMS[name][shown[name]]
            words.append(Word(choices[int(next(stream) * len(choices))], name))
        elif name.startswith("a:"):
            if shown[name[2:]] not in ("trousers", "shorts"):
                words.append(Word("a"))
        elif token != "#":
            for slot, text in pronouns.items():
                token = token.replace(f"{{{slot}}}", text).replace(f"{{{slot.capitalize()}}}", text.capitalize())
            words.append(Word(token))
        else:
            words.append(Word("#"))
    return words


def _comma(word: Word) -> Word:
    return replace(word, text=word.text + ",")


def _punctuate(sentence: Sequence[Word]) -> list[Word]:
    first, *rest = sentence
    words = [replace(first, text=first.text[0].upper() + first.text[1:]), *rest]
    return [*words[:-1], replace(words[-1], text=words[-1].text + ".")]
