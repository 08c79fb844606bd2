"""What is recommended to a user and why, for a person to look at."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from learn_torchrec.arrays import Float32Array
from learn_torchrec.evaluation.cohorts import COLD, LONG_TAIL, OTHERS, CohortConfig
from learn_torchrec.serving.events import Event, Id
from learn_torchrec.serving.service import Found, Retrieved, Service

_SHOWN_EVENTS = 30
_NEAR_ITEMS = 3
_LEAST_SIMILARITY = 0.05
POOL = 200  # candidates that are retrieved for the ranker


class Recommended(NamedTuple):
    """An item, where a model puts it and why; see `messages.RecommendedItem`."""

    item: Id
    title: str
    is_new: bool
    similarity: float | None
    scores: dict[str, float]
    place: dict[str, int]
    near: list[dict[str, Any]]


def cohort_of(num_events: int) -> str:
    """Return the cohort of a user by the number of events, with the paper's bounds."""
    bounds = CohortConfig()
    if num_events < bounds.user_long_tail_from:
        return COLD
    return LONG_TAIL if num_events < bounds.user_others_from else OTHERS


def explain(
    service: Service,
    history: Sequence[Event],
    found: Retrieved,
    scores: dict[str, dict[str, Float32Array]],
    k: int,
) -> dict[str, list[Recommended]]:
    """Return the first items of each model.

    Args:
        service: that knows titles and vectors.
        history: of the user, oldest first.
        found: the N candidates.
        scores: by model and task, [N] each; none without rankers.
        k: items of each model.
    """
    orders = {
        model: np.argsort(-next(iter(tasks.values())), kind="stable")
        for model, tasks in scores.items()
    }
    if not orders:
        orders = {"similarity": np.arange(len(found.items))}
    places = {
        model: {int(row): place for place, row in enumerate(order, start=1)}
        for model, order in orders.items()
    }
    shown = {int(row) for order in orders.values() for row in order[:k]}
    near = _near(service, history, {row: found.items[row] for row in shown})
    new = set(service.new.ids)
    return {
        model: [
            Recommended(
                item=found.items[row].item,
                title=found.items[row].title,
                is_new=found.items[row].item in new,
                similarity=found.items[row].score,
                scores={
                    task: float(values[row])
                    for task, values in scores.get(model, {}).items()
                },
                place={name: place[row] for name, place in places.items()},
                near=near[row],
            )
            for row in map(int, order[:k])
        ]
        for model, order in orders.items()
    }


def latest(service: Service, history: Sequence[Event]) -> list[dict[str, Any]]:
    """Return the latest events with titles, newest first."""
    events = list(history[-_SHOWN_EVENTS:])[::-1]
    rows = service.deployment.rows_of([event.item_id for event in events])
    return [
        {
            "item": event.item_id,
            "title": service.title(event.item_id, int(row)),
            "time": event.timestamp,
            "action": event.action,
        }
        for event, row in zip(events, rows, strict=True)
    ]


def _near(
    service: Service, history: Sequence[Event], items: dict[int, Found]
) -> dict[int, list[dict[str, Any]]]:
    """Return the history's items that are nearest to each of some items, by row."""
    towers = service.deployment.towers
    met = list(
        dict.fromkeys(
            event.item_id
            for event in reversed(history)
            if towers is None or event.action in towers.actions
        )
    )
    if not met or not items:
        return {row: [] for row in items}
    rows = service.deployment.rows_of(met)
    mine = _unit(service.vectors_of(met))
    theirs = _unit(service.vectors_of([found.item for found in items.values()]))
    result = {}
    for row, found, similar in zip(items, items.values(), theirs @ mine.T, strict=True):
        best = [
            number
            for number in np.argsort(-similar, kind="stable")
            if similar[number] > _LEAST_SIMILARITY and met[number] != found.item
        ]
        result[row] = [
            {
                "item": met[number],
                "title": service.title(met[number], int(rows[number])),
                "similarity": float(similar[number]),
            }
            for number in best[:_NEAR_ITEMS]
        ]
    return result


def _unit(vectors: Float32Array) -> Float32Array:
    norms = np.linalg.norm(vectors, axis=1, keepdims=True)
    return vectors / np.maximum(norms, 1e-6)
