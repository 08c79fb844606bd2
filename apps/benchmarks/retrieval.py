"""Retrieval by the towers over several seeds, beside the baselines.

Runs train-towers and evaluate-retrieval for every variant and seed (finished runs are
reused) and writes the mean, minimum and maximum of every metric. Epoch and settings are
chosen on validation; the test is evaluated once per seed.
"""

import argparse
import json
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from learn_torchrec.presets import PRESETS

from .. import evaluate_retrieval, train_towers
from ..common import options, program
from . import measure

GROUPS = ("retrieval", "new_targets", "tail_targets")
INPUTS = ("content", "content+id")


def main(argv: Sequence[str] | None = None) -> None:
    """Train, evaluate and write the figures."""
    parser = measure.parser("retrieval", __doc__, "amazon.json")
    parser.add_argument(
        "--preset", default="amazon", choices=sorted(PRESETS), help="of the towers"
    )
    parser.add_argument(
        "--data", required=True, metavar="ADAPTER:PATH", help=options.DATA_HELP
    )
    options.add_input(parser, "--content", "content store of the items")
    parser.add_argument(
        "--out", required=True, metavar="DIR", type=Path, help="for the towers"
    )
    parser.add_argument(
        "--seeds", type=int, default=3, metavar="N", help="runs of each input"
    )
    parser.add_argument(
        "--inputs",
        nargs="+",
        default=INPUTS,
        choices=(*INPUTS, "id"),
        help="of the towers",
    )
    program.add_overrides(parser, "change one setting; may be repeated")
    args = parser.parse_args(argv)
    body: dict[str, Any] = {"seeds": args.seeds, "preset": args.preset}
    for inputs in args.inputs:
        runs = [run(args, inputs, seed) for seed in range(args.seeds)]
        for group in GROUPS:
            rows = body.setdefault(group, {})
            rows[inputs] = summary([each[group]["learn"] for each in runs])
            rows |= {k: row for k, row in runs[0][group].items() if k != "learn"}
        body.setdefault("validation", {})[inputs] = summary(
            [each["validation"] for each in runs]
        )
    measure.publish(body, args.json)


def run(args: argparse.Namespace, inputs: str, seed: int) -> dict[str, Any]:
    """Train and evaluate one seed; return the metrics of both."""
    towers = args.out / f"{inputs.replace('+', '_')}-{seed}"
    common = ["--preset", args.preset, "--data", args.data]
    common += ["--content", str(args.content)]
    changes = [f"towers.model.inputs={inputs}", f"towers.training.seed={seed}"]
    changes = ["--set", *changes, *args.overrides]
    train_towers.main([*common, "--out", str(towers), *changes])
    report = towers.with_suffix(".json")
    evaluate_retrieval.main(
        [*common, "--towers", str(towers), "--out", str(report), *changes]
    )
    body: dict[str, Any] = json.loads(report.read_text())
    manifest = json.loads((towers / "manifest.json").read_text())
    return body | {"validation": manifest["facts"]["validation"]}


def summary(runs: list[dict[str, float]]) -> dict[str, dict[str, float]]:
    """Return the mean, minimum and maximum of every metric."""
    return {
        name: {"mean": statistics.fmean(values), "min": min(values), "max": max(values)}
        for name in runs[0]
        for values in [[metrics[name] for metrics in runs]]
    }


if __name__ == "__main__":
    options.run(main)
