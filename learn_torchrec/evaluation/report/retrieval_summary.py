"""What a run found about retrieval: LEARN beside the best of the others, in words."""

import math
from collections.abc import Iterator, Mapping
from typing import Any

from learn_torchrec.evaluation.report.parts import Section, Table
from learn_torchrec.evaluation.words import TARGETS, ranked_by

_LEFT_OUT = "retrieval evaluation"  # as a plan names it


def retrieval_summary(
    metrics: Mapping[str, Any],
    manifests: Mapping[str, Mapping[str, Any]],
    left_out: Mapping[str, str],
) -> Iterator[Section]:
    """Yield the section, if the run has towers or their metrics.

    Args:
        metrics: JSON of `evaluate-retrieval`, empty if there is none.
        manifests: of the run's artefacts, by stage.
        left_out: reasons, by what the run left out.
    """
    groups, _ = distinct_targets(metrics)
    everyone = groups.get("retrieval", {})
    k = min(
        (
            int(name.removeprefix("r@"))
            for name in next(iter(everyone.values()), {})
            if name.startswith("r@")
        ),
        default=0,
    )
    if not k:
        reason = left_out.get(_LEFT_OUT, "").rstrip(".")
        if reason or any(one.get("kind") == "towers" for one in manifests.values()):
            text = [f"Not evaluated: {reason}." if reason else "Not evaluated."]
            yield Section(name="summary-retrieval", title="Retrieval", text=text)
        return
    known = next(iter(everyone.values()))
    names = [one for one in (f"h@{k}", f"r@{k}", f"n@{k}", "mrr") if one in known]
    table = Table(
        name="summary-retrieval-metrics",
        title=f"The first {k} items",
        columns=["ranked by", *map(str.upper, names)],
        formats=["", *[".4f"] * len(names)],
        rows=[
            [ranked_by(name), *map(values.get, names)]
            for name, values in everyone.items()
        ],
        note="R: mean over users of the share of their targets found; H: share of all "
        "targets; N: NDCG. No intervals: a small difference means little.",
    )
    yield Section(
        name="summary-retrieval",
        title="Retrieval: the items that held-out users take next",
        text=list(_found(groups, k, _num_items(manifests))),
        tables=[table],
    )


def _num_items(manifests: Mapping[str, Mapping[str, Any]]) -> int | None:
    for one in manifests.values():
        if one.get("kind") == "content":
            items: int | None = one.get("facts", {}).get("items")
            return items
    return None


def _found(
    groups: Mapping[str, Mapping[str, Mapping[str, Any]]], k: int, num_items: int | None
) -> Iterator[str]:
    """Say who finds more of the targets, LEARN or the best of the others."""
    for group, rows in groups.items():
        learn = rows.get("learn", {}).get(f"r@{k}")
        others = {
            name: values[f"r@{k}"]
            for name, values in rows.items()
            if name != "learn" and values.get(f"r@{k}") is not None
        }
        if learn is None or not others:
            continue
        best = max(others, key=lambda name: others[name])
        more = "more" if learn > others[best] else "less"
        if math.isclose(learn, others[best], rel_tol=0, abs_tol=5e-5):
            more = "as much"
        than = "as" if more == "as much" else "than"
        parts = f"{100 * learn:.1f} % against {100 * others[best]:.1f} %"
        if group == "retrieval":
            users = next(iter(rows.values()))["users"]
            of = f" of {num_items:,}" if num_items else ""
            yield (
                f"Among its first {k}{of} items, LEARN finds {more} of what {users:,} "
                f"users take next {than} {ranked_by(best)}: {parts}."
            )
        else:
            other = ranked_by(best)
            yield f"Of {TARGETS[group]} it finds {more} {than} {other}: {parts}."


def distinct_targets(
    metrics: Mapping[str, Any],
) -> tuple[dict[str, dict[str, Any]], list[str]]:
    """Return the retrieval metrics without empty and repeated parts.

    Args:
        metrics: group of targets to what ranks to metrics.

    Returns:
        The groups with targets, and a sentence about each part left out because
        another has the same numbers.
    """
    groups: dict[str, dict[str, Any]] = {}
    notes = []
    for group in TARGETS:
        rows = dict(metrics.get(group, {}))
        if not any(values["targets"] for values in rows.values()):
            continue
        if group != "retrieval" and rows == metrics.get("retrieval"):
            name = TARGETS[group].capitalize()
            notes.append(
                f"{name} are left out: their numbers are those of all targets."
            )
            continue
        groups[group] = rows
    twin, original = "already_bought", "popularity"
    pairs = [(rows.get(twin), rows.get(original)) for rows in groups.values()]
    if pairs and all(one is not None and one == other for one, other in pairs):
        for rows in groups.values():
            del rows[twin]
        name = ranked_by(twin).capitalize()
        notes.append(f"{name}, is left out: its numbers are those of {original}.")
    return groups, notes
