"""A training that goes on with other ranks, or tables divided otherwise."""

import problem
import pytest
import torch
from resharding_ranks import DIM, Leg, settings, train
from safetensors.torch import load_file

from learn_torchrec.training.optim import dense_optimizer, warmup_decay
from learn_torchrec.training.sharding import table_of

pytest_plugins = ["forked_ranks"]

# Case: the sharding and the ranks of three legs, which end at these steps.
STOPS = (4, 9, None)
COLUMNS = ("column_wise",) * 3
CASES = {
    "column_wise": COLUMNS,
    "column_wise/adagrad": COLUMNS,
    "column_wise to rows": ("column_wise", "row_wise", "column_wise"),
}
RANKS = (2, 3, 1)


def parts(kind: str, ranks: int) -> list[slice]:
    """Return the columns that lie together."""
    width = DIM // ranks if kind == "column_wise" else DIM
    return [slice(first, first + width) for first in range(0, DIM, width)]


def unsharded(case: str, kinds: tuple[str, ...]) -> dict[str, torch.Tensor]:
    """Return weights and Adagrad's sums of plain modules after all three legs.

    Each column keeps a sum. Row-wise, those that lie together share their mean.
    """
    config = settings(case)
    task = problem.unsharded(config)
    tables = {name: p for name, p in task.named_parameters() if table_of(name)}
    others = [(n, p) for n, p in task.named_parameters() if n not in tables]
    optimizer, rate = dense_optimizer(others, config.optimizer), config.tables
    steps = problem.ROWS // config.training.batch_size
    schedule = warmup_decay(
        optimizer, steps, config.optimizer.warmup, config.training.decay
    )
    sums = {name: torch.zeros_like(table) for name, table in tables.items()}
    is_row_wise = config.tables.optimizer == "rowwise_adagrad"
    for step, batch in enumerate(problem.impressions(config).batches(epoch=0)):
        leg = sum(stop is not None and step >= stop for stop in STOPS)
        task.zero_grad()
        task(batch)[0].backward()
        factor = optimizer.param_groups[0]["lr"] / config.optimizer.learning_rate
        optimizer.step()
        schedule.step()
        for name, table in tables.items():
            total = sums[name].add_(table.grad.square())
            for columns in parts(kinds[leg], RANKS[leg]) if is_row_wise else ():
                total[:, columns] = total[:, columns].mean(1, keepdim=True)
            moved = table.grad / (total.sqrt() + rate.eps)
            table.data.sub_(moved, alpha=rate.learning_rate * factor)
    found = {name: table.detach() for name, table in tables.items()}
    for name, total in sums.items():
        found[f"{name}/momentum1"] = total[:, 0] if is_row_wise else total
    return found


def test_tables_go_on_with_other_ranks_and_parts(run_ranks, tmp_path, one_rank):
    for leg, (ranks, stop) in enumerate(zip(RANKS, STOPS, strict=True)):
        kinds = {case: kinds[leg] for case, kinds in CASES.items()}
        ended = run_ranks(train, *[Leg(tmp_path, kinds, stop)] * ranks)
        assert [code for code, _ in ended] == [0] * ranks, ended[0][1]
    for case, kinds in CASES.items():
        found = load_file(tmp_path / f"{case}.safetensors")
        for name, value in unsharded(case.partition(" ")[0], kinds).items():
            torch.testing.assert_close(
                *(found[name], value),
                atol=1e-5,
                rtol=1e-4,
                msg=lambda text, at=f"{case}, {name}": f"{at}: {text}",
            )
            assert value.abs().sum() > 0 or pytest.fail(name)
