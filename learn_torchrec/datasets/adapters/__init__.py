"""Adapters: foreign data sets in our schema; `base` has the contract."""

from collections.abc import Callable
from pathlib import Path

from learn_torchrec import credentials
from learn_torchrec.credentials import without_credentials
from learn_torchrec.datasets.adapters.amazon import Amazon
from learn_torchrec.datasets.adapters.base import Dataset
from learn_torchrec.datasets.adapters.column_map import ColumnMap
from learn_torchrec.datasets.adapters.complete_journey import CompleteJourney
from learn_torchrec.datasets.adapters.jsonl import Jsonl
from learn_torchrec.datasets.adapters.market import MarketDataset
from learn_torchrec.datasets.adapters.movielens import MovieLens
from learn_torchrec.datasets.adapters.movielens_1m import MovieLens1M
from learn_torchrec.datasets.adapters.movielens_100k import MovieLens100K
from learn_torchrec.datasets.adapters.online_retail import OnlineRetail
from learn_torchrec.datasets.adapters.parquet import Parquet
from learn_torchrec.datasets.adapters.prepared import Prepared
from learn_torchrec.datasets.adapters.recbole import RecBole
from learn_torchrec.datasets.adapters.research_json import LcRec, RecFormer
from learn_torchrec.datasets.adapters.sequence_file import SequenceFile
from learn_torchrec.errors import UserError


def _movielens(path: str) -> Dataset:
    """Open RecBole's copy, or a folder in GroupLens' published form."""
    if path == "auto" or any(Path(path).glob("*.inter")):
        return MovieLens100K(path)
    return MovieLens(path)


def _parquet(path: str) -> Dataset:
    return ColumnMap(path, ".parquet") if "#" in path else Parquet(path)


def _prepared(path: str) -> Dataset:
    where, mark, shown = path.partition("#impressions=")
    return Prepared(where, open_dataset(shown) if mark else None)


ADAPTERS: dict[str, Callable[[str], Dataset]] = {
    "amazon": Amazon,
    "completejourney": CompleteJourney,
    "csv": lambda path: ColumnMap(path, ".csv"),
    "jsonl": Jsonl,
    "lcrec": LcRec,
    "market": MarketDataset,
    "movielens": _movielens,
    "movielens-1m": MovieLens1M,
    "online-retail": OnlineRetail,
    "parquet": _parquet,
    "prepared": _prepared,
    "recbole": RecBole,
    "recformer": RecFormer,
    "sequences": SequenceFile,
}


def open_dataset(spec: str, strict: bool = False) -> Dataset:
    """Open the data set `ADAPTER:PATH`; its tables are read on first use.

    Args:
        spec: adapter and folder.
        strict: refuse rows that cannot be used, in place of leaving them out.

    Raises:
        UserError: an unknown adapter or a missing folder.
    """
    credentials.remember([spec])
    adapter, separator, path = spec.partition(":")
    if not separator or adapter not in ADAPTERS or not path:
        raise UserError(
            f"--data {without_credentials(spec)}: write it as ADAPTER:PATH; adapters: "
            + ", ".join(sorted(ADAPTERS))
        )
    dataset = ADAPTERS[adapter](path)
    dataset.tolerance.strict = strict
    return dataset
