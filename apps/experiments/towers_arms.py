"""Towers trained side by side, several seeds each, and ranked beside baselines.

An arm's epoch is chosen on the validation users; the test users are ranked for once
with each seed. Finished trainings are kept: the same command goes on where it stopped.
"""

import argparse
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch

from learn_torchrec import config as configuration
from learn_torchrec.artifact import read_manifest, verify, versions
from learn_torchrec.content.store import KIND as KIND_CONTENT
from learn_torchrec.content.store import ContentStore
from learn_torchrec.datasets.histories import load_histories
from learn_torchrec.errors import UserError
from learn_torchrec.evaluation.retrieval import ScoreBlock
from learn_torchrec.presets import Run
from learn_torchrec.towers.artifact import KIND_TOWERS, load_towers
from learn_torchrec.towers.baselines import baseline_scores
from learn_torchrec.towers.holdout import TowersSplit, split_towers
from learn_torchrec.towers.scores import towers_scores
from learn_torchrec.towers.target_ranks import TargetRanks
from learn_torchrec.training.run_log import RUN_LOG

from .. import train_towers
from ..common import options

FULL_SOFTMAX = ("towers.loss.logit_adjustment=0", "towers.loss.unseen_weight=1")
# Ids alone are at their best as in SASRec with full softmax: room for rare items, whom
# ids do not know, only costs them recall.
IDS_ALONE = ("towers.model.inputs=id", *FULL_SOFTMAX)
SECTION = "towers."


@dataclass(frozen=True)
class TowersArm:
    """Towers of a study.

    Attributes:
        content: store that they read.
        settings: what they change of the study's configuration.
        starts: towers of another catalogue that each seed starts from; none for random
            weights.
    """

    content: Path
    settings: tuple[str, ...] = ()
    starts: tuple[Path, ...] = ()

    def resolve(self, args: argparse.Namespace) -> Run:
        """Return the configuration: that of the options, with this arm's settings.

        No ranker follows: users who were seen before can test the towers, too.
        """
        changed = argparse.Namespace(**vars(args), for_ranker=False)
        changed.overrides = [*args.overrides, *self.settings]
        return options.resolve(changed, ("split", "towers", "retrieval"))

    def train(self, args: argparse.Namespace, out: Path, seed: int) -> None:
        """Train towers into `out`, unless that was done."""
        given = ["--data", args.data, "--content", str(self.content)]
        given += ["--out", str(out), "--overwrite"]
        given += ["--strict"] if args.strict else []
        given += ["--preset", args.preset] if args.preset else []
        given += ["--config", str(args.config)] if args.config else []
        if self.starts:
            given += ["--warm-start", str(self.starts[seed]), "--other-catalogue"]
        split = self.resolve(args).split
        changes = [
            f"split.holdout={split.holdout}",
            f"split.towers_until={split.towers_until}",
            f"split.test_from={split.test_from}",
            *args.overrides,
            *self.settings,
            f"towers.training.seed={seed}",
        ]
        train_towers.main([*given, "--set", *changes])


def train_arms(
    args: argparse.Namespace, arms: Mapping[str, TowersArm], folder: Path
) -> dict[str, list[Path]]:
    """Train every arm with every seed, in a folder; return the towers by arm.

    Raises:
        UserError: content, or towers of an earlier run, are damaged.
    """
    for content in {arm.content for arm in arms.values()}:
        verify(content, KIND_CONTENT)
    folder.mkdir(parents=True, exist_ok=True)
    trained: dict[str, list[Path]] = {}
    for name, arm in arms.items():
        trained[name] = [folder / f"{name}-{seed}" for seed in range(args.seeds)]
        for seed, out in enumerate(trained[name]):
            arm.train(args, out, seed)
            verify(out, KIND_TOWERS)
    return trained


def divide(args: argparse.Namespace, run: Run, store: ContentStore) -> TowersSplit:
    """Return training, validation and test of a log.

    Raises:
        UserError: there are no test users.
    """
    histories = load_histories(options.dataset(args), store, run.split)
    data = split_towers(histories.sequences, histories.times, run.split)
    if not len(data.test.sequences):
        raise UserError(
            f"split: no test user has split.min_events={run.split.min_events} events; "
            "move split.towers_until earlier or lower split.min_events"
        )
    return data


def rank_arms(
    args: argparse.Namespace,
    arms: Mapping[str, TowersArm],
    trained: Mapping[str, Sequence[Path]],
    reference: str,
    device: torch.device,
    further: Mapping[str, Sequence[ScoreBlock]] = MappingProxyType({}),
) -> dict[str, Any]:
    """Rank the catalogue for the test users by every row; compare all rows.

    Args:
        args: of the command.
        arms: by name.
        trained: towers of each arm, by seed.
        reference: the arm that the others are compared with. Baselines read its content
            and are evaluated by its configuration.
        device: of the towers.
        further: scores of rows beside the arms and the baselines, by seed.

    Raises:
        UserError: no test users, or stores of different items.
    """
    runs = {name: arm.resolve(args) for name, arm in arms.items()}
    run, first = runs[reference], arms[reference].content
    stores = {
        path: ContentStore.open(path) for path in {a.content for a in arms.values()}
    }
    store = stores[first]
    for path, other in stores.items():
        if not store.item_ids.equals(other.item_ids):
            raise UserError(f"{path}: has other items than {first}; encode both again")
    data = divide(args, run, store)
    ranks = TargetRanks(data, len(store), run.retrieval)
    rows = baseline_scores(data, store, data.test, run.retrieval)
    for name, scores in {**{n: [one] for n, one in rows.items()}, **further}.items():
        for score in scores:
            ranks.add(name, score)
    validation: dict[str, list[float | None]] = {}
    seconds: dict[str, list[float]] = {}
    for name, seeds in trained.items():
        read = stores[arms[name].content]
        for towers in seeds:
            manifest = read_manifest(towers, KIND_TOWERS)
            model, config, _ = load_towers(towers, device, read)
            length = config.sampling.history_length
            ranks.add(name, towers_scores(model, read, data.test, length, device))
            best = manifest.facts["validation"].get(f"r@{run.retrieval.ks[0]}")
            validation.setdefault(name, []).append(best)
            seconds.setdefault(name, []).append(_training_seconds(towers))
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
        "split": configuration.to_dict(run.split),
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
        "training_seconds": seconds,
        "groups": ranks.compared(reference),
    }


def _training_seconds(towers: Path) -> float:
    last = (towers / RUN_LOG).read_text().splitlines()[-1]
    return round(float(json.loads(last)["seconds"]), 1)
