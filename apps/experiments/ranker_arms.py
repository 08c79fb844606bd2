"""Rankers trained side by side: tuned alike, several seeds, tested once.

The baselines and `learn` draw the same settings from the same space and are compared on
the latest fifth of the training rows; the best draw of each is trained on everything
before the test. Finished trainings are kept: the same command goes on where it stopped.
"""

import argparse
import dataclasses
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch

from learn_torchrec import config as configuration
from learn_torchrec.array_files import read_if_intact, write_checked
from learn_torchrec.arrays import BoolArray, Float64Array, joined
from learn_torchrec.artifact import read_manifest, recipe_of, verify
from learn_torchrec.datasets.adapters.base import Dataset
from learn_torchrec.datasets.loading.in_memory import TableRows
from learn_torchrec.datasets.split import resolve_times, validation_from
from learn_torchrec.errors import UserError
from learn_torchrec.evaluation.auc import evaluate_auc
from learn_torchrec.evaluation.cohorts import ALL, assign_cohorts
from learn_torchrec.presets import Run
from learn_torchrec.provenance import refuse_vectors_leak
from learn_torchrec.ranker.config import RankerConfig
from learn_torchrec.ranker.features.lookups import open_lookups
from learn_torchrec.ranker.impressions import Impressions, encoding_of
from learn_torchrec.ranker.leaks import refuse_label_copies
from learn_torchrec.ranker.scoring import score
from learn_torchrec.ranker.training import train_ranker
from learn_torchrec.schema import (
    IMPRESSIONS_FILE,
    ITEM_ACTIVITY,
    LABEL,
    SCORE,
    TIMESTAMP,
    USER_ACTIVITY,
    USER_ID,
)
from learn_torchrec.training.run_log import RunLog

from ..common import options
from ..common.learn_inputs import (
    codes_artefact,
    open_codes,
    open_learn,
    ranker_tables,
    vector_artefacts,
)
from ..predict import cohort_activity

BASELINE, LEARN = "baseline", "learn"
_OFF = "ranker.learn.form=off"
_SECTION = "ranker."
_HELD_OUT = 0.2  # of the training rows, the latest
# A draw has one value of each, but of what an arm sets itself; the first draw is the
# run's own configuration.
_SPACE: dict[str, tuple[Any, ...]] = {
    "optimizer.learning_rate": (3e-4, 1e-3, 3e-3),
    "optimizer.weight_decay": (0.01, 0.1),
    "tables.learning_rate": (0.001, 0.003, 0.01, 0.03),
    "training.epochs": (1, 2, 3),
    "model.embedding_dim": (8, 16, 32),
}
_MOST_EPOCHS = max(_SPACE["training.epochs"])


@dataclass(frozen=True)
class Arm:
    """A ranker of the study.

    Attributes:
        ranker: its configuration.
        own: settings that the arm sets, which no draw changes, such as
            "training.epochs".
    """

    ranker: RankerConfig
    own: frozenset[str] = frozenset()

    @property
    def is_baseline(self) -> bool:
        """Whether LEARN is off."""
        return self.ranker.learn.form == "off"

    def with_draw(self, settings: dict[str, Any]) -> RankerConfig:
        """Return the configuration with drawn settings."""
        drawn = [f"{k}={v}" for k, v in settings.items() if k not in self.own]
        return configuration.apply_overrides(self.ranker, drawn)


@dataclass
class Study:
    """What all arms share.

    Attributes:
        args: of the command.
        dataset: with impressions.
        run: the configuration of `learn`.
        artefacts: fingerprints of vectors, content and codes.
        parts: bool masks of the impressions, by name: train, validation, test.
        device: of the trainings.
    """

    args: argparse.Namespace
    dataset: Dataset
    run: Run
    artefacts: dict[str, str]
    parts: dict[str, BoolArray]
    device: torch.device
    _rows: dict[Any, Impressions] = field(default_factory=dict)

    def columns(self, part: str) -> tuple[pa.Array, pa.Array]:
        """Return users and labels of a part."""
        table = self.table(part)
        return joined(table[USER_ID]), joined(table[LABEL])

    def scores(
        self, ranker: RankerConfig, train: str, test: str, seed: int
    ) -> Float64Array:
        """Train on a part and score another, unless that was done before.

        `train` may name two parts, joined by "+".
        """
        training = dataclasses.replace(ranker.training, seed=seed)
        ranker = dataclasses.replace(
            ranker,
            training=training,
            validation=dataclasses.replace(ranker.validation, share=0.0),
        )
        settings = {"ranker": configuration.deciding(ranker), "rows": [train, test]}
        split = configuration.deciding(self.run.split)
        tables = ranker_tables(self.dataset, ranker, open_codes(self.args))
        inputs = self.dataset.fingerprints(*tables) | self.artefacts
        recipe = recipe_of("study", settings | {"split": split}, inputs)
        path = self.args.out / "trainings" / f"{recipe[:24]}.npy"
        if (found := read_if_intact(path)) is not None:
            return found
        with (
            tempfile.TemporaryDirectory() as folder,
            RunLog(Path(folder) / "log") as log,
        ):
            refuse_label_copies(rows := self._of(train, ranker))
            model, *_ = train_ranker(ranker, rows, self.device, log)
        size = max(1024, ranker.training.batch_size)
        scores = score(model, self._of(test, ranker), size, self.device)
        made = scores[SCORE].astype(np.float64)
        if not np.isfinite(made).all():
            raise UserError(
                "a ranker gives scores that are not finite; lower "
                "ranker.optimizer.learning_rate or rescale ranker.features.dense"
            )
        path.parent.mkdir(exist_ok=True)
        write_checked(path, made)
        return made

    def _of(self, part: str, ranker: RankerConfig) -> Impressions:
        """Return impressions; rankers that encode alike share the encoded rows."""
        key = part, encoding_of(ranker)
        if key not in self._rows:
            actions = self.run.split.actions
            codes = open_codes(self.args)
            learn = None
            if ranker.learn.form != "off":
                learn = open_learn(self.args, self.dataset, ranker, actions)
            lookups = open_lookups(
                self.dataset, ranker.features, ranker.tasks, actions, codes
            )
            source = TableRows(self.table(part), None, IMPRESSIONS_FILE)
            self._rows[key] = Impressions(source, ranker, learn, lookups)
        return self._rows[key].with_config(ranker)

    def table(self, part: str) -> pa.Table:
        """Return the impressions of a part."""
        masks = [self.parts[name] for name in part.split("+")]
        return self.dataset.impressions.filter(pa.array(np.logical_or.reduce(masks)))


