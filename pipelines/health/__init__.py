"""Will it run? Data, weights, cluster and memory, looked at before anything is started.

Nothing is trained or written.
"""
