"""A resumed training equals an uninterrupted one, bit for bit."""

import datetime
import json
import math
import os
import pickle
import resource
import signal
from pathlib import Path
from unittest import mock

import pytest
import torch
from torch.distributed._shard.metadata import ShardMetadata
from torch.distributed._shard.sharded_tensor import Shard
from torch.distributed.remote_device import _remote_device

from learn_torchrec import publish
from learn_torchrec.apps import train_ranker, train_towers
from learn_torchrec.errors import Stopped, UserError
from learn_torchrec.locks import locked
from learn_torchrec.ranker.model import LearnRankerTrain
from learn_torchrec.training import checkpoint, host_copies, run_log
from learn_torchrec.training.distributed import process_group
from learn_torchrec.training.tensors import load_tensors, save_tensors

SETTINGS = [
    "--set",
    "towers.training.epochs=3",
    "towers.training.batch_size=4",
    "ranker.features.dense=hour",
    "ranker.training.batch_size=64",
    'ranker.features.sparse=[{"column": "user_id", "num_embeddings": 90}]',
    "checkpoint.every_steps=3",
]
STREAM = [
    "ranker.training.stream.enabled=true",
    "ranker.training.stream.shuffle_rows=256",
]
# Ids change rows every 5 steps, between two checkpoints.
MANAGED = [
    "ranker.training.eviction_interval=5",
    "ranker.tables.optimizer=sgd",
    'ranker.features.sparse=[{"column": "user_id", "num_embeddings": 90}, '
    '{"column": "item_id", "num_embeddings": 20, "ids": "managed_collision"}]',
]


VALIDATED = [
    "ranker.training.epochs=4",
    "ranker.optimizer.learning_rate=0.03",  # soon too far
    "ranker.validation.share=0.2",
    "ranker.validation.every_steps=4",
    "ranker.validation.metric=ne",
]


@pytest.fixture
def options(market):
    return ["--data", f"parquet:{market}", *SETTINGS]


class CutOffError(Exception):
    """Stands for SIGKILL: nothing after it runs."""


def cut_off_after(calls, monkeypatch):
    """Let a training end abruptly after so many steps of this process."""
    original = checkpoint.Checkpoints.after_step
    done = []

    def after_step(self, *args):
        original(self, *args)
        done.append(1)
        if len(done) == calls:
            raise CutOffError

    monkeypatch.setattr(checkpoint.Checkpoints, "after_step", after_step)


def losses(path):
    lines = map(json.loads, path.read_text().splitlines())
    return [(line["step"], line["loss"]) for line in lines if "loss" in line]


def digests(directory):
    manifest = json.loads((directory / "manifest.json").read_text())
    return {
        name: entry["sha256"]
        for name, entry in manifest["files"].items()
        if name.endswith((".safetensors", ".distcp"))
    }


@pytest.mark.parametrize("cuts", [(4,), (8, 5)])
@pytest.mark.parametrize("inputs", ["content", "content+id"])
def test_towers_resumed_equal_uninterrupted(
    store, options, tmp_path, monkeypatch, inputs, cuts
):
    content = ["--content", str(store.directory)]
    options = [*content, *options, f"towers.model.inputs={inputs}"]
    resumed_equals_uninterrupted(
        train_towers.main, options, tmp_path, monkeypatch, cuts
    )


@pytest.mark.parametrize("extra", [[], STREAM, MANAGED])
def test_ranker_resumed_equals_uninterrupted(options, tmp_path, monkeypatch, extra):
    resumed_equals_uninterrupted(
        train_ranker.main, [*options, *extra], tmp_path, monkeypatch, (4, 9)
    )


