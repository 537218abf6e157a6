"""Short captions in an order of words that no training had: the same facts, harder to understand."""

from components.errors import DataError
from components.persons.drawn.attributes import ATTRIBUTES

_WORN = ("hat", "upper_kind", "lower_kind", "shoe_kind", "bag")
NOUNS = frozenset({"hair", "hat", "bag", *(value for name in _WORN for value in ATTRIBUTES[name])} - {"none"})
"""The words that end a phrase of a short caption."""


def noun_first(caption: str) -> str:
    """Return a short caption with each phrase turned round: "striped red shirt black boots" -> "shirt red striped boots black".

    A colour then stands between the noun that it belongs to and the next one, so that who binds by the trained order errs. The view
    and the person before "with" stay, and so does "no hat". Raises DataError for words after the last noun, which a short caption
    does not have.
    """
    person, separator, worn = caption.partition(" with ")
    phrases: list[str] = []
    phrase: list[str] = []
    for word in worn.split():
        phrase.append(word)
        if word in NOUNS:
            phrases += phrase if phrase[0] == "no" else phrase[::-1]
            phrase = []
    if phrase:
        raise DataError(f"{caption!r}: not a short caption of a drawn person, which ends with what is worn")
    return person + separator + " ".join(phrases)
