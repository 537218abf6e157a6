"""What the warm process of tests loads besides the libraries of stages, for test processes and for what they fork."""

import mlflow.store.tracking.sqlalchemy_store
import mlflow.system_metrics.system_metrics_monitor
import mlflow.tracking  # noqa: F401
import torch

if not torch.cuda.is_available():  # with diffusers' models comes torchao, which initializes CUDA: none survives a fork
    import diffusers.models.autoencoders.autoencoder_kl
    import diffusers.models.transformers.transformer_flux
    import diffusers.models.transformers.transformer_sd3  # noqa: F401
