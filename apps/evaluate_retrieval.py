"""Stage 4: can the towers find what held-out users do next?"""

from collections.abc import Sequence
from pathlib import Path

from apps import options
from learn_torchrec.content.store import ContentStore
from learn_torchrec.datasets import open_dataset
from learn_torchrec.datasets.histories import load_histories
from learn_torchrec.errors import UserError
from learn_torchrec.evaluation.ranking import to_json
from learn_torchrec.evaluation.retrieval import RetrievalMetrics
from learn_torchrec.towers.export import check_towers_inputs, load_towers
from learn_torchrec.towers.holdout import (
    evaluate_baselines,
    evaluate_towers,
    retrieval_task,
    split_users,
)
from learn_torchrec.training.distributed import process_group


def main(argv: Sequence[str] | None = None) -> None:
    """Rank the whole catalogue for users who arrive after the towers' cut-off."""
    parser = options.parser("evaluate-retrieval", __doc__)
    options.add_data(parser)
    options.add_input(parser, "--content", "content store of the items")
    options.add_input(parser, "--towers", "trained towers")
    parser.add_argument(
        "--out", type=Path, required=True, metavar="FILE", help="metrics as JSON"
    )
    args = parser.parse_args(argv)
    run = options.resolve(args)
    dataset = open_dataset(args.data)
    store = ContentStore.open(args.content)
    histories = load_histories(dataset, store, run.split)
    with process_group() as device:
        towers, config, manifest = load_towers(args.towers, device)
        check_towers_inputs(args.towers, manifest, store, run.split)
        cutoff = histories.times.towers_until
        users = split_users(histories.sequences, cutoff, run.split)
        if manifest.cutoff is not None and cutoff < manifest.cutoff:
            raise UserError(
                f"leak: {args.towers} learned from events up to {manifest.cutoff}, "
                f"users to evaluate arrive from {cutoff} on (unix seconds); train the "
                "towers on this log"
            )
        task = retrieval_task(users.test, run.split.history_share)
        length = config.sampling.history_length
        rows = {
            "learn": evaluate_towers(
                towers, store, task, length, device, run.retrieval
            ),
            **evaluate_baselines(users.train, store, task, run.retrieval),
        }
    options.write_json(args.out, {"retrieval": to_json(rows)})
    print(f"{len(users.test)} held-out users, {len(store)} items")
    print(_table(rows, run.retrieval.ks))


def _table(rows: dict[str, RetrievalMetrics], ks: Sequence[int]) -> str:
    columns = [f"{metric}@{k}" for k in ks for metric in ("h", "r", "n")]
    lines = [f"{'':14}" + "".join(f"{column:>8}" for column in columns)]
    for name, metrics in rows.items():
        values = "".join(f"{metrics[column]:8.4f}" for column in columns)
        lines.append(f"{name:14}{values}")
    return "\n".join(lines)


if __name__ == "__main__":
    options.run(main)
