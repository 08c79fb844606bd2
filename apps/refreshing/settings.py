"""The settings of one run of a refresh, from those that all its runs share."""

from learn_torchrec.config import replace
from learn_torchrec.presets import Run
from learn_torchrec.refresh.runs import RunPlan


def run_of(plan: RunPlan, shared: Run, rows: int, ranks: int) -> Run:
    """Return the settings of a run; the first differs from the shared ones in times.

    Later ones learn on what is new, at a constant and lower rate, and validate nothing:
    the gate decides.

    Args:
        plan: of the run.
        shared: the settings of all runs.
        rows: impressions that the ranker learns from.
        ranks: that share a batch.
    """
    split = replace(
        shared.split,
        towers_until=str(plan.towers_until),
        test_from=str(plan.test_from),
    )
    run = replace(shared, split=split)
    if plan.base is None:
        return run
    refresh, towers, ranker = shared.refresh, shared.towers, shared.ranker
    factor = refresh.learning_rate
    towers_optimizer, ranker_optimizer = (
        replace(one, learning_rate=factor * one.learning_rate, warmup=0.0)
        for one in (towers.optimizer, ranker.optimizer)
    )
    return replace(
        run,
        towers=replace(
            towers,
            optimizer=towers_optimizer,
            training=replace(
                towers.training,
                epochs=refresh.towers_epochs,
                table_learning_rate=factor * towers.training.table_learning_rate,
                active_from=str(plan.since),
                replay=refresh.replay_users,
            ),
        ),
        export=replace(shared.export, since=str(plan.towers_until)),
        ranker=replace(
            ranker,
            optimizer=ranker_optimizer,
            tables=replace(
                ranker.tables, learning_rate=factor * ranker.tables.learning_rate
            ),
            training=replace(
                ranker.training,
                epochs=refresh.ranker_epochs,
                decay="constant",
                batch_size=batch_that_fits(rows, ranker.training.batch_size, ranks),
            ),
            validation=replace(ranker.validation, share=0.0),
        ),
    )


def batch_that_fits(rows: int, batch_size: int, ranks: int) -> int:
    """Return the largest batch size of which whole batches take (nearly) all rows.

    Training drops the rest of a pass that is no whole batch, of a day a large part.
    """
    size = rows // max(1, -(-rows // batch_size))
    return max(size - size % ranks, ranks)
