"""train-ranker, whose rank 1 hangs once, after some steps of the first attempt."""

import os
import time

from learn_torchrec.apps import train_ranker
from learn_torchrec.apps.common import options
from learn_torchrec.ranker import build


class HangingRows(build.LearnRankerTrain):
    """Stands for a rank that waits for something that never comes."""

    steps = 0

    def forward(self, batch):
        HangingRows.steps += 1
        is_first = os.environ["TORCHELASTIC_RESTART_COUNT"] == "0"
        if is_first and os.environ["RANK"] == "1" and HangingRows.steps == 50:
            hang()
        return super().forward(batch)


def hang():
    time.sleep(600)


if __name__ == "__main__":
    build.LearnRankerTrain = HangingRows
    options.run(train_ranker.main)
