"""The sections of `params.yaml` that are the pipeline's own; the settings of components are in the components, stated once."""
