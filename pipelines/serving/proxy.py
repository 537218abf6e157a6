"""What Serve's proxy runs before a request: its process calls `middlewares` as it starts (`ENVIRONMENT` tells it to)."""

from starlette.middleware import Middleware

ENVIRONMENT = {"RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH": "pipelines.serving.proxy.middlewares"}
"""Of all of Ray's processes, from their start."""


def middlewares() -> list[Middleware]:
    """Limit the connections of this process's HTTP server, and return what stands before Serve's proxy."""
    from uvicorn.config import HTTP_PROTOCOLS

    from pipelines.serving.body_middleware import BodyMiddleware

    HTTP_PROTOCOLS["auto"] = "pipelines.serving.connections:LimitedConnection"
    return [Middleware(BodyMiddleware)]
