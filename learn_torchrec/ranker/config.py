"""Settings of the ranker: features, tasks, model and training."""

from dataclasses import field
from typing import Annotated, Literal

from pydantic import Field, NonNegativeInt, PositiveFloat, PositiveInt

from learn_torchrec.config import OPERATIONAL, Depth, Width, configuration, require
from learn_torchrec.ranker.features import FeaturesConfig
from learn_torchrec.ranker.learn.config import LearnConfig
from learn_torchrec.ranker.tables import ShardingConfig
from learn_torchrec.ranker.tasks import (
    TaskConfig,
    check_tasks,
    describe_tasks,
    label_columns,
)
from learn_torchrec.schema import SCORE
from learn_torchrec.training.optim import Decay, OptimizerConfig
from learn_torchrec.training.precision import Communication, Precision
from learn_torchrec.training.table_optimizer import TableOptimizerConfig


@configuration
class RankerModelConfig:
    """Shape of the ranker.

    Attributes:
        embedding_dim: of ID features in the interaction; a multiple of 4. Their tables
            have it too, unless a feature has its own.
        interaction: "dlrm": dot products of all pairs of features, or "dcn": DCN-v2's
            cross network.
        dcn_layers: of the cross network.
        dcn_rank: of its low-rank matrices.
        attention_hidden_dim: of the MLP that weights an id for features with
            `pooling` "attention".
        dense_layers: hidden sizes of the bottom MLP, before the embedding dim.
        over_layers: hidden sizes of each task's top MLP, before the logit.
    """

    embedding_dim: Annotated[Width, Field(multiple_of=4)] = 32
    interaction: Literal["dlrm", "dcn"] = "dlrm"
    dcn_layers: Depth = 3
    dcn_rank: Width = 64
    attention_hidden_dim: Width = 32
    dense_layers: tuple[Width, ...] = (128,)
    over_layers: Annotated[tuple[Width, ...], Field(min_length=1)] = (128, 64)


@configuration
class StreamConfig:
    """How impressions are read while training.

    Attributes:
        enabled: read row groups of `parquet:` impressions as needed, instead of all
            rows at the start.
        lanes: positions in the data that a batch is interleaved from; the largest
            divisor of the batch size up to this number is used. A multiple of all
            ranks' workers lets each row group be decoded once. 0 chooses 8, and of many
            row groups and large batches more, up to 256.
        shuffle_rows: size of the shuffle buffer over all lanes, at least four batches;
            tables in memory are shuffled as a whole.
        workers: reader processes per rank; 0 reads in threads, as for tables in memory.
        timeout: seconds after which a silent worker counts as hung.
    """

    enabled: bool = False
    lanes: NonNegativeInt = 0
    shuffle_rows: PositiveInt = 262_144
    workers: Annotated[int, Field(ge=0, le=1024), OPERATIONAL] = 0
    timeout: Annotated[PositiveFloat, OPERATIONAL] = 300.0


@configuration
class RankerTrainingConfig:
    """Length, batch size and order of the ranker's training.

    Attributes:
        epochs: passes over the training rows; with validation, at most. Warm-up and
            decay of the learning rates span all of them, wherever training stops.
        batch_size: rows in a global batch, over all ranks.
        decay: of all learning rates after warm-up, the tables' included.
        eviction_interval: steps between evictions of rare ids from
            `managed_collision` tables.
        stream: how rows are read.
        precision: of the baseline's matrix products while training: "tf32" and
            "bfloat16" are faster on GPUs. Weights, embeddings, LEARN's residual, the
            loss and what scores rows are float32.
        communication: precision in which ranks send each other embeddings and, in
            training, their gradients: half of float32's bytes; gloo cannot send
            bfloat16.
        seed: of weights and order.
        save_optimizer: keep the optimizer's state in the artefact, for a warm start
            that goes on instead of starting anew: with row-wise Adagrad 4 bytes a
            table row, and twice the other weights.
    """

    epochs: PositiveInt = 1
    batch_size: PositiveInt = 2048
    decay: Decay = "cosine"
    eviction_interval: PositiveInt = 100
    stream: StreamConfig = field(default_factory=StreamConfig)
    precision: Precision = "float32"
    communication: Communication = "float32"
    seed: Annotated[int, Field(ge=0, lt=2**63)] = 0
    save_optimizer: Annotated[bool, OPERATIONAL] = True


@configuration
class ValidationConfig:
    """A validation period, the end of the training rows, and early stopping.

    Attributes:
        share: of the training rows, the latest by time; they validate instead of being
            trained on. 0 trains for all epochs without validation.
        every_steps: steps between two evaluations; 0 evaluates after every epoch.
        patience: evaluations without improvement before training stops.
        metric: selects the best evaluation: "uauc" ("auc" where no user has both
            labels), "auc" or "ne". Of several tasks, their mean.
        refit: train anew on all training rows, those of the validation too, for as many
            passes as were best; otherwise the best weights of the first training are
            kept, which has never learned from the latest rows.
    """

    share: Annotated[float, Field(ge=0, lt=1)] = 0.0
    every_steps: NonNegativeInt = 0
    patience: PositiveInt = 2
    metric: Literal["uauc", "auc", "ne"] = "uauc"
    refit: bool = True


@configuration
class RankerConfig:
    """All settings that decide the ranker, given impressions and vectors.

    Attributes:
        features: the columns it reads.
        tasks: its predictions.
        model: its shape.
        learn: what it makes of LEARN's vectors.
        optimizer: of everything but the tables, which share its warm-up.
        tables: the tables' optimizer.
        sharding: of the tables.
        training: length, batch size and order.
        validation: held-out rows that decide the length.
    """

    features: FeaturesConfig = field(default_factory=FeaturesConfig)
    tasks: tuple[TaskConfig, ...] = (TaskConfig(),)
    model: RankerModelConfig = field(default_factory=RankerModelConfig)
    learn: LearnConfig = field(default_factory=LearnConfig)
    optimizer: OptimizerConfig = field(
        default_factory=lambda: OptimizerConfig(learning_rate=1e-3)
    )
    tables: TableOptimizerConfig = field(default_factory=TableOptimizerConfig)
    sharding: Annotated[ShardingConfig, OPERATIONAL] = field(
        default_factory=ShardingConfig
    )
    training: RankerTrainingConfig = field(default_factory=RankerTrainingConfig)
    validation: ValidationConfig = field(default_factory=ValidationConfig)

    def __post_init__(self) -> None:
        check_tasks(self.tasks)
        scores = (task["score"] for task in describe_tasks(self.tasks))
        afterwards = {SCORE, *scores, *label_columns(self.tasks)}
        for name in self.features.columns:
            require(
                name not in afterwards,
                f"features: column {name!r} is a label or a score of this ranker, "
                "which no impression has yet when it is scored; leave it out, or "
                "rename a column that is known before",
            )
