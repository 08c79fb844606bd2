"""On a market where content alone decides, LEARN finds it and ids cannot."""

import json

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from planted_market import PlantedConfig, PlantedMarket

from learn_torchrec.apps import main as command_line
from learn_torchrec.artifact import write_artifact
from learn_torchrec.content.store import KIND, ContentStore, write_content_store
from learn_torchrec.datasets import open_dataset
from learn_torchrec.datasets.generated.market import DAY, START, TOPICS
from learn_torchrec.evaluation.auc import evaluate_auc
from learn_torchrec.ranker.config import RankerConfig, RankerTrainingConfig
from learn_torchrec.ranker.content import content_vectors
from learn_torchrec.ranker.features import FeaturesConfig, HashedFeature
from learn_torchrec.ranker.features.lookups import open_lookups
from learn_torchrec.ranker.impressions import Impressions
from learn_torchrec.ranker.learn.config import LearnConfig
from learn_torchrec.ranker.learn.inputs import LearnInputs
from learn_torchrec.ranker.scoring import score
from learn_torchrec.ranker.training import train_ranker
from learn_torchrec.training.optim import OptimizerConfig

PLANTED = PlantedConfig(seed=7)
TOLERANCE = 0.02
FEATURES = FeaturesConfig(
    sparse=(
        HashedFeature(column="user_id", num_embeddings=2000),
        HashedFeature(column="item_id", num_embeddings=2000),
    ),
    dense=("user_past_events", "user_past_rate", "item_past_events", "item_past_rate"),
)


class Silent:
    """Stands where the run log does."""

    def write(self, **values: float) -> None:
        del values


def write_content(market, directory):
    """Vectors that hold the topic, among dimensions that say nothing."""
    topics = [list(TOPICS).index(name) for name in market.items["category"].to_pylist()]
    noise = np.random.default_rng(0).normal(size=(len(topics), 16))
    vectors = np.hstack([np.eye(len(TOPICS))[topics], 0.2 * noise])
    with write_artifact(directory, kind=KIND, config={}, inputs={}) as out:
        write_content_store(out, market.items["item_id"].combine_chunks(), vectors)


def uauc(rows: pa.Table, scores) -> float:
    labels = rows["label"].to_numpy()
    return evaluate_auc(rows["user_id"].combine_chunks(), labels, scores)["uauc"]


def test_learn_recovers_what_ids_cannot(tmp_path, one_rank):
    planted = PlantedMarket(PLANTED)
    market = open_dataset(planted.write(tmp_path / "market"))
    write_content(market, tmp_path / "content")
    store = ContentStore.open(tmp_path / "content")
    vectors = content_vectors(store, market.sequences(store, ("like",)))
    learn = LearnConfig(form="paper")
    config = RankerConfig(
        features=FEATURES,
        learn=learn,
        optimizer=OptimizerConfig(learning_rate=3e-3),
        training=RankerTrainingConfig(epochs=3, batch_size=512),
    )
    train = market.impressions_between(START + 5 * DAY, planted.test_from)
    test = market.impressions_between(planted.test_from)
    times = market.impressions["timestamp"].to_numpy()
    impressions = market.impressions.filter(pa.array(times >= planted.test_from))
    oracle = uauc(impressions, impressions["oracle"].to_numpy())
    lookups = open_lookups(market, FEATURES, config.tasks, ("like",))
    reached = {}
    for name, given in (("ids", None), ("learn", LearnInputs(vectors, None, learn))):
        rows = Impressions(train, config, given, lookups)
        model, _ = train_ranker(config, rows, one_rank, Silent())
        tested = Impressions(test, config, given, lookups)
        scores = score(model, tested, 1000, one_rank)
        reached[name] = uauc(impressions, scores["score"])
    assert oracle > 0.75
    assert reached["learn"] > oracle - TOLERANCE, reached
    assert reached["ids"] < 0.6, reached


@pytest.mark.slow
def test_towers_and_ranker_recover_it_from_the_command_line(tmp_path):
    """The whole job: content, towers, vectors, both rankers, predictions."""
    planted = PlantedMarket(PLANTED)
    data = planted.write(tmp_path / "market")
    write_content(open_dataset(data), tmp_path / "content")
    sparse = [{"column": f.column, "num_embeddings": 2000} for f in FEATURES.sparse]
    settings = [
        f"split.towers_until={START + 8 * DAY}",
        f"split.test_from={planted.test_from}",
        f"ranker.features.sparse={json.dumps(sparse)}",
        f"ranker.features.dense={','.join(f.column for f in FEATURES.dense)}",
        "ranker.optimizer.learning_rate=0.003",
        "ranker.training.epochs=20",
        "towers.model.item_tower=projection",
        "towers.loss.sampling_correction=false",
        "towers.training.epochs=100",
        "towers.training.patience=100",
    ]
    common = ["--data", data, *(f"--set={setting}" for setting in settings)]
    content = ["--content", str(tmp_path / "content")]
    towers, vectors = tmp_path / "towers", tmp_path / "vectors"
    command_line.main(["train-towers", *common, *content, "--out", str(towers)])
    command_line.main(
        [
            *("export-vectors", *common, *content),
            *("--towers", str(towers), "--out", str(vectors)),
        ]
    )
    reached = {}
    for name, given in (("ids", []), ("learn", ["--vectors", str(vectors)])):
        ranker, out = tmp_path / f"ranker_{name}", tmp_path / name
        command_line.main(["train-ranker", *common, *given, "--out", str(ranker)])
        command_line.main(
            ["predict", *common, *given, "--ranker", str(ranker), "--out", str(out)]
        )
        rows = pq.read_table(out / "predictions.parquet")
        reached[name] = uauc(rows, rows["score"].to_numpy())
    oracle = uauc(rows, rows["oracle"].to_numpy())
    assert reached["learn"] > oracle - TOLERANCE, (reached, oracle)
    assert reached["ids"] < 0.6, reached
