"""The attribute probe, a small CNN that measures alignment: the model, its training, and its accuracy on real pictures."""
