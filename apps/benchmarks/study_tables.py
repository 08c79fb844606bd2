"""The tables of the studies, of rankers and of retrieval, from their JSON."""

from typing import Any

from learn_torchrec.evaluation.words import cohort_title, ranked_by
from learn_torchrec.towers.target_ranks import AMONG

from .markdown import markdown

# Data and baseline of each study of the ranker: results/study_NAME.json.
RANKER_STUDIES = {
    "complete_journey": (
        "The Complete Journey",
        "ids, promotion places, past counts and rates",
    ),
    "complete_journey_counts": (
        "The Complete Journey",
        "the same and past counts by category, product type and maker",
    ),
    "online_retail": (
        "Online Retail II, drawn negatives",
        "ids, past counts and rates",
    ),
    "movielens_1m": ("MovieLens-1M, fixed split", "ids, past counts and rates"),
    "movielens_100k": ("MovieLens-100K", "ids, columns, past counts and rates"),
}
# Data of each study of retrieval: results/study_retrieval_NAME.json.
RETRIEVAL_STUDIES = {
    "movielens_100k": "MovieLens-100K",
    "amazon_scientific": "Amazon Scientific 2018",
    "online_retail": "Online Retail II",
    "complete_journey": "The Complete Journey",
}
_GROUPS = {
    "all": "all",
    "new": "new, without the history",
    "repeated": "repeated",
    "tail": "long-tail",
    "unseen": "never seen",
}
_AMONG = {"repeated": "the user's history"}
_STUDY_COHORTS = (
    *("all", "user_cold", "user_long_tail"),
    *("item_cold", "item_long_tail", "item_others"),
)


def gains_table(
    studies: dict[str, dict[str, Any]], retrieval: dict[str, dict[str, Any]]
) -> str:
    """Return what LEARN changes, a line for each question."""
    rows = []
    for name, study in studies.items():
        data, baseline = RANKER_STUDIES[name]
        change = study["arms"]["learn"]["cohorts"]["all"]["uauc"]
        points = "UAUC {:+.2f} points ({:+.2f}, {:+.2f})".format(
            change["points"], *change["interval"]
        )
        rows.append([f"{data}, beside {baseline}", points])
    for name, study in retrieval.items():
        metric = f"r@{study['ks'][0]}"
        over = study["groups"]["all"][study["history_in_use"]][metric]["over"]
        where = f"{_retrieval(name, study)}, next items, beside the best other row"
        rows.append(
            [
                f"{where} ({ranked_by(over['row'])})",
                f"{metric.upper()} {_points_over(over)}",
            ]
        )
    return markdown(["where", "what LEARN changes"], rows)


def _retrieval(name: str, study: dict[str, Any]) -> str:
    """Return the data of a study, with a word where no seeds were averaged."""
    return RETRIEVAL_STUDIES[name] + (" (one seed)" if study["seeds"] == 1 else "")


def next_items_table(studies: dict[str, dict[str, Any]]) -> str:
    """Return the towers beside the best other row, by data and group of targets."""
    rows = []
    for name, study in studies.items():
        whole = study["groups"]["all"]["targets"]
        for group, title in _GROUPS.items():
            found = study["groups"][group]
            if group != "all" and not 0 < found["targets"] < whole:
                continue
            place = f"{_retrieval(name, study)}, {title}"
            rows.append(_next_items(place, study, group, _ranking(study, group)))
            if AMONG in found:
                place += f", among {_AMONG.get(group, 'such items')} alone"
                rows.append(_next_items(place, study, group, AMONG))
    head = ["targets", "number", "metric", "LEARN", "ids alone", "best other", "points"]
    return markdown(head, rows)


def _next_items(
    place: str, study: dict[str, Any], group: str, ranking: str
) -> list[str]:
    found = study["groups"][group]
    metric = f"r@{study['ks'][0]}"
    by_row, over = found[ranking][metric]["rows"], found[ranking][metric]["over"]
    return [
        place,
        f"{found['targets']:,}",
        metric.upper(),
        f"{by_row['learn']['mean']:.4f}",
        f"{by_row['ids']['mean']:.4f}",
        f"{by_row[over['row']]['mean']:.4f} ({ranked_by(over['row'])})",
        _points_over(over),
    ]


def study_table(studies: dict[str, dict[str, Any]]) -> str:
    """Return baseline and LEARN over seeds, by data set and cohort."""
    head = ["data, beside, cohort", "rows", "AUC", "UAUC", "UAUC, points"]
    lines = []
    for name, study in studies.items():
        data, baseline = RANKER_STUDIES[name]
        known = study["arms"]["learn"]["cohorts"]
        for cohort in _STUDY_COHORTS:
            row = known.get(cohort, {"rows": 0})
            if not row["rows"] or not row["uauc"]["interval"]:
                continue
            title = cohort_title(cohort)
            if cohort == "all":
                title = f"**{data}**, beside {baseline}: all"
            cells = [title, f"{row['rows']:,}"]
            cells += [
                "{other:.4f} → {arm:.4f}".format(**row[metric])
                for metric in ("auc", "uauc")
            ]
            lines.append([*cells, _points(row["uauc"])])
    return markdown(head, lines)


def arms_table(study: dict[str, Any]) -> str:
    """Return every arm of a study over its baseline."""
    cohorts = ("all", "item_cold", "item_long_tail")
    return markdown(
        ["LEARN's part", *(f"{cohort_title(c)}: UAUC, points" for c in cohorts)],
        [
            [name, *(_points(arm["cohorts"][cohort]["uauc"]) for cohort in cohorts)]
            for name, arm in study["arms"].items()
            if name != "baseline"
        ],
    )


def shuffled_table(study: dict[str, Any]) -> str:
    """Return what LEARN changes if the items' contents are exchanged at random."""
    cohorts = ("all", "item_cold", "item_long_tail")
    known = study["arms"]["learn"]["cohorts"]
    rows = [[cohort_title(c), _points(known[c]["uauc"])] for c in cohorts]
    return markdown(["content shuffled among the items", "UAUC, points"], rows)


def _ranking(study: dict[str, Any], group: str) -> str:
    fixed = {"new": "filtered", "repeated": "kept"}
    return fixed.get(group, study["history_in_use"])


def _points_over(over: dict[str, Any]) -> str:
    low, high = 100 * over["low"], 100 * over["high"]
    return f"{100 * over['difference']:+.2f} ({low:+.2f}, {high:+.2f})"


def _points(value: dict[str, Any]) -> str:
    numbers = value["points"], *value["interval"], value["seed_std"]
    return "{:+.2f} ({:+.2f}, {:+.2f}) ± {:.2f}".format(*numbers)
