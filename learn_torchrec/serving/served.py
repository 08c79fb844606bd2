"""What a bundle says of its ranker: everything that is no array."""

import json
from pathlib import Path
from typing import Literal, TypeAlias

import pyarrow as pa

from learn_torchrec import config
from learn_torchrec.config import configuration
from learn_torchrec.errors import UserError
from learn_torchrec.ranker.features import FeaturesConfig
from learn_torchrec.ranker.learn.config import LearnConfig
from learn_torchrec.ranker.tasks import TaskConfig
from learn_torchrec.serving.tables import Group, Precision
from learn_torchrec.text import parse_json

KIND = "bundle"
LAYOUT = 1  # of a bundle's files; a runner reads its own alone
SERVED_FILE, CONTEXT_FILE = "served.json", "context.arrow"
TABLES_FILE, PROGRAM_FILE = "tables.safetensors", "dense.pt2"
CATALOGUE, CODES, PAST, LEARN = "catalogue", "codes", "past", "learn"

IdType: TypeAlias = Literal["int64", "string"]


@configuration
class PastSettings:
    """A past count or rate, see `ranker.features.past.PastColumn`.

    Attributes:
        name: of the column.
        id_column: whose events count.
        label: of the impressions that a rate is of; None for a count.
        shared: the column whose value the events' items share; None for all.
    """

    name: str
    id_column: str
    label: str | None
    shared: str | None


@configuration
class Served:
    """A ranker as it is served.

    Attributes:
        features: the columns that it reads.
        tasks: its predictions.
        learn: LEARN's part; None for the baseline.
        user_ids: the type of the users' ids.
        item_ids: the type of the items' ids.
        actions: of the events that histories and past counts count.
        as_of: unix seconds; the bundle knows all that happened strictly before.
        past: the past counts and rates among the features, in the order they are added.
        lookups: what else is added, of `CATALOGUE` and `CODES`.
        precision: of the tables.
        groups: of the tables.
        parts: LEARN's inputs that the bundle holds.
        layout: of the files.
    """

    features: FeaturesConfig
    tasks: tuple[TaskConfig, ...]
    learn: LearnConfig | None
    user_ids: IdType
    item_ids: IdType
    actions: tuple[str, ...]
    as_of: int
    past: tuple[PastSettings, ...]
    lookups: tuple[str, ...]
    precision: Precision
    groups: tuple[Group, ...]
    parts: tuple[str, ...]
    layout: int = LAYOUT

    def write(self, directory: Path, context: pa.Schema) -> None:
        """Write it, and the types of the columns that a request brings."""
        text = json.dumps(config.to_dict(self), indent=2) + "\n"
        (directory / SERVED_FILE).write_text(text, encoding="utf-8")
        (directory / CONTEXT_FILE).write_bytes(context.serialize().to_pybytes())

    @classmethod
    def read(cls, directory: Path) -> tuple["Served", pa.Schema]:
        """Read what `write` wrote.

        Raises:
            UserError: it does not fit this version; OSError, ValueError: damaged.
        """
        path = directory / SERVED_FILE
        body = parse_json(path.read_text(encoding="utf-8"))
        if isinstance(body, dict) and body.get("layout") != LAYOUT:
            raise UserError(
                f"{path}: layout {body.get('layout')}, but this version reads "
                f"{LAYOUT}; export the bundle again"
            )
        served = config.from_dict(cls, body, path)
        buffer = pa.py_buffer((directory / CONTEXT_FILE).read_bytes())
        return served, pa.ipc.read_schema(buffer)


def refuse_unsupported(features: FeaturesConfig, source: Path) -> None:
    """Refuse a ranker that cannot be served.

    Raises:
        UserError: a feature whose ids TorchRec maps to rows.
    """
    if features.managed:
        names = ", ".join(feature.name for feature in features.managed)
        raise UserError(
            f"{source}: feature {names} is of the kind managed_collision, which is not "
            "served: TorchRec maps its ids to rows in training code; train it with "
            "the kind hash"
        )
