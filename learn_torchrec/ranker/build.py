"""Building, saving and loading a ranker; its optimizers."""

from collections.abc import Callable, Mapping
from pathlib import Path

import torch
from torchrec.distributed import DistributedModelParallel
from torchrec.optim.keyed import CombinedOptimizer
from torchrec.optim.optimizers import in_backward_optimizer_filter

from learn_torchrec.ranker.auxiliary import AuxiliaryNetwork
from learn_torchrec.ranker.config import RankerConfig
from learn_torchrec.ranker.learn_features import LearnFeatures
from learn_torchrec.ranker.model import LearnRanker, LearnRankerTrain
from learn_torchrec.ranker.tables import (
    embedding_bag_collection,
    managed_collection,
    sharding_kinds,
)
from learn_torchrec.training.optim import dense_optimizer
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


def build_task(
    config: RankerConfig,
    vector_dim: int | None,
    device: torch.device,
    offsets: Mapping[str, float] | None = None,
) -> LearnRankerTrain:
    """Return a fresh ranker before sharding; its tables are not initialized yet.

    `vector_dim` is D with LEARN on, None for the baseline; `offsets` are those of
    `LearnRankerTrain`.
    """
    torch.manual_seed(config.training.seed)
    shape, features = config.model, config.features
    learn = None
    if vector_dim is not None and shape.learn != "off":
        network = None
        if shape.learn != "vectors":
            network = AuxiliaryNetwork(
                vector_dim,
                shape.fusion_hidden_dim,
                shape.fusion_dim,
                device=device,
                tasks=[task.name for task in config.tasks if task.auxiliary_weight],
            )
        learn = LearnFeatures(
            vector_dim, network, shape.learn, shape.stop_gradient, device=device
        )
    ranker = LearnRanker(
        embedding_bag_collection(features.sparse, shape.embedding_dim),
        dense_in_features=features.dense_width,
        dense_arch_layer_sizes=[*shape.dense_layers, shape.embedding_dim],
        over_arch_layer_sizes=[*shape.over_layers, 1],
        learn=learn,
        managed_collection=managed_collection(
            features.sparse,
            shape.embedding_dim,
            config.training.eviction_interval,
            device,
        ),
        device=device,
        tasks=[task.name for task in config.tasks],
    )
    return LearnRankerTrain(ranker, config.tasks, offsets)


def build_ranker(
    config: RankerConfig,
    vector_dim: int | None,
    device: torch.device,
    on_plan: Callable[[str], None] | None = None,
    offsets: Mapping[str, float] | None = None,
) -> DistributedModelParallel:
    """Return a fresh ranker, sharded over the ranks.

    See `build_task`; `on_plan` is called with the sharding plan as text.

    Raises:
        UserError: tables, or their optimizer, that the backend cannot run.
    """
    sparse = config.features.sparse
    for feature in sparse:
        feature.check(config.tables, device)
    task = build_task(config, vector_dim, device, offsets)
    kinds = sharding_kinds(sparse, config.sharding)
    model = shard_tables(task, device, config.tables, kinds, on_plan)
    init_tables(model, config.training.seed)
    return model


def ranker_optimizer(
    model: DistributedModelParallel, config: RankerConfig
) -> CombinedOptimizer:
    """Return the optimizers of the tables and of all else as one.

    Tables are updated in the backward pass, replicated ones with everything else.
    """
    rest = dict(in_backward_optimizer_filter(model.named_parameters()))
    replicated = {name: value for name, value in rest.items() if table_of(name)}
    others = ((name, value) for name, value in rest.items() if name not in replicated)
    parts = [model.fused_optimizer, dense_optimizer(others, config.optimizer)]
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
