"""The paper's tables: small parts by hand, and every table on a small market."""

import importlib.util
import json
import shutil
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from small_market import write_small_market

from learn_torchrec.apps import encode_content, experiment, train_towers
from learn_torchrec.apps import main as command_line
from learn_torchrec.apps.experiments.base import Goal, judged
from learn_torchrec.errors import UserError
from learn_torchrec.evaluation.retrieval_study import compare_rows
from learn_torchrec.evaluation.revenue_replay import in_first_places, visits_of

TINY = (
    *("towers.training.epochs=1", "towers.model.encoder.width=16"),
    *("towers.model.encoder.num_layers=1", "towers.model.encoder.num_heads=2"),
    *("towers.model.encoder.feed_forward_dim=16", "split.actions=like"),
    *("retrieval.ks=5,10",),
)


@pytest.fixture(scope="module")
def tables(tmp_path_factory):
    """A market, a causal language model, and a folder that tables share."""
    import tiny_model
    from transformers import LlamaConfig, LlamaForCausalLM

    folder = tmp_path_factory.mktemp("tables")
    market = write_small_market(folder / "market")
    items = pq.read_table(market / "items.parquet")
    words = tiny_model.WORDS
    titles = [f"{words[n % 7]} {words[n % 5 + 7]} {words[n % 11]}" for n in range(40)]
    pq.write_table(
        items.set_column(1, "title", pa.array(titles)), market / "items.parquet"
    )
    tiny_model.save(folder / "model")
    whole = LlamaForCausalLM(LlamaConfig.from_pretrained(folder / "model"))
    whole.save_pretrained(folder / "model")
    return folder


def run(folder: Path, table: str, *more: str) -> dict:
    """Run a table; return its JSON."""
    command = ["experiment", table, "--data", f"parquet:{folder / 'market'}"]
    command += ["--out", str(folder / "out")]
    for name in ("llm", "bert"):
        command += ["--encoder", f"{name}:content.encoder.model={folder / 'model'}"]
    command_line.main([*command, "--seeds", "2", *more, "--set", *TINY])
    return json.loads((folder / "out" / f"{table}.json").read_text())


def check_row(row: dict, metric: str, seeds: int) -> None:
    """Check the form of a row."""
    found = row[metric]
    assert 0 <= found["low"] <= found["mean"] <= found["high"] <= 1
    assert len(found["seeds"]) == seeds


def test_a_goal_is_a_ratio_of_means():
    goals = [Goal(row="a", than="b", times=2), Goal(row="b", than="c", group="new")]
    everyone, new = (
        {name: {"mean": mean} for name, mean in means.items()}
        for means in ({"a": 0.5, "b": 0.2}, {"b": 0.1, "c": 0.2})
    )
    found = judged(goals, {"all": everyone, "new": new})
    assert [one["is_met"] for one in found] == [True, False]
    assert [one["ratio"] for one in found] == pytest.approx([2.5, 0.5])
    assert judged(goals[1:], {"all": {}}) == []
    assert [one["is_clear"] for one in found] == [None, None]
    nothing = judged(goals[:1], {"all": {"a": {"mean": 0.0}, "b": {"mean": 0.0}}})[0]
    assert nothing["ratio"] is None
    assert not nothing["is_met"]


def test_a_difference_from_the_reference_is_clear_or_not():
    random = np.random.default_rng(0)
    base = random.random(200)
    rows = {"a": [base + 0.1], "b": [base], "c": [base + random.normal(0, 0.2, 200)]}
    found = {"all": compare_rows(rows, "a")["rows"]}
    pairs = (("a", "b"), ("b", "a"), ("b", "c"))
    goals = [Goal(row=row, than=than) for row, than in pairs]
    assert [one["is_clear"] for one in judged(goals, found)] == [True, True, None]
    alike = {"all": compare_rows({"b": rows["b"], "c": rows["c"]}, "b")["rows"]}
    assert judged([Goal(row="c", than="b")], alike)[0]["is_clear"] is False


