"""The answers behind the endpoints, in batches; knows nothing of HTTP.

Letters: N candidates, Q questions of a batch.
"""

import logging
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np

from learn_torchrec.arrays import BoolArray, Float32Array
from learn_torchrec.errors import UserError
from learn_torchrec.ids import UNKNOWN
from learn_torchrec.serving import new_items
from learn_torchrec.serving.deployment import MAIN, Deployment, rows_of
from learn_torchrec.serving.events import Event, EventStore, Id
from learn_torchrec.serving.index import ItemIndex
from learn_torchrec.serving.new_items import NewItems
from learn_torchrec.serving.request import RankRequest

VECTOR, POPULAR = "vector", "popular"  # what found the items

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class RankQuestion:
    """A ranking that is asked for; see `RankRequest`.

    Attributes:
        model: name of the ranker; None for the first.
    """

    user: Id
    items: Sequence[Id]
    time: int
    context: dict[str, Any] = field(default_factory=dict)
    events: Sequence[Event] = ()
    model: str | None = None


@dataclass(frozen=True)
class RetrieveQuestion:
    """Items that are asked for.

    Attributes:
        user: for whom.
        k: how many.
        without_history: leave out what the user has met.
        excluded: further items to leave out.
        available: the only items to find; None for all.
        events: of the user, beside those of the store.
    """

    user: Id
    k: int
    without_history: bool = True
    excluded: Sequence[Id] = ()
    available: Sequence[Id] | None = None
    events: Sequence[Event] = ()


class Found(NamedTuple):
    """An item that was found.

    Attributes:
        item: its id.
        score: its dot product with the user's vector; None for a popular item.
        title: empty if there is none.
    """

    item: Id
    score: float | None
    title: str


class Retrieved(NamedTuple):
    """The answer to a `RetrieveQuestion`.

    Attributes:
        source: VECTOR, or POPULAR for a user of whom nothing is known.
        items: best first.
    """

    source: str
    items: list[Found]


