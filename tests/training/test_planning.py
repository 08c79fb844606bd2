"""Plans of declared clusters, by TorchRec's planner; no GPU is needed."""

import json

import pytest
import torch
from problem import EMBEDDING_DIM
from torchrec import (
    EmbeddingBagCollection,
    EmbeddingBagConfig,
    EmbeddingCollection,
    EmbeddingConfig,
)
from torchrec.modules.embedding_configs import DataType

from learn_torchrec import host_memory
from learn_torchrec.apps import plan as app
from learn_torchrec.errors import UserError
from learn_torchrec.training import planning
from learn_torchrec.training.planning import GIB, Cluster, Workload, plan_tables
from learn_torchrec.training.sharding import has_cache, shard_tables
from learn_torchrec.training.table_optimizer import (
    TableOptimizerConfig,
    step_in_backward,
)

USERS, ITEMS, HOURS = (1_000_000_000, 64), (31_000_000, 64), (24, 16)
ADAGRAD = TableOptimizerConfig(optimizer="adagrad")
META = torch.device("meta")


def cuda(nodes: int, hbm: float, host: float) -> Cluster:
    return Cluster(
        nodes=nodes,
        ranks_per_node=8,
        device="cuda",
        hbm_bytes=int(hbm * GIB),
        host_bytes=int(host * GIB),
    )


def planned(
    cluster, *shapes, optimizer=None, kinds=None, half=False, lengths=None, batch=1024
):
    """Return the choice for each table `t0`, `t1`, ... by name."""
    optimizer = optimizer or TableOptimizerConfig()
    tables = [
        EmbeddingBagConfig(
            name=f"t{n}",
            num_embeddings=rows,
            embedding_dim=dim,
            feature_names=[f"f{n}"],
            data_type=DataType.FP16 if half else DataType.FP32,
        )
        for n, (rows, dim) in enumerate(shapes)
    ]
    model = torch.nn.Sequential(EmbeddingBagCollection(device=META, tables=tables))
    step_in_backward(model.parameters(), optimizer)
    work = Workload(batch_size=batch, lengths=lengths or {})
    found = plan_tables(model, kinds or {}, cluster, work, optimizer)
    return {one.name: one for one in found.tables}


def gpu_bytes(cluster, choices) -> list[int]:
    held = [0] * cluster.ranks
    for one in choices.values():
        shards = one.shards
        for rank in range(cluster.ranks):
            mine = [s for s in shards if s.rank == rank]
            if one.sharding_type == "data_parallel":
                mine = shards[:1]
            held[rank] += sum(shard.storage.hbm for shard in mine)
    return held


def test_8_gpus_of_80_gb_hold_a_table_of_238_gib() -> None:
    cluster = cuda(1, hbm=80, host=1000)
    found = planned(cluster, USERS, ITEMS, HOURS)
    assert found["t0"].compute_kernel == "fused"
    assert len(found["t0"].shards) == 8
    held = gpu_bytes(cluster, found)
    # 238.4 GiB and 3.7 of row-wise Adagrad, 7.4 GiB of the items.
    assert sum(held) / GIB == pytest.approx(238.4 + 3.7 + 7.5, abs=1)
    assert max(held) / GIB < 0.85 * 80
    # A table of a few KB is copied to all ranks instead of asked for.
    assert found["t2"].sharding_type == "data_parallel"
    assert found["t2"].compute_kernel == "dense"


def test_64_gpus_of_80_gb_hold_a_terabyte() -> None:
    cluster = cuda(8, hbm=80, host=1000)
    found = planned(cluster, (5_000_000_000, 64), ITEMS)
    assert found["t0"].compute_kernel == "fused"
    assert found["t0"].sharding_type == "row_wise"  # a node has too little for all
    assert len(found["t0"].shards) == 64
    assert max(gpu_bytes(cluster, found)) / GIB < 0.85 * 80
    # Within a node rows travel fast, so a table that fits one stays there.
    assert planned(cluster, USERS)["t0"].sharding_type == "table_row_wise"


