"""The towers artefact: trained weights and the configuration that made them."""

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from learn_torchrec import config as configs
from learn_torchrec.array_files import map_array
from learn_torchrec.arrays import Float32Array, UInt64Array
from learn_torchrec.artifact import Manifest, read_manifest, reading
from learn_torchrec.content.store import ContentStore
from learn_torchrec.datasets.split import SplitConfig
from learn_torchrec.ids import hash_ids
from learn_torchrec.page_checksums import VERIFIED, WRITTEN
from learn_torchrec.provenance import refuse_other_inputs, refuse_other_split
from learn_torchrec.schema import ITEM_ID
from learn_torchrec.spaces import (
    digest_of,
    read_canaries,
    refuse_other_space,
    space,
    space_of,
)
from learn_torchrec.towers.build import build_towers
from learn_torchrec.towers.config import TowersConfig
from learn_torchrec.towers.ids import ITEM_TABLE
from learn_torchrec.towers.model import TwinTower
from learn_torchrec.towers.statistics import TowerStatistics
from learn_torchrec.towers.warm_start import InitialTowers
from learn_torchrec.training.precision import DTYPES

KIND_TOWERS = "towers"
CATALOGUE_FILE = "items.parquet"
WEIGHTS_FILE, OPTIMIZER_FILE = "towers.safetensors", "optimizer.safetensors"
TRAINED_FILE = "trained_users.npy"
_AGAIN = "train the towers again"
_IDS = f"ids.table.embeddings.{ITEM_TABLE}.weight"
_BY_ITEM = (_IDS, "ids.trust", "repeat.log_odds", "popularity.log_count")


def save_towers(
    directory: Path,
    state: dict[str, Tensor],
    item_ids: pa.Array,
    optimizer: dict[str, Tensor] | None = None,
) -> None:
    """Write the weights into an artefact's working directory.

    `item_ids` are the catalogue's, in the row order of what the towers hold by item;
    `optimizer` is what else a warm start goes on from.
    """
    if not state.keys().isdisjoint(_BY_ITEM):
        table = pa.table({ITEM_ID: item_ids})
        pq.write_table(table, directory / CATALOGUE_FILE, **WRITTEN)
    for name, tensors in ((WEIGHTS_FILE, state), (OPTIMIZER_FILE, optimizer)):
        if tensors:
            whole = {key: value.contiguous() for key, value in tensors.items()}
            save_file(whole, directory / name)


def load_towers(
    directory: Path, device: torch.device, store: ContentStore
) -> tuple[TwinTower, TowersConfig, Manifest]:
    """Load trained towers in evaluation mode, with their settings and manifest.

    They encode in the precision of their training.

    Args:
        directory: a towers artefact.
        device: of the towers.
        store: the catalogue whose rows they are to read: that of their training, or a
            later one. Items without a training event have zero ID vectors.

    Raises:
        UserError: `directory` holds no towers artefact.
    """
    manifest = read_manifest(directory, KIND_TOWERS)
    config = configs.from_dict(
        TowersConfig, manifest.config["towers"], str(directory / "manifest.json")
    )
    with reading(directory, manifest, [WEIGHTS_FILE], _AGAIN):
        state = load_file(directory / WEIGHTS_FILE)
        if CATALOGUE_FILE in manifest.files:
            rows = _id_rows(directory, manifest, store)
            for name in state.keys() & set(_BY_ITEM):
                state[name] = _at_rows(state[name], rows)
        statistics = TowerStatistics(
            mean=state["encoder.mean"],
            std=state["encoder.std"],
            # The state holds what follows from them; they set the number of items.
            event_counts=torch.ones(len(store)),
            components=state.get("encoder.components"),
        )
        towers = build_towers(config.model, statistics)
        towers.load_state_dict(state)
    towers.encoder.precision = DTYPES[config.training.precision]
    return towers.to(device).eval(), config, manifest


