"""The base of every section of a YAML file of ours."""

from pydantic import BaseModel

from components.settings import STRICT


class Section(BaseModel):
    """A section: frozen, its values of the stated types, an unknown key an error."""

    model_config = {**STRICT, "frozen": True}
