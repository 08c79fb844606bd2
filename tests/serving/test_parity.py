"""The certificate: what it compares, what it refuses, and running it again."""

import dataclasses
import json
import shutil
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
import torch
from exported import Exported
from forging import listed_anew
from safetensors.torch import load_file, save_file

from learn_torchrec.apps import check_bundle, export_bundle
from learn_torchrec.artifact import describe_file, read_manifest
from learn_torchrec.errors import UserError
from learn_torchrec.serving.check import check_bundle as check
from learn_torchrec.serving.check import score_rows
from learn_torchrec.serving.runner import Runner


def certificate(directory):
    return json.loads((directory / "parity.json").read_text())


def test_every_way_to_score_agrees(exported: Exported):
    found = certificate(exported.bundle)

    assert found["rows"] == 1000
    exact = found["differences"]["exact"]
    assert set(exact) == {"trained", "reloaded", "exported", "runner"}
    assert max(exact.values()) < 2e-6
    rounded = found["differences"]["rounded"]
    assert 0 < rounded["half"] < rounded["int8"] < 1e-3
    assert found["uauc"]["cvr"]["full"] > 0.6
    assert found["size_ratio"] == pytest.approx(
        {"float": 1, "half": 0.5, "int8": (16 + 4) / 64}  # of 16 dims
    )
    manifest = read_manifest(exported.bundle, "bundle")
    assert found["inputs"]["ranker"] == manifest.inputs["ranker"]
    assert "torchrec" in found["versions"]
    assert any("t_user_id" in line for line in found["plan"])


def test_the_stored_scores_are_those_of_training_code(exported: Exported):
    rows = pq.read_table(exported.bundle / "parity.parquet")
    keys = rows.select(["user_id", "item_id", "hour", "timestamp"])

    expected = exported.trained_scores(keys)["score"]

    np.testing.assert_allclose(rows["trained_score"].to_numpy(), expected, atol=1e-7)
    again = score_rows(exported.runner(), rows)["score"]
    np.testing.assert_allclose(rows["served_score"].to_numpy(), again, atol=1e-6)


def test_a_bundle_is_checked_again(exported: Exported, tmp_path, capsys):
    check_bundle.main(["--bundle", str(exported.bundle)])
    assert "1,000 rows: scores differ by" in capsys.readouterr().out

    broken = tmp_path / "bundle"
    shutil.copytree(exported.bundle, broken)
    tables = load_file(broken / "tables.safetensors")
    moved = tables["t_user_id"].view(torch.float32).roll(1, 0).contiguous()
    save_file(
        tables | {"t_user_id": moved.view(torch.uint8)}, broken / "tables.safetensors"
    )

    with pytest.raises(UserError, match=r"tables\.safetensors: damaged"):
        check_bundle.main(["--bundle", str(broken)])
    with pytest.raises(UserError, match="scores of its fixed rows differ by"):
        check(broken, Runner.load(broken))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--max-rounded-difference", "1e-9"], r"int8: scores differ by .* beyond"),
        (["--max-uauc-difference", "-1"], "cvr: UAUC is .* with int8 tables"),
        (["--max-difference", "-1"], "trained: scores differ by"),
    ],
)
def test_an_export_beyond_a_tolerance_fails_and_leaves_nothing(
    exported: Exported, tmp_path, options, message
):
    out = tmp_path / "bundle"
    command = [*exported.inputs, "--ranker", str(exported.ranker), "--out", str(out)]

    with pytest.raises(UserError, match=message):
        export_bundle.main([*command, *options])

    assert not list(tmp_path.iterdir())


def test_rows_without_labels_have_no_uauc(exported: Exported, tmp_path):
    market = tmp_path / "market"
    shutil.copytree(exported.market, market)
    path = market / "impressions.parquet"
    table = pq.read_table(path)
    nulls = pa.nulls(table.num_rows, pa.int64())
    pq.write_table(table.drop_columns(["label"]).append_column("label", nulls), path)
    command = ["--data", f"parquet:{market}", "--content", str(exported.content)]
    command += ["--ranker", str(exported.ranker), "--out", str(tmp_path / "bundle")]

    export_bundle.main([*command, "--precision", "half"])

    found = certificate(tmp_path / "bundle")
    assert found["uauc"] == {}
    assert found["differences"]["exact"]["runner"] < 2e-6


