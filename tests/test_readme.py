"""What the README shows is what the code does and what a run measured."""

import json
import re
from pathlib import Path

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()
MEASURED = json.loads(
    (ROOT / "apps" / "benchmarks" / "results" / "quickstart.json").read_text()
)


def table_rows(first_cell: str) -> list[str]:
    line = next(x for x in README.splitlines() if x.startswith(f"| {first_cell}"))
    return [cell.strip(" *") for cell in line.strip("|").split("|")][1:]


def test_it_is_short():
    assert len(README.splitlines()) <= 200


def test_the_example_runs():
    (example,) = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    scope: dict[str, object] = {}
    exec(example, scope)
    scope["loss"].backward()  # type: ignore[attr-defined]
    assert scope["learn"].auxiliary.head[0].weight.grad.abs().sum() > 0  # type: ignore[attr-defined]


def test_retrieval_figures_are_the_measured_ones():
    for name, cell in (
        ("learn", "LEARN (content only)"),
        ("popularity", "popularity"),
        ("content_mean", "averaged content vectors"),
    ):
        values = MEASURED["retrieval"][name]
        expected = [f"{values[m]:.4f}" for m in ("h@50", "r@50", "h@100", "r@100")]
        assert table_rows(cell) == expected


def test_ranking_figures_are_the_measured_ones():
    names = {"all": "all"} | {
        f"{side}_{key}": f"{side} {word}"
        for side in ("user", "item")
        for key, word in (
            ("cold", "cold-start"),
            ("long_tail", "long-tail"),
            ("others", "others"),
        )
    }

    def points(value: float) -> str:
        return f"{100 * value:+.2f}".replace("-", "−")

    for cohort, cell in names.items():
        baseline, learn = (
            MEASURED["ranking"][name][cohort] for name in ("baseline", "learn")
        )
        expected = [
            f"{baseline['rows']:,}",
            f"{baseline['uauc']:.4f}",
            f"{learn['uauc']:.4f}",
        ]
        for metric in ("uauc", "wuauc", "auc"):
            d = MEASURED["ranking_difference"]["learn-baseline"][cohort][metric]
            low, high = points(d["low"]), points(d["high"])
            expected.append(f"{points(d['difference'])} ({low}, {high})")
        assert table_rows(cell) == expected
