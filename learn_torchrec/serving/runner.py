"""A small runner of exported rankers; it imports neither training code nor TorchRec.

Letters: N candidates of a request, B rows of all requests.
"""

import functools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Self

import numpy as np
import pyarrow as pa
import torch

from learn_torchrec.arrays import Float32Array
from learn_torchrec.artifact import Manifest, read_manifest, reading
from learn_torchrec.ranker.features.lookups import ItemColumns, Lookups
from learn_torchrec.ranker.features.past import PastColumn
from learn_torchrec.schema import ITEM_ID, SCORE, USER_ID
from learn_torchrec.serving.encode import RequestEncoder
from learn_torchrec.serving.known import Known
from learn_torchrec.serving.model import ServedModel
from learn_torchrec.serving.past import LaterEvents
from learn_torchrec.serving.request import RankRequest, ids_of, questions
from learn_torchrec.serving.served import (
    CATALOGUE,
    CODES,
    KIND,
    PAST,
    PROGRAM_FILE,
    TABLES_FILE,
    Served,
)
from learn_torchrec.serving.snapshot import Past, open_past
from learn_torchrec.serving.tables import Lookup, read_tables
from learn_torchrec.spaces import difference, space_of

_TYPES = {"int64": pa.int64(), "string": pa.large_string()}


class Runner:
    """Ranks candidates of users with an exported ranker; see `Runner.load`.

    It may be called by several threads.

    Attributes:
        served: what the bundle says of the ranker.
        manifest: of the bundle.
        tasks: names of the scores.
        required_context: the impression columns that the ranker reads, and their Arrow
            types. Where the ranker fills nulls a request may leave them out.
    """

    def __init__(
        self,
        served: Served,
        manifest: Manifest,
        context: pa.Schema,
        model: ServedModel,
        encoder: RequestEncoder,
        known: Known | None,
    ) -> None:
        self.served, self.manifest = served, manifest
        self._context, self._model = context, model
        self._encoder, self._known = encoder, known
        self._ids = {USER_ID: _TYPES[served.user_ids], ITEM_ID: _TYPES[served.item_ids]}
        self.required_context: Mapping[str, str] = {
            column.name: str(column.type) for column in context
        }

    @classmethod
    def load(cls, path: str | Path, device: str | torch.device = "cpu") -> Self:
        """Load a bundle.

        Args:
            path: of the bundle, written by `export-bundle`.
            device: "cpu" or "cuda".

        Raises:
            UserError: no bundle, one of another version, or a damaged one.
        """
        directory = Path(path)
        manifest = read_manifest(directory, KIND)
        with reading(directory, manifest, manifest.files, "export the bundle again"):
            return cls.open(directory, manifest, torch.device(device))

    @classmethod
    def open(cls, directory: Path, manifest: Manifest, device: torch.device) -> Self:
        """Load the files of a bundle, which may not be complete yet; see `load`.

        Raises:
            OSError, ValueError, KeyError: a file is missing or damaged.
        """
        served, context = Served.read(directory)
        model = _open_model(directory, served, device)
        encoder = RequestEncoder(
            served.features,
            _open_lookups(directory, served),
            _open_past(directory, served),
        )
        known = None
        if served.learn is not None:
            known = Known.open(directory, served, manifest)
        return cls(served, manifest, context, model, encoder, known)

    @property
    def id_types(self) -> tuple[pa.DataType, pa.DataType]:
        """The types of users' and items' ids: int64 or large_string."""
        return self._ids[USER_ID], self._ids[ITEM_ID]

    @functools.cached_property
    def tasks(self) -> tuple[str, ...]:
        """The names of the scores: of the tasks, then of joint events.

        They are those of the columns of predictions, without `score_`.
        """
        tasks = self.served.tasks
        names = [task.name for task in tasks]
        if len(tasks) > 1:
            names += [task.joint_name for task in tasks if task.given is not None]
        return tuple(names)

    @property
    def as_of(self) -> int:
        """Unix seconds; the bundle knows all that happened strictly before."""
        return self.served.as_of

    def reads_of_new(self, space: Mapping[str, str]) -> frozenset[str]:
        """Return what is read of an item that the bundle lacks: fields of `ExtraItem`.

        Nothing if its vectors are of another space.

        Args:
            space: of the towers that encode it, see `spaces`.
        """
        known, own = self._known, space_of(self.manifest)
        if known is None or not own or difference(own, space) is not None:
            return frozenset()
        inputs, reads = known.inputs, set()
        if inputs.content is not None:
            if known.reduction is None:  # such content cannot be brought into its form
                return frozenset()
            reads.add("content")
        if inputs.vectors is not None:
            reads.add("vector")
        return frozenset(reads)

    def rank(self, requests: Sequence[RankRequest]) -> list[Float32Array]:
        """Score the candidates of some requests in one forward pass.

        Returns:
            Probabilities, float32 [N, tasks], for each request.

        Raises:
            UserError: ids, context or times that do not fit; see `request.questions`.
        """
        counts = [len(request.item_ids) for request in requests]
        empty = np.zeros((0, len(self.tasks)), np.float32)
        if not sum(counts):
            return [empty for _ in requests]
        found = self._scores(requests, np.repeat(np.arange(len(counts)), counts))
        return np.split(found, np.cumsum(counts)[:-1])

    def _scores(
        self, requests: Sequence[RankRequest], owners: np.ndarray
    ) -> Float32Array:
        fills = self.served.features.nulls == "fill"
        asked = questions(requests, self._ids, self._context, fills)
        rows = self._encoder.encode(asked, self._later(requests, owners))
        learn = None
        if self._known is not None:
            learn = self._known.batch(requests, asked)
        scores = self._model.scores(rows, learn)
        return np.stack([scores[name] for name in self.score_columns], axis=1)

    @functools.cached_property
    def score_columns(self) -> list[str]:
        """The columns of predictions that hold the same scores."""
        if len(self.tasks) == 1:
            return [SCORE]
        return [f"{SCORE}_{name}" for name in self.tasks]

    def _later(
        self, requests: Sequence[RankRequest], owners: np.ndarray
    ) -> LaterEvents:
        """Return the events that count beside the bundle's totals."""
        actions, since = self.served.actions, self.as_of
        found = [
            (owner, item)
            for owner, request in enumerate(requests)
            for item, time, action in request.events
            if action in actions and since <= time < request.timestamp
        ]
        items = ids_of([item for _, item in found], self._ids[ITEM_ID], "events")
        return LaterEvents(
            np.array([owner for owner, _ in found], np.int64), items, owners
        )


def _open_model(directory: Path, served: Served, device: torch.device) -> ServedModel:
    path = directory / TABLES_FILE
    lookups = {}
    for group in served.groups:
        packed = read_tables(path, [table.name for table in group.tables])
        lookups[group.name] = Lookup(group, served.precision, packed, device)
    program = torch.export.load(directory / PROGRAM_FILE)
    if device.type != "cpu":
        from torch.export.passes import move_to_device_pass

        program = move_to_device_pass(program, device)
    return ServedModel(served, lookups, program.module(), device)


def _open_lookups(directory: Path, served: Served) -> Lookups:
    items = codes = None
    if CATALOGUE in served.lookups:
        items = ItemColumns.open(directory / CATALOGUE, "the bundle's catalogue")
    if CODES in served.lookups:
        codes = ItemColumns.open(directory / CODES, "the bundle's codes")
    return Lookups(items, (), codes)


def _open_past(directory: Path, served: Served) -> list[Past]:
    return [
        open_past(
            directory / PAST / each.name,
            PastColumn(each.name, each.id_column, each.label, each.shared),
        )
        for each in served.past
    ]
