"""RecBole's SASRec with full softmax, as a row of `study-retrieval`.

RecBole's model and loss, trained on the same users and events as the towers: every
prefix of a history with its next item, as RecBole's own data loader makes them.
Learning rate and dropout are chosen, and training is stopped, by NDCG@10 on the
validation users. Its recommendations for the test users are written as
`study-retrieval --recommended sasrec=FILE` reads them. Needs RecBole's wheel
(requirements/no-deps.txt) and what it imports (requirements/dev.txt).
"""

import itertools
import json
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from torch import Tensor

from learn_torchrec.arrays import Int64Array
from learn_torchrec.content.store import ContentStore
from learn_torchrec.datasets.sequences import SequenceSet
from learn_torchrec.evaluation.retrieval import evaluate_scores
from learn_torchrec.schema import ITEM_ID, USER_ID
from learn_torchrec.towers.holdout import RetrievalTask, TowersSplit

from ..common import options, program
from ..common.hardware import describe_machine
from ..experiments.towers_arms import TowersArm, divide
from . import measure

LENGTH, BATCH, EPOCHS, PATIENCE = 50, 2048, 100, 5
_RATES, _DROPOUTS = (1e-3, 3e-3), (0.3, 0.5)
_LISTED = 1_000  # recommendations of a user
_USERS_AT_ONCE = 512
_SHAPE = {
    "n_layers": 2,
    "n_heads": 2,
    "hidden_size": 64,
    "inner_size": 256,
    "hidden_act": "gelu",
    "layer_norm_eps": 1e-12,
    "initializer_range": 0.02,
    "loss_type": "CE",
}


class Histories(NamedTuple):
    """Padded histories, item 0 is none, and the item that comes next.

    Attributes:
        items: int64 [N, LENGTH].
        lengths: int64 [N].
        following: int64 [N].
    """

    items: Tensor
    lengths: Tensor
    following: Tensor


class _Dataset:
    """What RecBole's model asks of a data set."""

    def __init__(self, num_items: int) -> None:
        self._num_items = num_items

    def num(self, _: str) -> int:
        return self._num_items + 1


def build_model(num_items: int, dropout: float) -> Any:
    """Return RecBole's SASRec for a catalogue."""
    from recbole.model.sequential_recommender import SASRec

    torch.autograd.set_detect_anomaly(False)  # importing RecBole's models turns it on
    settings = _SHAPE | {
        "hidden_dropout_prob": dropout,
        "attn_dropout_prob": dropout,
        "USER_ID_FIELD": "user_id",
        "ITEM_ID_FIELD": "item_id",
        "LIST_SUFFIX": "_list",
        "ITEM_LIST_LENGTH_FIELD": "item_length",
        "NEG_PREFIX": "neg_",
        "MAX_ITEM_LIST_LENGTH": LENGTH,
        "device": torch.device("cpu"),
    }
    return SASRec(settings, _Dataset(num_items))


def prefixes(sequences: SequenceSet) -> Histories:
    """Return every prefix of every user's events with its next item."""
    ends = [
        end
        for start, stop in zip(sequences.starts, sequences.ends, strict=True)
        for end in range(start + 1, stop)
    ]
    owners = sequences.owners(np.array(ends))
    first = np.maximum(sequences.starts[owners], np.array(ends) - LENGTH)
    return _padded(sequences, first, np.array(ends))


def histories_of(task: RetrievalTask) -> Histories:
    """Return the history of every user of a task with its first target."""
    ends = task.last_history + 1
    first = np.maximum(task.sequences.starts, ends - LENGTH)
    return _padded(task.sequences, first, ends)


def _padded(sequences: SequenceSet, first: Int64Array, ends: Int64Array) -> Histories:
    items = np.zeros((len(ends), LENGTH), np.int64)
    for row, (start, end) in enumerate(zip(first, ends, strict=True)):
        items[row, : end - start] = sequences.items[start:end] + 1
    following = sequences.items[ends].astype(np.int64) + 1
    arrays = items, ends - first, following
    return Histories(*(torch.from_numpy(np.ascontiguousarray(one)) for one in arrays))


