"""One file a stage, each a function `run(params, inputs, outputs, context) -> metrics`."""
