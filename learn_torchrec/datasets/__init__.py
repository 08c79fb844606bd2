"""Data sets: adapters that bring a log into our schema."""

from pathlib import Path

from learn_torchrec.datasets.dataset import Dataset
from learn_torchrec.datasets.movielens import MovieLens
from learn_torchrec.datasets.online_retail import OnlineRetail
from learn_torchrec.datasets.sequence_file import SequenceFile
from learn_torchrec.errors import UserError

_ADAPTERS = {
    "movielens": MovieLens,
    "online-retail": lambda path: OnlineRetail(Path(path)),
    "parquet": lambda path: Dataset(Path(path)),
    "sequences": lambda path: SequenceFile(Path(path)),
}


def open_dataset(spec: str) -> Dataset:
    """Open the data set that `ADAPTER:PATH` names; tables are read when asked for.

    Raises:
        UserError: an unknown adapter or a missing folder.
    """
    adapter, separator, path = spec.partition(":")
    if not separator or adapter not in _ADAPTERS or not path:
        raise UserError(
            f"--data {spec}: write it as ADAPTER:PATH; adapters: "
            + ", ".join(sorted(_ADAPTERS))
        )
    return _ADAPTERS[adapter](path)
