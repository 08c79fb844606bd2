"""A real Redis on a socket of its own, for tests."""

import contextlib
import shutil
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest


@contextlib.contextmanager
def running(folder: Path) -> Iterator[str]:
    """Start a server that keeps nothing; yield its URL."""
    redis = pytest.importorskip("redis", reason="needs redis-py")
    program = shutil.which("redis-server")
    if program is None:
        pytest.skip("needs a server: apt-get install redis-server")
    socket = folder / "redis.sock"
    options = ["--port", "0", "--unixsocket", str(socket), "--save", ""]
    with subprocess.Popen(
        [program, *options, "--dir", str(folder)], stdout=subprocess.DEVNULL
    ) as server:
        url = f"unix://{socket}"
        client = redis.Redis.from_url(url)
        for _ in range(600):
            with contextlib.suppress(redis.ConnectionError):
                if client.ping():
                    break
            time.sleep(0.05)
        try:
            yield url
        finally:
            client.close()
            server.terminate()