def test_rows_are_weighted_and_compared_with_the_reference():
    first, second = np.array([1.0, 0.0, 0.5]), np.array([0.0, 0.0, 0.5])
    found = compare_rows(
        {"a": [first], "b": [second]}, "a", weights=np.array([1, 1, 2])
    )["rows"]
    assert found["a"]["mean"] == pytest.approx((1 + 0 + 2 * 0.5) / 4)
    assert found["b"]["below"]["difference"] == pytest.approx(0.25)
    assert "below" not in found["a"]


def test_revenue_of_first_places_by_hand():
    visits = np.array([0, 1, 0, 0, 1])
    scores = np.array([0.2, 0.5, 0.9, 0.2, 0.5])
    # Visit 0: one ahead of two that share places two and three; visit 1: two share.
    chance = in_first_places(visits, scores, 2)
    assert chance.tolist() == [0.5, 1.0, 1.0, 0.5, 1.0]
    assert in_first_places(visits, scores, 1).tolist() == [0, 0.5, 1, 0, 0.5]
    table = pa.table({"user_id": ["a", "b", "a", "a"], "timestamp": [1, 1, 1, 2]})
    numbers = visits_of(table)
    assert numbers[0] == numbers[2]
    assert len({numbers[0], numbers[1], numbers[3]}) == 3


def test_towers_are_rows_and_resume(tables, capsys, monkeypatch):
    result = run(tables, "table4")
    shown = capsys.readouterr().out
    assert "item alone" in shown
    page = (tables / "out" / "report-table4.md").read_text()
    for said in ("Split: ", "holdout=", "Ties: ", "Repeats: ", "Loss: "):
        assert said in page
    assert set(result["rows"]) >= {"content", "self", "causal", "projection", "learn"}
    assert result["rows"]["causal"]["published"] == 0.0701
    for name, row in result["rows"].items():
        towers = name in ("content", "self", "causal", "projection", "learn")
        for metric in ("r@5", "h@10", "n@5"):
            check_row(row, metric, 2 if towers else 1)
    settings = result["settings"]
    assert settings["content"]["towers.model.encoder.vector_dim"] == 16  # the store's
    assert settings["causal"]["towers.model.item_tower"] == "causal"
    assert settings["causal"]["towers.loss.objective"] == "dense_all_action"
    assert {goal["row"] for goal in result["goals"]} == {"causal", "self"}

    def refuse(*_: object) -> None:
        raise AssertionError("trained again")

    monkeypatch.setattr(train_towers, "train_towers", refuse)
    assert run(tables, "table4") == result

    vectors = tables / "out" / "content" / "llm" / "vectors-00000.npy"
    whole = vectors.read_bytes()
    vectors.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    capsys.readouterr()
    with pytest.raises(SystemExit):
        run(tables, "table4")
    assert f"error: {vectors}: damaged" in capsys.readouterr().err
    vectors.write_bytes(whole)


def test_an_id_and_two_encoders(tables):
    result = run(tables, "table1")
    assert result["settings"]["id"]["towers.model.inputs"] == "id"
    assert result["settings"]["id"]["towers.loss.logit_adjustment"] == 0
    assert result["settings"]["llm"]["towers.model.inputs"] == "content"
    assert set(result["training_seconds"]) == {"id", "bert", "llm", "bert_id", "learn"}


def test_more_users_are_more_rows(tables):
    result = run(tables, "curve")
    assert {"learn_0.01", "learn_1", "text_0.3"} <= set(result["rows"])
    assert result["settings"]["learn_0.1"]["towers.training.user_share"] == 0.1
    assert {goal["row"] for goal in result["goals"]} >= {"learn_0.01", "learn_1"}


def test_industry_models_rank_the_last_event(tables):
    result = run(tables, "table3")
    hstu = result["settings"]["hstu"]
    assert hstu["towers.model.encoder.architecture"] == "hstu"
    row = result["rows"]["learn"]
    assert row["r@5"]["mean"] == pytest.approx(row["h@5"]["mean"])  # one target each


