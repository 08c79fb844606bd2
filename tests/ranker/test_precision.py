"""Tables in half precision, and rows that are fetched before they are needed."""

import problem
import pytest
import torch
from problem import Recorder
from torchrec.distributed.train_pipeline import TrainPipelineSparseDist

from learn_torchrec.config import replace
from learn_torchrec.errors import UserError
from learn_torchrec.ranker import training
from learn_torchrec.ranker.build import build_ranker, load_ranker, save_ranker
from learn_torchrec.ranker.scoring import score
from learn_torchrec.ranker.training import train_ranker
from learn_torchrec.training.sharding import has_cache, table_of


def config(case="row_wise", precision="float16", **options):
    base = problem.config(case, **options)
    return replace(base, tables=replace(base.tables, precision=precision))


def trained(settings, device):
    log = Recorder()
    rows = problem.impressions(settings)
    model, _, _ = train_ranker(settings, rows, device, log)
    return model, [line["loss"] for line in log.lines]


def tables(model) -> dict[str, torch.Tensor]:
    return {
        name: table.local_shards()[0].tensor
        for name, table in model.state_dict().items()
        if table_of(name)
    }


@pytest.mark.parametrize(
    ("case", "options"),
    [
        ("table_wise", {}),
        ("column_wise/adagrad", {}),
        ("row_wise/sgd", {"managed": True}),
    ],
)
def test_half_precision_tables_learn_nearly_the_same(
    case, options, one_rank, tmp_path
) -> None:
    settings = config(case, **options)
    model, losses = trained(settings, one_rank)
    found = tables(model)
    assert found
    assert {table.dtype for table in found.values()} == {torch.float16}
    _, expected = trained(config(case, "float32", **options), one_rank)
    assert losses == pytest.approx(expected, abs=2e-3)
    assert losses != expected
    save_ranker(model, tmp_path)
    loaded = build_ranker(settings, problem.SHAPE, one_rank)
    load_ranker(loaded, tmp_path)
    rows = problem.impressions(settings)
    before, after = (
        score(one, rows, 50, one_rank)["score"].tolist() for one in (model, loaded)
    )
    assert before == after


def test_attention_reads_half_precision_tables(one_rank) -> None:
    base = problem.architecture("table_wise")
    settings = replace(base, tables=replace(base.tables, precision="float16"))
    model, losses = trained(settings, one_rank)
    _, expected = trained(base, one_rank)
    assert {table.dtype for table in tables(model).values()} == {torch.float16}
    assert losses == pytest.approx(expected, abs=2e-3)


def test_replicated_tables_stay_float32(one_rank) -> None:
    with pytest.raises(UserError, match=r"data_parallel.*precision=float32"):
        build_ranker(config("data_parallel"), problem.SHAPE, one_rank)


@pytest.mark.parametrize("is_cached", [False, True])
def test_rows_of_cached_tables_are_fetched_ahead(
    is_cached, monkeypatch, one_rank
) -> None:
    """Which pipeline trains; the prefetching one itself runs on CUDA alone."""
    made = []
    for name in ("TrainPipelineSparseDist", "PrefetchTrainPipelineSparseDist"):

        def make(*arguments, name=name):
            made.append(name)
            return TrainPipelineSparseDist(*arguments)

        monkeypatch.setattr(training, name, make)

    def cached(model):
        for placements in model.plan.plan.values():
            for spec in placements.values():
                spec.compute_kernel = "fused_uvm_caching"
        return has_cache(model)

    monkeypatch.setattr(training, "has_cache", cached if is_cached else has_cache)
    trained(problem.config("row_wise"), one_rank)
    prefix = "Prefetch" if is_cached else ""
    assert made == [f"{prefix}TrainPipelineSparseDist"]


def test_a_ranker_is_planned_for_the_lengths_of_its_rows() -> None:
    rows = problem.impressions(problem.architecture("auto"))
    lengths = rows.mean_lengths()
    table = problem.table()
    assert lengths["user_id"] == 1.0
    mean = len(table["tags"].combine_chunks().flatten()) / problem.ROWS
    assert lengths["tags"] == pytest.approx(mean)
    assert lengths["history"] > 0
