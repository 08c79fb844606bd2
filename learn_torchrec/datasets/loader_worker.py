"""What a loader's worker process runs."""

from collections.abc import Iterator
from typing import Any

from torch.utils.data import IterableDataset, get_worker_info

from learn_torchrec.datasets.loader import Loader
from learn_torchrec.errors import UserError


class WorkerShare(IterableDataset[Any]):
    """A rank's share of the batches of a pass, split among its workers.

    Args:
        loader: of the rank.
        epoch: number of the pass.
        start: first step.
    """

    def __init__(self, loader: Loader, epoch: int, start: int) -> None:
        self._loader, self._epoch, self._start = loader, epoch, start

    def __iter__(self) -> Iterator[Any]:
        """Yield this worker's part of every batch, or the error that ended it."""
        info = get_worker_info()
        assert info is not None, "runs in a worker"
        loader = self._loader
        reader = loader.rank * info.num_workers + info.id
        readers = loader.ranks * info.num_workers
        try:
            yield from loader.share(self._epoch, self._start, reader, readers)
        except UserError as error:  # as a value, so that its one line arrives as it is
            yield error
