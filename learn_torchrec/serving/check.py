"""Running a bundle's certificate again, with the runner alone."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from learn_torchrec.arrays import Float32Array
from learn_torchrec.artifact import reading
from learn_torchrec.errors import UserError
from learn_torchrec.serving.fixed_rows import ROWS_FILE, requests_of
from learn_torchrec.serving.runner import Runner

CERTIFICATE_FILE = "parity.json"
TRAINED, SERVED = "trained_", "served_"  # prefixes of the scores of the fixed rows
_USERS_AT_ONCE = 64


def score_rows(runner: Runner, rows: pa.Table) -> dict[str, Float32Array]:
    """Return the scores [N] that requests for fixed rows get, by column."""
    requests = requests_of(rows, list(runner.required_context))
    parts: list[Float32Array] = []
    for start in range(0, len(requests), _USERS_AT_ONCE):
        parts += runner.rank(requests[start : start + _USERS_AT_ONCE])
    columns = np.concatenate(parts).T
    return dict(zip(runner.score_columns, columns, strict=True))


def write_rows(
    directory: Path,
    rows: pa.Table,
    trained: Mapping[str, Float32Array],
    served: Mapping[str, Float32Array],
) -> None:
    """Store fixed rows with the scores of the trained ranker and of the bundle."""
    for prefix, found in ((TRAINED, trained), (SERVED, served)):
        for name, values in found.items():
            rows = rows.append_column(f"{prefix}{name}", pa.array(values))
    pq.write_table(rows, directory / ROWS_FILE)


def check_bundle(directory: Path, runner: Runner) -> dict[str, Any]:
    """Score a bundle's fixed rows again.

    Returns:
        The rows, the largest difference from the scores at the export and from those of
        the trained ranker, and what is allowed.

    Raises:
        UserError: a difference beyond the certificate's tolerances, or a certificate or
            rows that are none.
    """
    files = (CERTIFICATE_FILE, ROWS_FILE)
    with reading(directory, runner.manifest, files, "export the bundle again"):
        return _compared(directory, runner)


def _compared(directory: Path, runner: Runner) -> dict[str, Any]:
    text = (directory / CERTIFICATE_FILE).read_text(encoding="utf-8")
    tolerances = json.loads(text)["tolerances"]
    rows = pq.read_table(directory / ROWS_FILE)
    if not rows.num_rows:
        raise ValueError(f"{ROWS_FILE}: no rows")
    found = score_rows(runner, rows)
    result: dict[str, Any] = {"rows": rows.num_rows, "tolerances": tolerances}
    rounded = runner.served.precision != "float"
    for prefix, kind in (
        (SERVED, "exact"),
        (TRAINED, "rounded" if rounded else "exact"),
    ):
        name = f"from_{prefix.removesuffix('_')}"
        result[name] = max(
            float(np.abs(values - rows[f"{prefix}{column}"].to_numpy()).max())
            for column, values in found.items()
        )
        if not result[name] <= tolerances[kind]:
            raise UserError(
                f"{directory}: scores of its fixed rows differ by {result[name]:.2g} "
                f"from those {'at its export' if prefix == SERVED else 'of training'}, "
                f"beyond {tolerances[kind]:g}; export the bundle on a machine like "
                "this one, or use the versions of its manifest"
            )
    return result
