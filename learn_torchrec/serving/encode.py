"""Encoding requests: what all candidates of a request share is encoded once.

Letters: R requests, B rows of all requests.
"""

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from learn_torchrec.arrays import Float32Array
from learn_torchrec.ranker.features import FeaturesConfig
from learn_torchrec.ranker.features.base import IdBags, IdFeature
from learn_torchrec.ranker.features.dense import encode_dense
from learn_torchrec.ranker.features.lookups import Lookups
from learn_torchrec.ranker.rows import RankingRows
from learn_torchrec.schema import USER_ID
from learn_torchrec.serving.past import LaterEvents, PastNow
from learn_torchrec.serving.request import Questions
from learn_torchrec.serving.snapshot import Past

SOURCE = "the request"


@dataclass(frozen=True)
class RequestEncoder:
    """Encodes requests as `ranker.encode.Encoder` does their rows one by one.

    Attributes:
        features: of the ranker.
        lookups: columns of the catalogue and codes.
        past: counts and rates.
    """

    features: FeaturesConfig
    lookups: Lookups
    past: Sequence[Past]

    def encode(self, asked: Questions, later: LaterEvents) -> RankingRows:
        """Return the candidates of requests as rows, B.

        `later` are the requests' own events.

        Raises:
            UserError: a value that a feature cannot take.
        """
        once, each = asked.once, self.lookups.add_to(asked.each, SOURCE)
        for past in self.past:
            is_users = past.column.id_column == USER_ID and past.column.shared is None
            if is_users:
                rows = dataclasses.replace(later, rows=np.arange(once.num_rows))
                once = _with(once, PastNow(past, rows))
            else:
                each = _with(each, PastNow(past, later))
        asked = Questions(once, each, asked.owners)
        features = self.features
        bags = {f.name: self._bags(f, asked) for f in features.sparse}
        count = len(asked.owners)
        return RankingRows(
            dense=self._dense(asked),
            sparse={f.name: bags[f.name] for f in features.pooled},
            managed={},
            sequences={f.name: bags[f.name] for f in features.sequences},
            labels={},
            weights=np.ones(count, np.float32),
            has_null=np.zeros((count, 0), bool),
            nullable=(),
        )

    def _bags(self, feature: IdFeature, asked: Questions) -> IdBags:
        nulls = self.features.nulls
        if set(feature.columns) <= set(asked.once.column_names):
            return feature.encode(asked.once, SOURCE, nulls).take(asked.owners)
        return feature.encode(asked.with_columns(feature.columns), SOURCE, nulls)

    def _dense(self, asked: Questions) -> Float32Array:
        """Return the dense features, float32 [B, F]."""
        parts: list[Float32Array] = []
        for feature in self.features.dense:
            is_once = feature.column in asked.once.column_names
            table = asked.once if is_once else asked.each
            found, _ = encode_dense(table, [feature], SOURCE, self.features.nulls)
            parts.append(found[asked.owners] if is_once else found)
        if not parts:
            return np.zeros((len(asked.owners), 0), np.float32)
        return np.concatenate(parts, axis=1)


def _with(table: pa.Table, past: PastNow) -> pa.Table:
    return table.append_column(past.column.name, pa.array(past.of(table)))
