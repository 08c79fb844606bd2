"""The section on an A/B test, from the JSON of `evaluate-ab`."""

from collections.abc import Iterator, Mapping
from typing import Any

from learn_torchrec.evaluation.ab import SampleRatio
from learn_torchrec.evaluation.report import figures
from learn_torchrec.evaluation.report.parts import Section, Table, scaled
from learn_torchrec.evaluation.report.shapes import REVENUE

SIMULATED = "The A/B test below is simulated: generated users, no live test."


def ab_test(ab: Mapping[str, Any]) -> Iterator[Section]:
    """Yield the section, if there is a test."""
    if not ab:
        return
    simulated = ", simulated" if ab["is_simulated"] else ""
    ratio = SampleRatio(**ab["sample_ratio"])
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
    cohorts = [(name, metrics[REVENUE]) for name, metrics in ab["lifts"].items()]
    days = [(f"day {one['day']}", one) for one in ab["daily"][REVENUE]]
    head = ["cohort", "metric", "revenue share, %", "control", "treatment", "lift, %"]
    table = Table(
        name="ab-lifts",
        title=f"Lifts by cohort{simulated}",
        columns=[*head, "low", "high", "p", "bootstrap low", "bootstrap high"],
        formats=["", "", ".2f", ".5g", ".5g", *["+.2f"] * 3, ".3f", "+.2f", "+.2f"],
        rows=rows,
        note="Relative lift with 95 % intervals over users, by the delta method and by "
        "the bootstrap.",
    )
    yield Section(
        name="ab",
        title=f"A/B test{simulated}",
        text=[
            f"{ab['days']} days; {ratio.control_users:,} control and "
            f"{ratio.treatment_users:,} treatment users; sample ratio {ratio.verdict} "
            f"(p = {ratio.p_value:.3g})."
        ],
        tables=[table],
        figures=[
            figure
            for name, by, entries in (
                ("cohorts", "cohort", cohorts),
                ("days", "day", days),
            )
            for figure in figures.percentages(
                f"ab-{name}",
                f"Revenue per user, lift by {by}{simulated}",
                entries,
                "lift",
                "relative lift, %",
            )
        ],
    )