def train(
    data: TowersSplit, num_items: int, rate: float, dropout: float, seed: int
) -> tuple[float, Any, list[tuple[float, float]]]:
    """Train until validation stops it.

    Returns:
        The best validation N@10, the model of that epoch, and for each epoch the
        seconds so far and its N@10.
    """
    torch.manual_seed(seed)
    model = build_model(num_items, dropout)
    optimizer = torch.optim.Adam(model.parameters(), lr=rate)
    rows = prefixes(data.train)
    best, kept, course = -1.0, {}, []
    since, started = 0, time.perf_counter()
    for _ in range(EPOCHS):
        model.train()
        for part in torch.randperm(len(rows.lengths)).split(BATCH):
            optimizer.zero_grad()
            loss = model.calculate_loss(
                {
                    "item_id_list": rows.items[part],
                    "item_length": rows.lengths[part],
                    "item_id": rows.following[part],
                }
            )
            loss.backward()
            optimizer.step()
        found = _quality(scores_of(model, data.validation), data.validation)
        course.append((round(time.perf_counter() - started, 1), found))
        print(f"rate {rate}, dropout {dropout}: {course[-1]}", flush=True)
        since += 1
        if found > best:
            best, since = found, 0
            kept = {name: value.clone() for name, value in model.state_dict().items()}
        if since >= PATIENCE:
            break
    model.load_state_dict(kept)
    return best, model, course


def _quality(scores: Tensor, task: RetrievalTask) -> float:
    def score(start: int, stop: int) -> Tensor:
        return scores[start:stop]

    return evaluate_scores(score, scores.shape[1], task.targets, ks=(10,))["n@10"]


@torch.no_grad()
def scores_of(model: Any, task: RetrievalTask) -> Tensor:
    """Return the scores of the catalogue, float32 [users, items]."""
    model.eval()
    rows = histories_of(task)
    parts = []
    for part in torch.arange(len(rows.lengths)).split(_USERS_AT_ONCE):
        output = model.forward(rows.items[part], rows.lengths[part])
        parts.append(output @ model.item_embedding.weight[1:].T)
    return torch.cat(parts)


def recommendations(
    scores: Tensor, task: RetrievalTask, store: ContentStore
) -> Iterator[pa.Table]:
    """Yield the best items of each user, in the form of `recommend --out`."""
    users, items = task.sequences.user_ids, store.item_ids
    count = min(_LISTED, scores.shape[1])
    for part in torch.arange(len(scores)).split(_USERS_AT_ONCE):
        best = scores[part].topk(count).indices
        yield pa.table(
            {
                USER_ID: users.take(pa.array(part.repeat_interleave(count).numpy())),
                ITEM_ID: items.take(pa.array(best.flatten().numpy())),
                "rank": pa.array(np.tile(np.arange(1, count + 1), len(part))),
            }
        )


def main(argv: Sequence[str] | None = None) -> None:
    """Tune, train, write recommendations and what was found."""
    parser = options.parser("sasrec", __doc__)
    parser.prog = f"python -m apps.benchmarks.{parser.prog.split()[-1]}"
    options.add_data(parser)
    options.add_input(parser, "--content", "content store: the catalogue")
    parser.add_argument("--out", type=Path, required=True, metavar="FILE")
    parser.add_argument("--seed", type=int, default=0, metavar="N")
    args = parser.parse_args(argv)
    measure.require(recbole="recbole", colorlog="colorlog", scipy="scipy")
    program.check_output_file(args.out, "Parquet")
    store = ContentStore.open(args.content)
    data = divide(args, TowersArm(args.content).resolve(args), store)
    tried = [
        (*train(data, len(store), rate, dropout, args.seed), rate, dropout)
        for rate, dropout in itertools.product(_RATES, _DROPOUTS)
    ]
    best, model, course, rate, dropout = max(tried, key=lambda one: one[0])
    tables = list(recommendations(scores_of(model, data.test), data.test, store))
    pq.write_table(pa.concat_tables(tables), args.out)
    found = {
        "validation_n@10": best,
        "learning_rate": rate,
        "dropout": dropout,
        "course": course,
        "tuning_seconds": sum(one[2][-1][0] for one in tried),
        "machine": describe_machine(),
    }
    args.out.with_suffix(".json").write_text(json.dumps(found, indent=2) + "\n")
    print(f"written to {args.out}")


if __name__ == "__main__":
    program.run(main)