def arms_of(ranker: RankerConfig, given: Sequence[str]) -> dict[str, Arm]:
    """Return the arms by name.

    Raises:
        UserError: an arm that is not NAME:SETTING=VALUE, a name twice, or a setting
            that is not the ranker's.
    """
    off = configuration.apply_overrides(ranker, [_OFF.removeprefix(_SECTION)])
    arms = {BASELINE: Arm(off), LEARN: Arm(ranker)}
    if arms[LEARN].is_baseline:
        raise UserError(f"study: {_OFF} leaves nothing to study; set another form")
    for text in given:
        name, given_parts = options.named_settings(text, _SECTION, arms)
        parts = [part.removeprefix(_SECTION) for part in given_parts]
        changed = configuration.apply_overrides(ranker, parts)
        arms[name] = Arm(changed, frozenset(p.partition("=")[0] for p in parts))
    return arms


def prepare(
    args: argparse.Namespace, dataset: Dataset, run: Run, device: torch.device
) -> Study:
    """Split the impressions by time, and say what identifies the study."""
    times = resolve_times(run.split, dataset.moments)
    moments = dataset.impressions[TIMESTAMP].to_numpy()
    cut = validation_from(moments, times, _HELD_OUT)
    parts = {
        "train": (moments >= times.towers_until) & (moments < cut),
        "validation": (moments >= cut) & (moments < times.test_from),
        "test": moments >= times.test_from,
    }
    for name, mask in parts.items():
        if not mask.any():
            raise UserError(f"study: no impressions to {name} on; set split.*")
    artefacts: dict[str, str] = {}
    given = vector_artefacts(args) | codes_artefact(args)
    for role, (directory, kind) in given.items():
        verify(directory, kind)
        manifest = read_manifest(directory, kind)
        artefacts[role] = manifest.fingerprint
        if role == "vectors":
            refuse_vectors_leak(
                manifest, int(moments[parts["train"]].min()), "train on"
            )
    return Study(args, dataset, run, artefacts, parts, device)


def train_and_test(
    study: Study, arms: dict[str, Arm]
) -> tuple[dict[str, dict[str, Any]], dict[str, list[Float64Array]]]:
    """Tune and test all arms.

    Returns:
        What tuning found, by arm, and the test's scores [N] by arm and seed.
    """
    tuned: dict[str, dict[str, Any]] = {}
    scores: dict[str, list[Float64Array]] = {}
    seeds = range(1, study.args.seeds + 1)
    for name, arm in arms.items():
        is_tuned = name == LEARN or arm.is_baseline
        tuned[name] = tune(study, name, arm) if is_tuned else tuned[LEARN]
        ranker = arm.with_draw(tuned[name]["settings"])
        scores[name] = [
            study.scores(ranker, "train+validation", "test", seed) for seed in seeds
        ]
        print(f"{name}: trained with {len(seeds)} seeds", flush=True)
    return tuned, scores


def tune(study: Study, name: str, arm: Arm) -> dict[str, Any]:
    """Return the settings with the best validation UAUC, and the UAUC of all draws."""
    random = np.random.default_rng(0)  # the same draws for every arm
    users, labels = study.columns("validation")
    tried: list[dict[str, Any]] = []
    for trial in range(study.args.trials):
        settings = {k: v[random.integers(len(v))] for k, v in _SPACE.items()}
        if trial == 0:  # epochs that validation would cut short are no length
            validates = arm.ranker.validation.share > 0
            is_most = validates and arm.ranker.training.epochs > _MOST_EPOCHS
            settings = {"training.epochs": 2} if is_most else {}
        made = study.scores(arm.with_draw(settings), "train", "validation", 0)
        uauc = evaluate_auc(users, labels, made)["uauc"]
        tried.append({"settings": settings, "validation_uauc": uauc})
        print(f"{name} {settings or 'as configured'}: validation UAUC {uauc:.4f}")
    best = max(tried, key=lambda one: one["validation_uauc"])
    return {**best, "validation_uauc_of_all": [t["validation_uauc"] for t in tried]}


def cohorts_of(study: Study) -> dict[str, BoolArray]:
    """Return which test impressions are in each cohort, bool [N] by name."""
    table = cohort_activity(study.dataset, study.run).add_to(study.table("test"))
    masks = {ALL: np.ones(table.num_rows, bool)}
    for side, column in (("user", USER_ACTIVITY), ("item", ITEM_ACTIVITY)):
        activity = table[column].to_numpy()
        masks |= assign_cohorts(side, activity, study.run.cohorts)
    return masks
