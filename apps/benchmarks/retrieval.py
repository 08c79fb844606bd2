"""Towers over several seeds: what they find, beside the rows they have to beat.

For every variant and seed it runs train-towers and evaluate-retrieval (finished runs
are reused) and writes the mean, least and greatest of every metric. Epoch and settings
are chosen on validation; the test is evaluated once for each seed.
"""

import argparse
import json
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from .. import evaluate_retrieval, options, train_towers

GROUPS = ("retrieval", "new_targets", "tail_targets")
INPUTS = ("content", "content+id")


def main(argv: Sequence[str] | None = None) -> None:
    """Train, evaluate and write the figures."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--preset", default="amazon", help="amazon, retail, ...")
    parser.add_argument("--data", required=True, metavar="ADAPTER:PATH")
    parser.add_argument("--content", required=True, metavar="DIR", type=Path)
    parser.add_argument("--out", required=True, metavar="DIR", type=Path)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--inputs", nargs="+", default=INPUTS, choices=(*INPUTS, "id"))
    parser.add_argument("--json", type=Path, metavar="FILE")
    parser.add_argument("--set", nargs="+", default=[], dest="overrides")
    args = parser.parse_args(argv)
    body: dict[str, Any] = {"seeds": args.seeds, "preset": args.preset}
    for inputs in args.inputs:
        runs = [run(args, inputs, seed) for seed in range(args.seeds)]
        for group in GROUPS:
            rows = body.setdefault(group, {})
            rows[inputs] = summary([each[group]["learn"] for each in runs])
            baselines = {
                name: metrics
                for name, metrics in runs[0][group].items()
                if name != "learn"
            }
            rows.update(baselines)
        body.setdefault("validation", {})[inputs] = summary(
            [each["validation"] for each in runs]
        )
    if args.json is not None:
        options.write_json(args.json, body)
    print(json.dumps(body["retrieval"], indent=1))


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
    """Return the mean, least and greatest of every metric."""
    return {
        name: {
            "mean": statistics.fmean(values),
            "min": min(values),
            "max": max(values),
        }
        for name in runs[0]
        for values in [[metrics[name] for metrics in runs]]
    }


if __name__ == "__main__":
    options.run(main)
