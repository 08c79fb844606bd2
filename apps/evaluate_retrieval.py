"""Stage 4: can the towers find what held-out users do next?"""

from collections.abc import Sequence
from pathlib import Path

from apps import options
from learn_torchrec.content.store import ContentStore
from learn_torchrec.datasets import open_dataset
from learn_torchrec.datasets.histories import load_histories
from learn_torchrec.errors import UserError
from learn_torchrec.evaluation.ranking import to_json
from learn_torchrec.towers.export import load_towers
from learn_torchrec.towers.holdout import (
    evaluate_baselines,
    evaluate_towers,
    retrieval_task,
    split_users,
)
from learn_torchrec.training.distributed import process_group

KS = (50, 100)
_COLUMNS = tuple(f"{metric}@{k}" for k in KS for metric in ("h", "r", "n"))


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
    cutoff = histories.times.towers_until
    with process_group() as device:
        towers, config, manifest = load_towers(args.towers, device)
        if manifest.cutoff is not None and manifest.cutoff > cutoff:
            raise UserError(
                f"leak: {args.towers} learned from events up to {manifest.cutoff}, "
                f"but the users to evaluate arrive from {cutoff} on (unix seconds); "
                "use the split that the towers were trained with"
            )
        users = split_users(histories.sequences, cutoff, run.split)
        task = retrieval_task(users.test, run.split.history_share)
        length = config.sampling.history_length
        rows = {
            "learn": evaluate_towers(towers, store, task, length, device, KS),
            **evaluate_baselines(users.train, store, task, KS),
        }
    options.write_json(args.out, {"retrieval": to_json(rows)})
    print(f"{len(users.test)} held-out users, {len(store)} items")
    print(f"{'':14}" + "".join(f"{column:>8}" for column in _COLUMNS))
    for name, metrics in rows.items():
        values = "".join(f"{metrics[column]:8.4f}" for column in _COLUMNS)
        print(f"{name:14}{values}")


if __name__ == "__main__":
    options.run(main)
