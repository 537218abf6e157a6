"""The service as a deployment of Ray Serve: the application in a replica, with sentences of several requests encoded together."""

import asyncio
import dataclasses
import logging
import os
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from ray import serve
from starlette.types import ASGIApp

from components.errors import ParameterError
from components.search.encoders import Encoder
from pipelines.serving.access import Access, is_loopback
from pipelines.serving.access_log import AccessLog
from pipelines.serving.application import Service, application
from pipelines.serving.limits import LIMITS
from pipelines.serving.metrics import Metrics
from pipelines.serving.served_gallery import GalleryFolder, ServedGallery
from pipelines.serving.settings import ReplicaSettings, ServeOptions, replica_settings
from pipelines.threads.cores import usable_cores

MAX_BATCH = 32
"""Sentences in one pass of the text tower. Those that arrive while it is busy make the next batch: nobody waits for one to fill."""
ONGOING, QUEUED = 256, 256
"""Requests in a replica (searches among them wait for threads there), and those that wait in the proxy for a replica."""


@serve.deployment(
    name="search",
    max_ongoing_requests=ONGOING,
    max_queued_requests=QUEUED,
    backpressure_config={"status_code": 503, "retry_after_s": 1},
    graceful_shutdown_timeout_s=LIMITS.search_seconds + 5,
    ray_actor_options={"num_cpus": 1},
    max_constructor_retry_count=1,
)
@serve.ingress()
class SearchReplica:
    """One process that answers."""

    def __init__(self, settings: ReplicaSettings) -> None:
        keep_port_on_loopback()
        for handler in logging.getLogger("ray.serve").handlers:  # the replica's log file
            logging.getLogger("pipelines.serving").addHandler(handler)
        self.metrics = Metrics()
        self.loop: asyncio.AbstractEventLoop | None = None
        source = GalleryFolder(Path(settings.gallery), Path(settings.root), settings.model)
        self.gallery = ServedGallery(source, self.metrics, encode=self.encode_together)
        self.settings = settings

    def __serve_build_asgi_app__(self) -> ASGIApp:
        log = self.settings.access_log
        service = Service(
            gallery=self.gallery,
            metrics=self.metrics,
            access=Access(self.settings.hosts, self.settings.token),
            limits=dataclasses.replace(LIMITS, searches_per_minute=self.settings.searches_per_minute),
            access_log=AccessLog(Path(log), queries=self.settings.log_queries) if log else None,
            search_threads=usable_cores(),
            on_start=self.remember_loop,
        )
        return application(service)

    def remember_loop(self) -> None:
        """Note the event loop on which batches are made; searches run in threads."""
        self.loop = asyncio.get_running_loop()

    def encode_together(self, encoder: Encoder, texts: Sequence[str]) -> np.ndarray:
        """Encode sentences, for a thread: in one batch with those of other requests."""
        assert self.loop is not None

        async def all_of_them() -> list[np.ndarray]:
            return await asyncio.gather(*(self.encode_batch((encoder, text)) for text in texts))

        return np.stack(asyncio.run_coroutine_threadsafe(all_of_them(), self.loop).result())

    @serve.batch(max_batch_size=MAX_BATCH, batch_wait_timeout_s=0)
    async def encode_batch(self, asked: list[tuple[Encoder, str]]) -> list[np.ndarray]:
        """Encode a batch; while a new version takes over, its sentences may be for two models."""
        begin = time.perf_counter()
        self.metrics.batch_sentences.observe(len(asked))
        found: list[np.ndarray] = [np.empty(0)] * len(asked)
        for encoder in {id(encoder): encoder for encoder, _ in asked}.values():
            places = [place for place, (other, _) in enumerate(asked) if other is encoder]
            vectors = await asyncio.to_thread(encoder.sentences, [asked[place][1] for place in places])
            for place, vector in zip(places, vectors, strict=True):
                found[place] = vector
        self.metrics.encode_seconds.observe(time.perf_counter() - begin)
        return found


def keep_port_on_loopback() -> None:
    """Where Ray is on loopback, open the replica's own port there, too: Serve opens it on every address, and takes pickles there.

    For the constructor of a replica, after which Serve opens that port.
    """
    import ray
    from ray.serve._private import replica

    address, open_port = ray.util.get_node_ip_address(), replica.add_port_to_grpc_server
    if is_loopback(address):
        replica.add_port_to_grpc_server = lambda server, where: open_port(server, where.replace("[::]", address))


def deployed(settings: ReplicaSettings) -> Any:
    """Return the application for `serve.run`."""
    replica: Any = SearchReplica  # a Deployment, which its decorator does not tell
    return replica.bind(settings)


def on_cluster(arguments: dict[str, Any]) -> Any:
    """Return the application for a Serve config file (`import_path`), whose `args` are those of `ServeOptions` and `root`.

    Others can reach a cluster, so a token is always needed: `PIPELINES_SERVE_TOKEN` in the environment of the head.
    """
    known = {field.name for field in dataclasses.fields(ServeOptions)} | {"root"}
    if wrong := sorted(set(arguments) - known):
        raise ParameterError(f"args: {', '.join(wrong)}: unknown; known are {', '.join(sorted(known))}")
    arguments = {"host": "0.0.0.0", **arguments}
    root = Path(arguments.pop("root", os.getcwd()))
    hosts = tuple(arguments.pop("allowed_host", ()))
    arguments |= {name: Path(arguments[name]) for name in ("access_log", "token_file") if arguments.get(name)}
    gallery = Path(arguments.pop("gallery"))
    options = ServeOptions(gallery=gallery, allowed_host=hosts, **arguments)
    return deployed(replica_settings(options, gallery, root))
