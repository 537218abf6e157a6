"""DVC's files: `dvc.yaml` written from the graph, `dvc.lock` read."""
