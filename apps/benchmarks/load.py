"""Load on a server, over connections that stay open: latency, throughput, failures."""

import http.client
import json
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

_TIMEOUT_SECONDS = 60.0


@dataclass
class Answers:
    """What a server answered.

    Attributes:
        seconds: of each answer.
        failed: number of answers with another status than 200, and of none at all.
        elapsed: seconds of the whole.
    """

    seconds: list[float] = field(default_factory=list)
    failed: int = 0
    elapsed: float = 0.0

    def figures(self, name: str) -> dict[str, float]:
        """Return latency in milliseconds, and requests per second."""
        p50, p99 = np.percentile(self.seconds, (50, 99)) * 1000
        return {
            f"{name}_p50_ms": round(float(p50), 2),
            f"{name}_p99_ms": round(float(p99), 2),
            f"{name}_requests_per_s": round(len(self.seconds) / self.elapsed, 1),
        }


class Client:
    """One connection, opened again where it ends."""

    def __init__(self, url: str) -> None:
        self._host = url.removeprefix("http://")
        self._connection = self._connect()

    def post(self, path: str, body: bytes) -> tuple[int, bytes]:
        """Return status and body of an answer; status 0 for none."""
        headers = {"content-type": "application/json"}
        try:
            self._connection.request("POST", path, body, headers)
            answer = self._connection.getresponse()
            return answer.status, answer.read()
        except (OSError, http.client.HTTPException):
            self._connection = self._connect()
            return 0, b""

    def get(self, path: str) -> str:
        """Return the text at a path."""
        self._connection.request("GET", path)
        return self._connection.getresponse().read().decode()

    def _connect(self) -> http.client.HTTPConnection:
        return http.client.HTTPConnection(self._host, timeout=_TIMEOUT_SECONDS)


def drive(
    url: str,
    path: str,
    bodies: Sequence[dict[str, Any]],
    seconds: float,
    clients: int = 1,
    per_second: float | None = None,
) -> Answers:
    """Ask for some seconds, each client as soon as it is answered or at a pace.

    Args:
        url: of the server.
        path: of the requests.
        bodies: in turn.
        seconds: to ask.
        clients: at the same time.
        per_second: requests of all clients together; None for as many as are answered.
    """
    raw = [json.dumps(body).encode() for body in bodies]
    answers = Answers()
    start = time.perf_counter()
    pause = None if per_second is None else clients / per_second

    def ask(number: int) -> None:
        client, turn = Client(url), number
        due = start + (0 if pause is None else pause * number / clients)
        while (now := time.perf_counter()) < start + seconds:
            if pause is not None:
                time.sleep(max(0.0, due - now))
                due += pause
            began = time.perf_counter()
            status, _ = client.post(path, raw[turn % len(raw)])
            answers.seconds.append(time.perf_counter() - began)
            answers.failed += status != 200
            turn += clients

    threads = [threading.Thread(target=ask, args=(n,)) for n in range(clients)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    answers.elapsed = time.perf_counter() - start
    return answers
