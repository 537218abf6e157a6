"""Files of one fingerprint, in the scratch root or the storage of a cluster. No knowledge of MLflow or of a stage's work."""
