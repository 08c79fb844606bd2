"""Towers start from earlier ones; ids follow their items into another catalogue."""

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
import torch

from learn_torchrec.apps import train_towers
from learn_torchrec.errors import UserError
from learn_torchrec.publish import write_artifact
from learn_torchrec.towers.artifact import CATALOGUE_FILE, earlier_towers, save_towers
from learn_torchrec.towers.build import build_towers
from learn_torchrec.towers.encoders.architecture import EncoderShape
from learn_torchrec.towers.model import TowersModelConfig
from learn_torchrec.towers.statistics import TowerStatistics
from learn_torchrec.towers.warm_start import load_ids
from learn_torchrec.training.distributed import process_group
from learn_torchrec.training.sharding import full_state_dict, init_tables, shard_tables
from learn_torchrec.training.table_optimizer import TableOptimizerConfig

SHAPE = EncoderShape(width=8, num_layers=1, num_heads=2, feed_forward_dim=16)
IDS = "ids.table.embeddings.t_item_id.weight"


def towers_of(items, dim, device=None):
    config = TowersModelConfig(encoder=SHAPE, inputs="content+id")
    made = TowerStatistics(torch.zeros(dim), torch.ones(dim), torch.ones(items))
    return build_towers(config, made, device)


def test_ids_follow_their_items(store, tmp_path):
    known = pa.concat_arrays([store.item_ids[1:4], pa.array([-5])])  # one has gone
    earlier = towers_of(len(known), store.dim)
    made = {"kind": "towers", "config": {}, "inputs": {}}
    with write_artifact(tmp_path / "towers", **made) as working:
        save_towers(working, earlier.state_dict(), known)
    initial = earlier_towers(tmp_path / "towers", store)
    with process_group() as device:
        towers = towers_of(len(store), store.dim, torch.device("meta"))
        model = shard_tables(towers, device, TableOptimizerConfig())
        init_tables(model, seed=0)
        before = full_state_dict(model)[IDS]
        load_ids(model, initial)
        after = full_state_dict(model)[IDS]
    assert torch.equal(after[1:4], earlier.state_dict()[IDS][:3])
    fresh = [row for row in range(len(store)) if not 1 <= row < 4]
    assert torch.equal(after[fresh], before[fresh])


def test_the_app_starts_from_earlier_towers(market, store, tmp_path):
    options = ["--data", f"parquet:{market}", "--content", str(store.directory)]
    options += ["--set", "towers.training.epochs=1", "towers.training.batch_size=4"]
    options += ["towers.model.inputs=content+id"]
    first, second = tmp_path / "first", tmp_path / "second"
    train_towers.main(["--out", str(first), *options])
    ids = pq.read_table(first / CATALOGUE_FILE)["item_id"].combine_chunks()
    assert ids.equals(store.item_ids)
    train_towers.main(["--warm-start", str(first), "--out", str(second), *options])
    wider = [*options, "towers.model.encoder.width=32"]
    with pytest.raises(UserError, match="the configured encoder has"):
        train_towers.main(
            ["--warm-start", str(first), "--out", str(tmp_path / "third"), *wider]
        )


def test_what_is_held_out_now_was_held_out_then(market, store, tmp_path):
    """Times do not tell who or what was held out by user or by place."""
    options = ["--data", f"parquet:{market}", "--content", str(store.directory)]
    options += ["--set", "towers.training.epochs=1", "towers.training.batch_size=4"]

    def train(name, *split, start=None):
        warm = [] if start is None else ["--warm-start", str(tmp_path / start)]
        train_towers.main([*warm, "--out", str(tmp_path / name), *options, *split])

    by_time = ("split.holdout=time", "split.min_events=4")
    train("by_time", *by_time)
    for name, *split in (
        ("other_users", *by_time, "split.test_users=0.3"),
        ("other_events", "split.holdout=leave_one_out", "split.min_events=4"),
    ):
        refused = r"leak: split\.\w+ is .*by_time was trained with .* the same interact"
        with pytest.raises(UserError, match=refused):
            train(name, *split, start="by_time")
    train("same", *by_time, start="by_time")
    # Of new users the cut-offs tell.
    train("new", "split.min_events=4", "split.towers_until=50%")
    train("later", "split.min_events=4", "split.towers_until=60%", start="new")
    # Users who were new then have events to learn from now.
    with pytest.raises(
        UserError, match=r"split\.holdout is leave_one_out, .* new_users"
    ):
        train("one", "split.holdout=leave_one_out", "split.min_events=4", start="new")
    # In another log the same rule holds out the same users, and no other does.
    log = pq.read_table(market / "interactions.parquet")
    pq.write_table(log.slice(0, log.num_rows - 1), market / "interactions.parquet")
    with pytest.raises(UserError, match="events that this run holds out of another"):
        train("others", *by_time, "split.test_users=0.3", start="by_time")
    train("shrunk", *by_time, start="by_time")


def test_another_catalogue_has_its_own_times(market, store, tmp_path):
    content = ["--content", str(store.directory)]
    quick = ["--set", "towers.training.epochs=1", "towers.training.batch_size=4"]
    of_text = [*quick, "towers.model.inputs=content"]
    options = ["--data", f"parquet:{market}", *content, *of_text]
    train_towers.main(["--out", str(tmp_path / "first"), *options])
    # The other log is a year older: what is tested there was in the first one's past.
    other = tmp_path / "other"
    other.mkdir()
    for path in market.iterdir():
        table = pq.read_table(path)
        if "timestamp" in table.column_names:
            place = table.schema.get_field_index("timestamp")
            earlier = pc.subtract(table["timestamp"], 365 * 86_400)
            table = table.set_column(place, "timestamp", earlier)
        pq.write_table(table, other / path.name)
    start = ["--data", f"parquet:{other}", *content, "--out", str(tmp_path / "second")]
    start += ["--warm-start", str(tmp_path / "first")]
    with pytest.raises(UserError, match=r"leak: .*first learned from events up to"):
        train_towers.main([*start, *of_text])
    train_towers.main([*start, "--other-catalogue", *of_text])
    with pytest.raises(UserError, match="ids of other items mean nothing"):
        train_towers.main(
            [*start, "--other-catalogue", *quick, "towers.model.inputs=content+id"]
        )
    with pytest.raises(UserError, match="needs --warm-start"):
        train_towers.main(
            ["--out", str(tmp_path / "third"), "--other-catalogue", *options]
        )
