"""The ranker beside TorchRec's DLRM: the same tables, batches, optimizer, pipeline.

Random data: 20 ID features of 100,000 rows x 32, 13 dense features, 2,048 rows a rank.
"off" is our ranker without LEARN, whose losses must equal DLRM's bit for bit before
anything is timed; "statistics" adds LEARN's residual with target-aware statistics over
histories of 80 items, "attention" also lets the candidate attend to them, "paper" has
the paper's form. From memory, batches are ready; from Parquet, each pass opens the
file, then reads, hashes and joins while it trains. Contenders of one launch run in
turns, as do launches of one and of two single-threaded ranks; ratios are medians over
the rounds.
"""

import argparse
import functools
import json
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
import torch.distributed as dist
from torch.optim.lr_scheduler import LambdaLR
from torchrec.datasets.utils import Batch
from torchrec.distributed.train_pipeline import TrainPipelineSparseDist
from torchrec.models.dlrm import DLRM, DLRMTrain

from learn_torchrec.artifact import Manifest
from learn_torchrec.config import replace
from learn_torchrec.datasets.loading.row_groups import RowGroups
from learn_torchrec.datasets.sequences import SequenceSet
from learn_torchrec.ranker.batch import RankingBatch
from learn_torchrec.ranker.build import build_ranker, ranker_optimizer
from learn_torchrec.ranker.config import (
    RankerConfig,
    RankerTrainingConfig,
    StreamConfig,
)
from learn_torchrec.ranker.encode import columns_of
from learn_torchrec.ranker.features import DenseFeature, FeaturesConfig, HashedFeature
from learn_torchrec.ranker.impressions import Impressions
from learn_torchrec.ranker.learn.config import LearnConfig
from learn_torchrec.ranker.learn.histories import Histories
from learn_torchrec.ranker.learn.inputs import LearnInputs
from learn_torchrec.ranker.learn.reduced import ReducedContent
from learn_torchrec.ranker.learn.vectors import LearnVectors
from learn_torchrec.ranker.tables import embedding_bag_collection, sharding_kinds
from learn_torchrec.training.distributed import gather_objects, is_writer, process_group
from learn_torchrec.training.loop import train_epoch
from learn_torchrec.training.sharding import init_tables, shard_tables
from learn_torchrec.vector_table import VectorTable

from ..common import options
from ..common.hardware import describe_machine
from . import measure

ROWS_PER_RANK = 2048
STEPS = 40
NUM_TABLES, TABLE_ROWS, NUM_DENSE = 20, 100_000, 13
VECTOR_DIM, IDS, HISTORY = 64, 10_000, 80
# What LEARN's part is made of, by contender.
FORMS = {
    "statistics": LearnConfig(history_length=HISTORY, neighbours=0),
    "attention": LearnConfig(
        history_length=HISTORY, neighbours=0, attention="content+id"
    ),
    "paper": LearnConfig(form="paper"),
}
_COMPARED_STEPS = 5
Contender = Callable[[], object]


def configuration() -> RankerConfig:
    """Return the measured configuration for this number of ranks."""
    return RankerConfig(
        features=FeaturesConfig(
            sparse=tuple(
                HashedFeature(column=f"id_{i}", num_embeddings=TABLE_ROWS)
                for i in range(NUM_TABLES)
            ),
            dense=tuple(DenseFeature(column=f"number_{i}") for i in range(NUM_DENSE)),
        ),
        training=RankerTrainingConfig(
            batch_size=ROWS_PER_RANK * dist.get_world_size(),
            stream=StreamConfig(enabled=True, lanes=4, shuffle_rows=8 * ROWS_PER_RANK),
        ),
    )


def write_impressions(path: Path, rows: int) -> None:
    """Write random impressions in row groups of 16,384."""
    random = np.random.default_rng(0)
    columns: dict[str, Any] = {
        "user_id": random.integers(0, IDS, rows),
        "item_id": random.integers(0, IDS, rows),
        "timestamp": np.arange(rows) + 1,
        "label": random.integers(0, 2, rows),
    }
    for i in range(NUM_TABLES):
        columns[f"id_{i}"] = random.integers(0, 10**12, rows)
    for i in range(NUM_DENSE):
        columns[f"number_{i}"] = random.standard_normal(rows, np.float32)
    columns["unused"] = [f"a column that nobody asked for {i}" for i in range(rows)]
    pq.write_table(pa.table(columns), path, row_group_size=16_384)


