"""Presets: functions that return the whole configuration of a run.

`derived.py` has the preset `default`, which needs the data.
"""

from collections.abc import Callable
from dataclasses import field
from typing import Annotated

from learn_torchrec.config import OPERATIONAL, configuration, replace
from learn_torchrec.content.codebook import CodesConfig
from learn_torchrec.content.encoder import EncoderConfig
from learn_torchrec.content.extract import ContentConfig
from learn_torchrec.content.minilm import MINILM
from learn_torchrec.content.prompt import PromptConfig
from learn_torchrec.datasets.preparation.prepare import PrepareConfig
from learn_torchrec.datasets.split import SplitConfig
from learn_torchrec.evaluation.cohorts import CohortConfig
from learn_torchrec.ranker.config import RankerConfig
from learn_torchrec.refresh.config import RefreshConfig
from learn_torchrec.towers.config import TowersConfig, TowersTrainingConfig
from learn_torchrec.towers.encoders.architecture import EncoderShape
from learn_torchrec.towers.export import ExportConfig
from learn_torchrec.towers.model import TowersModelConfig
from learn_torchrec.towers.objectives.config import LossConfig
from learn_torchrec.towers.retrieval import PROTOCOLS, RetrievalConfig
from learn_torchrec.towers.sampling import SamplingConfig
from learn_torchrec.training.checkpoint import CheckpointConfig
from learn_torchrec.training.optim import OptimizerConfig


@configuration
class Run:
    """The configuration of a run, a section per stage.

    Attributes:
        prepare: from a log to sequences.
        content: from item texts to content vectors.
        codes: from content vectors to codes, which the ranker can read as features.
        split: training and holdout, by user and time.
        towers: from content vectors and histories to user and item vectors.
        export: which vectors the ranker gets.
        ranker: from impressions and vectors to conversion probabilities.
        retrieval: evaluation of the towers on held-out users.
        cohorts: bounds of the evaluation's cohorts.
        refresh: every day after the first.
        checkpoint: how often training saves its state.
    """

    prepare: PrepareConfig = field(default_factory=PrepareConfig)
    content: ContentConfig = field(default_factory=ContentConfig)
    codes: CodesConfig = field(default_factory=CodesConfig)
    split: SplitConfig = field(default_factory=SplitConfig)
    towers: TowersConfig = field(default_factory=TowersConfig)
    export: ExportConfig = field(default_factory=ExportConfig)
    ranker: RankerConfig = field(default_factory=RankerConfig)
    retrieval: RetrievalConfig = field(default_factory=RetrievalConfig)
    cohorts: CohortConfig = field(default_factory=CohortConfig)
    refresh: RefreshConfig = field(default_factory=RefreshConfig)
    checkpoint: Annotated[CheckpointConfig, OPERATIONAL] = field(
        default_factory=CheckpointConfig
    )


def small_encoder(dropout: float, max_positions: int = 80) -> EncoderShape:
    """Return two layers, which a CPU trains in minutes."""
    return EncoderShape(
        width=128,
        num_layers=2,
        num_heads=4,
        feed_forward_dim=512,
        dropout=dropout,
        max_positions=max_positions,
    )


def paper_v2() -> Run:
    """The industrial setting of the paper's second version (section 4.1).

    BERT-base-shaped towers over Baichuan2-7B content, H = 80, T = 40, 10 x 10 pairs
    weighted to recent history, global batch 240 (30 on each of 8 GPUs), 10 epochs, in
    bfloat16. Users are disjoint, 2 % of them test; of ten months the first nine are
    history and the last holds the targets. `90%` of the events stands for that moment:
    set `split.towers_until` and `split.test_from` to its date.

    The model's repository has its own code: add
    `--set content.encoder.trust_remote_code=true` if you trust it, and pin what you
    have read with `content.encoder.revision=COMMIT`.
    """
    return Run(
        content=ContentConfig(
            encoder=EncoderConfig(
                model="baichuan-inc/Baichuan2-7B-Base", dtype="bfloat16"
            )
        ),
        split=SplitConfig(
            actions=("buy", "click"),
            holdout="time",
            towers_until="90%",
            test_from="90%",
            validation_users=0.02,
            test_users=0.02,
        ),
        towers=TowersConfig(training=TowersTrainingConfig(precision="bfloat16")),
    )


