"""What `ranker/test_arithmetic.py` calls on each rank."""

import json
from pathlib import Path

import problem

from learn_torchrec.config import replace
from learn_torchrec.ranker.config import RankerConfig
from learn_torchrec.ranker.training import train_ranker
from learn_torchrec.training.distributed import is_writer, process_group


def settings(case: str, communication: str) -> RankerConfig:
    make = (
        problem.architecture if case in problem.ARCHITECTURE_CASES else problem.config
    )
    base = make(case)
    return replace(base, training=replace(base.training, communication=communication))


def train(out: Path) -> None:
    """Rows, tables, and unpooled ones that attention reads."""
    found = {}
    with process_group() as device:
        for case in ("row_wise", "column_wise", "table_wise"):
            found[case] = {}
            for sent_as in ("float32", "float16"):
                config, log = settings(case, sent_as), problem.Recorder()
                train_ranker(config, problem.impressions(config), device, log)
                found[case][sent_as] = [line["loss"] for line in log.lines]
        if is_writer():
            out.write_text(json.dumps(found))
