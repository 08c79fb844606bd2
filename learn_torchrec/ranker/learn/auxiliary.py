"""The auxiliary network: aligns LEARN's vectors with CVR (paper: section 3.4).

Dimension letters: B rows, D vector dim, H hidden size, E fusion dim.
"""

from collections.abc import Sequence
from typing import Any, TypeAlias

import torch
import torch.nn.functional as F
from torch import Tensor, nn

AuxiliaryLogits: TypeAlias = Any  # a tensor [B], or a dictionary of them by task


class AuxiliaryNetwork(nn.Module):
    """Two linear layers fuse the user and item vector; a head predicts conversion.

    The output of the two layers is the paper's "mid emb" (v1) or "fusion emb" (v2). It
    enters the main ranker and is trained by the head's own CVR loss. In a multi-task
    ranker several tasks may have a head.

    Args:
        vector_dim: D, of each of the two vectors.
        hidden_dim: H, between the two linear layers.
        fusion_dim: E.
        head_dim: hidden size of a head.
        device: of the parameters.
        tasks: names of the heads; None for a single, unnamed head.

    Example:
        >>> import torch
        >>> from learn_torchrec import AuxiliaryNetwork
        >>> network = AuxiliaryNetwork(vector_dim=64)
        >>> fusion, logits = network(torch.randn(8, 64), torch.randn(8, 64))
        >>> fusion.shape, logits.shape
        (torch.Size([8, 64]), torch.Size([8]))
    """

    def __init__(
        self,
        vector_dim: int,
        hidden_dim: int = 128,
        fusion_dim: int = 64,
        head_dim: int = 32,
        device: torch.device | None = None,
        tasks: Sequence[str] | None = None,
    ) -> None:
        super().__init__()
        self.fusion_dim, self.tasks = fusion_dim, tasks
        self.fusion_in = nn.Linear(2 * vector_dim, hidden_dim, device=device)
        self.fusion_out = nn.Linear(hidden_dim, fusion_dim, device=device)

        def new_head() -> nn.Module:
            return nn.Sequential(
                nn.Linear(fusion_dim, head_dim, device=device),
                nn.ReLU(),
                nn.Linear(head_dim, 1, device=device),
            )

        self.head: nn.Module = (
            new_head()
            if tasks is None
            else nn.ModuleDict({task: new_head() for task in tasks})
        )

    def forward(
        self, user_vectors: Tensor, item_vectors: Tensor
    ) -> tuple[Tensor, AuxiliaryLogits]:
        """Fuse and predict.

        Args:
            user_vectors: float [B, D].
            item_vectors: float [B, D].

        Returns:
            Fusion embedding [B, E] and logits [B], by task if the heads have names.
        """
        pair = torch.cat([user_vectors, item_vectors], dim=1)
        fusion = F.relu(self.fusion_out(F.relu(self.fusion_in(pair))))
        if isinstance(self.head, nn.ModuleDict):
            heads = self.head.items()
            return fusion, {task: head(fusion).squeeze(-1) for task, head in heads}
        return fusion, self.head(fusion).squeeze(-1)


def weighted_bce(
    logits: Tensor, labels: Tensor, weights: Tensor | None = None
) -> Tensor:
    """Return the mean over rows of the weighted binary cross-entropy, a scalar.

    Args:
        logits: float [B].
        labels: float [B] of 0 and 1.
        weights: float [B]; None for 1.
    """
    losses = F.binary_cross_entropy_with_logits(logits, labels, reduction="none")
    return losses.mean() if weights is None else (weights * losses).mean()
