"""Running the application with uvicorn, until it is told to stop."""

import asyncio
import signal
import socket
from collections.abc import Callable
from typing import Any

import uvicorn
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from learn_torchrec.errors import UserError
from learn_torchrec.serving.deployment import Deployment
from learn_torchrec.serving.events import EventStore
from learn_torchrec.serving.http.app import Settings, create_app

_HEAD_SECONDS = 10.0
_KEEP_ALIVE_SECONDS = 30
_GRACE_SECONDS = 30


class TimedProtocol(HttpToolsProtocol):
    """HTTP over one connection, which ends if a request's head does not arrive.

    uvicorn itself would wait for ever.
    """

    _timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: Any) -> None:
        """See `asyncio.Protocol`."""
        super().connection_made(transport)
        self._start()

    def connection_lost(self, exc: Exception | None) -> None:
        """See `asyncio.Protocol`."""
        self._end()
        super().connection_lost(exc)

    def on_message_begin(self) -> None:
        """A request has begun."""
        super().on_message_begin()
        if self._timer is None:
            self._start()

    def on_headers_complete(self) -> None:
        """Its head is there."""
        self._end()
        super().on_headers_complete()

    def _start(self) -> None:
        self._timer = self.loop.call_later(_HEAD_SECONDS, self.transport.close)

    def _end(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None


def listen(host: str, port: int) -> socket.socket:
    """Return a socket that listens; port 0 for a free one.

    Raises:
        UserError: it cannot be bound.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        return socket.create_server((host, port), family=family, backlog=2048)
    except OSError as error:
        raise UserError(
            f"--host {host} --port {port}: cannot be bound ({error.strerror}); choose "
            "another one"
        ) from None


def serve(
    load: Callable[[], Deployment],
    version: Callable[[], str],
    store: EventStore,
    settings: Settings,
    listening: socket.socket,
    first: Deployment,
) -> None:
    """Answer requests on a socket until SIGTERM or SIGINT.

    Args:
        load: returns what answers from the next reload on.
        version: of what `load` would return now.
        store: of events and new items.
        settings: of the application.
        listening: where requests come from.
        first: what answers at the start.
    """
    prepared = [first]

    def load_next() -> Deployment:
        return prepared.pop() if prepared else load()

    config = uvicorn.Config(
        create_app(load_next, version, store, settings),
        http=TimedProtocol,
        loop="uvloop",
        lifespan="on",
        log_config=None,
        access_log=False,
        server_header=False,
        timeout_keep_alive=_KEEP_ALIVE_SECONDS,
        timeout_graceful_shutdown=_GRACE_SECONDS,
    )
    # uvicorn raises the signal again when all is answered; it has done its work then.
    before = {
        number: signal.signal(number, lambda *_: None)
        for number in (signal.SIGTERM, signal.SIGINT)
    }
    try:
        server = uvicorn.Server(config)
        server.run(sockets=[listening])
        if not server.started:
            raise RuntimeError("the server did not start; see above")
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
