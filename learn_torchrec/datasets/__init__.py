"""Data sets: adapters that bring a log into our schema."""

from collections.abc import Callable
from pathlib import Path

from learn_torchrec.datasets.adapters.amazon import Amazon
from learn_torchrec.datasets.adapters.base import Dataset
from learn_torchrec.datasets.adapters.column_map import Mapped
from learn_torchrec.datasets.adapters.movielens import MovieLensRaw
from learn_torchrec.datasets.adapters.movielens_1m import MovieLens1M
from learn_torchrec.datasets.adapters.movielens_100k import MovieLens
from learn_torchrec.datasets.adapters.online_retail import OnlineRetail
from learn_torchrec.datasets.adapters.recbole import RecBole
from learn_torchrec.datasets.adapters.research_json import LcRec, RecFormer
from learn_torchrec.datasets.adapters.sequence_file import SequenceFile
from learn_torchrec.datasets.generated.market import Market
from learn_torchrec.datasets.preparation.prepared import PreparedDataset
from learn_torchrec.errors import UserError


def _movielens(path: str) -> Dataset:
    """Open RecBole's copy, or a folder as GroupLens publishes it."""
    if path == "auto" or any(Path(path).glob("*.inter")):
        return MovieLens(path)
    return MovieLensRaw(path)


def _parquet(path: str) -> Dataset:
    return Mapped(path, ".parquet") if "#" in path else Dataset(path)


_ADAPTERS: dict[str, Callable[[str], Dataset]] = {
    "amazon": Amazon,
    "csv": lambda path: Mapped(path, ".csv"),
    "lcrec": LcRec,
    "market": Market,
    "movielens": _movielens,
    "movielens-1m": MovieLens1M,
    "online-retail": OnlineRetail,
    "parquet": _parquet,
    "prepared": PreparedDataset,
    "recbole": RecBole,
    "recformer": RecFormer,
    "sequences": SequenceFile,
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
