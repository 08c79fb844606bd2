"""The section on an A/B test, from the JSON that `evaluate-ab` wrote."""

from collections.abc import Iterator, Mapping
from typing import Any

from learn_torchrec.evaluation.report import figures
from learn_torchrec.evaluation.report.parts import Figure, Section, Table, scaled

SIMULATED = "The A/B test below is simulated: generated users, no live test."


def ab_test(ab: Mapping[str, Any]) -> Iterator[Section]:
    """Yield the section, if there is a test."""
    if not ab:
        return
    ratio = ab["sample_ratio"]
    verdict = "MISMATCH, trust nothing below" if ratio["is_mismatch"] else "as meant"
    rows = [
        [
            cohort,
            metric,
            scaled(ab["shares"].get(cohort), 100),
            one["control"],
            one["treatment"],
            *(scaled(one[k], 100) for k in ("lift", "low", "high")),
            one["p_value"],
            *(scaled(one[k], 100) for k in ("bootstrap_low", "bootstrap_high")),
        ]
        for cohort, metrics in ab["lifts"].items()
        for metric, one in metrics.items()
    ]
    head = ["cohort", "metric", "revenue share, %", "control", "treatment", "lift, %"]
    table = Table(
        name="ab-lifts",
        title=f"Lifts by cohort{_simulated(ab)}",
        columns=[*head, "low", "high", "p", "bootstrap low", "bootstrap high"],
        formats=["", "", ".2f", ".5g", ".5g", *["+.2f"] * 3, ".3f", "+.2f", "+.2f"],
        rows=rows,
        note="Relative lift with the delta method's 95 % interval over users, and the "
        "bootstrap's beside it.",
    )
    yield Section(
        name="ab",
        title="A/B test, simulated" if ab["is_simulated"] else "A/B test",
        text=[
            f"{ab['days']} days; {ratio['control_users']:,} control and "
            f"{ratio['treatment_users']:,} treatment users; sample ratio {verdict} "
            f"(p = {ratio['p_value']:.3g})."
        ],
        tables=[table],
        figures=[*_ab_cohorts(ab), *_ab_days(ab)],
    )


def _simulated(ab: Mapping[str, Any]) -> str:
    return ", simulated" if ab["is_simulated"] else ""


def _ab_cohorts(ab: Mapping[str, Any]) -> Iterator[Figure]:
    """Yield the drawing, if any cohort's lift is defined."""
    rows = []
    for cohort, metrics in ab["lifts"].items():
        one = metrics["revenue_per_user"]
        if one["lift"] is not None:
            values = (100 * one[part] for part in ("lift", "low", "high"))
            rows.append((cohort, *values))
    if not rows:
        return
    words = "; ".join(f"{n} {v:+.2f} ({a:+.2f} to {b:+.2f})" for n, v, a, b in rows)
    yield figures.intervals(
        "ab-cohorts",
        f"Revenue per user, lift by cohort{_simulated(ab)}",
        rows,
        "lift, %",
        f"Relative lift in per cent with 95 % intervals: {words}.",
    )


def _ab_days(ab: Mapping[str, Any]) -> Iterator[Figure]:
    """Yield the drawing, if any day's lift is defined."""
    days = [one for one in ab["daily"]["revenue_per_user"] if one["lift"] is not None]
    rows = [
        (f"day {one['day']}", *(100 * one[part] for part in ("lift", "low", "high")))
        for one in days
    ]
    if not rows:
        return
    words = "; ".join(f"{n} {v:+.2f}" for n, v, *_ in rows)
    yield figures.intervals(
        "ab-days",
        f"Revenue per user, lift by day{_simulated(ab)}",
        rows,
        "lift, %",
        f"Relative lift in per cent: {words}.",
    )
