"""Locks of this machine, leases across machines, timeouts and retries. No knowledge of stages."""
