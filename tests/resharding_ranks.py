"""What `test_resharding.py` calls on each rank, and the trainings it compares."""

from dataclasses import dataclass, replace
from pathlib import Path

import problem
from safetensors.torch import save_file

from learn_torchrec.errors import Stopped
from learn_torchrec.ranker.config import RankerConfig
from learn_torchrec.ranker.tables import ShardingConfig
from learn_torchrec.ranker.training import train_ranker
from learn_torchrec.training.checkpoint import CheckpointConfig, Checkpoints
from learn_torchrec.training.distributed import is_writer, process_group
from learn_torchrec.training.optimizer_state import full_state
from learn_torchrec.training.sharding import full_state_dict

DIM = 24  # two parts of 12 columns, three of 8


@dataclass(frozen=True)
class Leg:
    """A training from the last checkpoint to a stop.

    Attributes:
        folder: of checkpoints and of what came out.
        kinds: of sharding, by case.
        stop: the step after which it stops; None for the end.
    """

    folder: Path
    kinds: dict[str, str]
    stop: int | None = None


class Log(problem.Recorder):
    def position(self) -> int:
        return len(self.lines)

    def resume(self, position: int) -> None:
        pass


class Stopping(Checkpoints):
    stop: int | None = None

    def after_step(self, step: int, *arguments: object) -> None:
        self._stop_requested = step == self.stop
        super().after_step(step, *arguments)


def settings(case: str, kind: str = "column_wise") -> RankerConfig:
    base = problem.config(case)
    return replace(
        base,
        model=replace(base.model, embedding_dim=DIM),
        sharding=ShardingConfig(kind=kind),
        training=replace(base.training, batch_size=48),  # of one to three ranks
    )


def train(leg: Leg) -> None:
    with process_group() as device:
        for name, kind in leg.kinds.items():
            config, out = settings(name.partition(" ")[0], kind), leg.folder / name
            out.parent.mkdir(exist_ok=True, parents=True)
            saves = Stopping(out, {}, CheckpointConfig(every_steps=3))
            saves.stop = leg.stop
            rows = problem.impressions(config)
            try:
                trained = train_ranker(config, rows, device, Log(), None, saves)
            except Stopped:
                continue
            found = full_state_dict(trained.model) | full_state(trained.optimizer)
            if is_writer():
                save_file(found, out.with_suffix(".safetensors"))
