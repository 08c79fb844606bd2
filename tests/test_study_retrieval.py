"""The study of retrieval: its arithmetic by hand, the command on a small market."""

import json

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from learn_torchrec.apps import main as command_line
from learn_torchrec.apps import study_retrieval, train_towers
from learn_torchrec.errors import UserError
from learn_torchrec.evaluation.recommended import recommended_scores
from learn_torchrec.evaluation.retrieval import user_metrics
from learn_torchrec.evaluation.retrieval_study import compare_rows


def test_metrics_of_users_by_hand():
    ranks = np.array([1.0, 3.0, 2.0, np.inf])
    recall, ndcg = user_metrics(ranks, np.array([0, 0, 2, 2]), num_users=3, k=2)
    assert recall[[0, 2]].tolist() == [0.5, 0.5]
    best = 1 + 1 / np.log2(3)
    assert ndcg[[0, 2]] == pytest.approx([1 / best, 1 / np.log2(3) / best])
    assert np.isnan([recall[1], ndcg[1]]).all()  # no target


def test_a_difference_has_the_interval_of_resampled_users():
    random = np.random.default_rng(5)
    base = random.random(400)
    gain = random.normal(0.1, 0.2, 400)
    rows = {"learn": [base + gain, base + gain + 0.02], "a": [base], "b": [base - 1]}
    found = compare_rows(rows, "learn")
    over = found["over"]
    assert over["row"] == "a"
    assert over["difference"] == pytest.approx(gain.mean() + 0.01)
    error = gain.std(ddof=1) / np.sqrt(400)  # users pair: their levels cancel
    assert over["high"] - over["low"] == pytest.approx(2 * 1.96 * error, rel=0.1)
    assert over["low"] < over["difference"] < over["high"]
    learn = found["rows"]["learn"]
    assert learn["seeds"] == pytest.approx([learn["mean"] - 0.01, learn["mean"] + 0.01])
    spread = 2 * 1.96 * (base + gain).std(ddof=1) / np.sqrt(400)
    assert learn["high"] - learn["low"] == pytest.approx(spread, rel=0.1)
    assert compare_rows({"learn": [base]}, "learn")["over"] is None


def test_arms_change_towers_only():
    arms = study_retrieval.arms_of(
        ["x: towers.training.epochs=3;towers.loss.temperature=1"]
    )
    assert arms["x"] == ("towers.training.epochs=3", "towers.loss.temperature=1")
    assert list(arms) == ["learn", "ids", "x"]
    for wrong in (
        "ids:towers.training.epochs=3",
        "popularity:towers.x=1",
        "towers.training.epochs=3",
        ":a=1",
    ):
        with pytest.raises(UserError, match="write it as NAME"):
            study_retrieval.arms_of([wrong])
    for outside in ("../x", "/x", "a/b", "a/", ".", "a\0"):
        with pytest.raises(UserError, match="folder cannot have this name"):
            study_retrieval.arms_of([f"{outside}:towers.training.epochs=3"])
    with pytest.raises(UserError, match=r"only towers\.\* may differ"):
        study_retrieval.arms_of(["x:split.min_events=9"])


