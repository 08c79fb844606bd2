"""The certificate of a bundle: every way to score the same rows agrees.

The ways are: the trained model as its training left it, reloaded, in predict's batches,
as an exported program with tables of each precision, and the runner itself.

Letters: N fixed rows.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from torchrec.distributed import DistributedModelParallel

from learn_torchrec.arrays import Float32Array
from learn_torchrec.datasets.loading.in_memory import TableRows
from learn_torchrec.errors import UserError
from learn_torchrec.evaluation.auc import evaluate_auc
from learn_torchrec.ranker.batch import collate
from learn_torchrec.ranker.impressions import Impressions
from learn_torchrec.ranker.scoring import score
from learn_torchrec.ranker.tasks import describe_tasks, scores
from learn_torchrec.schema import USER_ID
from learn_torchrec.serving.bundle import Surroundings, Weights
from learn_torchrec.serving.model import Program, ServedModel
from learn_torchrec.serving.tables import Precision, pack

Scores = Mapping[str, Float32Array]
PRECISIONS: tuple[Precision, ...] = ("float", "half", "int8")
_BATCH = 1024


@dataclass(frozen=True, kw_only=True)
class Tolerances:
    """What a bundle must keep.

    Attributes:
        exact: the largest difference of scores where nothing is rounded on purpose.
        rounded: the largest where the tables are.
        uauc: the largest difference of UAUC, of rounded tables.
    """

    exact: float
    rounded: float
    uauc: float


@dataclass(frozen=True)
class Exported:
    """A ranker as a program, beside the trained one.

    Attributes:
        surroundings: what it reads.
        model: the trained one, reloaded.
        device: of the trained one.
        weights: its parts.
        program: the traced dense part.
    """

    surroundings: Surroundings
    model: DistributedModelParallel
    device: torch.device
    weights: Weights
    program: Program

    def batch_predicted(self, rows: pa.Table) -> Scores:
        """Return the scores that `predict` writes."""
        impressions = self._impressions(rows)
        size = self.surroundings.config.training.batch_size
        return score(self.model, impressions, size, self.device)

    @torch.no_grad()
    def reloaded(self, rows: pa.Table) -> Scores:
        """Return the scores of the plain model, all rows in one batch."""
        impressions = self._impressions(rows)
        (part,) = impressions.parts(len(impressions))
        self.model.eval()
        batch = collate(part.rows, impressions.learn).to(self.device)
        _, output = self.model(batch)
        found = scores(self.surroundings.config.tasks, output.logits)
        return {name: values.cpu().numpy() for name, values in found.items()}

    def exported(self, rows: pa.Table, precision: Precision) -> Scores:
        """Return the scores of the program with tables of a precision."""
        cpu, surroundings = torch.device("cpu"), self.surroundings
        served = surroundings.served(self.weights.groups, precision)
        lookups = self.weights.lookups(precision, cpu)
        model = ServedModel(served, lookups, self.program, cpu)
        encoder, parts = surroundings.encoder("the fixed rows"), []
        checked = encoder.checked(rows)
        for start in range(0, rows.num_rows, _BATCH):
            encoded = encoder.encode(checked.slice(start, _BATCH))
            parts.append(model.scores(encoded, surroundings.learn_batch(encoded)))
        return {
            name: np.concatenate([part[name] for part in parts]) for name in parts[0]
        }

    def _impressions(self, rows: pa.Table) -> Impressions:
        surroundings = self.surroundings
        return Impressions(
            TableRows(rows, None, "the fixed rows"),
            surroundings.config,
            surroundings.learn,
            surroundings.lookups,
        )

    def size_ratio(self, precision: Precision) -> float:
        """Return the bytes of the tables over those in single precision."""
        tables = self.weights.tables.values()
        packed = sum(pack(table, precision).numel() for table in tables)
        return packed / sum(4 * table.numel() for table in tables)

    def uauc(self, rows: pa.Table, found: Scores) -> dict[str, float]:
        """Return the UAUC of each task that has labels among the rows, by name."""
        result: dict[str, float] = {}
        for task in describe_tasks(self.surroundings.config.tasks):
            if task["label"] not in rows.column_names:
                continue
            labels = rows[task["label"]].cast(pa.float64(), safe=False)
            has = labels.is_valid().to_numpy(zero_copy_only=False)
            mine = pa.array(has)
            users, kept = rows[USER_ID].filter(mine), labels.filter(mine)
            if len(kept.unique()) < 2:
                continue
            value = evaluate_auc(users, kept, found[task["score"]][has])["uauc"]
            if np.isfinite(value):
                result[task["name"]] = value
        return result


def difference(one: Scores, other: Scores) -> float:
    """Return the largest difference of scores; infinite where one is not finite."""
    found = max(float(np.abs(one[name] - other[name]).max()) for name in one)
    return found if np.isfinite(found) else float("inf")


def certify(
    exported: Exported,
    rows: pa.Table,
    served: Callable[[pa.Table], Scores],
    precision: Precision,
    tolerances: Tolerances,
    probe: tuple[pa.Table, Scores] | None = None,
) -> tuple[dict[str, Any], Scores, Scores]:
    """Compare all ways to score fixed rows.

    Args:
        exported: the ranker.
        rows: the fixed rows.
        served: scores them through the runner of the bundle.
        precision: of the bundle.
        tolerances: that are kept.
        probe: rows and their scores as training left the model; None without.

    Returns:
        The differences for the certificate; the scores of the trained model, and those
        of the bundle.

    Raises:
        UserError: a difference beyond its tolerance.
    """
    reference = exported.batch_predicted(rows)
    programs = {each: exported.exported(rows, each) for each in PRECISIONS}
    own = programs[precision]
    from_bundle = served(rows)
    exact = {
        "reloaded": difference(exported.reloaded(rows), reference),
        "exported": difference(programs["float"], reference),
        "runner": difference(from_bundle, own),
    }
    rounded = {name: difference(programs[name], reference) for name in PRECISIONS[1:]}
    if probe is not None:
        table, trained = probe
        again = exported.batch_predicted(table)
        exact = {"trained": difference(again, trained), **exact}
    for found, most, option in (
        (exact, tolerances.exact, _EXACT),
        ({precision: rounded.get(precision, 0.0)}, tolerances.rounded, _ROUNDED),
    ):
        for name, value in found.items():
            refuse_beyond(name, value, most, option)
    return {"exact": exact, "rounded": rounded}, reference, from_bundle


_EXACT, _ROUNDED = "--max-difference", "--max-rounded-difference"
_FIXES = {
    _EXACT: "check the versions and the processor, or allow more",
    _ROUNDED: "use --precision half or float, or allow more",
}


def refuse_beyond(name: str, value: float, most: float, option: str) -> None:
    """Refuse a difference beyond its tolerance.

    Raises:
        UserError: names the way, the difference and the option.
    """
    if not value <= most:
        raise UserError(
            f"{name}: scores differ by {value:.2g} from those of the trained ranker, "
            f"beyond {option} {most:g}; {_FIXES[option]}"
        )


def uauc_differences(
    exported: Exported, rows: pa.Table, precision: Precision, most: float
) -> dict[str, dict[str, float]]:
    """Return the UAUC of labelled rows, at their own times, in full and rounded.

    Raises:
        UserError: a difference beyond `most`.
    """
    full = exported.uauc(rows, exported.exported(rows, "float"))
    if not full:
        return {}
    mine = exported.uauc(rows, exported.exported(rows, precision))
    for name, value in full.items():
        if not abs(mine[name] - value) <= most:
            raise UserError(
                f"{name}: UAUC is {mine[name]:.4f} with {precision} tables and "
                f"{value:.4f} without, beyond --max-uauc-difference {most:g}; use "
                "--precision half or float, or allow more"
            )
    return {
        name: {"full": value, precision: mine[name]} for name, value in full.items()
    }