@pytest.mark.parametrize("gib", [100, 200, 400])
def test_8_gpus_of_24_gb_keep_large_tables_in_host_memory(gib: int) -> None:
    cluster = cuda(1, hbm=24, host=1000)
    rows = gib * GIB // 256
    found = planned(cluster, (rows, 64), ITEMS)
    is_small = gib == 100  # 12.5 GiB a GPU
    assert found["t0"].compute_kernel == ("fused" if is_small else "fused_uvm_caching")
    assert max(gpu_bytes(cluster, found)) / GIB < 0.85 * 24
    host = sum(shard.storage.ddr for shard in found["t0"].shards) / GIB
    assert host == pytest.approx(0 if is_small else gib * (1 + 1 / 64), rel=0.01)
    if not is_small:
        assert found["t0"].cache_params.prefetch_pipeline


def test_half_precision_halves_what_is_held() -> None:
    cluster = cuda(1, hbm=24, host=1000)
    found = planned(cluster, USERS, half=True)
    assert found["t0"].compute_kernel == "fused"
    assert sum(gpu_bytes(cluster, found)) / GIB == pytest.approx(119.2 + 1.9, abs=1)


def test_what_cannot_fit_is_refused_with_the_reason_and_the_fix() -> None:
    cluster = cuda(1, hbm=24, host=200)
    with pytest.raises(UserError) as refused:
        planned(cluster, USERS, ITEMS)
    message = str(refused.value)
    assert "the tables need 249.7 GiB" in message
    assert "t0 alone 242.1 GiB" in message
    assert "192.0 GiB of GPU and 160.0 GiB of host memory" in message
    assert "ranker.tables.precision=float16" in message
    assert "\n" not in message
    with pytest.raises(UserError, match="pinned: t0 table_wise"):
        planned(cuda(1, 80, 100), USERS, kinds={"t0": "table_wise"})


def test_memory_of_the_dense_part_is_left_free() -> None:
    model = torch.nn.Linear(1024, 1024, bias=False, device=META)
    cluster = cuda(1, hbm=10, host=10)
    reserved = planning._reserved(model, {}, cluster)
    assert reserved == int(GIB + 6 * 4 * 1024**2 + 1.5 * GIB)


def test_columns_are_divided_where_no_state_spans_a_row() -> None:
    table = torch.nn.Parameter(torch.empty(1_000_000, 64, device=META))
    cluster = cuda(2, hbm=80, host=1000)
    columns = {"column_wise", "table_column_wise", "grid_shard"}
    assert columns <= set(planning._choices(table, cluster, ADAGRAD))
    by_row = planning._choices(table, cluster, TableOptimizerConfig())
    assert by_row == ["table_wise", "row_wise", "table_row_wise"]


@pytest.mark.parametrize(
    "kind", ["column_wise", "table_column_wise", "table_row_wise", "grid_shard"]
)
def test_a_pinned_kind_is_planned(kind: str) -> None:
    found = planned(
        cuda(2, hbm=80, host=1000),
        (1_000_000, 64),
        kinds={"t0": kind},
        optimizer=ADAGRAD,
    )
    assert found["t0"].sharding_type == kind


def test_unpooled_tables_are_never_replicated() -> None:
    table = EmbeddingConfig(
        name="t", num_embeddings=24, embedding_dim=16, feature_names=["f"]
    )
    model = torch.nn.Sequential(EmbeddingCollection(device=META, tables=[table]))
    optimizer = TableOptimizerConfig()
    step_in_backward(model.parameters(), optimizer)
    found = plan_tables(model, {}, cuda(1, 80, 1000), Workload(), optimizer)
    assert found.tables[0].compute_kernel == "fused"


def test_batch_and_lengths_count_in_the_estimates() -> None:
    cluster = cuda(1, hbm=80, host=1000)

    def cost(**options):
        (one,) = planned(cluster, ITEMS, kinds={"t0": "row_wise"}, **options).values()
        return one.total_perf, one.total_storage.hbm

    base, longer, larger = cost(), cost(lengths={"f0": 50.0}), cost(batch=32_768)
    assert base[0] < longer[0]
    assert base[1] < longer[1]
    assert base[0] < larger[0]
    assert base[1] < larger[1]


