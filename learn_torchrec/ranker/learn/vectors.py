"""LEARN's vectors for the ranker: by item, and by user at a point in time.

Letters: B rows of a batch, N rows, D dims.
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import torch
from torch import Tensor

from learn_torchrec.arrays import Column, Int64Array
from learn_torchrec.artifact import Manifest, listed_files, read_manifest, reading
from learn_torchrec.errors import UserError
from learn_torchrec.ids import UNKNOWN, as_ids, refuse_other_type
from learn_torchrec.ranker.learn.reduced import CONTENT, ReducedContent
from learn_torchrec.schema import ITEM_ID, TIMESTAMP, USER_ID
from learn_torchrec.times import as_seconds
from learn_torchrec.vector_table import ITEMS, USERS, VectorTable

KIND = "vectors"
MISSING = UNKNOWN


@dataclass(frozen=True, kw_only=True)
class LearnVectors:
    """Both sides of a vectors artefact.

    Attributes:
        users: a vector for each timestamp at which a user's history grew.
        items: a vector per item.
        manifest: of the artefact.
        content: the items' reduced content, in the rows of `items`; None in artefacts
            that other programs made.
    """

    users: VectorTable
    items: VectorTable
    manifest: Manifest
    content: ReducedContent | None = None

    @classmethod
    def open(cls, directory: Path) -> "LearnVectors":
        """Memory-map a vectors artefact.

        Raises:
            UserError: no such artefact, or a damaged one.
        """
        manifest = read_manifest(directory, KIND)
        tables = (f"{USERS}/", f"{ITEMS}/", f"{CONTENT}/")
        names = [name for name in manifest.files if name.startswith(tables)]
        has_content = any(name.startswith(f"{CONTENT}/") for name in names)
        with reading(directory, manifest, names, "export the vectors again"):
            files = listed_files(directory, manifest)
            items = VectorTable.open(directory / ITEMS, files)
            content = None
            if has_content:
                content = ReducedContent.open(directory / CONTENT, items.index, files)
            return cls(
                users=VectorTable.open(directory / USERS, files),
                items=items,
                manifest=manifest,
                content=content,
            )

    @property
    def dim(self) -> int:
        """D."""
        return int(self.items.vectors.shape[1])

    def lookup(
        self, user_ids: Column, item_ids: Column, timestamps: Column | None = None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Return the vectors of users and items by id: see `rows` and `gather`.

        Args:
            user_ids: [B] integers or strings in any form.
            item_ids: [B], likewise.
            timestamps: [B] unix seconds or datetimes; None for the latest vectors.

        Raises:
            UserError: see `rows`; null timestamps or milliseconds, times before the
                towers' cut-off, or different lengths.
        """
        batch = columns_of_batch(user_ids, item_ids, timestamps)
        self.refuse_early(batch[2])
        return self.gather(*self.rows(*batch, source="the batch"))

    def refuse_early(self, times: Int64Array | None) -> None:
        """Refuse times [B] before the cut-off of the towers, which know them.

        Raises:
            UserError: names the first such row.
        """
        cutoff = self.manifest.cutoff if self.manifest else None
        if times is None or cutoff is None:
            return
        early = np.flatnonzero(times < cutoff)
        if len(early):
            raise UserError(
                f"leak: the vectors' towers learned from events up to {cutoff}, but "
                f"{TIMESTAMP} is {times[early[0]]} (unix seconds) in row {early[0]} of "
                "the batch; use later rows, or towers with an earlier "
                "split.towers_until"
            )

    def rows(
        self,
        user_ids: Column,
        item_ids: Column,
        times: Int64Array | None,
        source: str,
    ) -> tuple[Int64Array, Int64Array]:
        """Find the rows of users, strictly before `times` [N], and of items.

        Times are unix seconds, None for the latest vectors. `source` names the origin
        of the ids in messages.

        Returns:
            int64 [N] each, MISSING where there is none.

        Raises:
            UserError: ids of another type than the vectors', or null ids.
        """
        return (
            rows_as_of(self.users, user_ids, USER_ID, times, source),
            rows_as_of(self.items, item_ids, ITEM_ID, times, source),
        )

    def gather(
        self, user_rows: Int64Array, item_rows: Int64Array
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Return the input of `LearnFeatures` for rows [B] of users and items.

        Returns:
            User and item vectors, float16 [B, D] each, zeros where MISSING, and whether
            each exists, bool [B, 2].

        Raises:
            UserError: a vector is not finite.
        """
        rows = np.stack([user_rows, item_rows], axis=1)
        return (
            torch.from_numpy(self.users.gather(user_rows)),
            torch.from_numpy(self.items.gather(item_rows)),
            torch.from_numpy(rows != MISSING),
        )


def columns_of_batch(
    user_ids: Column, item_ids: Column, timestamps: Column | None
) -> tuple[pa.Array, pa.Array, Int64Array | None]:
    """Return ids and times that somebody passes, in normal form.

    Raises:
        UserError: see `LearnVectors.lookup`.
    """
    users, items = as_ids(user_ids, USER_ID), as_ids(item_ids, ITEM_ID)
    times = None if timestamps is None else as_seconds(timestamps, TIMESTAMP)
    lengths = [len(users), len(items), len(users if times is None else times)]
    if len(set(lengths)) > 1:
        raise UserError(
            f"the batch: {lengths[0]} users, {lengths[1]} items and {lengths[2]} "
            "times; give the same number of each"
        )
    return users, items, times


def rows_as_of(
    table: VectorTable,
    ids: Column,
    column: str,
    times: Int64Array | None,
    source: str,
) -> Int64Array:
    """Find the rows of one side of the vectors; see `LearnVectors.rows`.

    `column` is the ids', for messages.

    Raises:
        UserError: ids of another type than the vectors', or null ids.
    """
    name = f"{source}: column {column!r}"
    wanted = as_ids(ids, name)
    refuse_other_type(wanted, table.index.type, name, "the vectors")
    return table.rows_as_of(wanted, times)
