"""MLflow: runs, and metrics delivered to them once. Nothing else talks to the tracking server to write stage runs."""
