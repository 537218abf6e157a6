"""What the machine did while a stage ran: processor, memory, disk, network and graphics cards, as MLflow's own `system/` metrics.

Watched from the runner's process by MLflow's monitor, a point every half minute (MLFLOW_SYSTEM_METRICS_SAMPLING_INTERVAL and
MLFLOW_SYSTEM_METRICS_SAMPLES_BEFORE_LOGGING change that). A convenience, not a result: when the server goes away, it stops.
"""

import logging
from collections.abc import Iterator
from contextlib import contextmanager

SAMPLE_SECONDS, SAMPLES = 10, 3


@contextmanager
def machine_watched(run_id: str, uri: str) -> Iterator[None]:
    """While the context is open, log the machine's metrics to a run; goes on from the last point of a run that was re-opened."""
    from mlflow.system_metrics.system_metrics_monitor import SystemMetricsMonitor

    logging.getLogger("mlflow.system_metrics").setLevel(logging.CRITICAL)
    monitor = SystemMetricsMonitor(run_id, SAMPLE_SECONDS, SAMPLES, resume_logging=True, tracking_uri=uri)
    monitor.start()
    try:
        yield
    finally:
        monitor.finish()
