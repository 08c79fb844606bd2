"""A ranker trained on the small market, its bundle, and its scores by training code."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from learn_torchrec.apps import export_bundle, main
from learn_torchrec.artifact import read_manifest
from learn_torchrec.datasets.loading.in_memory import TableRows
from learn_torchrec.ranker.build import KIND_RANKER, build_ranker, load_ranker
from learn_torchrec.ranker.impressions import Impressions
from learn_torchrec.ranker.scoring import score
from learn_torchrec.serving.runner import Runner
from learn_torchrec.training.distributed import process_group

COUNTS = (
    "user_past_events,item_past_events,user_past_rate,item_past_rate,"
    "user_category_past_events,user_item_past_events"
)
SETTINGS = (
    "split.actions=like",
    "ranker.training.batch_size=64",
    "ranker.training.epochs=2",
    "ranker.optimizer.learning_rate=0.01",
    "ranker.tables.learning_rate=0.05",
    f"ranker.features.dense=hour,{COUNTS}",
    "ranker.features.sparse=user_id,item_id,category",
)


@dataclass(frozen=True)
class Exported:
    """A trained ranker and its bundle; `content` may be vectors."""

    market: Path
    ranker: Path
    content: Path | None
    bundle: Path

    @property
    def inputs(self) -> list[str]:
        given = self.content
        content = [] if given is None else [f"--{given.name}", str(given)]
        return ["--data", f"parquet:{self.market}", *content]

    def runner(self) -> Runner:
        return Runner.load(self.bundle)

    def trained_scores(self, table: pa.Table) -> dict[str, np.ndarray]:
        """Score rows as `predict` does, with the weights that training saved."""
        command = [*self.inputs, "--ranker", str(self.ranker), "--out", "none"]
        args = export_bundle.build_parser().parse_args(command)
        found = export_bundle.read_surroundings(args, export_bundle.plan(args))
        config, learn = found.config, found.learn
        source = TableRows(table, None, "rows")
        impressions = Impressions(source, config, learn, found.lookups)
        with process_group() as device:
            model = build_ranker(config, learn.shape if learn else None, device)
            load_ranker(model, self.ranker)
            return score(model, impressions, 64, device)

    def latest(self, count: int, time: int) -> pa.Table:
        """Return the latest impressions as if they were made at a time."""
        rows = pq.read_table(self.market / "impressions.parquet")
        rows = rows.slice(rows.num_rows - count).drop_columns(["timestamp", "label"])
        return rows.append_column("timestamp", pa.array(np.full(count, time)))


def export(
    market: Path,
    content: Path | None,
    *settings: str,
    precision: str = "float",
) -> Exported:
    """Train a ranker on the market and export it."""
    folder = market.parent
    made = Exported(market, folder / "ranker", content, folder / "bundle")
    main.main(
        [
            *("train-ranker", *made.inputs, "--out", str(made.ranker)),
            *("--set", *SETTINGS, *settings),
        ]
    )
    assert read_manifest(made.ranker, KIND_RANKER)
    main.main(
        [
            *("export-bundle", *made.inputs, "--ranker", str(made.ranker)),
            *("--out", str(made.bundle), "--precision", precision),
        ]
    )
    return made