@pytest.mark.parametrize(
    ("refit", "cuts", "resumed"),
    [
        # At steps 4, 10, 17, 19 and 22 of 16 + 10.
        ("refit=true", (4, 7, 8, 4, 4), (3, 9, 15, 18, 21)),
        # After step 8, whose weights are the best.
        ("refit=false", (5, 7, 5), (4, 9, 12)),
    ],
)
def test_validation_resumed_equals_uninterrupted(
    options, tmp_path, monkeypatch, caplog, refit, cuts, resumed
):
    caplog.set_level("INFO", logger="learn_torchrec")
    options = [*options, *VALIDATED, f"ranker.validation.{refit}"]
    resumed_equals_uninterrupted(
        train_ranker.main, options, tmp_path, monkeypatch, cuts
    )
    said = [line for line in caplog.messages if line.startswith("resuming after")]
    assert said == [f"resuming after step {step}" for step in resumed]
    found, expected = (
        json.loads((tmp_path / name / "manifest.json").read_text())["facts"]
        for name in ("cut", "whole")
    )
    assert found["validation"] == expected["validation"]
    assert found["steps"] == expected["steps"]


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("app", [train_ranker, train_towers])
def test_on_cuda_an_interrupted_training_resumes(
    app, store, options, tmp_path, monkeypatch
):
    if app is train_towers:
        content = ["--content", str(store.directory)]
        options = [*content, *options, "towers.model.inputs=content+id"]
    app.main(["--out", str(tmp_path / "whole"), *options])
    with monkeypatch.context() as patch:
        cut_off_after(7, patch)
        with pytest.raises(CutOffError):
            app.main(["--out", str(tmp_path / "cut"), *options])
    assert list((tmp_path / "checkpoints/cut").iterdir())
    app.main(["--out", str(tmp_path / "cut"), *options])
    found, expected = (
        [loss for _, loss in losses(tmp_path / name / "log.jsonl")]
        for name in ("cut", "whole")
    )
    assert found == pytest.approx(expected, rel=1e-3)


def test_a_shard_of_a_gpu_is_copied_to_its_ranks_memory():
    there = ShardMetadata([4, 0], [2, 8], _remote_device("rank:1/cuda:1"))
    here = host_copies._on_host(there)
    assert here.placement == _remote_device("rank:1/cpu")
    assert (here.shard_offsets, here.shard_sizes) == ([4, 0], [2, 8])
    assert Shard(torch.zeros(2, 8), here).tensor.shape == (2, 8)


def resumed_equals_uninterrupted(main, options, tmp_path, monkeypatch, cuts):
    main(["--out", str(tmp_path / "whole"), *options])
    for cut in cuts:
        with monkeypatch.context() as patch:
            cut_off_after(cut, patch)
            with pytest.raises(CutOffError):
                main(["--out", str(tmp_path / "cut"), *options])
    assert list((tmp_path / "checkpoints/cut").iterdir())
    main(["--out", str(tmp_path / "cut"), *options])
    assert digests(tmp_path / "cut") == digests(tmp_path / "whole")
    assert losses(tmp_path / "cut/log.jsonl") == losses(tmp_path / "whole/log.jsonl")
    assert not (tmp_path / "checkpoints").exists()


def test_a_damaged_checkpoint_is_skipped(options, tmp_path, monkeypatch, caplog):
    train_ranker.main(["--out", str(tmp_path / "whole"), *options])
    with monkeypatch.context() as patch:
        cut_off_after(7, patch)
        with pytest.raises(CutOffError):
            train_ranker.main(["--out", str(tmp_path / "cut"), *options])
    newest = sorted((tmp_path / "checkpoints/cut").iterdir())[-1]
    damaged = next(newest.rglob("*.distcp"))
    damaged.write_bytes(damaged.read_bytes()[:-1] + b"\xff")
    caplog.set_level("INFO", logger="learn_torchrec")
    train_ranker.main(["--out", str(tmp_path / "cut"), *options])
    assert f"{damaged.name} is damaged" in caplog.text
    assert "resuming after step 3" in caplog.text
    assert digests(tmp_path / "cut") == digests(tmp_path / "whole")


def test_the_clock_does_not_decide_which_is_newest(options, tmp_path, monkeypatch):
    train_ranker.main(["--out", str(tmp_path / "whole"), *options])
    with monkeypatch.context() as patch:
        cut_off_after(8, patch)
        with pytest.raises(CutOffError):
            train_ranker.main(["--out", str(tmp_path / "cut"), *options])
    older, newest = sorted((tmp_path / "checkpoints/cut").glob("step-*"))
    os.utime(older, (4e9, 4e9))
    os.utime(newest, (0, 0))
    clock = mock.Mock(UTC=datetime.UTC)
    clock.datetime.now.return_value = datetime.datetime(1999, 1, 1, tzinfo=datetime.UTC)
    monkeypatch.setattr(publish, "datetime", clock)
    train_ranker.main(["--out", str(tmp_path / "cut"), *options])
    assert losses(tmp_path / "cut/log.jsonl") == losses(tmp_path / "whole/log.jsonl")
    assert digests(tmp_path / "cut") == digests(tmp_path / "whole")