def test_the_command_studies_and_resumes(market, store, tmp_path, capsys, monkeypatch):
    seen, original = [], train_towers.train_towers
    monkeypatch.setattr(
        train_towers,
        "train_towers",
        lambda config, *more: seen.append(config) or original(config, *more),
    )
    out = tmp_path / "study"
    command = ["study-retrieval", "--data", f"parquet:{market}", "--out", str(out)]
    command += ["--content", str(store.directory), "--seeds", "2"]
    command += ["--arm", "paper:towers.loss.objective=dense_all_action"]
    command += ["--set", "towers.training.epochs=2", "retrieval.ks=5,10"]
    command_line.main(command)
    shown = capsys.readouterr().out
    assert "LEARN" in shown
    assert "item-item co-occurrence" in shown
    result = json.loads((out / "study.json").read_text())
    assert len(seen) == 6
    assert [one.training.seed for one in seen] == [0, 1] * 3
    assert [one.model.inputs for one in seen] == ["content+id"] * 2 + ["id"] * 2 + [
        "content"
    ] * 2
    rows = {"popularity", "content_mean", "already_bought", "co_occurrence"}
    trained = {"learn", "ids", "paper"}
    rows |= trained
    whole = result["groups"]["all"]
    for ranking in ("kept", "filtered"):
        for metric in ("r@5", "n@5", "r@10", "n@10"):
            found = whole[ranking][metric]["rows"]
            assert set(found) == rows
            for name, row in found.items():
                assert 0 <= row["low"] <= row["mean"] <= row["high"] <= 1
                assert len(row["seeds"]) == (
                    2 if name in ("learn", "ids", "paper") else 1
                )
    groups = result["groups"]
    assert "filtered" not in groups["repeated"]
    assert groups["new"]["targets"] + groups["repeated"]["targets"] == whole["targets"]
    # A history that stays can only push others down.
    new = groups["new"]
    for name in rows:
        kept, filtered = (
            new[one]["r@10"]["rows"][name] for one in ("kept", "filtered")
        )
        assert filtered["mean"] >= kept["mean"]
    page = (out / "report.html").read_text()
    assert "without the history" in page
    assert "co-occurrence" in page

    # The same as the command for one run says.
    retrieval = tmp_path / "retrieval.json"
    evaluated = ["evaluate-retrieval", "--data", f"parquet:{market}"]
    evaluated += ["--content", str(store.directory), "--out", str(retrieval)]
    evaluated += ["--towers", str(out / "towers" / "learn-1")]
    command_line.main(evaluated)
    one = json.loads(retrieval.read_text())["retrieval"]
    used = whole[result["history_in_use"]]
    for metric in ("r@5", "n@5", "r@10", "n@10"):
        assert used[metric]["rows"]["learn"]["seeds"][1] == pytest.approx(
            one["learn"][metric]
        )
        assert used[metric]["rows"]["popularity"]["mean"] == pytest.approx(
            one["popularity"][metric]
        )

    seen.clear()
    command_line.main(command)
    assert not seen
    assert json.loads((out / "study.json").read_text()) == result

    weights = out / "towers" / "learn-1" / "towers.safetensors"
    body = bytearray(weights.read_bytes())
    body[-1] ^= 64
    weights.write_bytes(body)
    with pytest.raises(SystemExit) as ended:
        command_line.main(command)
    assert ended.value.code == 2
    assert f"error: {weights}: damaged" in capsys.readouterr().err
    assert json.loads((out / "study.json").read_text()) == result


def test_another_model_is_a_row(market, store, tmp_path, capsys):
    log = pq.read_table(market / "interactions.parquet")
    users, items = log["user_id"].unique().to_pylist(), store.item_ids.to_pylist()
    command = ["study-retrieval", "--data", f"parquet:{market}", "--seeds", "1"]
    command += ["--content", str(store.directory), "--out", str(tmp_path / "study")]
    for seed in range(2):
        order = np.random.default_rng(seed).permutation(items).tolist()
        table = pa.table(
            {
                "user_id": np.repeat(users, len(items)),
                "item_id": order * len(users),
                "rank": list(range(1, len(items) + 1)) * len(users),
            }
        )
        pq.write_table(table, tmp_path / f"{seed}.parquet")
        command += ["--recommended", f"mine={tmp_path / f'{seed}.parquet'}"]
    command_line.main(
        [*command, "--set", "towers.training.epochs=1", "retrieval.ks=5,10"]
    )
    result = json.loads((tmp_path / "study" / "study.json").read_text())
    row = result["groups"]["all"]["kept"]["r@10"]["rows"]["mine"]
    assert len(row["seeds"]) == 2
    assert row["mean"] == pytest.approx(10 / 40, abs=0.1)  # by chance
    for taken in ("learn", "popularity", "co_occurrence"):
        with pytest.raises(SystemExit):
            command_line.main([*command, "--recommended", f"{taken}=x"])
        assert "write it as NAME=FILE, with another name" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        command_line.main([*command, "--arm", "mine:towers.training.epochs=1"])
    assert "--recommended mine=" in capsys.readouterr().err


def test_ranks_order_a_user_s_items_whatever_their_size(store, tmp_path):
    items, path = store.item_ids.to_pylist()[:3], tmp_path / "r.parquet"
    columns = {"user_id": [7, 7, 7], "item_id": items}
    huge = [2**62 + 1, 2**62, 2**62 + 2]  # whose reciprocals are equal
    pq.write_table(pa.table({**columns, "rank": huge}), path)
    scores = recommended_scores(path, pa.array([7]), store)(0, 1)
    assert scores[0, :4].tolist() == [1 / 2, 1, 1 / 3, 0]
    pq.write_table(pa.table({**columns, "rank": [1, 2, 2]}), path)
    with pytest.raises(UserError, match="column rank: 2 is there twice for user_id 7"):
        recommended_scores(path, pa.array([7]), store)
