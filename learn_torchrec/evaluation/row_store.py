"""Rows of batches kept by shard, then moved to the ranks that own their users.

String ids are numbered when all are known.
"""

from collections import deque
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from learn_torchrec.evaluation.communicator import Communicator
from learn_torchrec.evaluation.probability import ProbabilitySums
from learn_torchrec.evaluation.shards import (
    ShardedRows,
    StreamedRows,
    by_shard,
    concatenate,
    exchange,
    mix_ids,
    owners_of,
)


class RowStore:
    """Takes rows, and returns them by shard.

    Args:
        prepare: orders a batch by shard, and sums what is not kept.
        pool: runs it.
        threads: of the pool.
        communicator: of the processes that together hold the rows.

    Attributes:
        sums: over the rows of this process, after `finish`.
    """

    def __init__(
        self,
        prepare: Callable[[StreamedRows], tuple[ShardedRows, ProbabilitySums]],
        pool: ThreadPoolExecutor,
        threads: int,
        communicator: Communicator,
    ) -> None:
        self._prepare, self._pool, self._threads = prepare, pool, threads
        self._communicator = communicator
        self._pending: deque[Future[tuple[ShardedRows, ProbabilitySums]]] = deque()
        self._parts: list[ShardedRows] = []
        self._strings: list[tuple[pa.DictionaryArray, StreamedRows]] = []
        self.sums = ProbabilitySums()

    def add(self, ids: pa.Array, rows: StreamedRows) -> None:
        """Take a batch; `ids`, int64 or string [N], become its keys."""
        if pa.types.is_integer(ids.type):
            keys = mix_ids(ids.to_numpy(zero_copy_only=False))
            self._submit(rows._replace(keys=keys))
        else:
            self._strings.append((ids.dictionary_encode(), rows))

    def finish(self) -> list[ShardedRows]:
        """Return the rows of the users that this rank owns."""
        self._encode_strings()
        while self._pending:
            self._collect()
        if self._communicator.size > 1:
            mine = concatenate([part.rows for part in self._parts])
            owners = owners_of(mine, self._communicator.size)
            self._parts = [by_shard(exchange(mine, owners, self._communicator))]
        parts, self._parts = self._parts, []
        return parts

    def _submit(self, rows: StreamedRows) -> None:
        self._pending.append(self._pool.submit(self._prepare, rows))
        if len(self._pending) > 2 * self._threads:
            self._collect()

    def _collect(self) -> None:
        part, sums = self._pending.popleft().result()
        self._parts.append(part)
        self.sums = self.sums + sums

    def _encode_strings(self) -> None:
        """Number the distinct strings of all ranks, and submit their rows."""
        dictionaries = [encoded.dictionary for encoded, _ in self._strings]
        mine = pa.chunked_array(dictionaries, pa.large_string()).unique()
        of_all_ranks = self._communicator.gather(mine)
        known = pa.chunked_array(of_all_ranks, pa.large_string()).unique()
        known = known.take(pc.sort_indices(known))  # independent of the rows' order
        for encoded, rows in self._strings:
            codes = pc.index_in(encoded.dictionary, known).to_numpy()
            keys = mix_ids(codes[encoded.indices.to_numpy()].astype(np.int64))
            self._submit(rows._replace(keys=keys))
        self._strings = []
