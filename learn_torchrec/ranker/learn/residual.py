"""LEARN's part of the logit: zero at the start, and what training makes of it.

The baseline's logit stays as it is; a small network over `HistoryFeatures` adds to it.

Letters: B rows, E embedding dim.
"""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn
from torchrec import JaggedTensor

from learn_torchrec.ranker.learn.batch import HistoryBatch, LearnBatch
from learn_torchrec.ranker.learn.config import LearnConfig
from learn_torchrec.ranker.learn.history_features import HistoryFeatures
from learn_torchrec.ranker.learn.shape import LearnShape


class LearnResidual(nn.Module):
    """Adds to any ranker's logits what LEARN knows.

    Args:
        shape: widths of the inputs.
        config: which inputs, and the network's shape; that of the inputs.
        embedding_dim: E, of the baseline's dense embedding; 0 for none.
        tasks: names; each gets a logit.
        device: of the parameters.

    Example:
        >>> import torch
        >>> from learn_torchrec import HistoryBatch, LearnResidual, LearnShape
        >>> content, logits = torch.randn(100, 32), torch.randn(2)      # yours
        >>> learn = LearnResidual(LearnShape(content_dim=32))
        >>> history = HistoryBatch.of([5, 9], [7, 8], [0, 2], [4.0, 1.5], content)
        >>> total = logits + learn(history)["cvr"]
        >>> bool((total == logits).all())       # until it is trained
        True
    """

    def __init__(
        self,
        shape: LearnShape,
        config: LearnConfig | None = None,
        embedding_dim: int = 0,
        tasks: Sequence[str] = ("cvr",),
        device: torch.device | None = None,
    ) -> None:
        super().__init__()
        config = config or LearnConfig()
        self.tasks, self.alone = tuple(tasks), config.alone
        self.features = HistoryFeatures(shape, config, device)
        width = embedding_dim + self.features.out_features
        layers: list[nn.Module] = []
        for size in config.hidden_layers:
            layers += [
                nn.Linear(width, size, device=device),
                nn.ReLU(),
                nn.Dropout(config.dropout),
            ]
            width = size
        last = nn.Linear(width, len(tasks), device=device)
        nn.init.zeros_(last.weight)
        nn.init.zeros_(last.bias)
        self.network = nn.Sequential(*layers, last)

    def forward(
        self,
        batch: LearnBatch | HistoryBatch,
        embedded_dense: Tensor | None = None,
        ids: Mapping[str, JaggedTensor] | None = None,
    ) -> dict[str, Tensor]:
        """Return what is added to the logits, [B] by task.

        Args:
            batch: LEARN's inputs, see `HistoryFeatures`.
            embedded_dense: [B, E], of the baseline; not trained from here. None if E
                is 0.
            ids: embeddings of `batch.item_ids`, for attention with ids.
        """
        inputs = self.features(batch, ids)
        if embedded_dense is not None:
            inputs = torch.cat([embedded_dense.detach(), inputs], dim=1)
        added = self.network(inputs)
        return dict(zip(self.tasks, added.unbind(1), strict=True))
