"""How a base model is made to fit on a card. The names of the options alone: the command line and params.yaml read them."""

from typing import Literal

Quantization = Literal["none", "int8", "fp8", "nf4"]
"""See `components/taca/quantization.py`."""

Offload = Literal["none", "model", "group"]
"""See `components/taca/offloading.py`."""
