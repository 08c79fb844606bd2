"""`evaluate-auc --stream`: files read in batches, on all ranks of torchrun."""

import contextlib
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from learn_torchrec.evaluation import ranking
from learn_torchrec.evaluation.auc import RankingMetrics
from learn_torchrec.evaluation.cohorts import CohortConfig
from learn_torchrec.evaluation.communicator import (
    Communicator,
    LocalCommunicator,
    TorchCommunicator,
)
from learn_torchrec.evaluation.conventions import Convention
from learn_torchrec.evaluation.metric import Metric
from learn_torchrec.evaluation.paired_predictions import compare_files
from learn_torchrec.evaluation.predictions import open_predictions
from learn_torchrec.evaluation.tasks import Task

from .tables import Differences


@contextlib.contextmanager
def ranks(
    settings: Mapping[str, object], files: Mapping[str, Path]
) -> Iterator[Communicator]:
    """Yield the communicator of the ranks that were started, or of this process.

    Args:
        settings: that all ranks must have been given alike, by name.
        files: of the predictions, by name; alike on all ranks, too.

    Raises:
        UserError: on every rank, names what differs.
    """
    if "RANK" not in os.environ:
        yield LocalCommunicator()
        return
    # These take seconds to load.
    from learn_torchrec.training.agreement import (
        digests_to_compare,
        refuse_different_ranks,
    )
    from learn_torchrec.training.distributed import process_group

    with process_group() as device:
        refuse_different_ranks({**settings, **digests_to_compare(files)})
        yield TorchCommunicator(device)


def evaluate(
    files: Mapping[str, tuple[Path, Task]],
    cohorts: CohortConfig,
    convention: Convention,
    metrics: Sequence[Metric],
    communicator: Communicator,
) -> tuple[dict[str, dict[str, RankingMetrics]], dict[str, Differences]]:
    """Return the metrics of each file, and its differences from the first, by cohort.

    Raises:
        UserError: an unfit file, or files that hold different rows.
    """
    (first, baseline), *others = files.items()
    if not others:
        path, task = baseline
        found = ranking.stream_by_cohort(
            *(path, cohorts, convention, metrics), task=task, communicator=communicator
        )
        return {first: found}, {}
    found_by_file, differences = {}, {}
    for name, candidate in others:
        compared = compare_files(
            baseline, candidate, cohorts, convention, metrics, communicator
        )
        found_by_file[first] = {key: one.baseline for key, one in compared.items()}
        found_by_file[name] = {key: one.candidate for key, one in compared.items()}
        differences[f"{name}-{first}"] = {
            key: one.differences for key, one in compared.items()
        }
    return found_by_file, differences


def cohort_names(
    files: Mapping[str, tuple[Path, Task]], cohorts: CohortConfig
) -> list[str]:
    """Return the cohorts that the files' columns give."""
    columns = {
        name for path, _ in files.values() for name in open_predictions(path).names
    }
    return list(ranking.cohort_filters(columns, cohorts))
