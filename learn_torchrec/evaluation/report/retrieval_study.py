"""The page of a study of retrieval: every row, by group of targets."""

from collections.abc import Iterator, Mapping
from typing import Any

from learn_torchrec.evaluation.report.parts import Report, Section, Table
from learn_torchrec.evaluation.words import TARGETS, ranked_by

_TITLES = {name.removesuffix("_targets"): title for name, title in TARGETS.items()}
_TITLES |= {"all": TARGETS["retrieval"], "unseen": "targets without a training event"}
_RANKINGS = {
    "kept": "the history's items ranked too",
    "filtered": "without the history's items",
    "among": "among such items alone",
}


def retrieval_study_report(result: Mapping[str, Any]) -> Report:
    """Return the page of what `learn-torchrec study-retrieval` found (its JSON)."""
    users, in_use = result["users"], result["history_in_use"]
    groups = result["groups"]
    whole = groups["all"]
    return Report(
        title="Study of retrieval",
        subtitle=f"{result['data']}: {users['test']:,} test users, {result['items']:,} "
        f"items; towers of {users['train']:,} users, chosen on "
        f"{users['validation']:,}; {result['seeds']} seeds",
        notices=[],
        summary=[
            Section(
                name="found",
                title="What finds the items that people take next",
                text=[_sentence(result, whole[in_use])],
                tables=[_table("all", in_use, whole, result, {})],
            )
        ],
        sections=[
            *tables_by_group(result, {}),
            how(result, {}),
        ],
    )


def tables_by_group(
    result: Mapping[str, Any], titles: Mapping[str, str]
) -> Iterator[Section]:
    """Yield a section for each group of targets; `titles` are of further rows."""
    groups = result["groups"]
    for group, found in groups.items():
        # Without repeats all targets are new.
        if group == "all" or 0 < found["targets"] < groups["all"]["targets"]:
            yield Section(
                name=group,
                title=_TITLES[group][0].upper() + _TITLES[group][1:],
                tables=[
                    _table(group, ranking, found, result, titles)
                    for ranking in _RANKINGS
                    if ranking in found
                ],
            )


def how(result: Mapping[str, Any], titles: Mapping[str, str]) -> Section:
    """Return the section that says how it was measured."""
    seconds = ", ".join(
        f"{titles.get(name, ranked_by(name))} {sum(each) / len(each):.0f}"
        for name, each in result.get("training_seconds", {}).items()
    )
    return Section(
        name="how",
        title="How it was measured",
        text=[
            *([f"Split: {_listed(result['split'])}."] if "split" in result else []),
            f"First table: {_RANKINGS[result['history_in_use']]}.",
            f"Repeats: {_repeats(result['groups'])}.",
            f"Loss: {_losses(result['settings'], titles)}.",
            f"Selection: {result['selection']}.",
            f"Ties: {result['ties']}.",
            f"Long-tail targets have at most {result['tail_events']} training events. "
            "Among themselves all rows show equally many of them: in a ranking of all "
            "items, one that knows no popularity, as chance, shows the most. Repeated "
            "targets are ranked among their user's history, too, for the same reason.",
            *([f"Seconds of a training: {seconds}."] if seconds else []),
        ],
    )


def _listed(settings: Mapping[str, Any]) -> str:
    parts = {
        name: ",".join(map(str, value)) if isinstance(value, list | tuple) else value
        for name, value in settings.items()
    }
    return ", ".join(f"{name}={value}" for name, value in parts.items())


def _repeats(groups: Mapping[str, Any]) -> str:
    repeated, whole = (groups[name]["targets"] for name in ("repeated", "all"))
    return f"{repeated:,} of {whole:,} targets are in their user's history"


def _losses(
    settings: Mapping[str, Mapping[str, Any]], titles: Mapping[str, str]
) -> str:
    rows: dict[str, list[str]] = {}
    for name, one in settings.items():
        loss = (
            f"{one['towers.loss.objective']} (logit_adjustment "
            f"{one['towers.loss.logit_adjustment']:g})"
        )
        rows.setdefault(loss, []).append(titles.get(name, ranked_by(name)))
    return "; ".join(f"{loss} of {', '.join(names)}" for loss, names in rows.items())


def _sentence(result: Mapping[str, Any], metrics: Mapping[str, Any]) -> str:
    name = f"r@{result['ks'][0]}"
    over = metrics[name]["over"]
    verdict = "and the best other row do not clearly differ"
    if over["low"] > 0:
        verdict = "finds more than the best other row"
    elif over["high"] < 0:
        verdict = "finds less than the best other row"
    return (
        f"LEARN {verdict}, {ranked_by(over['row'])}: {100 * over['difference']:+.2f} "
        f"points of {name.upper()} ({100 * over['low']:+.2f}, "
        f"{100 * over['high']:+.2f})."
    )


def _table(
    group: str,
    ranking: str,
    found: Mapping[str, Any],
    result: Mapping[str, Any],
    titles: Mapping[str, str],
) -> Table:
    first = result["ks"][0]
    metrics = [f"r@{first}", f"n@{first}"]
    metrics += [f"r@{k}" for k in result["ks"][1:]]
    shown = found[ranking]
    names = list(shown[metrics[0]]["rows"])
    names.sort(key=lambda name: -shown[metrics[0]]["rows"][name]["mean"])
    columns, formats = ["ranked by"], [""]
    for metric in metrics:
        columns += [metric.upper(), "95 % interval"]
        formats += [".4f", ""]
    return Table(
        name=f"{group}-{ranking}",
        title=f"{found['targets']:,} targets of {found['users']:,} users, "
        f"{_among(group, found) if ranking == 'among' else _RANKINGS[ranking]}",
        columns=columns,
        rows=[
            [titles.get(name, ranked_by(name)), *_cells(shown, name, metrics)]
            for name in names
        ],
        formats=formats,
        note="Averaged over seeds; intervals are over users.",
    )


def _among(group: str, found: Mapping[str, Any]) -> str:
    if group == "repeated":
        return f"among the history alone, {found['items']:,.0f} items in the mean"
    return f"among the {found['items']:,.0f} such items alone"


def _cells(shown: Mapping[str, Any], name: str, metrics: list[str]) -> list[Any]:
    cells: list[Any] = []
    for metric in metrics:
        row = shown[metric]["rows"][name]
        cells += [row["mean"], f"({row['low']:.4f}, {row['high']:.4f})"]
    return cells