def test_a_full_disk_leaves_the_last_checkpoint(options, tmp_path, monkeypatch, caplog):
    train_ranker.main(["--out", str(tmp_path / "whole"), *options])
    original = checkpoint.Checkpoints.after_step
    kept = []

    def after_step(self, step, *args):
        hard = resource.getrlimit(resource.RLIMIT_FSIZE)[1]
        limit = 20_000 if step == 9 else hard  # bytes of a file, as on a full disk
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, hard))
        original(self, step, *args)
        if step == 9:
            self._finish_pending()
            kept.extend(self._steps())
        resource.setrlimit(resource.RLIMIT_FSIZE, (hard, hard))

    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    monkeypatch.setattr(run_log, "_tensorboard", lambda directory: None)
    monkeypatch.setattr(checkpoint.Checkpoints, "after_step", after_step)
    train_ranker.main(["--out", str(tmp_path / "full"), *options])
    assert "checkpoint at step 9 was not saved" in caplog.text
    assert "the last good one is of step 6" in caplog.text
    assert kept == [3, 6]
    assert digests(tmp_path / "full") == digests(tmp_path / "whole")


def test_non_finite_weights_are_not_saved(options, tmp_path, monkeypatch):
    original = LearnRankerTrain.forward
    steps = []

    def forward(self, batch):
        loss, output = original(self, batch)
        steps.append(1)
        if len(steps) == 5:
            return loss * math.nan, output._replace(loss=output.loss * math.nan)
        return loss, output

    monkeypatch.setattr(LearnRankerTrain, "forward", forward)
    more = ["ranker.training.epochs=60"]  # fewer lines in the log than checkpoints
    with pytest.raises(UserError, match="loss is nan at or before step 6"):
        train_ranker.main(["--out", str(tmp_path / "out"), *options, *more])
    kept = [path.name for path in (tmp_path / "checkpoints/out").iterdir()]
    assert kept == ["step-000000003"]


def test_synchronous_saving_gives_the_same(options, tmp_path, monkeypatch):
    options = [*options, "checkpoint.asynchronous=false"]
    resumed_equals_uninterrupted(
        train_ranker.main, options, tmp_path, monkeypatch, (5,)
    )


def test_without_room_for_copies_training_waits(options, tmp_path, monkeypatch, caplog):
    copied = []
    monkeypatch.setattr(host_copies.HostCopies, "of", lambda *_: copied.append(1))
    monkeypatch.setattr(host_copies, "available_memory", lambda: 10_000)
    resumed_equals_uninterrupted(
        train_ranker.main, options, tmp_path, monkeypatch, (5,)
    )
    assert not copied
    # Once in each of three runs, not at each checkpoint.
    assert caplog.text.count("training waits for each checkpoint") == 3


def test_copies_count_what_the_ranks_of_a_host_hold(monkeypatch, one_rank):
    state = {"model": {"weight": torch.zeros(100)}, "local": {"ids": torch.arange(50)}}
    monkeypatch.setattr(host_copies, "local_world_size", lambda: 4)
    for available, fits in ((4_000, False), (4_001, True)):  # 4 x 800 bytes of 80 %
        monkeypatch.setattr(host_copies, "available_memory", lambda a=available: a)
        copies = host_copies.HostCopies()
        assert copies.fit(state) is fits
        monkeypatch.setattr(host_copies, "available_memory", lambda: 0)
        assert copies.fit(state) is fits  # decided once


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_copies_of_a_gpu_lock_no_memory():
    there = torch.arange(6.0, device="cuda").view(2, 3)
    copies = host_copies.HostCopies()
    (here,) = copies.of({"weight": there}).values()
    assert (here.device.type, here.is_pinned()) == ("cpu", False)
    there.zero_()
    assert here.flatten().tolist() == [0, 1, 2, 3, 4, 5]


def test_checkpoints_of_other_settings_are_refused(options, tmp_path, monkeypatch):
    options = ["--out", str(tmp_path / "cut"), *options]
    with monkeypatch.context() as patch:
        cut_off_after(4, patch)
        with pytest.raises(CutOffError):
            train_ranker.main(options)
    with pytest.raises(UserError, match="--overwrite"):
        train_ranker.main([*options, "ranker.training.seed=5"])


