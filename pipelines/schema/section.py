"""The base class of sections of YAML files."""

from pydantic import BaseModel

from components.settings import STRICT


class Section(BaseModel):
    """A frozen section with strict types, in which an unknown key is an error."""

    model_config = {**STRICT, "frozen": True}
