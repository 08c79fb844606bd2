"""`learn-torchrec serve` as a process of its own."""

import contextlib
import json
import os
import re
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass
class Server:
    """A running server.

    Attributes:
        process: of it.
        url: with its port.
    """

    process: subprocess.Popen
    url: str

    def ask(self, path: str, body: Any = None, token: str = "") -> tuple[int, Any]:
        """Return the status and JSON of an answer."""
        headers = {"content-type": "application/json"}
        if token:
            headers["authorization"] = f"Bearer {token}"
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(self.url + path, data, headers)
        try:
            with urllib.request.urlopen(request, timeout=60) as answer:
                return answer.status, json.load(answer)
        except urllib.error.HTTPError as error:
            return error.code, json.load(error)


@contextlib.contextmanager
def running(folder: Path, *options: str, **environment: str) -> Iterator[Server]:
    """Start a server on a free port, and stop it."""
    command = [sys.executable, "-m", "learn_torchrec.apps.main", "serve", "--port=0"]
    log = (folder / "serve.log").open("w+")
    with subprocess.Popen(
        [*command, *options],
        stdout=subprocess.PIPE,
        stderr=log,
        text=True,
        env={**os.environ, **environment},
    ) as process:
        try:
            line = process.stdout.readline()
            found = re.search(r"http://\S+", line)
            assert found, line + (folder / "serve.log").read_text()
            server = Server(process, found.group())
            for _ in range(1200):
                with contextlib.suppress(urllib.error.URLError):
                    if server.ask("/ready")[0] == 200:
                        break
                time.sleep(0.05)
            yield server
        finally:
            process.terminate()
            process.wait(60)
            log.close()
