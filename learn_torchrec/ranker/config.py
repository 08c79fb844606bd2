"""What decides a ranker: its shape, its features and how it trains."""

from dataclasses import dataclass, field
from typing import Literal

from learn_torchrec.config import require
from learn_torchrec.ranker.rows import FeaturesConfig
from learn_torchrec.ranker.stream import StreamConfig
from learn_torchrec.ranker.tables import ShardingConfig
from learn_torchrec.training.optim import Decay, OptimizerConfig
from learn_torchrec.training.table_optimizer import TableOptimizerConfig


@dataclass(frozen=True, kw_only=True)
class RankerModelConfig:
    """Shape of the ranker.

    Attributes:
        embedding_dim: of every ID feature; a multiple of 4.
        dense_layers: hidden sizes of the bottom MLP, before the embedding dim.
        over_layers: hidden sizes of the top MLP, before the logit.
        learn: what the ranker gets where it is given vectors: "all", the "vectors"
            without an auxiliary network, the "fusion" embedding only, or nothing
            ("off": the baseline).
        fusion_hidden_dim: between the auxiliary network's two linear layers.
        fusion_dim: of the fusion embedding.
        auxiliary_weight: lambda, of the auxiliary network's CVR loss.
        stop_gradient: keep the main loss from shaping the fusion embedding.
    """

    embedding_dim: int = 32
    dense_layers: tuple[int, ...] = (128,)
    over_layers: tuple[int, ...] = (128, 64)
    learn: Literal["all", "vectors", "fusion", "off"] = "all"
    fusion_hidden_dim: int = 128
    fusion_dim: int = 64
    auxiliary_weight: float = 1.0
    stop_gradient: bool = False

    def __post_init__(self) -> None:
        require(
            self.embedding_dim > 0 and self.embedding_dim % 4 == 0,
            "ranker.model.embedding_dim: a multiple of 4",
        )
        sizes = (*self.dense_layers, *self.over_layers)
        sizes += (self.fusion_hidden_dim, self.fusion_dim)
        require(min(sizes) > 0, "ranker.model: layer sizes of at least 1")
        require(len(self.over_layers) > 0, "ranker.model.over_layers: at least one")
        require(self.auxiliary_weight >= 0, "ranker.model.auxiliary_weight: at least 0")


@dataclass(frozen=True, kw_only=True)
class RankerTrainingConfig:
    """How long and in what pieces the ranker trains.

    Attributes:
        epochs: passes over the training rows.
        batch_size: rows in a global batch, over all ranks.
        decay: of all learning rates, tables' too, after their warm-up.
        eviction_interval: steps between two moments at which `managed_collision`
            features may give up rare ids for new ones.
        stream: how rows are read.
        seed: of weights and order.
    """

    epochs: int = 1
    batch_size: int = 2048
    decay: Decay = "cosine"
    eviction_interval: int = 100
    stream: StreamConfig = field(default_factory=StreamConfig)
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("epochs", "batch_size", "eviction_interval"):
            require(getattr(self, name) > 0, f"ranker.training.{name}: at least 1")
        require(self.seed >= 0, "ranker.training.seed: at least 0")


@dataclass(frozen=True, kw_only=True)
class RankerConfig:
    """Everything that decides the ranker, given impressions and vectors.

    Attributes:
        features: the columns it reads.
        model: its shape.
        optimizer: of everything but the tables; its warm-up is theirs too.
        tables: the tables' optimizer.
        sharding: of the tables.
        training: how long.
    """

    features: FeaturesConfig = field(default_factory=FeaturesConfig)
    model: RankerModelConfig = field(default_factory=RankerModelConfig)
    optimizer: OptimizerConfig = field(
        default_factory=lambda: OptimizerConfig(learning_rate=1e-3)
    )
    tables: TableOptimizerConfig = field(default_factory=TableOptimizerConfig)
    sharding: ShardingConfig = field(default_factory=ShardingConfig)
    training: RankerTrainingConfig = field(default_factory=RankerTrainingConfig)