def test_other_weights_than_training_left_are_refused(exported: Exported, tmp_path):
    """What training scored is beside the weights: the last rows it learned from."""
    probe = pq.read_table(exported.ranker / "probe.parquet")
    impressions = pq.read_table(exported.market / "impressions.parquet")
    cutoff = read_manifest(exported.ranker, "ranker").cutoff
    learned = impressions.filter(pc.less(impressions["timestamp"], cutoff))
    count = min(1000, probe.num_rows)
    last = learned.slice(learned.num_rows - count)
    assert probe["item_id"].to_pylist() == last["item_id"].to_pylist()
    expected = exported.trained_scores(probe.drop_columns(["trained_score"]))["score"]
    scores = probe["trained_score"].to_numpy()
    np.testing.assert_allclose(scores, expected, atol=1e-7)

    other = tmp_path / "ranker"
    shutil.copytree(exported.ranker, other)
    place = probe.column_names.index("trained_score")
    moved = probe.set_column(place, "trained_score", pa.array(scores[::-1].copy()))
    manifest = read_manifest(other, "ranker")
    pq.write_table(moved, other / "probe.parquet")
    files = manifest.files | {"probe.parquet": describe_file(other / "probe.parquet")}
    dataclasses.replace(manifest, files=files).write(other)
    command = [*exported.inputs, "--ranker", str(other)]
    with pytest.raises(UserError, match="trained: scores differ by"):
        export_bundle.main([*command, "--out", str(tmp_path / "bundle")])


def without(columns: str):
    def change(path: Path) -> None:
        table = pq.read_table(path / "parity.parquet")
        gone = [name for name in table.column_names if name.startswith(columns)]
        pq.write_table(table.drop_columns(gone), path / "parity.parquet")

    return change


def written(name: str, body: bytes):
    return lambda path: (path / name).write_bytes(body)


def saved(name: str, array):
    return lambda path: np.save(path / "learn" / name, array)


FORGED = {
    "no JSON": written("parity.json", b"{"),
    "no tolerances": written("parity.json", b"{}"),
    "a list": written("parity.json", b"[]"),
    "no UTF-8": written("parity.json", b"\xff{}"),
    "tolerances as text": written(
        "parity.json", b'{"tolerances": {"exact": "1", "rounded": "1"}}'
    ),
    "deep": written("parity.json", b"[" * 100_000),
    "no Parquet": written("parity.parquet", b"PAR1"),
    "no users": without("user_id"),
    "no scores": without("served_"),
    "no row": lambda path: pq.write_table(
        pq.read_table(path / "parity.parquet")[:0], path / "parity.parquet"
    ),
    "rates of other items": saved("rates.npy", np.zeros((3, 2), np.float32)),
    "rates as a list": saved("rates.npy", np.zeros(40, np.float32)),
    "items as a matrix": saved("events/items.npy", np.zeros((3, 3), np.int32)),
    "no times": saved("events/times.npy", np.zeros(0, np.int64)),
    "no offsets": saved("events/offsets.npy", np.zeros(0, np.int64)),
    "other offsets": saved("events/offsets.npy", np.zeros(61, np.int64)),
}


@pytest.mark.parametrize("change", FORGED.values(), ids=FORGED)
def test_a_forged_bundle_is_one_line(exported: Exported, tmp_path, change):
    forged = tmp_path / "bundle"
    shutil.copytree(exported.bundle, forged)
    change(forged)
    listed_anew(forged)
    with pytest.raises(UserError, match=r"bundle: damaged .*export the bundle again"):
        check_bundle.main(["--bundle", str(forged)])
