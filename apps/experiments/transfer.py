"""Towers of one catalogue on another: at once, after fine-tuning, and from scratch."""

import argparse
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from learn_torchrec import config as configuration
from learn_torchrec.errors import UserError
from learn_torchrec.training.distributed import process_group

from ..common import options
from .base import LLM, Goal, Request
from .towers_arms import TowersArm, rank_arms, train_arms
from .towers_tables import Row, summary

ZERO_SHOT, FINE_TUNED, SCRATCH = "zero_shot", "fine_tuned", "scratch"
_CONTENT = ("towers.model.inputs=content",)
_ROWS = {
    ZERO_SHOT: Row(title="towers of the other catalogue"),
    FINE_TUNED: Row(title="the same, fine-tuned here"),
    SCRATCH: Row(title="towers trained here alone"),
}
_GOALS = (
    Goal(row=ZERO_SHOT, than="popularity", group="new"),
    Goal(row=ZERO_SHOT, than="content_mean"),
    Goal(row=FINE_TUNED, than=SCRATCH),
)


@dataclass(frozen=True)
class Transfer:
    """What towers learned on one catalogue is worth on another with the same LLM."""

    title: str = "Towers of one catalogue on another, without training and after it"

    def check(self, request: Request) -> None:
        """Look for both data sets and the encoder, and resolve the towers."""
        if request.args.source is None:
            raise UserError("transfer: name the other data set with --source")
        request.refuse_absent([LLM])
        for one in (request, _of_source(request)):
            _scratch(one).resolve(one.args)

    def run(self, request: Request) -> dict[str, Any]:
        """Encode both catalogues, train on the other, rank here."""
        source = _of_source(request)
        for one in (source, request):
            one.encode(LLM)
        known = train_arms(source.args, {ZERO_SHOT: _scratch(source)}, source.towers)
        shape = _shape(source)
        arms = {
            ZERO_SHOT: _scratch(request),
            FINE_TUNED: TowersArm(
                request.content(LLM), (*_CONTENT, *shape), tuple(known[ZERO_SHOT])
            ),
            SCRATCH: _scratch(request),
        }
        here = {name: arms[name] for name in (FINE_TUNED, SCRATCH)}
        trained = known | train_arms(request.args, here, request.towers)
        with process_group() as device:
            found = rank_arms(request.args, arms, trained, SCRATCH, device)
        return found | summary(
            found, _ROWS, SCRATCH, _GOALS, ("r", "n"), notes=[_note(source)]
        )


def _of_source(request: Request) -> Request:
    """Return the request for the other data set; its files lie in `source`."""
    args = argparse.Namespace(**vars(request.args))
    args.data, args.out = args.source, args.out / "source"
    vars(args).pop("opened", None)
    # Settings of the split are about this catalogue's log.
    args.overrides = [one for one in args.overrides if not one.startswith("split.")]
    return Request(args, request.encoders)


def _scratch(request: Request) -> TowersArm:
    return TowersArm(request.content(LLM), _CONTENT)


def _shape(source: Request) -> Sequence[str]:
    """Return the settings of the towers' shape, which another log may not derive."""
    model = _scratch(source).resolve(source.args).towers.model
    dotted = configuration.dotted(configuration.to_dict(model), "towers.model")
    return [
        f"{name}={value}"
        for name, value in dotted.items()
        if name.startswith("towers.model.encoder.")
    ]


def _note(source: Request) -> str:
    dataset = options.dataset(source.args)
    return (
        f"The other catalogue: {source.args.data.partition(':')[0]}, "
        f"{len(dataset.item_ids):,} items. All towers read the text alone; nothing of "
        "this log chose the first row's length of training."
    )


TRANSFER = Transfer()
