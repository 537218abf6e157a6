"""Files of one fingerprint, while it runs and when it is done: the scratch folder, its metrics, and the storage of a cluster."""
