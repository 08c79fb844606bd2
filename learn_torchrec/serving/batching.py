"""Concurrent requests answered together, as one forward pass is cheap for many rows."""

import asyncio
import logging
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Generic, NamedTuple, TypeVar

from learn_torchrec.errors import UserError

Q = TypeVar("Q")
A = TypeVar("A")

logger = logging.getLogger(__name__)


class QueueFull(Exception):
    """More requests are waiting than the queue may hold."""


class Closed(Exception):
    """The batcher takes no requests any more."""


@dataclass(frozen=True, kw_only=True)
class BatchLimits:
    """How requests are put together.

    Attributes:
        rows: of a batch; a single request may have more.
        wait_ms: that a request waits for others, where the worker is idle.
        queued: requests that may wait.
    """

    rows: int = 8192
    wait_ms: float = 1.0
    queued: int = 256


class _Waiting(NamedTuple):
    question: object
    rows: int
    answer: "asyncio.Future[object]"


class Batcher(Generic[Q, A]):
    """Answers questions in batches, in one thread of its own; of one event loop.

    While a batch is computed the next one gathers, so that batches grow with the load.
    A question that fails alone does not fail the others of its batch.

    Args:
        run: answers some questions; is called in the thread.
        rows: the size of a question.
        limits: of batches and of the queue.
        on_batch: is told the number of questions and the seconds of each batch.
    """

    def __init__(
        self,
        run: Callable[[Sequence[Q]], Sequence[A]],
        rows: Callable[[Q], int],
        limits: BatchLimits,
        on_batch: Callable[[int, float], None] = lambda count, seconds: None,
    ) -> None:
        self._run, self._rows, self._limits, self._on_batch = (
            run,
            rows,
            limits,
            on_batch,
        )
        self._waiting: list[_Waiting] = []
        self._arrived = asyncio.Event()
        self._closing = False
        self._thread = ThreadPoolExecutor(1, "batch")
        self._worker = asyncio.get_running_loop().create_task(self._work())

    @property
    def queued(self) -> int:
        """Number of questions that wait."""
        return len(self._waiting)

    async def ask(self, question: Q) -> A:
        """Return the answer; a caller that is cancelled gives its place up.

        Raises:
            QueueFull: too many wait.
            Closed: after `close`.
            UserError: the question cannot be answered.
        """
        if self._closing:
            raise Closed
        if len(self._waiting) >= self._limits.queued:
            raise QueueFull
        answer: asyncio.Future[A] = asyncio.get_running_loop().create_future()
        self._waiting.append(_Waiting(question, self._rows(question), answer))  # type: ignore[arg-type]
        self._arrived.set()
        return await answer

    async def close(self) -> None:
        """Answer what waits, then stop."""
        self._closing = True
        self._arrived.set()
        await self._worker
        self._thread.shutdown()

    async def _work(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            if not self._waiting:
                if self._closing:
                    return
                self._arrived.clear()
                await self._arrived.wait()
                if self._limits.wait_ms and not self._closing:
                    await asyncio.sleep(self._limits.wait_ms / 1000)
            batch = self._take()
            if batch:
                start = time.monotonic()
                answers = await loop.run_in_executor(self._thread, self._answer, batch)
                self._on_batch(len(batch), time.monotonic() - start)
                _deliver(batch, answers)

    def _take(self) -> list[_Waiting]:
        """Take the next batch from the queue, without the questions given up."""
        batch: list[_Waiting] = []
        rows = taken = 0
        for waiting in self._waiting:
            if not waiting.answer.done():
                if batch and rows + waiting.rows > self._limits.rows:
                    break
                batch.append(waiting)
                rows += waiting.rows
            taken += 1
        del self._waiting[:taken]
        return batch

    def _answer(self, batch: list[_Waiting]) -> list[object]:
        """Return the answers, or what went wrong, in the thread."""
        try:
            return list(self._run([waiting.question for waiting in batch]))  # type: ignore[misc]
        except Exception as error:
            if len(batch) == 1:
                if not isinstance(error, UserError):
                    logger.exception("a request failed")
                return [error]
        # One of them failed: the others get their answers.
        return [self._answer([waiting])[0] for waiting in batch]


def _deliver(batch: list[_Waiting], answers: list[object]) -> None:
    for waiting, answer in zip(batch, answers, strict=True):
        if waiting.answer.done():  # its caller was too slow
            continue
        if isinstance(answer, Exception):
            waiting.answer.set_exception(answer)
        else:
            waiting.answer.set_result(answer)