def test_a_language_model_comprehends_histories(tables):
    result = run(tables, "table5")
    check_row(result["rows"]["lora_16"], "r@5", 2)
    settings = result["settings"]["lora_64"]
    assert settings["towers.model.encoder.width"] == 16  # the model's hidden size
    assert settings["towers.model.encoder.lora_rank"] == 64


def test_histories_as_text(tables, capsys):
    result = run(tables, "table2")
    assert "next-token loss" in capsys.readouterr().err
    rows = result["rows"]
    assert rows["text"]["title"].startswith("v1")
    for name in ("text", "tuned_text", "tuned_mean", "content_mean"):
        check_row(rows[name], "r@5", 1)
    tuned = list((tables / "out").glob("tuned-*"))
    assert len(tuned) == 1
    before = tuned[0].stat().st_mtime_ns
    assert run(tables, "table2")["rows"] == rows
    assert tuned[0].stat().st_mtime_ns == before


def test_pairs_by_layer(tables):
    result = run(tables, "i2i")
    rows = result["rows"]
    assert {"layer_0", "layer_3", "aligned", "bert", "llm"} <= set(rows)
    check_row(rows["aligned"], "auc", 2)
    check_row(rows["layer_3"], "auc", 1)
    # The same encoder twice, and the last layer is what "standardized" reads.
    assert rows["bert"]["auc"]["mean"] == pytest.approx(rows["llm"]["auc"]["mean"])
    assert rows["layer_3"]["auc"]["mean"] == pytest.approx(
        rows["llm_standardized"]["auc"]["mean"], abs=0.01
    )
    histogram = result["histograms"]["llm"]
    assert sum(histogram["taken"]) == pytest.approx(1, abs=1e-3)


def test_rankers_and_cohorts(tables):
    more = ["--trials", "1"]
    result = run(tables, "table6", *more)
    rows = result["rows"]
    assert {"baseline", "learn", "paper", "no_products"} <= set(rows)
    check_row(rows["learn"], "uauc", 2)
    assert len(rows["learn"]["auc"]["seeds"]) == 2
    cohorts = run(tables, "table7", *more)["rows"]
    whole = cohorts["all"]
    assert whole["share"] == 1
    assert whole["uauc"]["mean"] == pytest.approx(rows["learn"]["uauc"]["mean"])
    assert whole["uauc"]["baseline"] == pytest.approx(rows["baseline"]["uauc"]["mean"])


def test_towers_of_another_catalogue(tables):
    other = tables / "other"
    write_small_market(other)
    shutil.copyfile(tables / "market" / "items.parquet", other / "items.parquet")
    result = run(tables, "transfer", "--source", f"parquet:{other}")
    rows = result["rows"]
    for name in ("zero_shot", "fine_tuned", "scratch"):
        check_row(rows[name], "r@5", 2)
    # The other log is the same here: so are its towers and those of this one.
    assert rows["zero_shot"]["r@5"] | {"below": 0} == rows["scratch"]["r@5"] | {
        "below": 0
    }
    started = tables / "out" / "towers" / "transfer" / "fine_tuned-0"
    assert "warm_start" in json.loads((started / "manifest.json").read_text())["inputs"]


def test_mistakes_are_said_before_work(tables, capsys):
    source = ["--source", f"parquet:{tables / 'out'}"]
    for message, table, more in (
        ("no such file", "transfer", source),
        ("name one of llm, bert", "table1", ["--encoder", "gpt:content.seed=x"]),
        ("--seeds 0: must be", "table1", ["--seeds", "0"]),
        ("no such file", "table1", ["--encoder", "llm:content.encoder.model=/no/m"]),
        ("--source", "transfer", []),
    ):
        with pytest.raises(SystemExit) as stopped:
            run(tables, table, *more)
        assert stopped.value.code == 2
        assert message in capsys.readouterr().err
    with pytest.raises(UserError, match="only content"):
        experiment.encoders_of(["llm:towers.model.inputs=id"])


def test_a_missing_package_is_said_before_work(tables, capsys, monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda _: None)
    monkeypatch.setattr(encode_content, "main", None)
    with pytest.raises(SystemExit):
        run(tables, "table5")
    assert "needs peft" in capsys.readouterr().err
