"""`refresh.log` says what standard error says, and is no condition of success."""

import logging
from pathlib import Path

import pytest

from learn_torchrec.apps import main
from learn_torchrec.apps.refreshing.steps import logged

FULL = Path("/dev/full")  # refuses what is written, as a full disk does
logger = logging.getLogger("learn_torchrec.refresh")


def test_a_full_disk_ends_the_log_alone(capfd, caplog, monkeypatch):
    # Other tests' handlers write into streams that were captured, and are closed.
    monkeypatch.setattr(logging.getLogger(), "handlers", [caplog.handler])
    caplog.set_level(logging.INFO, logger="learn_torchrec")
    with logged(FULL):
        for number in range(3):
            logger.info("step %d", number)
    with pytest.raises(KeyError, match="the first"), logged(FULL):
        raise KeyError("the first")
    said = [record.getMessage() for record in caplog.records]
    assert [one for one in said if "step" in one] == ["step 0", "step 1", "step 2"]
    refused = [one for one in said if one.startswith("no more in /dev/full: No space")]
    assert len(refused) == 2  # once each
    assert "Traceback" not in capfd.readouterr().err


def test_a_log_that_cannot_be_opened_is_one_line(tmp_path, capsys):
    (tmp_path / "daily" / "refresh.log").mkdir(parents=True)
    with pytest.raises(SystemExit) as ended:
        main.main(["rollback", "--run", str(tmp_path / "daily")])
    assert ended.value.code == 2
    assert "refresh.log: Is a directory; choose another" in capsys.readouterr().err
