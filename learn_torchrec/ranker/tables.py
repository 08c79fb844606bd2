"""The ranker's ID tables."""

import torch
from torchrec import EmbeddingBagCollection, EmbeddingBagConfig

from learn_torchrec.ranker.rows import SparseFeature


def embedding_bag_collection(
    features: tuple[SparseFeature, ...], embedding_dim: int
) -> EmbeddingBagCollection:
    """Return the tables of ID features, `t_<feature>` each, summed bags.

    They hold no values until `training.sharding` has placed and filled them.
    """
    return EmbeddingBagCollection(
        device=torch.device("meta"),  # no rank holds a whole table: see init_tables
        tables=[
            EmbeddingBagConfig(
                name=f"t_{feature.column}",
                embedding_dim=embedding_dim,
                num_embeddings=feature.num_embeddings,
                feature_names=[feature.column],
            )
            for feature in features
        ],
    )