def paper_v1() -> Run:
    """The paper's first version: `paper-v2` with uniformly drawn history positions."""
    run = paper_v2()
    sampling = replace(run.towers.sampling, weighting="uniform")
    towers = replace(run.towers, sampling=sampling)
    return replace(run, towers=towers)


def official_amazon() -> Run:
    """The shape and rates of the authors' public code (Amazon pre-training).

    Four layers, vectors of 4096 dims like the content, no positions, raw content, one
    pair per user. Their last-position anchor, their batch of 1024 on each of 4 GPUs and
    their stop after 20 of 30 epochs are to be set on top.
    """
    run = paper_v2()
    shape = EncoderShape(num_layers=4, vector_dim=4096, max_positions=0)
    towers = TowersConfig(
        model=TowersModelConfig(encoder=shape, standardize=False),
        sampling=SamplingConfig(
            history_length=40,
            target_length=1,
            num_history_samples=1,
            num_target_samples=1,
            min_history=2,
        ),
        optimizer=OptimizerConfig(learning_rate=6e-5, warmup=1 / 30, max_grad_norm=0.0),
        training=TowersTrainingConfig(epochs=30, patience=30, batch_size=4096),
    )
    split = SplitConfig(actions=("buy", "click"), min_events=5)
    return replace(run, towers=towers, split=split)


def amazon() -> Run:
    """Amazon reviews, leave-one-out: short sequences, a catalogue of thousands.

    As in the paper's fine-tuning, the next item is predicted over the whole catalogue.
    """
    return Run(
        content=ContentConfig(encoder=EncoderConfig(layers=(8, 30))),
        split=SplitConfig(
            actions=("interaction",), holdout="leave_one_out", min_events=4
        ),
        towers=TowersConfig(
            model=TowersModelConfig(
                encoder=small_encoder(dropout=0.3, max_positions=50),
                inputs="content+id",
                id_shrinkage=5.0,
                item_tower="projection",
                repeat=True,
            ),
            sampling=SamplingConfig(history_length=50, target_length=50),
            loss=LossConfig(
                objective="next_item", temperature=0.1, logit_adjustment=0.5
            ),
            optimizer=OptimizerConfig(learning_rate=1e-3),
            training=TowersTrainingConfig(epochs=20, patience=20, batch_size=128),
        ),
        retrieval=PROTOCOLS["recformer"],
    )


def retail() -> Run:
    """The paper's own setting on Online Retail II: long histories, many targets.

    Users are disjoint, targets are at or after 2011-09-10 (about the last tenth of the
    log), H = 80, T = 40, dense all-action over 10 x 10 pairs. Titles have a few words,
    for which a sentence encoder is better than a small causal model.
    """
    return Run(
        content=ContentConfig(
            encoder=EncoderConfig(model=MINILM),
            prompt=PromptConfig(template="{title}"),
        ),
        split=SplitConfig(
            actions=("buy",),
            holdout="time",
            towers_until="2011-09-10",
            test_from="2011-09-10",
            min_events=5,
        ),
        towers=TowersConfig(
            model=TowersModelConfig(
                encoder=small_encoder(dropout=0.15),
                inputs="content+id",
                id_shrinkage=5.0,
                item_tower="projection",
                repeat=True,
            ),
            sampling=SamplingConfig(cut="split"),
            loss=LossConfig(temperature=0.1, sampling_correction=True),
            optimizer=OptimizerConfig(learning_rate=1e-3, weight_decay=0.1),
            training=TowersTrainingConfig(epochs=24, patience=24, batch_size=64),
        ),
    )


PRESETS: dict[str, Callable[[], Run]] = {
    "paper-v1": paper_v1,
    "paper-v2": paper_v2,
    "official-amazon": official_amazon,
    "amazon": amazon,
    "retail": retail,
}