def test_a_job_is_planned_for_the_memory_of_its_machine(
    monkeypatch: pytest.MonkeyPatch, one_rank
) -> None:
    def shard():
        table = EmbeddingBagConfig(
            name="t", num_embeddings=1000, embedding_dim=64, feature_names=["f"]
        )
        bags = EmbeddingBagCollection(device=META, tables=[table])
        model = torch.nn.Sequential(bags)
        return shard_tables(model, one_rank, TableOptimizerConfig())

    assert not has_cache(shard())
    monkeypatch.setattr(planning, "host_memory", lambda: 200_000)
    with pytest.raises(UserError, match=r"have 0\.0 GiB of host"):
        shard()


def test_a_container_s_limit_is_the_machine_s_memory(monkeypatch, tmp_path) -> None:
    limit = tmp_path / "memory.max"
    monkeypatch.setattr(host_memory, "_CGROUP_LIMIT", limit)
    whole = host_memory.host_memory()
    limit.write_text("1000000\n")
    assert host_memory.host_memory() == 1_000_000
    limit.write_text("max\n")
    assert host_memory.host_memory() == whole > 1_000_000


def command(*options: str) -> list[str]:
    return ["--set=ranker.training.batch_size=8192", *options]


def test_the_command_prints_who_holds_what(tmp_path, capsys) -> None:
    out = tmp_path / "plan.json"
    tables = ["--table=user=1000000000x64", "--table=hour=24x16"]
    app.main(command(*tables, "--length=user=3", f"--out={out}"))
    printed = capsys.readouterr().out
    assert printed.startswith("It fits: 1 x 8 ranks on cuda, 80 GiB a GPU")
    assert "t_user  1,000,000,000 x 64  238.42  row_wise" in printed
    facts = json.loads(out.read_text())
    assert facts["rows_per_rank"] == 1024
    assert facts["tables"]["t_user"]["ranks"] == list(range(8))
    assert facts["tables"]["t_hour"]["sharding"] == "data_parallel"
    held = sum(rank["gpu_bytes"] for rank in facts["ranks"])
    assert held / GIB == pytest.approx(242.1, abs=1)


def test_the_command_says_when_rows_are_fetched_from_the_host(capsys) -> None:
    app.main(command("--hbm-gb=24", "--table=user=1000000000x64"))
    printed = capsys.readouterr().out
    assert "fused_uvm_caching: the table lies in host memory" in printed


def test_the_command_plans_a_configuration_for_the_cpu(capsys) -> None:
    attention = "--set=ranker.learn.attention=content+id"
    app.main(command("--device=cpu", "--gpus=2", attention, "--items=5000"))
    printed = capsys.readouterr().out
    assert "It fits: 1 x 2 ranks on cpu" in printed
    assert f"t_user_id    100,000 x {4 * EMBEDDING_DIM}" in printed
    assert "learn_items    5,000 x 32" in printed


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--table=user=10"], "--table user=10: write NAME=ROWSxDIM"),
        (["--table=user=10x6"], "multiple of 4"),
        (["--nodes=0"], "--nodes 0: use a number above 0"),
        (["--hbm-gb=nan"], "--hbm-gb nan: use a number above 0"),
        (["--hbm-gb=inf"], "--hbm-gb inf: use a number above 0, 1000000 at most"),
        (["--length=age=3"], "--length age=3: write FEATURE=MEAN .* user_id"),
        (["--gpus=3"], "batch_size=8192: not a multiple of the 3 ranks"),
        (["--table=u=9000000000x64"], r"fewer than 2\*\*31 rows"),
        (["--table=u=2000000000x256", "--host-gb=1"], "t_u alone 1,914.8 GiB"),
    ],
)
def test_the_command_s_mistakes_are_one_line(options, message) -> None:
    with pytest.raises(UserError, match=message):
        app.main(command(*options))
