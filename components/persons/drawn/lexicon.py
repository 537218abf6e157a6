"""Words and phrases of the drawn set's captions.

In a phrase, `{attribute}` becomes a word for that attribute's value and `{a:attribute}` the article its word needs;
`{he}`, `{his}`, `{him}`, `{is}`, `{has}`, `{s}` and `{ies}` follow the gender. Every other word claims nothing. Each
value's word is one word, so that a false value changes a word and moves none.
"""

from components.persons.drawn.attributes import ATTRIBUTES, COLOURS

SHORT_WORDS: dict[str, dict[str, str]] = {
    name: {value: value for value in values} for name, values in ATTRIBUTES.items()
}
SHORT_WORDS["view"] = {"front": "front", "back": "back", "left": "leftward", "right": "rightward"}

_COLOUR_WORDS: dict[str, tuple[str, ...]] = {colour: (colour,) for colour in COLOURS} | {
    "gray": ("gray", "grey"),
    "red": ("red", "scarlet"),
    "purple": ("purple", "violet"),
}

SYNONYMS: dict[str, dict[str, tuple[str, ...]]] = {
    "gender": {"man": ("man", "man", "guy", "gentleman"), "woman": ("woman", "woman", "lady", "female")},
    "build": {
        "slim": ("slim", "thin", "slender"),
        "medium": ("medium-built",),
        "heavy": ("heavy", "stocky", "heavyset"),
    },
    "skin": {"pale": ("pale", "fair-skinned"), "tan": ("tanned", "tan-skinned"), "dark": ("dark-skinned",)},
    "hair_length": {
        "short": ("short", "short", "cropped"),
        "medium": ("shoulder-length", "medium-length"),
        "long": ("long", "long", "flowing"),
    },
    "hair_colour": {
        "black": ("black",),
        "brown": ("brown", "chestnut"),
        "blond": ("blond", "blonde"),
        "ginger": ("ginger", "copper"),
        "silver": ("silver", "silvery"),
    },
    "hat": {"cap": ("cap",), "beanie": ("beanie",), "sunhat": ("sunhat",)},
    "hat_colour": _COLOUR_WORDS,
    "upper_kind": {
        "shirt": ("shirt", "tee", "t-shirt"),
        "sweater": ("sweater", "pullover", "jumper"),
        "hoodie": ("hoodie", "hoody"),
        "jacket": ("jacket",),
        "coat": ("coat", "greatcoat"),
    },
    "upper_colour": _COLOUR_WORDS,
    "upper_pattern": {
        "plain": ("plain", "solid"),
        "striped": ("striped", "stripy"),
        "checked": ("checked", "checkered"),
        "dotted": ("dotted", "spotted"),
    },
    "lower_kind": {"trousers": ("trousers", "pants"), "shorts": ("shorts",), "skirt": ("skirt",)},
    "lower_colour": _COLOUR_WORDS,
    "lower_pattern": {
        "plain": ("plain", "solid"),
        "striped": ("striped", "stripy"),
        "checked": ("checked", "checkered"),
    },
    "shoe_kind": {"sneakers": ("sneakers", "trainers"), "boots": ("boots",), "sandals": ("sandals",)},
    "shoe_colour": _COLOUR_WORDS,
    "bag": {"backpack": ("backpack", "rucksack"), "handbag": ("handbag", "purse"), "satchel": ("satchel",)},
    "bag_colour": _COLOUR_WORDS,
    "bag_side": {"left": ("left",), "right": ("right",)},
    "view": {"front": ("front",), "back": ("behind",), "left": ("left",), "right": ("right",)},
}
"""Attribute -> value -> the words for it in long captions. "none" has no word, because captions do not mention what is absent."""

_FACTS = frozenset(word for values in SYNONYMS.values() for words in values.values() for word in words)


def states_fact(word: str) -> bool:
    """Return whether a word of a long caption, with its punctuation, states the value of an attribute."""
    return word.strip(".,").lower() in _FACTS


GROUPS: dict[str, tuple[str, ...]] = {
    "upper": ("upper_kind", "upper_colour", "upper_pattern"),
    "lower": ("lower_kind", "lower_colour", "lower_pattern"),
    "hair": ("hair_length", "hair_colour"),
    "hat": ("hat", "hat_colour"),
    "shoes": ("shoe_kind", "shoe_colour"),
    "bag": ("bag", "bag_colour", "bag_side"),
    "view": ("view",),
}
MENTIONED: dict[str, float] = {  # how often a group that is shown is mentioned
    "upper": 0.97,
    "lower": 0.95,
    "hair": 0.75,
    "hat": 0.85,
    "shoes": 0.7,
    "bag": 0.88,
    "view": 0.35,
}