def random_inputs(learn: LearnConfig) -> LearnInputs:
    """Return vectors and histories, all older than every impression."""
    random = np.random.default_rng(1)
    tables = [
        VectorTable.build(
            ids=pa.array(np.arange(IDS)),
            times=times,
            vectors=random.standard_normal((IDS, VECTOR_DIM), np.float32),
        )
        for times in (np.zeros(IDS, np.int64), None)
    ]
    manifest = Manifest(kind="vectors", recipe="", config={}, inputs={})
    users, items = tables
    vectors = random.standard_normal((IDS, VECTOR_DIM), np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    content = ReducedContent.build(items.index, vectors.astype(np.float16), 0)
    return LearnInputs(
        vectors=LearnVectors(
            users=users, items=items, manifest=manifest, content=content
        ),
        content=content,
        config=learn,
        histories=Histories.build(
            SequenceSet.of_offsets(
                user_ids=pa.array(np.arange(IDS)),
                offsets=np.arange(IDS + 1) * HISTORY,
                items=np.concatenate(
                    [random.permutation(IDS)[:HISTORY] for _ in range(IDS)]
                ),
                times=np.zeros(IDS * HISTORY, np.int64),
                actions=np.zeros(IDS * HISTORY, np.int16),
                action_names=("click",),
            )
        ),
    )


def write_rates(path: Path, turns: int, out: Path) -> None:
    """Write examples/s of every contender over all ranks; called on every rank.

    Raises:
        AssertionError: with LEARN off, the losses differ from DLRM's.
    """
    with process_group() as device:
        contenders = make_contenders(path, device)
        seconds = measure.interleaved_medians(contenders, turns)
        slowest = gather_objects(seconds)
        rows = STEPS * ROWS_PER_RANK * dist.get_world_size()
        result = {
            name: rows / max(rank[name] for rank in slowest) for name in contenders
        }
        if is_writer():
            out.write_text(json.dumps(result))


def make_contenders(path: Path, device: torch.device) -> dict[str, Contender]:
    """Return one pass over the data for each way to train on it."""
    config = configuration()
    configs = {"off": config}
    configs |= {name: replace(config, learn=learn) for name, learn in FORMS.items()}
    given = {name: random_inputs(learn) for name, learn in FORMS.items()}

    def stream(name: str) -> Iterator[RankingBatch]:
        groups = RowGroups(path, columns_of(config))
        return Impressions(groups, configs[name], given.get(name)).batches(epoch=0)

    # Of streamed rows: the model computes the statistics, in each step.
    memory = {name: list(stream(name)) for name in configs}
    theirs = [
        Batch(batch.dense_features, batch.sparse_features, batch.labels["label"])
        for batch in memory["off"]
    ]
    models = {
        "dlrm": torchrec_dlrm(config, device),
        "off": build_ranker(config, None, device),
        **{
            name: build_ranker(configs[name], inputs.shape, device)
            for name, inputs in given.items()
        },
    }
    passes = {name: pass_over(model, config, device) for name, model in models.items()}
    losses = passes["off"](iter(memory["off"][:_COMPARED_STEPS]))
    their_losses = passes["dlrm"](iter(theirs[:_COMPARED_STEPS]))
    if losses != their_losses:
        raise AssertionError(f"LEARN off is not DLRM: {losses} and {their_losses}")

    contenders: dict[str, Contender] = {"dlrm": lambda: passes["dlrm"](iter(theirs))}
    for name in configs:
        run, batches = passes[name], memory[name]
        contenders[name] = functools.partial(_run, run, batches)
    for name in ("off", "statistics"):
        contenders[f"{name}_parquet"] = functools.partial(
            _run_stream, passes[name], functools.partial(stream, name)
        )
    return contenders


def _run(run: Callable[[Iterator[Any]], Any], batches: Iterable[Any]) -> None:
    run(iter(batches))


def _run_stream(
    run: Callable[[Iterator[Any]], Any], stream: Callable[[], Iterator[Any]]
) -> None:
    run(stream())


def torchrec_dlrm(config: RankerConfig, device: torch.device) -> Any:
    """Return TorchRec's DLRM with the same tables, sharded by the same planner."""
    torch.manual_seed(config.training.seed)
    shape, features = config.model, config.features
    model = DLRMTrain(
        DLRM(
            embedding_bag_collection(features.pooled, shape.embedding_dim),
            dense_in_features=features.dense_width,
            dense_arch_layer_sizes=[*shape.dense_layers, shape.embedding_dim],
            over_arch_layer_sizes=[*shape.over_layers, 1],
            dense_device=device,
        )
    )
    kinds = sharding_kinds(features, config.sharding)
    sharded = shard_tables(model, device, config.tables, kinds)
    init_tables(sharded, config.training.seed)
    return sharded


def pass_over(
    model: Any, config: RankerConfig, device: torch.device
) -> Callable[[Iterator[Any]], list[float]]:
    """Return a function that trains on batches and returns the losses."""
    optimizer = ranker_optimizer(model, config)
    constant = LambdaLR(optimizer, lambda step: 1.0)
    pipeline: TrainPipelineSparseDist[Any, Any] = TrainPipelineSparseDist(
        model, optimizer, device
    )

    def run(batches: Iterator[Any]) -> list[float]:
        losses: list[torch.Tensor] = []
        steps = train_epoch(
            pipeline, batches, constant, lambda output: losses.append(output[0])
        )
        result = torch.stack(losses).tolist()  # waits for the device
        if steps not in (STEPS, _COMPARED_STEPS):
            raise AssertionError(f"{steps} steps taken, {STEPS} wanted")
        return result

    return run


def launch(ranks: int, path: Path, turns: int) -> dict[str, float]:
    """Measure in fresh processes, `ranks` of them, one thread each."""
    out = path.with_name(f"rates_{ranks}.json")
    done = subprocess.run(
        [
            *(sys.executable, "-m", "torch.distributed.run", "--standalone"),
            *("--nproc_per_node", str(ranks), "-m", f"{__package__}.ranker"),
            *("--worker", str(path), "--json", str(out), "--turns", str(turns)),
        ],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
    )
    if done.returncode:
        raise RuntimeError(f"a run on {ranks} ranks failed:\n{done.stderr[-3000:]}")
    result: dict[str, float] = json.loads(out.read_text())
    return result


def _ratio(name: str, rates: dict[int, dict[str, float]]) -> float:
    return rates[1][name] / rates[1]["dlrm"]


def ratios(rounds: list[dict[int, dict[str, float]]]) -> dict[str, float]:
    """Return the medians over rounds of the ratios within a round."""

    def median(ratio: Callable[[dict[int, dict[str, float]]], float]) -> float:
        return statistics.median(ratio(measured) for measured in rounds)

    return {
        "off_over_dlrm": median(lambda r: r[1]["off"] / r[1]["dlrm"]),
        **{
            f"{name}_over_dlrm": median(functools.partial(_ratio, name))
            for name in FORMS
        },
        "parquet_over_memory": median(
            lambda r: r[1]["statistics_parquet"] / r[1]["statistics"]
        ),
        "off_parquet_over_memory": median(lambda r: r[1]["off_parquet"] / r[1]["off"]),
        "two_ranks_over_one": median(lambda r: r[2]["statistics"] / r[1]["statistics"]),
        "off_two_ranks_over_one": median(lambda r: r[2]["off"] / r[1]["off"]),
        "dlrm_two_ranks_over_one": median(lambda r: r[2]["dlrm"] / r[1]["dlrm"]),
    }


def main(argv: Sequence[str] | None = None) -> None:
    """Measure and print; write JSON where asked."""
    parser = measure.parser("ranker", __doc__)
    parser.add_argument(
        "--rounds", type=int, default=3, metavar="N", help="launches of each kind"
    )
    parser.add_argument(
        "--turns", type=int, default=1, metavar="N", help="turns in a launch"
    )
    parser.add_argument("--worker", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args(argv)
    if args.worker:
        write_rates(args.worker, args.turns, args.json)
        return
    measure.require_machine(2)
    with tempfile.TemporaryDirectory() as directory:
        paths = {}
        for ranks in (1, 2):
            paths[ranks] = Path(directory) / f"impressions_{ranks}.parquet"
            write_impressions(paths[ranks], STEPS * ROWS_PER_RANK * ranks)
        rounds = [
            {ranks: launch(ranks, path, args.turns) for ranks, path in paths.items()}
            for _ in range(args.rounds)
        ]
    result: dict[str, Any] = {"machine": describe_machine(), **ratios(rounds)}
    result["examples_per_s"] = {
        f"{name}, {ranks} rank(s)": round(
            statistics.median(measured[ranks][name] for measured in rounds)
        )
        for ranks in (1, 2)
        for name in rounds[0][1]
    }
    measure.publish(result, args.json)


if __name__ == "__main__":
    options.run(main)
