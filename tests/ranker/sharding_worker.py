"""What `test_sharding.py` runs under torchrun: every sharding kind, one launch.

usage: sharding_worker.py OUT_FILE
"""

import json
import sys
from pathlib import Path

import problem
import torch
import torch.distributed as dist
from problem import Recorder
from torchrec.distributed.train_pipeline import TrainPipelineSparseDist
from torchrec.distributed.types import ShardedModule

from learn_torchrec.errors import UserError
from learn_torchrec.ranker import build, scoring, training
from learn_torchrec.ranker.build import load_ranker, save_ranker
from learn_torchrec.ranker.scoring import score
from learn_torchrec.ranker.training import train_ranker
from learn_torchrec.training.distributed import gather_objects, process_group


class Watched(TrainPipelineSparseDist):
    """Notes which sharded modules the pipeline took over."""

    seen: list[list[str]]

    def detach(self):
        Watched.seen.append(sorted(type(m).__name__ for m in self._pipelined_modules))
        return super().detach()


def run(config, device: torch.device):
    """Train and score; return what came of it, and the model."""
    Watched.seen, plans, log = [], [], Recorder()
    rows = problem.impressions(config)
    model, facts, _ = train_ranker(config, rows, device, log, plans.append)
    scores = all_scores(model, rows, device)
    sharded = [m for m in model.modules() if isinstance(m, ShardedModule)]
    tops = {type(m).__name__ for m in sharded} - {"ShardedManagedCollisionCollection"}
    if "ShardedManagedCollisionEmbeddingBagCollection" not in tops:
        assert len(sharded) == len(tops)
    result = {
        "loss": [line["loss"] for line in log.lines],
        "auxiliary_loss": [line["auxiliary_loss"] for line in log.lines],
        "ne": [line.get("ne") for line in log.lines],
        "scores": scores,
        "pipelined": Watched.seen,
        "plan": plans[0],
        "facts": facts,
    }
    return result, model


def all_scores(model, rows, device: torch.device) -> list[float]:
    parts = gather_objects(score(model, rows, 50, device)["score"].tolist())
    return [x for part in parts for x in part]


def managed(directory: Path, device: torch.device) -> dict[str, object]:
    """Managed collision: trains, is pipelined, and comes back from its checkpoint."""
    config = problem.config("row_wise/sgd", managed=True)
    result, model = run(config, device)
    result["pipelined"] = list(Watched.seen)  # scoring again adds to it
    save_ranker(model, directory)
    dist.barrier()
    again = build.build_ranker(config, problem.SHAPE, device)
    load_ranker(again, directory)
    result["restored_scores"] = all_scores(again, problem.impressions(config), device)
    result["of_fewer_ranks"] = "not refused"
    try:
        load_ranker(again, directory.with_suffix(".one"))
    except UserError as error:
        result["of_fewer_ranks"] = str(error)
    return result


def refusal(device: torch.device) -> str:
    """A plan that TorchRec does not find ends on every rank alike."""
    try:
        config = problem.config("row_wise")
        build.shard_tables(
            build.build_task(config, problem.SHAPE, device),
            device,
            config.tables,
            {"t_user_id": "nonsense"},
        )
    except UserError as error:
        return str(error)
    return "not refused"


def main() -> None:
    out = Path(sys.argv[1])
    training.TrainPipelineSparseDist = scoring.TrainPipelineSparseDist = Watched
    with process_group() as device:
        result = {case: run(problem.config(case), device)[0] for case in problem.CASES}
        result["architecture"] = {
            case: run(problem.architecture(case), device)[0]
            for case in problem.ARCHITECTURE_CASES
        }
        result["managed"] = managed(out.with_suffix(".model"), device)
        messages = gather_objects(refusal(device))
        result["refusals"] = messages
        if dist.get_rank() == 0:
            out.write_text(json.dumps(result))


if __name__ == "__main__":
    main()
