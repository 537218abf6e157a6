"""The routes of the service, as an ASGI application. Everything that it needs is given to it; Ray is not."""

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Annotated, Any

from fastapi import Depends, FastAPI, File, Form, Query, Request, Response, UploadFile
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp

from components.search.searcher import Query as SearchQuery
from pipelines.serving import gallery_facts, page_files, schema, searches
from pipelines.serving.access import COOKIE, Access
from pipelines.serving.access_log import AccessLog
from pipelines.serving.access_middleware import AccessMiddleware
from pipelines.serving.answers import Refused, error_answer
from pipelines.serving.body_middleware import UPLOAD_PATH, BodyMiddleware
from pipelines.serving.limits import LIMITS, Limits
from pipelines.serving.metrics import Metrics
from pipelines.serving.rates import Rates
from pipelines.serving.schema import IdInPath
from pipelines.serving.served_gallery import Opened, ServedGallery
from pipelines.serving.threads import WorkThreads
from pipelines.serving.uploads import media_type, read_upload

FILE_THREADS = 4
FORM_LIMITS: Any = {
    "max_fields": 3 + LIMITS.filters + LIMITS.sentences,
    "max_files": 1,
    "max_part_size": 4 * LIMITS.sentence_characters,
}
PICTURES = ("image/jpeg", "image/png", "image/webp", "application/octet-stream")


@dataclass
class Service:
    """What the routes share. `search_threads`: searches at the same time; more than the cores make none of them faster."""

    gallery: ServedGallery
    metrics: Metrics
    access: Access = field(default_factory=Access)
    limits: Limits = LIMITS
    access_log: AccessLog | None = None
    search_threads: int = 1
    on_start: Callable[[], None] = lambda: None
    """Called on the event loop that serves requests, before the first of them."""

    def __post_init__(self) -> None:
        waiting, seconds = self.limits.waiting, self.limits.search_seconds
        self.searching = WorkThreads("search", self.search_threads, waiting, seconds)
        self.reading = WorkThreads("files", FILE_THREADS, waiting, seconds)

    @property
    def opened(self) -> Opened:
        return self.gallery.current


def application(service: Service) -> ASGIApp:
    """Return the whole service: routes, access and rates around them, and bodies and headers before that."""
    app = routes(service)
    checked = AccessMiddleware(app, service.access, Rates(service.limits), service.metrics, service.access_log)
    return BodyMiddleware(checked, service.limits)


def routes(service: Service) -> FastAPI:
    """Return the routes alone."""

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        service.on_start()
        following = asyncio.create_task(service.gallery.follow())
        try:
            yield
        finally:
            following.cancel()
            service.searching.close()
            service.reading.close()

    app = FastAPI(
        title="Person search",
        description="Finds people in a gallery of pictures, by sentences and by pictures.",
        version="1",
        lifespan=lifespan,
        docs_url=None,  # its page loads assets from elsewhere
        redoc_url=None,
        redirect_slashes=False,
        responses=schema.REFUSALS,
        form_limits=FORM_LIMITS,
    )
    app.state.service = service
    app.openapi = partial(_document, app, app.openapi)  # type: ignore[method-assign]
    _add_errors(app)
    _add_searches(app)
    _add_pictures(app)
    _add_watching(app)
    _add_page(app)
    return app


