"""Building, saving and loading a ranker; its optimizers."""

from collections.abc import Callable, Mapping
from pathlib import Path

import torch
from torchrec import EmbeddingCollection, EmbeddingConfig
from torchrec.distributed import DistributedModelParallel
from torchrec.optim.keyed import CombinedOptimizer
from torchrec.optim.optimizers import in_backward_optimizer_filter

from learn_torchrec.ranker.config import RankerConfig
from learn_torchrec.ranker.learn.auxiliary import AuxiliaryNetwork
from learn_torchrec.ranker.learn.paper import LearnFeatures
from learn_torchrec.ranker.learn.residual import LearnResidual
from learn_torchrec.ranker.learn.shape import LearnShape
from learn_torchrec.ranker.model import LearnRanker, LearnRankerTrain
from learn_torchrec.ranker.sparse import SparseArch
from learn_torchrec.ranker.tables import (
    embedding_bag_collection,
    embedding_collection,
    managed_collection,
    sharding_kinds,
    table_type,
)
from learn_torchrec.training.optim import dense_optimizer
from learn_torchrec.training.planning import Workload
from learn_torchrec.training.precision import DTYPES
from learn_torchrec.training.sharding import (
    init_tables,
    load_state,
    shard_tables,
    table_of,
)
from learn_torchrec.training.table_optimizer import replicated_optimizer
from learn_torchrec.training.tensors import load_tensors, save_tensors

KIND_RANKER = "ranker"
MODEL_DIRECTORY = "model"
_RESIDUAL = ".residual."
HISTORY_TABLE = "learn_items"


def build_task(
    config: RankerConfig,
    learn: LearnShape | None,
    device: torch.device,
    offsets: Mapping[str, float] | None = None,
) -> LearnRankerTrain:
    """Return a fresh ranker before sharding; its tables are not initialized yet.

    `learn` are the widths of LEARN's inputs, None for the baseline; `offsets` are
    those of `LearnRankerTrain`.
    """
    shape, features = config.model, config.features
    tasks = [task.name for task in config.tasks]
    form = "off" if learn is None else config.learn.form
    residual = paper = None
    if learn is not None and form == "residual":
        torch.manual_seed(config.training.seed)
        dim = shape.embedding_dim
        residual = LearnResidual(learn, config.learn, dim, tasks, device)
    # From here on the same numbers are drawn as without a residual.
    torch.manual_seed(config.training.seed)
    if learn is not None and form == "paper":
        paper = _paper_form(config, learn.vector_dim, device)
    ranker = LearnRanker(
        _sparse_arch(config, device),
        dense_in_features=features.dense_width,
        dense_arch_layer_sizes=[*shape.dense_layers, shape.embedding_dim],
        over_arch_layer_sizes=[*shape.over_layers, 1],
        learn=residual or paper,
        device=device,
        tasks=tasks,
        dcn=(shape.dcn_layers, shape.dcn_rank) if shape.interaction == "dcn" else None,
    )
    ranker.history_ids = _history_ids(config, learn)
    ranker.precision = DTYPES[config.training.precision]
    return LearnRankerTrain(ranker, config.tasks, offsets)


def _history_ids(
    config: RankerConfig, learn: LearnShape | None
) -> EmbeddingCollection | None:
    """Return the table of candidates and histories, on "meta", if attention has one."""
    if learn is None or not config.learn.is_residual or not learn.content_dim:
        return None
    if not config.learn.attends_to_ids:
        return None
    table = EmbeddingConfig(
        name=HISTORY_TABLE,
        embedding_dim=config.learn.projected_dim,
        num_embeddings=learn.items,
        feature_names=["candidate", "history"],
        data_type=table_type(config.tables.precision),
    )
    return EmbeddingCollection(device=torch.device("meta"), tables=[table])


def _paper_form(
    config: RankerConfig, vector_dim: int, device: torch.device
) -> LearnFeatures:
    paper, network = config.learn.paper, None
    if paper.inputs != "vectors":
        network = AuxiliaryNetwork(
            vector_dim,
            paper.fusion_hidden_dim,
            paper.fusion_dim,
            device=device,
            tasks=[task.name for task in config.tasks if task.auxiliary_weight],
        )
    return LearnFeatures(
        vector_dim, network, paper.inputs, paper.stop_gradient, device=device
    )


def _sparse_arch(config: RankerConfig, device: torch.device) -> SparseArch:
    features, shape = config.features, config.model
    dim, interval = shape.embedding_dim, config.training.eviction_interval
    return SparseArch(
        embedding_bag_collection(features.pooled, dim, config.tables.precision),
        dim,
        managed_collection(
            features.managed, dim, interval, device, config.tables.precision
        ),
        embedding_collection(features.sequences, dim, config.tables.precision),
        means=[f.name for f in features.sparse if f.pooling == "mean"],
        queries={f.name: f.query for f in features.sparse if f.query is not None},
        attention_hidden_dim=shape.attention_hidden_dim,
        device=device,
    )


def build_ranker(
    config: RankerConfig,
    learn: LearnShape | None,
    device: torch.device,
    on_plan: Callable[[str], None] | None = None,
    offsets: Mapping[str, float] | None = None,
    workload: Callable[[], Workload] | None = None,
) -> DistributedModelParallel:
    """Return a fresh ranker, sharded over the ranks.

    See `build_task`; `on_plan` is called with the sharding plan as text, `workload`
    returns what a step of training looks up.

    Raises:
        UserError: tables, or their optimizer, that the backend cannot run.
    """
    check_features(config, device)
    task = build_task(config, learn, device, offsets)
    kinds = sharding_kinds(config.features, config.sharding)
    model = shard_tables(
        *(task, device, config.tables, kinds, on_plan, workload),
        config.training.communication,
    )
    init_tables(model, config.training.seed)
    return model


def check_features(config: RankerConfig, device: torch.device) -> None:
    """Refuse features that this device or number of ranks cannot train.

    Raises:
        UserError: names the feature and the fix.
    """
    for feature in config.features.sparse:
        feature.check(config.tables, device)


def ranker_optimizer(
    model: DistributedModelParallel, config: RankerConfig
) -> CombinedOptimizer:
    """Return the optimizers of the tables, the baseline and LEARN's residual as one.

    Tables are updated in the backward pass, replicated ones with everything else. The
    residual's gradients are clipped apart, so that they cannot shrink the baseline's.
    """
    rest = dict(in_backward_optimizer_filter(model.named_parameters()))
    replicated = {name: value for name, value in rest.items() if table_of(name)}
    others = {name: value for name, value in rest.items() if name not in replicated}
    added = {name: others.pop(name) for name in [*others] if _RESIDUAL in name}
    parts = [model.fused_optimizer, dense_optimizer(others.items(), config.optimizer)]
    if added:
        parts.append(dense_optimizer(added.items(), config.optimizer))
    if replicated:
        parts.append(replicated_optimizer(replicated, config.tables))
    return CombinedOptimizer(parts)


def save_ranker(model: DistributedModelParallel, directory: Path) -> None:
    """Write the sharded weights; every rank takes part."""
    save_tensors({"model": model.state_dict()}, directory / MODEL_DIRECTORY)


def load_ranker(model: DistributedModelParallel, directory: Path) -> None:
    """Load weights that any number of ranks saved; every rank takes part.

    Tables with managed collision need that number or a divisor of it.

    Raises:
        UserError: weights that cannot be read, or are not this model's.
    """
    state = {"model": model.state_dict()}
    load_tensors(state, directory / MODEL_DIRECTORY)
    load_state(model, state["model"])
