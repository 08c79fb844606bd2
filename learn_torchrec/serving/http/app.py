"""The server as an ASGI application."""

import asyncio
import contextlib
import logging
import time
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException

from learn_torchrec.errors import UserError
from learn_torchrec.serving.batching import BatchLimits, Closed, QueueFull
from learn_torchrec.serving.deployment import Deployment
from learn_torchrec.serving.events import EventStore
from learn_torchrec.serving.http.guard import Guard, Limits
from learn_torchrec.serving.http.live import Live
from learn_torchrec.serving.http.metrics import Metrics
from learn_torchrec.serving.http.page import add_page
from learn_torchrec.serving.http.routes import add_routes

logger = logging.getLogger(__name__)

_ABOUT = """Rank candidates, retrieve items, embed new ones, tell what users did.

Ids are integers or texts, as in the data; a number may be sent as a text. Unknown users
and items get what a cold one gets, not an error. An error is `{"detail": "..."}`.
"""


@dataclass(frozen=True, kw_only=True)
class Settings:
    """How a server runs.

    Attributes:
        limits: of what a client may ask.
        batches: how requests are put together.
        candidates: of a ranking, at most.
        seconds: until a ranking or search must be answered.
        embed_seconds: until new items must be embedded.
        history_length: events of a user that are read.
        watch_seconds: between looks for another version; 0 for none.
        now: the time, unix seconds; None for the clock.
    """

    limits: Limits = field(default_factory=Limits)
    batches: BatchLimits = field(default_factory=BatchLimits)
    candidates: int = 5_000
    seconds: float = 2.0
    embed_seconds: float = 60.0
    history_length: int = 500
    watch_seconds: float = 2.0
    now: Callable[[], int] | None = None


def create_app(
    load: Callable[[], Deployment],
    version: Callable[[], str],
    store: EventStore,
    settings: Settings,
) -> FastAPI:
    """Return the application; it loads what it serves when it starts.

    Args:
        load: returns what answers; is called at the start and after a change.
        version: of what `load` would return now.
        store: of events and new items; the caller closes it.
        settings: see `Settings`.
    """
    metrics = Metrics()

    @contextlib.asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        live = Live(
            load, version, store, settings.batches, metrics, settings.history_length
        )
        app.state.live = live
        await live.start()
        watching = None
        if settings.watch_seconds:
            watching = asyncio.create_task(live.watch(settings.watch_seconds))
        yield
        if watching is not None:
            watching.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await watching
        await live.stop()

    app = FastAPI(
        title="LEARN on TorchRec",
        description=_ABOUT,
        version="1",
        lifespan=lifespan,
        docs_url=None,  # they would fetch scripts from elsewhere
        redoc_url=None,
    )
    app.state.settings, app.state.metrics = settings, metrics
    app.state.now = settings.now or (lambda: int(time.time()))
    add_routes(app)
    add_page(app)
    _add_handlers(app)
    app.add_middleware(Guard, limits=settings.limits, metrics=metrics)
    return app


def _add_handlers(app: FastAPI) -> None:
    """Turn what is raised into a status and one line."""

    def add(kind: type[Exception], status: int, detail: str | None = None) -> None:
        async def handle(request: Request, error: Exception) -> JSONResponse:
            body = {"detail": str(error) if detail is None else detail}
            retry = {"retry-after": "1"} if status == 503 else None
            return JSONResponse(body, status, retry)

        app.add_exception_handler(kind, handle)

    add(UserError, 422)
    add(QueueFull, 503, "too many requests are waiting; try again")
    add(Closed, 503, "the server is stopping; try another one")
    add(TimeoutError, 504, "the answer took too long; ask for less, or try again")

    async def invalid(request: Request, error: Exception) -> JSONResponse:
        assert isinstance(error, RequestValidationError)
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"]))
        return JSONResponse({"detail": f"{where}: {first['msg']}"}, 422)

    async def refused(request: Request, error: Exception) -> JSONResponse:
        assert isinstance(error, HTTPException)
        return JSONResponse({"detail": error.detail}, error.status_code, error.headers)

    async def bug(request: Request, error: Exception) -> JSONResponse:
        logger.error("%s failed", request.url.path, exc_info=error)
        return JSONResponse({"detail": "internal error; see the server's log"}, 500)

    app.add_exception_handler(RequestValidationError, invalid)
    app.add_exception_handler(HTTPException, refused)
    app.add_exception_handler(Exception, bug)
