"""What `test_ranks.py` runs: trains a ranker with managed collision twice.

usage: managed_worker.py OUT_FILE
"""

import json
import logging
import sys
from dataclasses import replace
from pathlib import Path

import problem
import torch.distributed as dist

from learn_torchrec.ranker.scoring import score
from learn_torchrec.ranker.training import train_ranker
from learn_torchrec.training.distributed import gather_objects, process_group


def main() -> None:
    logging.basicConfig(level=logging.INFO, force=True)
    config, found = problem.config("row_wise/sgd", managed=True), []
    training = replace(config.training, batch_size=60)  # of 2, 3 and 5 ranks
    config = replace(config, training=training)
    with process_group() as device:
        rows = problem.impressions(config)
        for _ in range(2):
            model = train_ranker(config, rows, device, problem.Recorder())[0]
            parts = gather_objects(score(model, rows, 50, device)["score"].tolist())
            found.append([x for part in parts for x in part])
        if dist.get_rank() == 0:
            Path(sys.argv[1]).write_text(json.dumps(found))


if __name__ == "__main__":
    main()
