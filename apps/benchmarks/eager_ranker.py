"""The trained ranker behind a runner's interface, as training code scores: a baseline.

Features are encoded row by row with the whole log in memory, and the sharded model runs
eagerly in single precision.
"""

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Self

import numpy as np
import pyarrow as pa
import torch
from torchrec.distributed import DistributedModelParallel

from learn_torchrec.arrays import Float32Array
from learn_torchrec.ranker.batch import collate
from learn_torchrec.ranker.build import build_ranker, load_ranker
from learn_torchrec.ranker.tasks import scores
from learn_torchrec.schema import ITEM_ID, USER_ID
from learn_torchrec.serving.bundle import Surroundings
from learn_torchrec.serving.request import RankRequest, questions
from learn_torchrec.training.distributed import process_group

from .. import export_bundle


class EagerRanker:
    """Ranks as `serving.runner.Runner` does; see `open`."""

    def __init__(
        self,
        surroundings: Surroundings,
        model: DistributedModelParallel,
        device: torch.device,
    ) -> None:
        self._surroundings, self._model, self._device = surroundings, model, device
        served = surroundings.served((), "float")
        types = {"int64": pa.int64(), "string": pa.large_string()}
        self.id_types = types[served.user_ids], types[served.item_ids]
        self.as_of = surroundings.as_of
        self._context = surroundings.context()
        self.required_context = {c.name: str(c.type) for c in self._context}
        self.tasks = tuple(task.name for task in served.tasks)
        self._encoder = surroundings.encoder("the requests")

    @classmethod
    @contextlib.contextmanager
    def open(cls, options: Sequence[str]) -> Iterator[Self]:
        """Yield the ranker of `export-bundle`'s options, but `--out`."""
        args = export_bundle.build_parser().parse_args([*options, "--out", "none"])
        found = export_bundle.read_surroundings(args, export_bundle.plan(args))
        shape = None if found.learn is None else found.learn.shape
        with process_group() as device:
            model = build_ranker(found.config, shape, device)
            load_ranker(model, Path(args.ranker))
            model.eval()
            yield cls(found, model, device)

    def reads_of_new(self, space: Mapping[str, str]) -> frozenset[str]:
        """Return nothing: items that came later are ranked as unknown."""
        return frozenset()

    @torch.no_grad()
    def rank(self, requests: Sequence[RankRequest]) -> list[Float32Array]:
        """Return scores [N, tasks] for each request."""
        ids = dict(zip((USER_ID, ITEM_ID), self.id_types, strict=True))
        asked = questions(requests, ids, self._context, fills=True)
        rows = self._encoder(asked.with_columns(self._context.names))
        batch = collate(rows, self._surroundings.learn).to(self._device)
        _, output = self._model(batch)
        found = scores(self._surroundings.config.tasks, output.logits)
        columns = [values.cpu().numpy() for values in found.values()]
        counts = [len(request.item_ids) for request in requests]
        return np.split(np.stack(columns, axis=1), np.cumsum(counts)[:-1])
