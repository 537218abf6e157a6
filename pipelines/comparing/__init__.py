"""Runs side by side: what differs in their parameters, by how much in their results, and where it shows."""
