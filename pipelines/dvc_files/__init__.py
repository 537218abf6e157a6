"""Writes `dvc.yaml` from the graph and reads `dvc.lock`. Runs no DVC: that is `scheduling`."""
