"""What a result depends on: source files, parameters, inputs, as one fingerprint. Nothing is run or written here."""
