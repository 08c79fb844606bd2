"""Ranks that were not given the same, or do not share files: two real processes."""

import json
import shutil

import pytest
import rank_tasks

from learn_torchrec.apps import train_towers
from learn_torchrec.publish import write_artifact

pytest_plugins = ["forked_ranks"]


def test_the_first_difference_is_named_on_every_rank(run_ranks):
    same = {"towers.training.seed": 1}
    ended = run_ranks(
        rank_tasks.compare,
        {"input log": "abc", **same},
        {"input log": "abd", **same},
    )
    line = (
        "error: input log: abc on rank 0, but abd on rank 1; give all ranks the same "
        "data, options and versions\n"
    )
    assert ended == [(2, line), (2, line)]


def test_a_name_that_one_rank_lacks_is_a_difference(run_ranks):
    ended = run_ranks(rank_tasks.compare, {"a": 1}, {"a": 1, "input vectors": "abc"})
    assert [code for code, _ in ended] == [2, 2]
    assert "input vectors: nothing on rank 0, but abc on rank 1" in ended[0][1]


def test_ranks_that_share_a_folder_leave_nothing_in_it(run_ranks, tmp_path):
    out = str(tmp_path / "new")
    assert run_ranks(rank_tasks.probe, out, out) == [(0, ""), (0, "")]
    assert list((tmp_path / "new").iterdir()) == []


def test_ranks_with_a_folder_each_are_refused(run_ranks, tmp_path):
    folders = [str(tmp_path / name) for name in "ab"]
    for code, error in run_ranks(rank_tasks.probe, *folders):
        assert code == 2
        assert error.startswith("error: --out: rank ")
        assert "put it on a file system that all ranks share" in error
        assert error.count("\n") == 1


def test_what_the_disk_refuses_one_rank_names_the_place_on_all(run_ranks, tmp_path):
    out = str(tmp_path / "new")
    line = f"{out}: No space left on device; free space there, or choose another place"
    assert run_ranks(rank_tasks.probe_with_a_full_disk, out, out) == [
        (2, f"error: rank 1 failed: {line}\n"),
        (2, f"error: {line}\n"),
    ]
    assert list((tmp_path / "new").iterdir()) == []


def test_no_rank_waits_for_one_whose_disk_is_full(run_ranks, store, market, tmp_path):
    """Every rank has its share written before one adds to it, or all of them end."""
    common = ["--data", f"parquet:{market}", "--content", str(store.directory)]
    towers, out = tmp_path / "towers", tmp_path / "vectors"
    settings = ["--set", "towers.training.epochs=1", "towers.model.encoder.width=16"]
    train_towers.main([*common, "--out", str(towers), *settings])
    arguments = [*common, "--towers", str(towers), "--out", str(out)]
    line = f"{out}: No space left on device; free space there, or choose another place"
    assert run_ranks(rank_tasks.export_on_a_full_disk, arguments, arguments) == [
        (2, f"error: {line}\n"),
        (2, f"error: rank 0 failed: {line}\n"),
    ]
    assert not out.exists()


def test_every_shard_is_in_the_manifest(run_ranks, tmp_path):
    out = str(tmp_path / "out")
    assert run_ranks(rank_tasks.write, out, out) == [(0, ""), (0, "")]
    manifest = json.loads((tmp_path / "out" / "manifest.json").read_text())
    assert set(manifest["files"]) == {"rank 0", "rank 1"}


def test_no_manifest_is_written_while_a_shard_is_missing(run_ranks, tmp_path):
    out = str(tmp_path / "out")
    for code, error in run_ranks(rank_tasks.lose_a_shard, out, out):
        assert code == 2
        assert "rank 0 does not see" in error
        assert "rank 1, which another rank wrote" in error
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("changed", "named"),
    [
        ({"log": "y"}, "input log: x on rank 0, but y on rank 1"),
        (
            {"set": ["ranker.training.seed=7"]},
            "ranker.training.seed: 0 on rank 0, but 7 on rank 1",
        ),
        (
            {"set": ["checkpoint.every_steps=7"]},
            "checkpoint.every_steps: 1000 on rank 0, but 7 on rank 1",
        ),
    ],
)
def test_a_job_compares_inputs_and_every_setting(changed, named, run_ranks, tmp_path):
    first = {"log": "x", "set": [], "out": str(tmp_path / "out")}
    for code, error in run_ranks(rank_tasks.start_job, first, first | changed):
        assert (code, error.count("\n")) == (2, 1)
        assert named in error
    assert list(tmp_path.iterdir()) == []


@pytest.fixture
def content(tmp_path):
    made = tmp_path / "content"
    with write_artifact(made, kind="content", config={}, inputs={}) as working:
        for name in "abcde":
            (working / name).write_text(name)
    return made


def test_ranks_share_the_verification_of_shared_inputs(run_ranks, content, tmp_path):
    mine = {"content": str(content), "out": str(tmp_path / "out")}
    ended = run_ranks(rank_tasks.verify_inputs, mine, mine)
    assert ended == [(0, "a\nc\ne\n"), (0, "b\nd\n")]


def test_a_rank_with_its_own_copy_verifies_all_of_it(run_ranks, content, tmp_path):
    copy = shutil.copytree(content, tmp_path / "copy")
    both = [
        {"content": str(one), "out": str(tmp_path / "out")} for one in (content, copy)
    ]
    whole = (0, "a\nb\nc\nd\ne\n")
    assert run_ranks(rank_tasks.verify_inputs, *both) == [whole, whole]


def test_what_one_rank_finds_damaged_all_refuse(run_ranks, content, tmp_path):
    (content / "d").write_text("D")
    mine = {"content": str(content), "out": str(tmp_path / "out")}
    for code, error in run_ranks(rank_tasks.verify_inputs, mine, mine):
        assert code == 2
        assert "content/d: damaged" in error
