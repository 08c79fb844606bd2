"""The dense part of a trained ranker, all but its ID tables, as a program.

Letters: B rows.
"""

from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram

from learn_torchrec.ranker.model import LearnRanker
from learn_torchrec.serving.signature import (
    BAG,
    CANDIDATE_IDS,
    DENSE,
    HISTORY_IDS,
    LENGTHS,
    VALUES,
    Looked,
    Pooled,
    learn_batch,
)


class DensePart(nn.Module):
    """A ranker whose embeddings were looked up outside.

    It is the ranker itself: only its tables are replaced by what returns its input.

    Args:
        ranker: trained, in evaluation mode; its tables are removed.
        pooled: names of the features whose sums are given.
        unpooled: names of those whose embeddings are given one by one.
    """

    def __init__(
        self, ranker: LearnRanker, pooled: tuple[str, ...], unpooled: tuple[str, ...]
    ) -> None:
        super().__init__()
        self.ranker, self.pooled, self.unpooled = ranker, pooled, unpooled
        sparse = ranker.sparse_arch
        sparse.embedding_bag_collection = nn.Identity()
        if sparse.embedding_collection is not None:
            sparse.embedding_collection = nn.Identity()
        if ranker.history_ids is not None:
            ranker.history_ids = nn.Identity()

    def forward(self, inputs: Mapping[str, Tensor]) -> Tensor:
        """Return the logits of each task, float32 [B, tasks]; see `signature`."""
        sums = {name: inputs[f"{BAG}/{name}"] for name in self.pooled}
        lengths = {
            name: inputs[f"{LENGTHS}/{name}"]
            for name in self.pooled
            if f"{LENGTHS}/{name}" in inputs
        }
        sequences = {name: _looked(inputs, name) for name in self.unpooled}
        ids = None
        if self.ranker.history_ids is not None:
            ids = {
                "candidate": _looked(inputs, CANDIDATE_IDS),
                "history": _looked(inputs, HISTORY_IDS),
            }
        learn = None
        if self.ranker.learn is not None or self.ranker.residual is not None:
            learn = learn_batch(inputs, ids)
        logits = self.ranker(
            inputs[DENSE], Pooled(sums, lengths), learn, None, sequences
        ).logits
        return torch.stack([logits[task] for task in self.ranker.tasks], dim=1)


def _looked(inputs: Mapping[str, Tensor], name: str) -> Looked:
    return Looked(inputs[f"{VALUES}/{name}"], inputs[f"{LENGTHS}/{name}"])


def export_dense(part: DensePart, inputs: Mapping[str, Tensor]) -> ExportedProgram:
    """Trace a dense part for batches of any size.

    `inputs` are those of some batch whose sizes are all different and at least 2.
    """
    shapes = {name: {0: Dim.DYNAMIC} for name in inputs}
    with torch.no_grad():
        program = torch.export.export(
            part.eval(), (dict(inputs),), dynamic_shapes=(shapes,), strict=False
        )
    program.example_inputs = None  # they are users' data
    return program
