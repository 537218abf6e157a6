"""Files of weights, read as tensors and never as code."""