SUBJECTS = (
    ("{a:build} {build} {skin} {gender}", 2.0),
    ("{a:build} {build} {gender}", 2.0),
    ("{a:skin} {skin} {gender}", 2.0),
    ("{a:gender} {gender}", 3.0),
    ("{a:build} {build} {gender} who is {skin}", 0.7),
    ("a person", 0.0),  # for a picture that does not show the gender
)

NOUN_PHRASES: dict[str, tuple[tuple[str, float], ...]] = {
    "upper": (
        ("a {upper_pattern} {upper_colour} {upper_kind}", 3.0),
        ("a {upper_colour} {upper_pattern} {upper_kind}", 2.0),
        ("a {upper_colour} {upper_kind}", 2.0),
        ("a {upper_kind} that is {upper_colour} and {upper_pattern}", 1.0),
        ("a {upper_pattern} {upper_kind} in {upper_colour}", 1.0),
    ),
    "lower": (
        ("{a:lower_kind} {lower_pattern} {lower_colour} {lower_kind}", 3.0),
        ("{a:lower_kind} {lower_colour} {lower_pattern} {lower_kind}", 2.0),
        ("{a:lower_kind} {lower_colour} {lower_kind}", 2.0),
        ("{a:lower_kind} {lower_pattern} {lower_kind} in {lower_colour}", 1.0),
    ),
    "hair": (
        ("{hair_length} {hair_colour} hair", 4.0),
        ("{hair_colour} hair", 1.0),
        ("hair that is {hair_length} and {hair_colour}", 1.0),
    ),
    "hat": (("a {hat_colour} {hat}", 4.0), ("a {hat} in {hat_colour}", 1.0)),
    "shoes": (("{shoe_colour} {shoe_kind}", 4.0), ("a pair of {shoe_colour} {shoe_kind}", 2.0)),
    "bag": (
        ("a {bag_colour} {bag}", 2.0),
        ("a {bag_colour} {bag} on the {bag_side} side of the picture", 1.5),
        ("a {bag_colour} {bag} at the viewer's {bag_side}", 1.0),
        ("a {bag} in {bag_colour}", 0.7),
    ),
}

# `#` stands for a noun phrase of the group, or, in the openings, for the clothes.
OPENINGS = (
    "{subject} wearing #",
    "{subject} in #",
    "{subject} dressed in #",
    "{subject} is wearing #",
    "{subject} wears #",
    "the picture shows {subject} wearing #",
    "this is {subject} in #",
    "there is {subject} dressed in #",
)
OPENINGS_WITH_HAIR = (
    "{subject} with % is wearing #",
    "{subject} with % wears #",
    "the picture shows {subject} with % wearing #",
    "{subject} with % and dressed in #",
)
SENTENCES: dict[str, tuple[str, ...]] = {
    "upper": ("{He} {is} wearing #", "{He} wear{s} #", "the upper body is covered by #", "the top is #"),
    "lower": ("{He} {is} wearing #", "{He} wear{s} #", "{His} legs are clad in #", "below the waist {he} wear{s} #"),
    "hair": ("{He} {has} #", "the person has #"),
    "hat": ("{He} {is} wearing #", "on {his} head is #", "{His} head is covered by #", "{He} {has} # on"),
    "shoes": ("on {his} feet are #", "{He} {has} # on", "{He} walk{s} in #", "{His} outfit ends in #"),
    "bag": ("{He} carr{ies} #", "{He} {is} carrying #", "{He} {has} # with {him}", "there is also #"),
}
VIEWS: dict[str, tuple[str, ...]] = {
    "front": ("{He} {is} seen from the {view}", "the photo was taken from the {view}", "we see {him} from the {view}"),
    "back": ("{He} {is} seen from {view}", "the photo was taken from {view}", "we see {him} from {view}"),
    "left": (
        "{He} {is} turned to the {view}",
        "{He} face{s} the {view} edge of the picture",
        "{He} walk{s} toward the {view}",
    ),
    "right": (
        "{He} {is} turned to the {view}",
        "{He} face{s} the {view} edge of the picture",
        "{He} walk{s} toward the {view}",
    ),
}
PRONOUNS: dict[str, dict[str, str]] = {
    "man": {"he": "he", "his": "his", "him": "him", "is": "is", "has": "has", "s": "s", "ies": "ies"},
    "woman": {"he": "she", "his": "her", "him": "her", "is": "is", "has": "has", "s": "s", "ies": "ies"},
    "": {"he": "they", "his": "their", "him": "them", "is": "are", "has": "have", "s": "", "ies": "y"},
}
