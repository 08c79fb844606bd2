"""What a run found, on one screen: ranking, retrieval, and one user's recommendations.

The sections open the report and end the quickstart, in the same words
(`evaluation/words.py`). Every sentence follows from the numbers alone: a loss is said
as plainly as a gain, and what has no interval is called neither.
"""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from learn_torchrec.errors import UserError
from learn_torchrec.evaluation.report.files import EXAMPLE, Metrics
from learn_torchrec.evaluation.report.parts import Section, Table
from learn_torchrec.evaluation.report.ranking_summary import ranking_summary
from learn_torchrec.evaluation.report.retrieval_summary import retrieval_summary


def summarise(
    directory: Path, metrics: Metrics, manifests: Mapping[str, Mapping[str, Any]]
) -> list[Section]:
    """Return the sections of a run's summary.

    Args:
        directory: of the run, named in messages.
        metrics: the run's JSON files.
        manifests: of the run's artefacts, by stage.
    """
    kinds = {str(one.get("kind")) for one in manifests.values()}
    left_out = metrics.whole.get("left_out", {})  # reasons, by what is missing
    return [
        *ranking_summary(metrics.ranking, "predictions" in kinds, left_out),
        *retrieval_summary(metrics.retrieval, manifests, left_out),
        *_recommendations(metrics.example, directory / EXAMPLE),
    ]


def _recommendations(example: Mapping[str, Any], path: Path) -> Iterator[Section]:
    """Yield the section, if there is an example."""
    if not example:
        return
    try:
        user, history, top = (example[name] for name in ("user", "history", "top"))
        is_left_out, events = example["history_left_out"], example["events"]
        tables = [
            Table(
                name="recommended",
                title="Recommended",
                columns=["rank", "item", "recommended"],
                formats=["d", "", ""],
                rows=[[one["rank"], str(one["item"]), one["title"]] for one in top],
            ),
            Table(
                name="latest-in-the-history",
                title="Latest in the history",
                columns=["day", "item", "latest in the history"],
                formats=["", "", ""],
                rows=[[one["day"], str(one["item"]), one["title"]] for one in history],
            ),
        ]
    except (KeyError, TypeError):
        raise UserError(
            f"{path}: not as quickstart writes it; delete it, and run quickstart again"
        ) from None
    yield Section(
        name="summary-recommendations",
        title=f"Recommendations for user {user}"
        f"{', without the items of the history' if is_left_out else ''} "
        f"({events:,} event{'' if events == 1 else 's'})",
        tables=tables,
    )
