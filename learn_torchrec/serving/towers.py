"""Towers at request time: a user's vector from recent events, an item's from its text.

Letters: Q users, n items, C content dim, D vector dim.
"""

import functools
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch

from learn_torchrec import config as configs
from learn_torchrec.arrays import BoolArray, Float16Array, Float32Array
from learn_torchrec.artifact import MANIFEST
from learn_torchrec.content.encoder import ContentEncoder, EncoderConfig
from learn_torchrec.content.extract import ContentConfig
from learn_torchrec.content.prompt import render
from learn_torchrec.content.store import ContentStore, to_half
from learn_torchrec.datasets.sequences import NO_ACTION
from learn_torchrec.datasets.split import SplitConfig
from learn_torchrec.errors import UserError
from learn_torchrec.ids import UNKNOWN
from learn_torchrec.schema import ITEM_ID
from learn_torchrec.serving.events import Event, Id
from learn_torchrec.spaces import space_of
from learn_torchrec.towers.artifact import check_towers_inputs, load_towers
from learn_torchrec.towers.ids import as_kjt
from learn_torchrec.towers.model import TwinTower

_NO_ITEMS: Mapping[Id, Float16Array] = {}
_ENCODING = threading.Lock()


@dataclass(frozen=True, kw_only=True)
class ServedTowers:
    """Trained towers and the content store they read; safe for several threads.

    Attributes:
        model: the towers, in evaluation mode.
        store: content vectors of the catalogue.
        actions: of the events that make up a history.
        codes: the code of each action that the towers know.
        history_length: events that a user's vector knows.
        content: how an item's text becomes its content vector.
        content_space: what a content vector depends on, see `spaces`.
        space: what the towers' vectors depend on, without the ranker's reduction.
    """

    model: TwinTower
    store: ContentStore
    actions: frozenset[str]
    codes: Mapping[str, int]
    history_length: int
    content: ContentConfig
    content_space: Mapping[str, str]
    space: Mapping[str, str]

    @classmethod
    def open(cls, towers: Path, content: Path) -> "ServedTowers":
        """Load towers, and map the content vectors that they were trained on.

        The language model is loaded when a text is encoded first.

        Raises:
            UserError: no such artefacts, or content vectors of other towers.
        """
        store = ContentStore.open(content)
        model, config, manifest = load_towers(towers, torch.device("cpu"), store)
        split = configs.from_dict(
            SplitConfig, manifest.config["split"], str(towers / MANIFEST)
        )
        check_towers_inputs(towers, manifest, store, split)
        saved = store.manifest.config.get("content", {})
        return cls(
            model=model,
            store=store,
            actions=frozenset(split.actions),
            codes={name: code for code, name in enumerate(manifest.facts["actions"])},
            history_length=config.sampling.history_length,
            content=configs.from_dict(ContentConfig, saved, str(content)),
            content_space=space_of(store.manifest),
            space=space_of(manifest),
        )

    @torch.inference_mode()
    def user_vectors(
        self,
        histories: Sequence[Sequence[Event]],
        new_items: Mapping[Id, Float16Array] = _NO_ITEMS,
    ) -> tuple[Float32Array, BoolArray]:
        """Return users' vectors after their events, oldest first.

        Args:
            histories: of Q users; events of other actions and of unknown items do not
                count.
            new_items: content vectors [C] of items beside the catalogue's.

        Returns:
            float32 [Q, D], zeros for a user without an event that counts, and whether
            there is one, bool [Q].
        """
        known = [self._known(events, new_items) for events in histories]
        has = np.array([bool(events) for events in known], bool)
        vectors = np.zeros((len(known), self.dim), np.float32)
        if has.any():
            kept = [events for events in known if events]
            vectors[has] = self._encoded(kept, new_items)
        return vectors, has

    @property
    def dim(self) -> int:
        """D."""
        return self.model.encoder.vector_projection.out_features

    def warm_up(self) -> None:
        """Load the language model, which takes a while, before a text needs it."""
        with _ENCODING:
            _encoder(self.content.encoder)

    def encode_texts(self, items: pa.Table) -> Float16Array:
        """Return the content vectors of items, float16 [n, C].

        Args:
            items: `item_id` and the columns that the store's texts were made of.

        Raises:
            UserError: an item without text, columns that cannot be rendered, or towers
                that read no content.
        """
        if self.model.encoder.content_projection is None:
            raise UserError(
                "the towers read ids alone: they have no vector of a new item; train "
                "them with towers.model.inputs=content+id"
            )
        texts = render(items, self.content.prompt, "the items")
        for number, text in enumerate(texts):
            if not text:
                item = items[ITEM_ID][number].as_py()
                raise UserError(f"item {item!r}: has no text; give it a title")
        with _ENCODING:  # one model, one batch at a time
            vectors = _encoder(self.content.encoder).encode(texts)
        return to_half(vectors, items[ITEM_ID].combine_chunks())

    @torch.inference_mode()
    def item_vectors(self, content: Float16Array) -> Float32Array:
        """Return the item tower's vectors of new items' content, float32 [n, D]."""
        rows = torch.arange(len(content))
        # Without an ID vector, as all items without a training event.
        vectors = self.model.encode_items(torch.from_numpy(content), rows)
        found: Float32Array = vectors.numpy()
        return found

    def _known(
        self, events: Sequence[Event], new_items: Mapping[Id, Float16Array]
    ) -> list[Event]:
        """Return the latest events that count."""
        chosen = [event for event in events if event.action in self.actions]
        rows = self._rows([event.item_id for event in chosen])
        kept = [
            event
            for event, row in zip(chosen, rows, strict=True)
            if row != UNKNOWN or event.item_id in new_items
        ]
        return kept[-self.history_length :]

    def _rows(self, ids: Sequence[Id]) -> np.ndarray[Any, np.dtype[np.int64]]:
        kind = self.store.index.type
        wanted = int if pa.types.is_integer(kind) else str
        fitting = [one if isinstance(one, wanted) else None for one in ids]
        return self.store.index.rows_of(pa.array(fitting, kind))

    def _encoded(
        self, histories: list[list[Event]], new_items: Mapping[Id, Float16Array]
    ) -> Float32Array:
        """Return the vectors after the last events of histories, float32 [Q, D]."""
        events = [event for history in histories for event in history]
        distinct = list(dict.fromkeys(event.item_id for event in events))
        place = {item: number for number, item in enumerate(distinct)}
        lengths = np.array([len(history) for history in histories])
        codes = [self.codes.get(event.action, NO_ACTION) for event in events]
        content, id_vectors = self._inputs(distinct, new_items)
        vectors: Float32Array = self.model.encoder(
            content,
            torch.tensor([place[event.item_id] for event in events]),
            torch.from_numpy(lengths),
            read=torch.from_numpy(np.cumsum(lengths) - 1),
            id_vectors=id_vectors,
            times=torch.tensor([event.timestamp for event in events]),
            actions=torch.tensor(codes, dtype=torch.int16),
        ).numpy()
        return vectors

    def _inputs(
        self, items: list[Id], new_items: Mapping[Id, Float16Array]
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Return content [U, C] and ID vectors [U, W] of distinct items."""
        rows = self._rows(items)
        is_known = rows != UNKNOWN
        content = np.empty((len(items), self.store.dim), np.float16)
        content[is_known] = self.store.gather(rows[is_known])
        for number in np.flatnonzero(~is_known):
            content[number] = new_items[items[number]]
        looked_up = self.model.id_vectors(as_kjt(torch.from_numpy(rows.clip(min=0))))
        if looked_up is not None:
            looked_up = looked_up * torch.from_numpy(is_known).unsqueeze(1)
        return torch.from_numpy(content), looked_up


@functools.lru_cache(maxsize=2)  # the towers that are loaded next share it
def _encoder(config: EncoderConfig) -> ContentEncoder:
    return ContentEncoder(config)
