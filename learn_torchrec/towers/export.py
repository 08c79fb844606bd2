"""The towers' artefacts: trained weights, and the vectors that the ranker reads."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from learn_torchrec import config as configs
from learn_torchrec.artifact import Manifest, read_manifest
from learn_torchrec.content.store import ContentStore
from learn_torchrec.datasets.sequences import SequenceSet
from learn_torchrec.datasets.split import SplitConfig, SplitTimes
from learn_torchrec.errors import UserError
from learn_torchrec.schema import ITEM_ID, TIMESTAMP, USER_ID, VECTOR
from learn_torchrec.towers.model import TwinTower
from learn_torchrec.towers.training import TowersConfig, build_towers

KIND_TOWERS = "towers"
WEIGHTS_FILE = "towers.safetensors"


@dataclass(frozen=True, kw_only=True)
class ExportConfig:
    """Which vectors are exported.

    Attributes:
        snapshots: of a user, one vector after every `event`, or (`last`) one after
            the last event before split.towers_until, for the ranker's training, and
            one after the last before split.test_from, for its test.
    """

    snapshots: Literal["event", "last"] = "event"


def save_towers(directory: Path, state: dict[str, Tensor]) -> None:
    """Write the weights into an artefact's working directory."""
    save_file({k: v.contiguous() for k, v in state.items()}, directory / WEIGHTS_FILE)


def load_towers(
    directory: Path, device: torch.device
) -> tuple[TwinTower, TowersConfig, Manifest]:
    """Load trained towers in evaluation mode, with what they were made from.

    Raises:
        UserError: `directory` holds no towers artefact.
    """
    manifest = read_manifest(directory, KIND_TOWERS)
    config = configs.from_dict(
        TowersConfig, manifest.config["towers"], str(directory / "manifest.json")
    )
    try:
        state = load_file(directory / WEIGHTS_FILE)
    except (OSError, SafetensorError) as error:
        raise UserError(
            f"{directory / WEIGHTS_FILE}: cannot be read ({error}); train the towers "
            "again"
        ) from None
    # Counts of the training events come with the weights, as the ids' trust.
    counts = torch.ones_like(state.get("ids.trust", torch.empty(0)))
    towers = build_towers(
        config.model, state["encoder.mean"], state["encoder.std"], counts
    )
    towers.load_state_dict(state)
    return towers.to(device).eval(), config, manifest


def check_towers_inputs(
    directory: Path, manifest: Manifest, store: ContentStore, split: SplitConfig
) -> None:
    """Refuse content vectors or a split that the towers were not trained with.

    Raises:
        UserError: with what differs.
    """
    if manifest.inputs["content"] != store.manifest.fingerprint:
        raise UserError(
            f"{store.directory}: is not the content store that {directory} was trained "
            "with; name that one, or train the towers again"
        )
    trained, given = manifest.config["split"], configs.to_dict(split)
    different = [name for name in given if given[name] != trained.get(name)]
    if different:
        name = different[0]
        raise UserError(
            f"split.{name} is {given[name]}, {directory} was trained with "
            f"{trained.get(name)}; pass the --preset, --config or --set of its training"
        )


def write_item_vectors(path: Path, item_ids: pa.Array, vectors: Tensor) -> None:
    """Write `item_id, vector` (float32 [D] lists)."""
    pq.write_table(pa.table({ITEM_ID: item_ids, VECTOR: _as_lists(vectors)}), path)


def write_user_vectors(
    path: Path, user_ids: pa.Array, times: NDArray[np.int64], vectors: Tensor
) -> None:
    """Write `user_id, timestamp, vector`: the vector knows events up to `timestamp`."""
    table = pa.table({USER_ID: user_ids, TIMESTAMP: times, VECTOR: _as_lists(vectors)})
    pq.write_table(table, path)


def _as_lists(vectors: Tensor) -> pa.FixedSizeListArray:
    flat = pa.array(vectors.numpy().astype(np.float32, copy=False).reshape(-1))
    return pa.FixedSizeListArray.from_arrays(flat, vectors.shape[1])


def snapshot_events(
    sequences: SequenceSet, config: ExportConfig, times: SplitTimes
) -> NDArray[np.int64]:
    """Return the events after which a user vector is exported, ascending [n].

    Args:
        sequences: all users and events.
        config: which snapshots.
        times: the moments that `last` refers to.
    """
    if config.snapshots == "event":
        return np.arange(len(sequences.items))
    users = np.repeat(np.arange(len(sequences)), sequences.lengths)
    chosen = []
    for moment in (times.towers_until, times.test_from):
        earlier = np.flatnonzero(sequences.times < moment)
        closes_user = np.r_[users[earlier][1:] != users[earlier][:-1], True]
        chosen.append(earlier[closes_user[: len(earlier)]])
    return np.unique(np.concatenate(chosen))
