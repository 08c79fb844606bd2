"""What finds the items that people take next on your data: towers beside baselines.

Each arm is a training of the towers: `learn` is the configuration, `ids` the same
towers on item ids alone with a plain softmax, and --arm adds others. Epochs are chosen
on the validation users; the test users are ranked for once with each seed. Every row is
shown with the history's items in the ranking and without them, for all targets and by
group, with intervals over users. Finished trainings are kept in --out: the same command
goes on where it stopped. One process.
"""

import argparse
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from learn_torchrec import config as configuration
from learn_torchrec.arrays import BoolArray, Float64Array, Int64Array
from learn_torchrec.artifact import read_manifest, verify, versions
from learn_torchrec.content.store import KIND as KIND_CONTENT
from learn_torchrec.content.store import ContentStore
from learn_torchrec.datasets.histories import load_histories
from learn_torchrec.errors import UserError
from learn_torchrec.evaluation.report.render import report_files, write_report
from learn_torchrec.evaluation.report.retrieval_study import retrieval_study_report
from learn_torchrec.evaluation.report.terminal import to_text
from learn_torchrec.evaluation.retrieval import (
    ScoreBlock,
    distinct_pairs,
    target_ranks,
    user_metrics,
)
from learn_torchrec.evaluation.retrieval_study import compare_rows
from learn_torchrec.jagged import Jagged
from learn_torchrec.locks import locked
from learn_torchrec.presets import Run
from learn_torchrec.towers.artifact import KIND_TOWERS, load_towers
from learn_torchrec.towers.baselines import baseline_scores
from learn_torchrec.towers.holdout import TowersSplit, split_towers
from learn_torchrec.towers.retrieval import target_groups
from learn_torchrec.towers.scores import towers_scores
from learn_torchrec.training.distributed import process_group

from . import options, program, train_towers

LEARN = "learn"
# Ids alone are at their best as in SASRec with full softmax: room for rare items, whom
# ids do not know, only costs them recall.
_PLAIN = ("towers.loss.logit_adjustment=0", "towers.loss.unseen_weight=1")
_ARMS = {LEARN: (), "ids": ("towers.model.inputs=id", *_PLAIN)}
_SECTION = "towers."
_WIDTH = 100
# Whether the items of the history leave the ranking.
_RANKINGS = {"kept": False, "filtered": True}


def build_parser() -> argparse.ArgumentParser:
    """Return the app's options."""
    parser = options.parser("study-retrieval", __doc__)
    options.add_data(parser)
    options.add_input(parser, "--content", "content store of the items")
    parser.add_argument(
        "--out",
        type=program.output_path,
        required=True,
        metavar="DIR",
        help="results and trained towers",
    )
    parser.add_argument(
        "--arm",
        action="append",
        default=[],
        metavar="NAME:SETTING=VALUE;...",
        help="further towers: the configuration with some settings changed; may be "
        "repeated",
    )
    parser.add_argument(
        "--seeds", type=int, default=3, metavar="N", help="trainings of each arm"
    )
    return parser


def main(argv: Sequence[str] | None = None) -> None:
    """Train, rank, print; write study.json and report.html into --out."""
    args = build_parser().parse_args(argv)
    if args.seeds < 1:
        raise UserError(f"--seeds {args.seeds}: must be at least 1")
    page = args.out / "report.html"
    program.check_output_folder(
        args.out,
        ["study.json", *(path.name for path in report_files(page))],
        [*options.paths_read(args), *options.config_read(args)],
        lambda: (args.out / "towers").is_dir(),
    )
    verify(args.content, KIND_CONTENT)
    arms = arms_of(args.arm)
    runs = {name: _resolved(args, arms[name]) for name in arms}
    (args.out / "towers").mkdir(parents=True, exist_ok=True)
    with locked(args.out):
        trained = {
            name: [_train(args, name, arms[name], seed) for seed in range(args.seeds)]
            for name in arms
        }
        with process_group() as device:
            result = _ranked(args, runs, trained, device)
        program.write_json(args.out / "study.json", result)
        report = retrieval_study_report(result)
        write_report(report, page)
    print(to_text(report.summary, _WIDTH))
    print(f"written to {args.out / 'study.json'}, {args.out / 'report.html'} (and .md)")


def arms_of(given: Sequence[str]) -> dict[str, tuple[str, ...]]:
    """Return the settings of the arms by name.

    Raises:
        UserError: an arm that is not NAME:SETTING=VALUE, a name twice, or a setting
            that is not the towers'.
    """
    arms: dict[str, tuple[str, ...]] = dict(_ARMS)
    for text in given:
        name, parts = options.named_settings(text, _SECTION, arms)
        arms[name] = parts
    return arms


def _resolved(args: argparse.Namespace, settings: Sequence[str]) -> Run:
    """Return an arm's configuration."""
    changed = argparse.Namespace(**vars(args))
    changed.overrides = [*args.overrides, *settings]
    return options.resolve(changed, ("split", "towers", "retrieval"))


