"""On markets where content alone decides, LEARN finds it and ids cannot."""

import json

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from planted_market import PlantedConfig, PlantedMarket

from learn_torchrec.apps import main as command_line
from learn_torchrec.content.store import KIND, ContentStore, write_content_store
from learn_torchrec.datasets import open_dataset
from learn_torchrec.datasets.generated.market import DAY, START
from learn_torchrec.evaluation.auc import evaluate_auc
from learn_torchrec.publish import write_artifact
from learn_torchrec.ranker.config import RankerConfig, RankerTrainingConfig
from learn_torchrec.ranker.features import FeaturesConfig, HashedFeature
from learn_torchrec.ranker.features.lookups import open_lookups
from learn_torchrec.ranker.impressions import Impressions
from learn_torchrec.ranker.learn.config import LearnConfig, StatisticsConfig
from learn_torchrec.ranker.learn.content import content_vectors, reduced_content
from learn_torchrec.ranker.learn.inputs import LearnInputs
from learn_torchrec.ranker.scoring import score
from learn_torchrec.ranker.training import train_ranker
from learn_torchrec.training.optim import OptimizerConfig

PLANTED = PlantedConfig(seed=7)
MANY_INTERESTS = PlantedConfig(
    seed=7,
    users=150,
    impressions=30,
    narrow=True,
    liked_kinds=16,
    liked_rate=0.9,
    other_rate=0.02,
)
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


def write_content(planted, directory, vectors):
    """A content store of vectors [items, dims]."""
    with write_artifact(directory, kind=KIND, config={}, inputs={}) as out:
        write_content_store(out, planted.items()["item_id"].combine_chunks(), vectors)
    return ContentStore.open(directory)


def topic_vectors(planted):
    """Vectors that hold the topic, among dimensions that say nothing."""
    noise = np.random.default_rng(0).normal(size=(len(planted.kinds), 16))
    return np.hstack([np.eye(planted.num_kinds)[planted.kinds], 0.2 * noise])


def crowded_vectors(planted):
    """Vectors of 48 kinds in 8 dimensions, so that a mean of many says little."""
    random = np.random.default_rng(0)
    kinds = random.normal(size=(planted.num_kinds, 8))
    kinds /= np.linalg.norm(kinds, axis=1, keepdims=True)
    return kinds[planted.kinds] + 0.05 * random.normal(size=(len(planted.kinds), 8))


def uauc(rows: pa.Table, scores) -> float:
    labels = rows["label"].to_numpy()
    return evaluate_auc(rows["user_id"].combine_chunks(), labels, scores)["uauc"]


def reached(planted, tmp_path, vectors, forms, learning_rate, device):
    """The UAUC on the last day of the oracle, of ids, and of each LEARN in `forms`."""
    market = open_dataset(planted.write(tmp_path / "market"))
    store = write_content(planted, tmp_path / "content", vectors)
    train = market.impressions_between(START + 5 * DAY, planted.test_from)
    test = market.impressions_between(planted.test_from)
    times = market.impressions["timestamp"].to_numpy()
    impressions = market.impressions.filter(pa.array(times >= planted.test_from))
    found = {"oracle": uauc(impressions, impressions["oracle"].to_numpy())}
    for name, learn in {"ids": LearnConfig(form="off"), **forms}.items():
        config = RankerConfig(
            features=FEATURES,
            learn=learn,
            optimizer=OptimizerConfig(learning_rate=learning_rate),
            training=RankerTrainingConfig(epochs=3, batch_size=512),
        )
        if learn.is_residual:
            given = LearnInputs(None, reduced_content(store), learn)
        else:
            sequences = market.sequences(store, ("like",))
            given = LearnInputs(content_vectors(store, sequences), None, learn)
        given = given.read(market, config.tasks, ("like",))
        lookups = open_lookups(market, FEATURES, config.tasks, ("like",))
        rows = Impressions(train, config, given, lookups)
        model, *_ = train_ranker(config, rows, device, Silent())
        tested = Impressions(test, config, given, lookups)
        found[name] = uauc(impressions, score(model, tested, 1000, device)["score"])
    return found


def test_learn_recovers_what_ids_cannot(tmp_path, one_rank):
    planted = PlantedMarket(PLANTED)
    forms = {"residual": LearnConfig(), "paper": LearnConfig(form="paper")}
    vectors = topic_vectors(planted)
    found = reached(planted, tmp_path, vectors, forms, 3e-3, one_rank)
    assert found["oracle"] > 0.75
    for form in forms:
        assert found[form] > found["oracle"] - TOLERANCE, found
    assert found["ids"] < 0.6, found


@pytest.mark.slow
def test_only_the_history_itself_tells_a_user_of_many_interests(tmp_path, one_rank):
    """The mean of sixteen interests says little, the nearest of them all."""
    planted = PlantedMarket(MANY_INTERESTS)
    static = LearnConfig(statistics=StatisticsConfig(spaces=()), neighbours=0)
    forms = {
        "residual": LearnConfig(),
        "static": static,
        "paper": LearnConfig(form="paper"),
    }
    vectors = crowded_vectors(planted)
    found = reached(planted, tmp_path, vectors, forms, 1e-2, one_rank)
    assert found["oracle"] > 0.9
    assert found["residual"] > found["oracle"] - 0.01, found
    for form in ("static", "paper"):
        assert found[form] < found["oracle"] - 0.15, found
    assert found["ids"] < 0.6, found


@pytest.mark.slow
def test_towers_and_ranker_recover_it_from_the_command_line(tmp_path):
    """The whole job: content, towers, vectors, both rankers, predictions."""
    planted = PlantedMarket(PLANTED)
    data = planted.write(tmp_path / "market")
    write_content(planted, tmp_path / "content", topic_vectors(planted))
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
