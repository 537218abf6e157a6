"""Threads: how many cores there are for those that compute, how they wait for each other, and a call repeated beside the work."""
