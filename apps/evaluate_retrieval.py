"""Stage 4: evaluate the towers' retrieval on held-out users or events."""

import argparse
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path

from learn_torchrec.artifact import Manifest, verify
from learn_torchrec.content.store import KIND as KIND_CONTENT
from learn_torchrec.content.store import ContentStore
from learn_torchrec.datasets.histories import load_histories
from learn_torchrec.errors import UserError
from learn_torchrec.evaluation.ranking import to_json
from learn_torchrec.evaluation.report.retrieval_summary import distinct_targets
from learn_torchrec.evaluation.report.terminal import align
from learn_torchrec.evaluation.retrieval import RetrievalMetrics
from learn_torchrec.evaluation.words import TARGETS, TARGETS_MEAN, ranked_by
from learn_torchrec.presets import Run
from learn_torchrec.provenance import refuse_leak
from learn_torchrec.schema import INTERACTIONS_FILE
from learn_torchrec.towers.artifact import (
    KIND_TOWERS,
    check_towers_inputs,
    load_towers,
    trained_users,
)
from learn_torchrec.towers.baselines import baseline_scores
from learn_torchrec.towers.holdout import (
    RetrievalTask,
    TowersSplit,
    only_unknown_users,
    split_towers,
)
from learn_torchrec.towers.retrieval import PROTOCOLS, RetrievalConfig, evaluate_groups
from learn_torchrec.towers.scores import towers_scores
from learn_torchrec.training.distributed import process_group

from .common import options, program

logger = logging.getLogger(__name__)

_LEAVE_ONE_OUT = ("recformer", "hstu")


def build_parser() -> argparse.ArgumentParser:
    """Return the app's options."""
    parser = options.parser("evaluate-retrieval", __doc__)
    options.add_data(parser)
    options.add_input(parser, "--content", "content store of the items")
    options.add_input(parser, "--towers", "trained towers")
    parser.add_argument(
        "--protocol",
        choices=sorted(PROTOCOLS),
        help="published protocol, in place of the configuration's",
    )
    parser.add_argument(
        "--part",
        choices=("test", "validation"),
        default="test",
        help="validation: to choose settings without looking at the test",
    )
    program.add_output_file(parser, "metrics as JSON")
    return parser


def main(argv: Sequence[str] | None = None) -> None:
    """Rank the whole catalogue for the users or events held out from training."""
    args = build_parser().parse_args(argv)
    given = [*options.paths_read(args), *options.config_read(args)]
    is_ours = program.json_with("retrieval")
    program.check_output_file(args.out, inputs=given, is_ours=is_ours)
    run = options.resolve(args)
    retrieval = _retrieval(run, args.protocol)
    dataset = options.dataset(args)
    for directory, kind in ((args.content, KIND_CONTENT), (args.towers, KIND_TOWERS)):
        verify(directory, kind)
    store = ContentStore.open(args.content)
    histories = load_histories(dataset, store, run.split)
    with process_group() as device:
        towers, config, manifest = load_towers(args.towers, device, store)
        check_towers_inputs(args.towers, manifest, store, run.split)
        sequences = histories.sequences.with_action_names(manifest.facts["actions"])
        data = split_towers(sequences, histories.times, run.split)
        refuse_leak(
            manifest,
            args.towers,
            data.known_until,
            "the events to evaluate",
            "train the towers on this log",
        )
        task = data.test if args.part == "test" else data.validation
        log = dataset.fingerprint(INTERACTIONS_FILE)
        if log != manifest.inputs.get(INTERACTIONS_FILE):
            task = _of_another_log(task, args.towers, manifest, run, data)
        if not len(task.sequences):
            raise UserError(
                f"split: no {args.part} user has split.min_events="
                f"{run.split.min_events} events; move split.towers_until earlier or "
                "lower split.min_events"
            )
        length = config.sampling.history_length
        scores = {
            "learn": towers_scores(towers, store, task, length, device),
            **baseline_scores(data, store, task, retrieval),
        }
        groups = evaluate_groups(scores, data.train, len(store), task, retrieval)
    body = {"retrieval": to_json(groups["all"])}
    body |= {
        f"{name}_targets": to_json(groups[name]) for name in ("new", "repeated", "tail")
    }
    options.write_json(args.out, body)
    print(f"{len(task.sequences)} {args.part} users, {len(store)} items")
    shown, notes = distinct_targets(body)
    for name, rows in shown.items():
        title = f"{TARGETS[name]} ({rows['learn']['targets']:,}){TARGETS_MEAN[name]}"
        print(f"\n{title}\n{_table(rows, retrieval.ks)}")
    if notes:
        print("\n" + "\n".join(notes))


def _of_another_log(
    task: RetrievalTask, towers: Path, manifest: Manifest, run: Run, data: TowersSplit
) -> RetrievalTask:
    """Return what the towers, trained on another log, cannot have learned from.

    A user may look new in a log from which old events were removed.

    Raises:
        UserError: `leave_one_out`, and events to retrieve are before the cut-off.
    """
    if run.split.holdout == "leave_one_out":
        refuse_leak(
            manifest,
            towers,
            data.held_out_from,
            "the events to retrieve of another log",
            "evaluate on the log of the towers' training",
        )
        return task
    unknown = only_unknown_users(task, trained_users(towers))
    if left_out := len(task.sequences) - len(unknown.sequences):
        logger.warning(
            "%d of %d users to evaluate were in the training of %s, on another log; "
            "left out",
            *(left_out, len(task.sequences), towers),
        )
    return unknown


def _retrieval(run: Run, protocol: str | None) -> RetrievalConfig:
    """Return the settings of a published protocol, or the configuration's."""
    if protocol is None:
        return run.retrieval
    if protocol in _LEAVE_ONE_OUT and run.split.holdout != "leave_one_out":
        raise UserError(
            f"--protocol {protocol}: is leave-one-out, split.holdout is "
            f"{run.split.holdout}; train with --preset amazon, or "
            "--set split.holdout=leave_one_out"
        )
    return PROTOCOLS[protocol]


def _table(rows: Mapping[str, RetrievalMetrics], ks: Sequence[int]) -> str:
    columns = [f"{metric}@{k}" for k in ks for metric in ("h", "r", "n")] + ["mrr"]
    lines = [["ranked by", *columns]]
    for name, metrics in rows.items():
        lines.append([ranked_by(name), *(f"{metrics[one]:.4f}" for one in columns)])
    return align(lines, left=(0,))


if __name__ == "__main__":
    options.run(main)
