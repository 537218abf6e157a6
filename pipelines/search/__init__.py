"""Text search in the pipeline's gallery: by command line and as an MLflow model.

The index itself is in `components.search`.
"""