def _train(
    args: argparse.Namespace, name: str, settings: Sequence[str], seed: int
) -> Path:
    """Train an arm's towers with a seed, unless that was done before."""
    out: Path = args.out / "towers" / f"{name}-{seed}"
    given = ["--data", args.data, "--content", str(args.content), "--out", str(out)]
    given += ["--strict"] if args.strict else []
    given += ["--preset", args.preset] if args.preset else []
    given += ["--config", str(args.config)] if args.config else []
    changes = [*args.overrides, *settings, f"towers.training.seed={seed}"]
    train_towers.main([*given, "--overwrite", "--set", *changes])
    return out


def _ranked(
    args: argparse.Namespace,
    runs: Mapping[str, Run],
    trained: Mapping[str, Sequence[Path]],
    device: torch.device,
) -> dict[str, Any]:
    """Rank the catalogue for the test users by every row; compare all rows."""
    store = ContentStore.open(args.content)
    run = runs[LEARN]
    histories = load_histories(options.dataset(args), store, run.split)
    data = split_towers(histories.sequences, histories.times, run.split)
    if not len(data.test.sequences):
        raise UserError(
            f"split: no test user has split.min_events={run.split.min_events} events; "
            "move split.towers_until earlier or lower split.min_events"
        )
    ranks = _Ranks(data, store, run)
    for name, score in baseline_scores(data, store, data.test, run.retrieval).items():
        ranks.add(name, score)
    validation: dict[str, list[float]] = {}
    for name, seeds in trained.items():
        for towers in seeds:
            manifest = read_manifest(towers, KIND_TOWERS)
            model, config, _ = load_towers(towers, device, store)
            length = config.sampling.history_length
            ranks.add(name, towers_scores(model, store, data.test, length, device))
            best = manifest.facts["validation"][f"r@{run.retrieval.ks[0]}"]
            validation.setdefault(name, []).append(best)
        print(f"{name}: ranked with {len(seeds)} seeds", flush=True)
    return {
        "data": args.data.partition(":")[0],
        "versions": versions(),
        "users": {
            "train": len(data.train),
            "validation": len(data.validation.sequences),
            "test": len(data.test.sequences),
        },
        "items": len(store),
        "seeds": args.seeds,
        "ks": list(run.retrieval.ks),
        "tail_events": run.retrieval.tail_events,
        "history_in_use": "filtered" if run.retrieval.filter_history else "kept",
        "selection": f"epoch by validation r@{run.retrieval.ks[0]}, smoothed over "
        f"{run.towers.training.smoothing}; settings derived or given, none by the test",
        "ties": "a target's rank counts half of the items that score the same",
        "interval": "95 %, users resampled, metrics averaged over seeds",
        "settings": {
            name: configuration.dotted(configuration.to_dict(one.towers), "towers")
            for name, one in runs.items()
        },
        "validation": validation,
        "groups": ranks.compared(),
    }


class _Ranks:
    """The ranks of all test targets by every row, with the history and without."""

    def __init__(self, data: TowersSplit, store: ContentStore, run: Run) -> None:
        self._task, self._items, self._ks = data.test, len(store), run.retrieval.ks
        targets = data.test.targets
        masks = target_groups(
            data.train, len(store), data.test, run.retrieval.tail_events
        )
        self._owners, items = distinct_pairs(targets, len(store))
        self._groups = {
            name: _of_pairs(targets.filter(mask), self._owners, items, len(store))
            for name, mask in masks.items()
        }
        self._by_ranking: dict[str, dict[str, list[Float64Array]]] = {
            name: {} for name in _RANKINGS
        }

    def add(self, name: str, score: ScoreBlock) -> None:
        """Rank by a row; by each seed, if it has several."""
        task = self._task
        for ranking, is_filtered in _RANKINGS.items():
            history = task.history if is_filtered else None
            ranks = target_ranks(score, self._items, task.targets, history)
            self._by_ranking[ranking].setdefault(name, []).append(ranks)

    def compared(self) -> dict[str, Any]:
        """Return the comparison of all rows by group, ranking and metric."""
        return {
            group: {"targets": int(mask.sum()), "users": self._users(mask)}
            | {
                ranking: self._metrics(mask, rows)
                for ranking, rows in self._by_ranking.items()
                # Repeated targets are not in a ranking without the history.
                if mask.any() and not (group == "repeated" and _RANKINGS[ranking])
            }
            for group, mask in self._groups.items()
        }

    def _users(self, mask: BoolArray) -> int:
        return len(np.unique(self._owners[mask]))

    def _metrics(
        self, mask: BoolArray, rows: Mapping[str, Sequence[Float64Array]]
    ) -> dict[str, Any]:
        owners = np.unique(self._owners[mask], return_inverse=True)[1]
        count = self._users(mask)
        found: dict[str, Any] = {}
        for k in self._ks:
            by_row = {
                name: [user_metrics(ranks[mask], owners, count, k) for ranks in seeds]
                for name, seeds in rows.items()
            }
            for place, metric in enumerate(("r", "n")):
                values = {
                    name: [seed[place] for seed in seeds]
                    for name, seeds in by_row.items()
                }
                found[f"{metric}@{k}"] = compare_rows(values, LEARN)
        return found


def _of_pairs(
    chosen: Jagged, owners: Int64Array, items: Int64Array, num_items: int
) -> BoolArray:
    """Return which (user, target) pairs are among some targets."""
    users, rows = distinct_pairs(chosen, num_items)
    return np.isin(owners * num_items + items, users * num_items + rows)


if __name__ == "__main__":
    options.run(main)
