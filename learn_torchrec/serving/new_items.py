"""Items that came after the index and the bundle: embedded from their texts.

Letters: n new items, C content dim, D vector dim, Q queries.
"""

import base64
import functools
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Self

import numpy as np
import pyarrow as pa

from learn_torchrec.arrays import Float16Array, Float32Array
from learn_torchrec.errors import UserError
from learn_torchrec.schema import ITEM_ID, TITLE
from learn_torchrec.serving.events import EventStore, Id
from learn_torchrec.serving.request import ExtraItem
from learn_torchrec.serving.towers import ServedTowers

MOST_ITEMS = 100_000  # beyond which they belong into a new index


@dataclass(frozen=True)
class NewItems:
    """New items; a change makes another object, so that readers need no lock.

    Attributes:
        ids: [n].
        vectors: float32 [n, D], of the item tower.
        content: float16 [C] of each id.
        titles: of each id that has one.
    """

    ids: tuple[Id, ...] = ()
    vectors: Float32Array = field(default_factory=lambda: np.empty((0, 0), np.float32))
    content: Mapping[Id, Float16Array] = field(default_factory=dict)
    titles: Mapping[Id, str] = field(default_factory=dict)

    @functools.cached_property
    def places(self) -> Mapping[Id, int]:
        """The position of each id."""
        return {item: number for number, item in enumerate(self.ids)}

    def extra_items(
        self, items: Iterable[Id], read: frozenset[str]
    ) -> dict[Id, ExtraItem]:
        """Return those of some items that are new, with what a ranker reads of them."""
        return {
            item: ExtraItem(
                content=self.content[item] if "content" in read else None,
                vector=self.vectors[self.places[item]] if "vector" in read else None,
            )
            for item in items
            if read and item in self.places
        }

    def with_items(
        self, towers: ServedTowers, items: Mapping[Id, "EncodedItem"]
    ) -> Self:
        """Return these items and some more; those of the same id are replaced.

        Raises:
            UserError: too many.
        """
        if not items:
            return self
        kept = [number for number, item in enumerate(self.ids) if item not in items]
        content = {item: each.content for item, each in items.items()}
        if len(kept) + len(items) > MOST_ITEMS:
            raise UserError(f"more than {MOST_ITEMS} new items; build a new index")
        added = towers.item_vectors(np.stack(list(content.values())))
        before = self.vectors[kept] if kept else np.empty_like(added[:0])
        titles = {item: each.title for item, each in items.items() if each.title}
        return replace(
            self,
            ids=(*(self.ids[number] for number in kept), *items),
            vectors=np.concatenate([before, added]),
            content={**self.content, **content},
            titles={**self.titles, **titles},
        )

    def best(
        self, query: Float32Array, k: int, excluded: frozenset[Id]
    ) -> list[tuple[Id, float]]:
        """Return the best items of a query [D] and their scores, best first."""
        if not self.ids:
            return []
        scores = self.vectors @ query
        order = np.argsort(-scores, kind="stable")
        found = ((self.ids[row], float(scores[row])) for row in order)
        return [pair for pair in found if pair[0] not in excluded][:k]


@dataclass(frozen=True)
class EncodedItem:
    """A new item as it is kept.

    Attributes:
        fields: columns of the item table, without the id.
        content: float16 [C].
    """

    fields: Mapping[str, Any]
    content: Float16Array

    @property
    def title(self) -> str:
        """The title, or nothing."""
        return str(self.fields.get(TITLE) or "")


def encode(
    towers: ServedTowers, items: Mapping[Id, Mapping[str, Any]]
) -> dict[Id, EncodedItem]:
    """Encode the texts of items, given by their columns.

    Raises:
        UserError: an item without text, or values that are none.
    """
    if not items:
        return {}
    columns = {name: None for fields in items.values() for name in fields}
    try:
        table = pa.table(
            {
                ITEM_ID: list(items),
                **{name: [f.get(name) for f in items.values()] for name in columns},
            }
        )
    except (pa.ArrowInvalid, pa.ArrowTypeError, OverflowError):
        raise UserError(
            "the items: a column has values of several types; give texts"
        ) from None
    content = towers.encode_texts(table)
    pairs = zip(items.items(), content, strict=True)
    return {item: EncodedItem(fields, vector) for (item, fields), vector in pairs}


def keep(
    store: EventStore, space: Mapping[str, str], items: Mapping[Id, EncodedItem]
) -> None:
    """Write new items into the store, for the next start and for other servers."""
    store.put_items(
        (
            item,
            {
                "fields": dict(each.fields),
                "space": dict(space),
                "content": base64.b64encode(each.content.tobytes()).decode(),
            },
        )
        for item, each in items.items()
    )


def kept(
    store: EventStore, towers: ServedTowers, known: Iterable[Id] = ()
) -> dict[Id, EncodedItem]:
    """Read the new items of a store, all but the `known`.

    Texts are encoded again where the content vectors are of another space.
    """
    left_out = set(known)
    result: dict[Id, EncodedItem] = {}
    others: dict[Id, Mapping[str, Any]] = {}
    for item, body in store.items():
        if item in left_out:
            continue
        if body["space"] == dict(towers.content_space):
            vector = np.frombuffer(base64.b64decode(body["content"]), np.float16)
            result[item] = EncodedItem(body["fields"], vector)
        else:
            others[item] = body["fields"]
    return {**result, **encode(towers, others)}
