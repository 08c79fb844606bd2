"""Requests answered together: order, limits, failures and the end."""

import asyncio
import threading
import time

import pytest

from learn_torchrec.errors import UserError
from learn_torchrec.serving.batching import Batcher, BatchLimits, Closed, QueueFull


class Doubling:
    """Doubles numbers; 13 cannot be doubled, and a bug makes 14 fail."""

    def __init__(self, seconds: float = 0.0) -> None:
        self.batches: list[list[int]] = []
        self.threads: set[int] = set()
        self.seconds = seconds

    def __call__(self, numbers):
        self.batches.append(list(numbers))
        self.threads.add(threading.get_ident())
        time.sleep(self.seconds)
        if 13 in numbers:
            raise UserError("13: no")
        if 14 in numbers:
            raise KeyError(14)
        return [2 * number for number in numbers]


def answers(run, questions, **limits):
    async def ask():
        batcher = Batcher(run, lambda number: number, BatchLimits(**limits))
        tasks = [batcher.ask(number) for number in questions]
        found = await asyncio.gather(*tasks, return_exceptions=True)
        await batcher.close()
        return found

    return asyncio.run(ask())


def test_each_gets_its_own_answer_from_one_batch() -> None:
    run = Doubling()
    assert answers(run, range(12)) == [2 * number for number in range(12)]
    assert len(run.batches) == 1
    assert threading.get_ident() not in run.threads


def test_batches_end_at_their_rows_and_one_may_be_larger() -> None:
    run = Doubling()
    answers(run, [4, 4, 4, 100, 5], rows=10)
    assert run.batches == [[4, 4], [4], [100], [5]]


def test_what_arrives_during_a_batch_forms_the_next() -> None:
    run = Doubling(seconds=0.2)

    async def ask():
        batcher = Batcher(run, lambda _: 1, BatchLimits(wait_ms=0))
        first = asyncio.create_task(batcher.ask(1))
        await asyncio.sleep(0.05)
        await asyncio.gather(first, *(batcher.ask(n) for n in (2, 3, 4)))
        await batcher.close()

    asyncio.run(ask())
    assert run.batches == [[1], [2, 3, 4]]


def test_one_that_fails_does_not_fail_the_others() -> None:
    found = answers(Doubling(), [12, 13, 14, 15])
    assert (found[0], found[3]) == (24, 30)
    assert isinstance(found[1], UserError)
    assert isinstance(found[2], KeyError)


def test_a_full_queue_refuses() -> None:
    found = answers(Doubling(seconds=0.05), range(10), queued=4)
    refused = [isinstance(each, QueueFull) for each in found]
    assert refused == [False] * 4 + [True] * 6


def test_closing_answers_what_waits_and_takes_no_more() -> None:
    async def ask():
        batcher = Batcher(Doubling(0.1), lambda _: 1, BatchLimits(rows=1))
        tasks = [asyncio.create_task(batcher.ask(n)) for n in range(3)]
        await asyncio.sleep(0)
        await batcher.close()
        with pytest.raises(Closed):
            await batcher.ask(1)
        return [task.result() for task in tasks]

    assert asyncio.run(ask()) == [0, 2, 4]


def test_a_caller_that_gives_up_is_not_computed() -> None:
    run = Doubling(seconds=0.2)

    async def ask():
        batcher = Batcher(run, lambda _: 1, BatchLimits(wait_ms=0))
        first = asyncio.create_task(batcher.ask(1))
        await asyncio.sleep(0.05)
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(batcher.ask(2), 0.05)
        assert await first == 2
        assert await batcher.ask(3) == 6
        await batcher.close()

    asyncio.run(ask())
    assert run.batches == [[1], [3]]


def test_batches_are_reported() -> None:
    seen = []

    async def ask():
        batcher = Batcher(
            Doubling(), lambda _: 1, BatchLimits(), lambda *of: seen.append(of)
        )
        await asyncio.gather(*(batcher.ask(n) for n in range(3)))
        assert batcher.queued == 0
        await batcher.close()

    asyncio.run(ask())
    assert [count for count, _ in seen] == [3]
    assert seen[0][1] < 5
