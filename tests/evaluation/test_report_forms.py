"""A report of files whose values are not what their commands write."""

import copy
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from report_run import manifest

from learn_torchrec.errors import UserError
from learn_torchrec.evaluation.report.render import to_html
from learn_torchrec.evaluation.report.run import read_run

LIFT = dict.fromkeys(
    ("control", "treatment", "lift", "low", "high", "p_value"), 0.5
) | {"bootstrap_low": None, "bootstrap_high": float("nan")}
AB: dict[str, Any] = {
    "sample_ratio": {
        "control_users": 5,
        "treatment_users": 5,
        "expected_share": 0.5,
        "p_value": 0.9,
        "is_mismatch": False,
    },
    "lifts": {"all": {"revenue_per_user": LIFT}, "new": {"revenue_per_user": LIFT}},
    "shares": {"all": 1.0, "new": 0.5},
    "daily": {"revenue_per_user": [{"day": 1, "lift": 0.1, "low": 0, "high": None}]},
    "days": 1,
    "is_simulated": False,
}
STEP = '{"step": 1, "loss": 2.0, "r@5": 0.5}\n'


def places(body: Any, above: tuple = ()) -> Iterator[tuple]:
    if above:
        yield above
    if isinstance(body, dict | list):
        for key in body if isinstance(body, dict) else range(len(body)):
            yield from places(body[key], (*above, key))


def changed(place: tuple, value: Any) -> dict[str, Any]:
    body = copy.deepcopy(AB)
    inner: Any = body
    for key in place[:-1]:
        inner = inner[key]
    inner[place[-1]] = value
    return body


@pytest.fixture
def run(tmp_path: Path) -> Path:
    (tmp_path / "towers").mkdir()
    (tmp_path / "towers" / "config.json").write_text("{}")
    manifest(tmp_path / "towers", "towers", {"items": 3})
    return tmp_path


def test_a_written_test_is_shown(run: Path) -> None:
    (run / "ab.json").write_text(json.dumps(AB))
    assert "A/B test" in to_html(read_run(run, run / "ab.json"))


@pytest.mark.parametrize("place", list(places(AB)), ids=str)
def test_each_value_of_a_test_is_checked(place: tuple, run: Path) -> None:
    for value in ("x", [1], {"a": [1]}, [None]):
        (run / "ab.json").write_text(json.dumps(changed(place, value)))
        with pytest.raises(UserError, match=r"ab\.json: .*; make it again") as raised:
            read_run(run, run / "ab.json")
        assert str(place[0]) in str(raised.value)


@pytest.mark.parametrize(
    "line",
    [
        "[1]",
        "5",
        "null",
        '{"step": "x", "loss": "y"}',
        '{"step": 1, "loss": null, "r@5": "a"}',
        '{"step": 1, "loss": NaN, "r@5": {}}',
        f'{{"step": {10**400}, "loss": 1}}',
        '{"step": true, "loss": [1]}',
    ],
)
def test_lines_of_a_log_without_numbers_are_not_drawn(line: str, run: Path) -> None:
    log = run / "logs" / "towers.jsonl"
    log.parent.mkdir()
    log.write_text(f"{STEP}{line}\n{STEP}")
    whole = to_html(read_run(run))
    log.write_text(STEP * 2)
    assert whole == to_html(read_run(run))
    log.write_text(f"{line}\n")
    assert "training" not in [section.name for section in read_run(run).sections]
