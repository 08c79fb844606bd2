"""The deployment in use, and its replacement without a failed request."""

import asyncio
import contextlib
import ctypes
import gc
import logging
import threading
import time
from collections.abc import AsyncIterator, Callable, Sequence

from learn_torchrec.arrays import Float32Array
from learn_torchrec.errors import UserError
from learn_torchrec.serving.batching import Batcher, BatchLimits
from learn_torchrec.serving.deployment import Deployment
from learn_torchrec.serving.events import EventStore
from learn_torchrec.serving.http.metrics import Metrics
from learn_torchrec.serving.service import (
    RankQuestion,
    Retrieved,
    RetrieveQuestion,
    Service,
)
from learn_torchrec.serving.towers import ServedTowers

logger = logging.getLogger(__name__)
RANK, RETRIEVE = "rank", "retrieve"


class Serving:
    """One deployment with its queues.

    Attributes:
        service: what answers.
        ranking: the queue of rankings.
        retrieving: the queue of searches.
    """

    def __init__(self, service: Service, limits: BatchLimits, metrics: Metrics) -> None:
        def told(queue: str) -> Callable[[int, float], None]:
            def tell(count: int, seconds: float) -> None:
                metrics.batch_size.labels(queue).observe(count)
                metrics.batch_seconds.labels(queue).observe(seconds)

            return tell

        def run_rank(questions: Sequence[RankQuestion]) -> Sequence[Float32Array]:
            return service.rank(questions)

        def run_retrieve(questions: Sequence[RetrieveQuestion]) -> Sequence[Retrieved]:
            try:
                return service.retrieve(questions)
            except UserError as error:  # of an artefact, not of the client
                raise RuntimeError(str(error)) from error

        self.service = service
        self.ranking = Batcher(run_rank, lambda q: len(q.items), limits, told(RANK))
        self.retrieving = Batcher(run_retrieve, lambda q: q.k, limits, told(RETRIEVE))
        self._users, self._idle = 0, asyncio.Event()
        self._idle.set()

    @contextlib.asynccontextmanager
    async def used(self) -> AsyncIterator["Serving"]:
        """Keep it alive during a request."""
        self._users += 1
        self._idle.clear()
        try:
            yield self
        finally:
            self._users -= 1
            if not self._users:
                self._idle.set()

    async def drain(self) -> None:
        """Wait for the requests that use it, then stop its queues."""
        await self._idle.wait()
        await self.ranking.close()
        await self.retrieving.close()


class Live:
    """Loads deployments and says which one answers.

    Args:
        load: returns a deployment; called in a thread.
        version: of what `load` would return now.
        store: of events and new items.
        limits: of batches.
        metrics: are kept up to date.
        history_length: see `Service`.
    """

    def __init__(
        self,
        load: Callable[[], Deployment],
        version: Callable[[], str],
        store: EventStore,
        limits: BatchLimits,
        metrics: Metrics,
        history_length: int,
    ) -> None:
        self._load, self._version, self.store = load, version, store
        self._limits, self._metrics = limits, metrics
        self._history_length = history_length
        self._loading = asyncio.Lock()
        self._draining: set[asyncio.Task[None]] = set()
        self.current: Serving | None = None
        self.failed = False
        self.stopping = False

    async def start(self) -> None:
        """Load the first deployment.

        Raises:
            UserError: it cannot be loaded.
        """
        self.current = await self._loaded()
        towers = self.current.service.deployment.towers
        if towers is not None:  # the first new item need not wait for the model
            threading.Thread(target=_warm_up, args=(towers,), daemon=True).start()

    async def reload(self, always: bool = False) -> bool:
        """Replace the deployment if another version lies there; say whether.

        Requests in flight end with the old one, which is then let go.

        Raises:
            UserError: the new one cannot be loaded; the old one stays.
        """
        async with self._loading:
            old = self.current
            try:
                version = await asyncio.to_thread(self._version)
                if old and old.service.deployment.version == version and not always:
                    self.failed = False
                    return False
                new = await self._loaded()
            except Exception:
                self.failed = True
                self._metrics.reloads.labels("failed").inc()
                raise
            self.current, self.failed = new, False
            self._metrics.reloads.labels("done").inc()
            # New items that came in during the loading.
            await asyncio.to_thread(new.service.read_new_items)
            if old is not None:
                task = asyncio.create_task(_let_go(old))
                del old
                self._draining.add(task)
                task.add_done_callback(self._draining.discard)
            return True

    async def watch(self, seconds: float) -> None:
        """Look for another version again and again, until cancelled."""
        last = ""
        while True:
            await asyncio.sleep(seconds)
            try:
                if await self.reload():
                    logger.info("reloaded: %s", self._name())
                last = ""
            except UserError as error:
                if str(error) != last:  # once, not every few seconds
                    logger.error("not reloaded: %s", error)
                last = str(error)
            except Exception:
                if last != "bug":
                    logger.exception("not reloaded")
                last = "bug"

    async def stop(self) -> None:
        """End all queues."""
        self.stopping = True
        if self.current is not None:
            await self.current.drain()
        await asyncio.gather(*self._draining)

    async def _loaded(self) -> Serving:
        def load() -> Service:
            service = Service(
                self._load(),
                self.store,
                self._history_length,
                self._metrics.missing_events.inc,
            )
            service.read_new_items()
            service.warm_up()
            return service

        service = await asyncio.to_thread(load)
        self._metrics.loaded.set(time.time())
        return Serving(service, self._limits, self._metrics)

    def _name(self) -> str:
        return self.current.service.deployment.version if self.current else ""


async def _let_go(old: Serving) -> None:
    """Wait for the last requests, then give the memory back to the system."""
    await old.drain()
    del old
    await asyncio.to_thread(_give_back)


def _give_back() -> None:
    gc.collect()
    with contextlib.suppress(AttributeError, OSError):  # not every C library has it
        ctypes.CDLL(None).malloc_trim(0)


def _warm_up(towers: ServedTowers) -> None:
    try:
        towers.warm_up()
    except Exception:  # what is ranked and found does not need it
        logger.exception("the language model of new items cannot be loaded")
