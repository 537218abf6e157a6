"""Collects and finds the record of a stage run: code, inputs, machine, manifest. Checking and repeating are in `provenance`."""