class Service:
    """One deployment with the store of events; methods may run in several threads.

    Args:
        deployment: what answers.
        store: of events and new items.
        history_length: events of a user that are read.
        on_missing_events: is called when the store does not answer; users are then
            answered without their recent events.
    """

    def __init__(
        self,
        deployment: Deployment,
        store: EventStore,
        history_length: int = 500,
        on_missing_events: Callable[[], None] = lambda: None,
    ) -> None:
        self.deployment, self.store = deployment, store
        self._history_length, self._on_missing = history_length, on_missing_events
        self._adding = threading.Lock()
        self.new = NewItems()

    def read_new_items(self) -> None:
        """Take over the new items of the store that the index does not have."""
        towers = self.deployment.towers
        if towers is None:
            return
        found = new_items.kept(self.store, towers)
        rows = self.deployment.rows_of(list(found))
        fresh = {
            item: each
            for (item, each), row in zip(found.items(), rows, strict=True)
            if row == UNKNOWN
        }
        self.new = self.new.with_items(towers, fresh)

    def warm_up(self) -> None:
        """Answer a question of each kind, so that the first client need not wait."""
        if self.deployment.index is not None:
            self.retrieve([RetrieveQuestion(0, 10)])

    def rank(self, questions: Sequence[RankQuestion]) -> list[Float32Array]:
        """Return scores [N, tasks] for each question.

        Raises:
            UserError: a question that does not fit the ranker.
        """
        answers: list[Float32Array | None] = [None] * len(questions)
        for name, ranker in self.deployment.rankers.items():
            chosen = [
                number
                for number, question in enumerate(questions)
                if (question.model or next(iter(self.deployment.rankers))) == name
            ]
            requests = [self._request(questions[number], name) for number in chosen]
            if requests:
                for number, scores in zip(chosen, ranker.rank(requests), strict=True):
                    answers[number] = scores
        return [answer for answer in answers if answer is not None]

    def retrieve(self, questions: Sequence[RetrieveQuestion]) -> list[Retrieved]:
        """Return each user's best items."""
        index = self.deployment.index
        if index is None:
            raise UserError("this server has no index")
        histories = [self.history(q.user, q.events) for q in questions]
        vectors, has = self.user_vectors([q.user for q in questions], histories)
        return [
            self._retrieve(index, question, history, vector, known)
            for question, history, vector, known in zip(
                questions, histories, vectors, has, strict=True
            )
        ]

    def history(self, user: Id, more: Sequence[Event] = ()) -> list[Event]:
        """Return a user's latest events, oldest first."""
        try:
            stored = self.store.recent(user, self._history_length)
        except Exception:  # of whichever store: an answer without is better than none
            logger.exception("the store of events does not answer")
            self._on_missing()
            stored = []
        if not more:
            return stored
        return sorted([*stored, *more], key=lambda event: event.timestamp)

    def user_vectors(
        self, users: Sequence[Id], histories: Sequence[Sequence[Event]]
    ) -> tuple[Float32Array, BoolArray]:
        """Return users' vectors [Q, D] and whether each has one [Q].

        From recent events by the towers; else those that were exported.
        """
        index, towers = self.deployment.index, self.deployment.towers
        dim = 0 if index is None else index.dim
        vectors, has = (
            np.zeros((len(users), dim), np.float32),
            np.zeros(len(users), bool),
        )
        if towers is not None:
            vectors, has = towers.user_vectors(histories, self.new.content)
        exported = self.deployment.users
        if exported is not None and not has.all():
            known = rows_of(exported.index, users)
            ids = exported.index.ids
            rows = np.full(len(users), UNKNOWN)
            there = np.flatnonzero((known != UNKNOWN) & ~has)
            if len(there):
                rows[there] = exported.rows_as_of(ids.take(known[there]), None)
            found = rows != UNKNOWN
            vectors[found] = exported.gather(rows[found])
            has = has | found
        return vectors, has

    def title(self, item: Id, row: int) -> str:
        """Return an item's title, empty without one."""
        return self.new.titles.get(item) or self.deployment.title(item, row)

    def vectors_of(self, items: Sequence[Id]) -> Float32Array:
        """Return item vectors [N, D], zeros for unknown items."""
        index = self.deployment.index
        if index is None:
            return np.zeros((len(items), 0), np.float32)
        vectors = index.items.gather(self.deployment.rows_of(items)).astype(np.float32)
        for number, item in enumerate(items):
            if item in self.new.places:
                vectors[number] = self.new.vectors[self.new.places[item]]
        return vectors

    def add_items(self, items: dict[Id, dict[str, Any]]) -> int:
        """Embed new items from their texts, keep them, and return how many there are.

        Raises:
            UserError: without towers, an item of the index, or one without text.
        """
        towers = self.deployment.towers
        if towers is None:
            raise UserError("this server has no towers to embed items")
        encoded = new_items.encode(towers, items)
        with self._adding:
            self.new = self.new.with_items(towers, encoded)
            new_items.keep(self.store, towers.content_space, encoded)
        return len(self.new.ids)

    def _request(self, question: RankQuestion, model: str) -> RankRequest:
        return RankRequest(
            user_id=question.user,
            item_ids=question.items,
            timestamp=question.time,
            context=question.context,
            events=self.history(question.user, question.events),
            extra_items=self.new.extra_items(
                question.items, self.deployment.reads_of_new[model]
            ),
        )

    def _retrieve(
        self,
        index: ItemIndex,
        question: RetrieveQuestion,
        history: Sequence[Event],
        vector: Float32Array,
        is_known: bool,
    ) -> Retrieved:
        left_out = set(question.excluded)
        if question.without_history:
            left_out |= {event.item_id for event in history}
        if question.available is not None:
            allowed = np.zeros(len(index), bool)
            rows = self.deployment.rows_of(question.available)
            allowed[rows[rows != UNKNOWN]] = True
            index = index.restricted(allowed)
            wanted = set(question.available)
            left_out |= {item for item in self.new.ids if item not in wanted}
        rows = self.deployment.rows_of(list(left_out))
        # A new item with the id of one in the index is that item's new text.
        replaced = self.deployment.rows_of(self.new.ids)
        hidden = np.concatenate([rows, replaced])
        hidden = hidden[hidden != UNKNOWN]
        if not is_known:
            return Retrieved(POPULAR, self._popular(index, question.k, hidden))
        found = index.search(vector[None], question.k, [hidden])
        ids = index.items.index.ids
        pairs: list[tuple[Id, float, int]] = [
            (ids[int(row)].as_py(), float(score), int(row))
            for score, row in zip(found.scores[0], found.items[0], strict=True)
            if row != UNKNOWN
        ]
        new = self.new.best(vector, question.k, frozenset(left_out))
        pairs += [(item, score, UNKNOWN) for item, score in new]
        pairs.sort(key=lambda pair: -pair[1])
        best = pairs[: question.k]
        return Retrieved(
            VECTOR,
            [Found(item, score, self.title(item, row)) for item, score, row in best],
        )

    def _popular(
        self, index: ItemIndex, k: int, hidden: "np.ndarray[Any, np.dtype[np.int64]]"
    ) -> list[Found]:
        rows = index.popular
        if index.allowed is not None:
            rows = rows[index.allowed[rows]]
        rows = rows[~np.isin(rows, hidden)][:k]
        ids = index.items.index.ids
        items = [(ids[int(row)].as_py(), int(row)) for row in rows]
        return [Found(item, None, self.title(item, row)) for item, row in items]


def model_names(deployment: Deployment) -> list[str]:
    """Return the names of the rankers, the main one first."""
    return list(deployment.rankers) or [MAIN]
