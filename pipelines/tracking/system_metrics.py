"""MLflow's `system/` metrics of the runner's machine while a stage runs: processor, memory, disk, network, GPUs.

One point every half minute (MLFLOW_SYSTEM_METRICS_SAMPLING_INTERVAL and MLFLOW_SYSTEM_METRICS_SAMPLES_BEFORE_LOGGING change that).
Not a result: when the server goes away, the monitor stops.
"""

import logging
from collections.abc import Iterator
from contextlib import contextmanager

SAMPLE_SECONDS, SAMPLES = 10, 3


@contextmanager
def system_metrics(run_id: str, uri: str) -> Iterator[None]:
    """Log the machine's metrics to a run while the context is open, after the last point of a run that was re-opened."""
    from mlflow.system_metrics.system_metrics_monitor import SystemMetricsMonitor

    logging.getLogger("mlflow.system_metrics").setLevel(logging.CRITICAL)
    monitor = SystemMetricsMonitor(run_id, SAMPLE_SECONDS, SAMPLES, resume_logging=True, tracking_uri=uri)
    monitor.start()
    try:
        yield
    finally:
        monitor.finish()
