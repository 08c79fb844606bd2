"""What a request must pass before it is read: host, token, size, time, number."""

import asyncio
import hmac
import json
import time
from collections.abc import Sequence
from dataclasses import dataclass

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from learn_torchrec.serving.http.metrics import Metrics

OPEN_PATHS = ("/health", "/ready")  # for load balancers, which have no token
PAGE_PREFIX = "/page/"
_PAGE = "/"
LOOPBACK_NAMES = ("localhost", "127.0.0.1", "[::1]")
_HEADERS = [
    (b"x-content-type-options", b"nosniff"),
    (b"referrer-policy", b"no-referrer"),
    (
        b"content-security-policy",
        b"default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; "
        b"connect-src 'self'; base-uri 'none'; form-action 'none'; "
        b"frame-ancestors 'none'",
    ),
]
_RETRY = (b"retry-after", b"1")


@dataclass(frozen=True, kw_only=True)
class Limits:
    """Of what a client may ask.

    Attributes:
        body_bytes: of a request.
        body_seconds: until a request's body has arrived.
        requests: at the same time.
        hosts: names in `Host`; None for any. A page on the web cannot reach a server
            on a loopback address by a name of its own.
        token: that clients show; None for none.
    """

    body_bytes: int = 1 << 20
    body_seconds: float = 10.0
    requests: int = 512
    hosts: Sequence[str] | None = LOOPBACK_NAMES
    token: str | None = None


class Guard:
    """ASGI middleware that refuses with a status, and counts what is answered."""

    def __init__(self, app: ASGIApp, limits: Limits, metrics: Metrics) -> None:
        self._app, self._limits, self._metrics = app, limits, metrics
        self._in_flight = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        start, status = time.perf_counter(), 500

        async def sending(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                message["headers"] = [*message.get("headers", ()), *_HEADERS]
            await send(message)

        self._in_flight += 1
        self._metrics.in_flight.set(self._in_flight)
        try:
            refusal = self._refusal(scope)
            if refusal is not None:
                await _refuse(sending, *refusal)
            else:
                await self._pass(scope, receive, sending)
        finally:
            self._in_flight -= 1
            self._metrics.in_flight.set(self._in_flight)
            path = getattr(scope.get("route"), "path", "other")
            self._metrics.requests.labels(path, str(status)).inc()
            self._metrics.seconds.labels(path).observe(time.perf_counter() - start)

    def _refusal(self, scope: Scope) -> tuple[int, str] | None:
        """Return why a request is refused by its head; None if it is not."""
        headers = {name.lower(): value for name, value in scope["headers"]}
        host = headers.get(b"host", b"").decode("latin-1")
        hosts = self._limits.hosts
        if hosts is not None and _name(host) not in hosts:
            return 421, "this server answers to other names; start it with --allow-host"
        is_open = scope["path"] in (*OPEN_PATHS, _PAGE)
        if not (is_open or scope["path"].startswith(PAGE_PREFIX)):
            given = headers.get(b"authorization", b"")
            if self._limits.token is not None and not _shows(given, self._limits.token):
                return 401, "show the server's token as `Authorization: Bearer TOKEN`"
        length = headers.get(b"content-length", b"0")
        if length.isdigit() and int(length) > self._limits.body_bytes:
            return 413, f"a body has at most {self._limits.body_bytes} bytes"
        if self._in_flight > self._limits.requests and scope["path"] != "/health":
            return 503, "too many requests at the same time; try again"
        return None

    async def _pass(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Read the body, then hand the request on."""
        try:
            async with asyncio.timeout(self._limits.body_seconds):
                body = await self._body(receive)
        except TimeoutError:
            await _refuse(send, 408, "the body did not arrive in time")
            return
        if body is None:
            await _refuse(
                send, 413, f"a body has at most {self._limits.body_bytes} bytes"
            )
            return
        is_read = False

        async def replay() -> Message:
            nonlocal is_read
            if is_read:
                return await receive()
            is_read = True
            return {"type": "http.request", "body": body, "more_body": False}

        await self._app(scope, replay, send)

    async def _body(self, receive: Receive) -> bytes | None:
        """Return a whole body; None if it is too large."""
        parts: list[bytes] = []
        size, more = 0, True
        while more:
            message = await receive()
            if message["type"] == "http.disconnect":
                break
            parts.append(message.get("body", b""))
            size += len(parts[-1])
            if size > self._limits.body_bytes:
                return None
            more = message.get("more_body", False)
        return b"".join(parts)


def _name(host: str) -> str:
    """Return a `Host` without its port."""
    if host.startswith("["):
        return host.partition("]")[0] + "]"
    return host.partition(":")[0].lower()


def _shows(given: bytes, token: str) -> bool:
    kind, _, shown = given.partition(b" ")
    # Both in constant time, whatever is shown.
    is_same = hmac.compare_digest(shown.strip(), token.encode())
    return is_same and kind.lower() == b"bearer"


async def _refuse(send: Send, status: int, detail: str) -> None:
    body = json.dumps({"detail": detail}).encode()
    headers = [
        (b"content-type", b"application/json"),
        (b"content-length", str(len(body)).encode()),
    ]
    if status == 401:
        headers.append((b"www-authenticate", b"Bearer"))
    if status == 503:
        headers.append(_RETRY)
    if status in (408, 413):  # what is left of the body is not read
        headers.append((b"connection", b"close"))
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})