def _document(app: FastAPI, make: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """Return the OpenAPI document without FastAPI's own answer to a wrong request, 422, which is 400 here."""
    if app.openapi_schema is None:
        document = make()
        for operation in (each for path in document["paths"].values() for each in path.values()):
            operation["responses"].pop("422", None)
        for name in ("HTTPValidationError", "ValidationError"):
            document["components"]["schemas"].pop(name, None)
    return app.openapi_schema or {}


def _service(request: Request) -> Service:
    found = request.app.state.service
    assert isinstance(found, Service)
    return found


OfService = Annotated[Service, Depends(_service)]


def _add_searches(app: FastAPI) -> None:
    @app.post("/api/search", response_model=schema.Matches, tags=["search"])
    async def search(asked: schema.SearchRequest, request: Request, service: OfService) -> schema.Matches:
        """Find pictures by sentences, by a picture of the gallery, or by both. Several sentences: the mean of their vectors."""
        query = SearchQuery(sentences=tuple(asked.sentences), like=asked.like, weight=asked.weight)
        return await _search(service, request, query, asked.k, asked.where, rerank=asked.rerank)

    @app.post(UPLOAD_PATH, response_model=schema.Matches, tags=["search"])
    async def search_by_picture(
        service: OfService,
        request: Request,
        picture: Annotated[UploadFile, File(description="JPEG, PNG, WebP, GIF, BMP or TIFF.")],
        sentence: Annotated[schema.Sentences, Form()] = [],  # noqa: B006  # FastAPI copies it
        weight: Annotated[schema.Weight, Form()] = 0.5,
        k: Annotated[schema.Count, Form()] = 20,
        where: Annotated[schema.Filters, Form()] = [],  # noqa: B006
        rerank: Annotated[bool, Form()] = False,
    ) -> schema.Matches:
        """Find pictures by one that is sent, and maybe sentences. It is not kept."""
        content = await picture.read()
        image = await service.searching.run(partial(read_upload, content, service.limits))
        query = SearchQuery(sentences=tuple(sentence), picture=image, weight=weight)
        return await _search(service, request, query, k, where, rerank=rerank)

    @app.post("/api/words", response_model=schema.Words, tags=["search"])
    async def words(asked: schema.WordsRequest, request: Request, service: OfService) -> schema.Words:
        """Tell what each word of a sentence did for its match with a picture."""
        if service.access_log is not None:
            service.access_log.note_query(request.scope, {"sentences": [asked.sentence], "picture": asked.id})
        return await service.searching.run(partial(searches.words, service.opened, asked.sentence, asked.id))

    @app.get("/api/pictures/{id}/related", response_model=schema.Related, tags=["pictures"])
    async def related(
        id: IdInPath, service: OfService, k: Annotated[int, Query(ge=1, le=LIMITS.results)] = 12
    ) -> schema.Related:
        """Find the other pictures of the person on this one, or the nearest pictures where the gallery has no identities."""
        return await service.searching.run(partial(searches.related, service.opened, id, k))


async def _search(
    service: Service, request: Request, query: SearchQuery, k: int, where: list[str], *, rerank: bool
) -> schema.Matches:
    begin = time.perf_counter()
    if service.access_log is not None:
        asked = {"sentences": query.sentences, "like": query.like, "upload": query.picture is not None}
        service.access_log.note_query(request.scope, {**asked, "where": where, "k": k, "rerank": rerank})
    opened = service.opened
    with service.metrics.search_seconds.time():
        found, unread = await service.searching.run(partial(searches.search, opened, query, k, where, rerank=rerank))
    seconds = round(time.perf_counter() - begin, 4)
    return schema.Matches(version=opened.gallery.version, matches=found, unread=unread, seconds=seconds)


def _add_pictures(app: FastAPI) -> None:
    content = {kind: {"schema": {"type": "string", "format": "binary"}} for kind in PICTURES}

    @app.get(
        "/api/pictures/{id}",
        response_class=Response,
        responses={200: {"content": content}, 304: {"description": "As the client has it."}},
        tags=["pictures"],
    )
    async def picture(id: IdInPath, request: Request, service: OfService) -> Response:
        """Return the original file of a picture."""
        return await _file(service, request, id, searches.original)

    @app.get(
        "/api/pictures/{id}/thumbnail",
        response_class=Response,
        responses={
            200: {"content": {"image/webp": content["image/webp"]}},
            304: {"description": "As the client has it."},
        },
        tags=["pictures"],
    )
    async def thumbnail(id: IdInPath, request: Request, service: OfService) -> Response:
        """Return a small version of a picture."""
        return await _file(service, request, id, searches.thumbnail)

    @app.get("/api/gallery", response_model=schema.GalleryFacts, tags=["pictures"])
    async def gallery(service: OfService) -> schema.GalleryFacts:
        """Tell what is served: size, version, model, the columns that `where` may name, sentences to try."""
        return await service.reading.run(partial(gallery_facts.gallery_facts, service.opened.gallery))


async def _file(service: Service, request: Request, id: str, read: Callable[[Opened, str], bytes]) -> Response:
    """Answer with a file that a browser may keep but must ask for again: a forgotten picture must not be shown."""
    opened = service.opened
    headers = {"ETag": f'"{id}"', "Cache-Control": "private, no-cache", "Content-Security-Policy": "default-src 'none'"}
    if request.headers.get("if-none-match") == headers["ETag"]:
        await service.reading.run(partial(searches.row_of, opened, id))
        return Response(status_code=304, headers=headers)
    content = await service.reading.run(partial(read, opened, id))
    return Response(content, media_type=media_type(content), headers=headers)


def _add_watching(app: FastAPI) -> None:
    @app.get("/health", response_model=schema.Alive, tags=["watching"])
    async def health() -> schema.Alive:
        """Answer as long as the process lives."""
        return schema.Alive()

    @app.get("/ready", response_model=schema.Alive, tags=["watching"])
    async def ready(service: OfService) -> schema.Alive:
        """Answer once gallery and model are open and searches find a free place; 503 until then."""
        if service.searching.is_full:
            raise Refused(503, "too many requests are waiting; try again", "busy")
        return schema.Alive()

    @app.get(
        "/metrics",
        response_class=Response,
        responses={200: {"content": {"text/plain": {"schema": {"type": "string"}}}}},
        tags=["watching"],
    )
    async def metrics(service: OfService) -> Response:
        """Return numbers for Prometheus; of this replica, where there are several."""
        return Response(service.metrics.text(), media_type="text/plain; version=0.0.4; charset=utf-8")


def _add_page(app: FastAPI) -> None:
    files = page_files.read_all()

    @app.get("/", include_in_schema=False)
    async def page(request: Request, service: OfService) -> Response:
        if "token" in request.query_params and service.access.digest:  # the middleware has found it right
            answer = Response(status_code=303, headers={"Location": "/"})
            secure = request.url.scheme == "https"
            answer.set_cookie(COOKIE, service.access.cookie(), httponly=True, samesite="strict", secure=secure)
            return answer
        return _page_file(files, page_files.PAGE)

    @app.get("/static/{name}", include_in_schema=False)
    async def static(name: str) -> Response:
        return _page_file(files, name)


def _page_file(files: dict[str, tuple[bytes, str]], name: str) -> Response:
    if name not in files:
        raise Refused(404, "there is no such page", "route")
    content, kind = files[name]
    return Response(content, media_type=kind, headers={"Cache-Control": "no-cache"})


def _add_errors(app: FastAPI) -> None:
    @app.exception_handler(Refused)
    async def refused(request: Request, error: Exception) -> Response:
        assert isinstance(error, Refused)
        service = _service(request)
        service.metrics.refused.labels(error.reason).inc()
        return error.answer()

    @app.exception_handler(Exception)
    async def failed(_: Request, error: Exception) -> Response:
        return error_answer(500, f"the request failed ({type(error).__name__}); the log of the service says why")

    @app.exception_handler(RequestValidationError)
    async def invalid(request: Request, error: Exception) -> Response:
        assert isinstance(error, RequestValidationError)
        wanted = "multipart/form-data" if request.url.path == UPLOAD_PATH else "application/json"
        given = request.headers.get("content-type", "")
        if request.method == "POST" and given.partition(";")[0].strip().lower() != wanted:
            return error_answer(415, f"the body must be of type {wanted}")
        return error_answer(400, _sentence(error.errors()))

    @app.exception_handler(HTTPException)
    async def stopped(_: Request, error: Exception) -> Response:
        assert isinstance(error, HTTPException)
        sentences = {404: "there is no such page", 405: "this path does not have that method"}
        sentence = sentences.get(error.status_code, str(error.detail))
        return error_answer(error.status_code, sentence, headers=error.headers)


def _sentence(errors: Any) -> str:
    """The first mistake as one sentence: where it is, and what is allowed. What was sent is not repeated."""
    first = errors[0]
    place = ".".join(str(part) for part in first["loc"] if part not in ("body", "path", "query"))
    if first["type"] == "json_invalid":
        return "the body is not JSON"
    message = str(first["msg"]).removeprefix("Value error, ")
    return f"{place}: {message[:1].lower()}{message[1:]}" if place else message
