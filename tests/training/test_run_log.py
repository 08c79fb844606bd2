import errno
import json
import os
import sys

from learn_torchrec.training import run_log
from learn_torchrec.training.run_log import RunLog


def test_lines_are_json_and_tensorboard_has_the_same(one_rank, tmp_path):
    del one_rank
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    with RunLog(tmp_path / "towers") as log:
        log.write(step=1, total=2, loss=3.0)
        log.write(step=2, total=2, loss=1.5)
    lines = [json.loads(line) for line in log.path.read_text().splitlines()]
    assert [line["loss"] for line in lines] == [3.0, 1.5]
    assert log.path == tmp_path / "logs" / "towers.jsonl"
    events = EventAccumulator(str(tmp_path / "logs" / "towers"))
    events.Reload()
    assert [(e.step, e.value) for e in events.Scalars("loss")] == [(1, 3.0), (2, 1.5)]


def test_it_works_without_tensorboard(one_rank, tmp_path, monkeypatch):
    del one_rank
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    with RunLog(tmp_path / "towers") as log:
        log.write(step=1, loss=3.0)
    assert json.loads(log.path.read_text())["loss"] == 3.0
    assert not (tmp_path / "logs" / "towers").exists()


def test_a_full_disk_ends_tensorboard_and_not_the_run(
    one_rank, tmp_path, monkeypatch, caplog
):
    del one_rank

    class FullBoard:
        def add_scalar(self, *_: object) -> None:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "events")

    monkeypatch.setattr(run_log, "_tensorboard", lambda directory: FullBoard())
    with RunLog(tmp_path / "towers") as log:
        log.write(step=1, loss=0.5)
        log.write(step=2, loss=0.4)
    lines = log.path.read_text().splitlines()
    assert [json.loads(line)["loss"] for line in lines] == [0.5, 0.4]
    assert len(caplog.messages) == 1
    assert "no more for TensorBoard: events: No space left" in caplog.messages[0]
