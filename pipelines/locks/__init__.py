"""Who may work where, and for how long others wait: kernel locks, leases across machines, time limits.

No knowledge of stages.
"""
