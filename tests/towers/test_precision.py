"""Trained towers encode in the precision of their training."""

import numpy as np
import pytest
import torch

from learn_torchrec.apps import train_towers
from learn_torchrec.towers.artifact import load_towers
from learn_torchrec.towers.build import build_towers
from learn_torchrec.towers.encoders.architecture import EncoderShape
from learn_torchrec.towers.inference import encode_catalogue
from learn_torchrec.towers.model import TowersModelConfig
from learn_torchrec.towers.statistics import TowerStatistics

CPU = torch.device("cpu")


@pytest.mark.parametrize(
    ("precision", "dtype"),
    [
        ("float32", torch.float32),
        ("tf32", torch.float32),
        ("bfloat16", torch.bfloat16),
    ],
)
def test_loaded_towers_encode_as_they_were_trained(
    precision, dtype, store, market, tmp_path
):
    command = ["--data", f"parquet:{market}", "--content", str(store.directory)]
    settings = ("training.epochs=1", "training.batch_size=4")
    settings = [*settings, f"training.precision={precision}"]
    command += [f"--set=towers.{setting}" for setting in settings]
    train_towers.main([*command, "--out", str(tmp_path / "towers")])
    towers, _, _ = load_towers(tmp_path / "towers", CPU, store)
    rows = np.arange(len(store))
    found = encode_catalogue(towers, store, rows, CPU)
    assert towers.encoder.precision == dtype
    towers.encoder.precision = torch.float32
    exact = encode_catalogue(towers, store, rows, CPU)
    assert torch.equal(found, exact) == (dtype == torch.float32)
    torch.testing.assert_close(found, exact, atol=0.05, rtol=0.0)


def test_items_that_are_only_projected_do_so_in_bfloat16():
    shape = EncoderShape(width=16, num_layers=1, num_heads=2, feed_forward_dim=16)
    config = TowersModelConfig(encoder=shape, item_tower="projection")
    made = TowerStatistics(torch.zeros(6), torch.ones(6), torch.ones(5))
    towers = build_towers(config, made).eval()
    content, items = torch.randn(5, 6), torch.tensor([3, 0, 3])
    exact, seen = towers.encode_items(content, items), []
    towers.encoder.content_projection.register_forward_hook(
        lambda *called: seen.append(called[2].dtype)
    )
    towers.encoder.precision = torch.bfloat16
    rounded = towers.encode_items(content, items)
    assert seen == [torch.bfloat16]
    assert rounded.dtype == torch.float32
    torch.testing.assert_close(rounded, exact, atol=0.05, rtol=0.0)
