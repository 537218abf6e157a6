"""What is written beside a result, so that it can be traced: provenance, the state of the code, manifests.

No checking or repeating: that is `provenance`.
"""
