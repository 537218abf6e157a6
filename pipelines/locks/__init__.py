"""Who may work where, how long others wait, and how often work is retried: kernel locks, leases, time limits, retries.

No knowledge of stages.
"""