def test_sigterm_saves_and_the_next_run_resumes(options, tmp_path, monkeypatch):
    train_ranker.main(["--out", str(tmp_path / "whole"), *options])
    original = checkpoint.Checkpoints.after_step

    def after_step(self, step, *args):
        if step == 4:
            os.kill(os.getpid(), signal.SIGTERM)
        original(self, step, *args)

    with monkeypatch.context() as patch:
        patch.setattr(checkpoint.Checkpoints, "after_step", after_step)
        with pytest.raises(Stopped, match="step 4"):
            train_ranker.main(["--out", str(tmp_path / "cut"), *options])
    assert not (tmp_path / "cut").exists()
    train_ranker.main(["--out", str(tmp_path / "cut"), *options])
    assert digests(tmp_path / "cut") == digests(tmp_path / "whole")


def test_a_stop_that_cannot_be_saved_is_an_error(options, tmp_path, monkeypatch):
    original = checkpoint.Checkpoints.after_step

    def after_step(self, step, *args):
        if step == 4:
            os.kill(os.getpid(), signal.SIGTERM)
        original(self, step, *args)

    def refused(*args):
        raise OSError("no space left")

    monkeypatch.setattr(checkpoint.Checkpoints, "after_step", after_step)
    monkeypatch.setattr(checkpoint, "save_tensors", refused)
    with pytest.raises(UserError, match=r"step 4 was not saved .no space left.*step 0"):
        train_ranker.main(["--out", str(tmp_path / "cut"), *options])


def test_readers_do_not_change_the_weights(options, tmp_path, monkeypatch):
    stream = "ranker.training.stream."
    train_ranker.main(["--out", str(tmp_path / "whole"), *options, *STREAM])
    with monkeypatch.context() as patch:
        cut_off_after(7, patch)
        with pytest.raises(CutOffError):
            train_ranker.main(["--out", str(tmp_path / "cut"), *options, *STREAM])
    changed = [f"{stream}workers=1", f"{stream}timeout=60"]
    train_ranker.main(["--out", str(tmp_path / "cut"), *options, *STREAM, *changed])
    assert digests(tmp_path / "cut") == digests(tmp_path / "whole")


def test_a_later_step_that_cannot_be_read_does_not_displace_others(
    options, tmp_path, monkeypatch
):
    options = [*options, "checkpoint.keep=1"]
    with monkeypatch.context() as patch:
        cut_off_after(4, patch)
        with pytest.raises(CutOffError):
            train_ranker.main(["--out", str(tmp_path / "cut"), *options])
    later = tmp_path / "checkpoints/cut/step-000000099"
    later.mkdir()
    (later / "manifest.json").write_text("{")
    with monkeypatch.context() as patch:
        cut_off_after(4, patch)
        with pytest.raises(CutOffError):
            train_ranker.main(["--out", str(tmp_path / "cut"), *options])
    names = sorted(path.name for path in later.parent.glob("step-*"))
    assert names == ["step-000000006", later.name]


class Harmful:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


def test_an_index_that_runs_code_is_refused(tmp_path):
    with process_group():
        save_tensors({"weight": torch.ones(3)}, tmp_path / "tensors")
        state = {"weight": torch.zeros(3)}
        load_tensors(state, tmp_path / "tensors")
        assert state["weight"].tolist() == [1, 1, 1]
        index = tmp_path / "tensors/.metadata"
        index.write_bytes(pickle.dumps(Harmful(tmp_path / "harm")))
        with pytest.raises(UserError, match="refused"):
            load_tensors(state, tmp_path / "tensors")
    assert not (tmp_path / "harm").exists()


def test_other_tensors_are_an_error(tmp_path):
    with process_group():
        save_tensors({"weight": torch.ones(3)}, tmp_path / "tensors")
        with pytest.raises(UserError, match="bias is missing"):
            load_tensors(
                {"weight": torch.zeros(3), "bias": torch.zeros(1)}, tmp_path / "tensors"
            )
        with pytest.raises(UserError, match="is unknown to this run"):
            load_tensors({}, tmp_path / "tensors")


def test_two_runs_cannot_share_an_output(tmp_path):
    with locked(tmp_path / "out"):
        again = locked(tmp_path / "out")
        with pytest.raises(UserError, match="another run is making it"):
            again.__enter__()
    with locked(tmp_path / "out"):
        pass
