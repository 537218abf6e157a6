"""One file per stage, each a function `run(params, inputs, outputs, context) -> metrics`; nothing else but `parts`."""
