import json
import sys

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