def earlier_towers(
    directory: Path, store: ContentStore, fresh_optimizer: bool = False
) -> InitialTowers:
    """Read the weights of trained towers; ID vectors are matched by item id.

    Args:
        directory: a towers artefact.
        store: this run's catalogue.
        fresh_optimizer: leave the optimizer's state out, if there is one.

    Raises:
        UserError: weights that cannot be read.
    """
    manifest = read_manifest(directory, KIND_TOWERS)
    with reading(directory, manifest, [WEIGHTS_FILE], _AGAIN):
        state = load_file(directory / WEIGHTS_FILE)
    optimizer: dict[str, Tensor] = {}
    if OPTIMIZER_FILE in manifest.files and not fresh_optimizer:
        with reading(directory, manifest, [OPTIMIZER_FILE], _AGAIN):
            optimizer = load_file(directory / OPTIMIZER_FILE)

    def part(prefix: str) -> dict[str, Tensor]:
        names = [name for name in state if name.startswith(prefix)]
        return {name.removeprefix(prefix): state[name] for name in names}

    id_rows = _id_rows(directory, manifest, store) if _IDS in state else None
    return InitialTowers(
        encoder=part("encoder."),
        repeat=part("repeat.") or None,
        id_vectors=state.get(_IDS),
        id_rows=id_rows,
        optimizer=optimizer,
    )


def _id_rows(directory: Path, manifest: Manifest, store: ContentStore) -> Tensor:
    """Return the row in the towers' ID table of each item of a store, int64 [N].

    -1 for items that the towers do not know.
    """
    with reading(directory, manifest, [CATALOGUE_FILE], _AGAIN):
        table = pq.read_table(directory / CATALOGUE_FILE, **VERIFIED)
        known = table[ITEM_ID]
    rows = torch.from_numpy(store.rows_of(known.combine_chunks()))
    earlier = (rows >= 0).nonzero().squeeze(1)
    found = torch.full((len(store),), -1, dtype=torch.int64)
    found[rows[earlier]] = earlier
    return found


def _at_rows(values: Tensor, rows: Tensor) -> Tensor:
    """Return the values at `rows`, zeros where a row is -1."""
    chosen = values[rows.clamp(min=0)]
    chosen[rows < 0] = 0
    return chosen


def write_trained_users(
    directory: Path, user_ids: pa.Array, earlier: UInt64Array | None = None
) -> None:
    """Write the hashes of the users that towers were trained on, sorted.

    `earlier` are those of the towers that the training started from.
    """
    hashes = hash_ids(user_ids)
    known = hashes if earlier is None else np.concatenate([hashes, earlier])
    np.save(directory / TRAINED_FILE, np.unique(known))


def trained_users(directory: Path) -> UInt64Array:
    """Return the hashes of the users that towers were trained on, uint64 [n], sorted.

    Raises:
        UserError: the artefact does not have them.
    """
    manifest = read_manifest(directory, KIND_TOWERS)
    with reading(directory, manifest, [TRAINED_FILE], _AGAIN):
        hashes: UInt64Array = map_array(directory / TRAINED_FILE, np.uint64, 1)
        return hashes


def check_towers_inputs(
    directory: Path, manifest: Manifest, store: ContentStore, split: SplitConfig
) -> None:
    """Refuse content vectors of another space or a split other than training's.

    Vectors of the space may be of new items, see `load_towers`.

    Raises:
        UserError: names what differs.
    """
    trained, given = space_of(manifest), space_of(store.manifest)
    refuse_other_space(
        trained,
        given,
        f"--content {store.directory}: its vectors, and those {directory} was trained "
        "with,",
        "pass the content of its training, or bring it there with align-space",
    )
    if not (trained and given):
        inputs = {"content": store.manifest.fingerprint}
        refuse_other_inputs(manifest, directory, inputs, {"content": "content"})
    refuse_other_split(manifest, directory, configs.to_dict(split))


def towers_space(
    state: Mapping[str, Tensor], content: Mapping[str, str], lineage: str
) -> dict[str, str]:
    """Return the space of towers' vectors.

    Args:
        state: their weights, which hold the standardization.
        content: the space of the content they read.
        lineage: digest of the first training that warm starts went on from.
    """
    parts = (state["encoder.mean"].numpy(), state["encoder.std"].numpy())
    return space(content, towers=lineage, standardization=digest_of(*parts))


@torch.no_grad()
def tower_canaries(
    towers: TwinTower, store: ContentStore, device: torch.device
) -> Float32Array | None:
    """Return the item tower's vectors of the content's canaries, float32 [K, D].

    None where the store has none, or the towers read ids alone.
    """
    content = read_canaries(store.directory, store.dim)
    if content is None or towers.encoder.content_projection is None:
        return None
    rows = torch.arange(len(content), device=device)
    inputs = torch.from_numpy(content).to(device)
    vectors: Float32Array = towers.encode_items(inputs, rows, None).cpu().numpy()
    return vectors
