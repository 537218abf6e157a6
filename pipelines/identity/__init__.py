"""The fingerprint of a result: source files, parameters and inputs. Nothing is run or written here."""
