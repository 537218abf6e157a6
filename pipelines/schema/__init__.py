"""The sections of `params.yaml`: every knob, its type, its range and its default meaning."""
