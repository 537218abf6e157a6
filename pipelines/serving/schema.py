"""What requests and answers look like: from these the OpenAPI document is made, and by these requests are checked."""

import re
from typing import Annotated, Any, Literal, Self

from fastapi import Path
from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, model_validator

from pipelines.serving.limits import LIMITS

_WORDS = re.compile(r"^[^\x00-\x1f\x7f]*[^\s\x00-\x1f\x7f][^\x00-\x1f\x7f]*$")
_PLAIN_SPACES = str.maketrans("\t\n\r", "   ")


def _worded(text: str) -> str:
    text = text.translate(_PLAIN_SPACES).strip()
    if not _WORDS.match(text):
        raise ValueError("must hold a word, and no control characters")
    return text


def _whole(value: Any) -> Any:
    """As JSON has it: 5.0 is an integer."""
    return int(value) if isinstance(value, float) and value.is_integer() else value


def _no_control_characters(text: str) -> str:
    if any(ord(letter) < 32 or ord(letter) == 127 for letter in text):
        raise ValueError("must not hold control characters")
    return text


Sentence = Annotated[
    str,
    Field(
        min_length=1,
        max_length=LIMITS.sentence_characters,
        description="What the person looks like; longer than the model reads is allowed, see `unread`.",
        json_schema_extra={"pattern": r"^[^\u0000-\u001f\u007f]*[A-Za-z0-9][^\u0000-\u001f\u007f]*$"},
        examples=["a woman in a red coat"],
    ),
    AfterValidator(_worded),
]
Sentences = Annotated[list[Sentence], Field(max_length=LIMITS.sentences)]
PictureId = Annotated[str, Field(pattern=r"^[A-Za-z0-9_-]{1,64}$", description="As `id` of a match.")]
IdInPath = Annotated[str, Path(pattern=r"^[A-Za-z0-9_-]{1,64}$", description="As `id` of a match.")]
Where = Annotated[
    str,
    Field(
        min_length=1,
        max_length=LIMITS.filter_characters,
        description='A filter on a column of the gallery: "camera=3", "identity!=17", "width>=64", "caption~coat".',
    ),
    AfterValidator(_no_control_characters),
]
Filters = Annotated[list[Where], Field(max_length=LIMITS.filters, description="All of them must hold.")]
Count = Annotated[int, Field(ge=1, le=LIMITS.results, description="How many matches."), BeforeValidator(_whole)]
Weight = Annotated[float, Field(ge=0, le=1, allow_inf_nan=False, description="Of the picture, beside the sentences.")]


class _Body(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)


class SearchRequest(_Body):
    """Sentences, the id of a picture of the gallery, or both."""

    model_config = ConfigDict(
        json_schema_extra={
            "anyOf": [
                {"required": ["sentences"], "properties": {"sentences": {"minItems": 1}}},
                {"required": ["like"], "properties": {"like": {"type": "string"}}},
            ]
        }
    )
    sentences: Sentences = []
    like: PictureId | None = None
    weight: Weight = 0.5
    k: Count = 20
    where: Filters = []
    rerank: bool = Field(default=False, description="Order again by k-reciprocal neighbours.")

    @model_validator(mode="after")
    def _asks_for_something(self) -> Self:
        if not self.sentences and self.like is None:
            raise ValueError("give sentences, or like: the id of a picture")
        return self


class WordsRequest(_Body):
    """A sentence, and a picture of the gallery."""

    sentence: Sentence
    id: PictureId


class Match(BaseModel):
    """A picture that was found. Further fields are the columns of the gallery."""

    model_config = ConfigDict(extra="allow")

    id: str
    score: float = Field(description="Cosine in [-1, 1]; with `rerank` they no longer fall from one match to the next.")
    identity: str | None = None
    caption: str | None = None


class Matches(BaseModel):
    """What was found, best first."""

    version: str = Field(description="Of the gallery that answered.")
    matches: list[Match]
    unread: str = Field(
        description="The end of a sentence that the model did not read, as it is too long; mostly empty."
    )
    seconds: float


class Related(BaseModel):
    """Other pictures of the same person, or the nearest ones where the gallery does not know who it is."""

    by: Literal["identity", "nearest"]
    version: str
    matches: list[Match]


class Words(BaseModel):
    """What each word did for the match, in [-1, 1]: by the model's own score, or by leaving the word out."""

    words: list[tuple[str, float]]
    by: Literal["gradient attention", "leave one out"]


class Column(BaseModel):
    """A column that `where` may name: with its values, if they are few, or its range, if they are numbers."""

    name: str
    values: list[str | int | float | bool] | None = None
    range: tuple[float, float] | None = None


class AskedAtMost(BaseModel):
    """Limits that somebody who asks should know before."""

    k: int = LIMITS.results
    sentences: int = LIMITS.sentences
    sentence: int = Field(default=LIMITS.sentence_characters, description="Characters.")
    picture_bytes: int = LIMITS.picture_bytes


class GalleryFacts(BaseModel):
    """What is served."""

    size: int
    version: str
    model: str
    columns: list[Column]
    examples: list[str] = Field(description="Sentences to try.")
    limits: AskedAtMost = AskedAtMost()


class Alive(BaseModel):
    """`ok`; not ready is an error of status 503."""

    status: Literal["ok"] = "ok"


class Error(BaseModel):
    """One sentence for the person who asked."""

    error: str


REFUSALS: dict[int | str, dict[str, Any]] = {
    status: {"model": Error, "description": description}
    for status, description in {
        400: "The request is wrong.",
        401: "A token is needed, or is wrong.",
        403: "Asked by another site, or under another name.",
        404: "There is none.",
        408: "The body did not arrive in time.",
        413: "Too large.",
        415: "Not the media type that is read here.",
        429: "Too many requests of this client; Retry-After says when to try again.",
        431: "Address and headers are too long.",
        500: "The request failed.",
        503: "Busy, or not ready; Retry-After says when to try again.",
    }.items()
}
"""Every route may answer these."""
