"""One table of the commands, and how steps of a pipeline are wired from it.

The command line, the quickstart, the benchmarks and the tests of the torchx components
read it. A new stage is an app, its test and a line here. Needs the standard library
alone, so that the overview of the commands answers at once.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, kw_only=True)
class Stage:
    """One command.

    Attributes:
        command: as typed; its app is the module of that name.
        does: one line for the overview.
        makes: kind of the artefact in `--out`; None where it makes none.
        reads: kinds of the artefacts it can read, each by the option `--KIND`.
        distributed: whether several ranks can share the work, under torchrun.
    """

    command: str
    does: str
    makes: str | None = None
    reads: tuple[str, ...] = ()
    distributed: bool = False

    @property
    def app(self) -> str:
        """Name of the module in this package."""
        return self.command.replace("-", "_")


_TABLE = (
    Stage(
        command="quickstart",
        does="run every stage on MovieLens-100K and report the metrics",
    ),
    Stage(
        command="data",
        does="generate a market of any size with known probabilities",
    ),
    Stage(
        command="doctor",
        does="check this machine and installation, with a fix for each problem",
    ),
    Stage(
        command="prepare",
        does="a log of any size -> clean, sorted, memory-mapped sequences",
        makes="prepared",
    ),
    Stage(
        command="encode-content",
        does="item text -> content vectors (frozen language model)",
        makes="content",
        distributed=True,
    ),
    Stage(
        command="train-towers",
        does="interactions + content vectors -> user and item towers",
        makes="towers",
        reads=("content",),
        distributed=True,
    ),
    Stage(
        command="export-vectors",
        does="trained towers -> user and item vectors",
        makes="vectors",
        reads=("content", "towers"),
        distributed=True,
    ),
    Stage(
        command="train-ranker",
        does="impressions + vectors -> ranker (TorchRec DLRM with LEARN)",
        makes="ranker",
        reads=("vectors", "content"),
        distributed=True,
    ),
    Stage(
        command="predict",
        does="trained ranker + impressions -> predictions",
        makes="predictions",
        reads=("ranker", "vectors", "content"),
        distributed=True,
    ),
    Stage(
        command="evaluate-retrieval",
        does="vectors -> hit rate, recall, NDCG and MRR at k",
        reads=("content", "towers"),
    ),
    Stage(
        command="evaluate-auc",
        does="predictions -> AUC, UAUC, WUAUC, NE and calibration",
        reads=("predictions",),
        distributed=True,
    ),
    Stage(
        command="recommend",
        does="vectors -> a user's history and top items, or top items of all users",
        reads=("vectors",),
    ),
    Stage(
        command="evaluate-ab",
        does="outcomes of an A/B test -> lifts by cohort and day",
    ),
    Stage(
        command="report",
        does="a run's directory -> one HTML page, Markdown and JSON",
    ),
)
STAGES = {stage.command: stage for stage in _TABLE}


@dataclass(frozen=True, kw_only=True)
class Step:
    """A stage in a pipeline, which keeps every artefact in one folder.

    Attributes:
        name: of the artefact's directory in the folder.
        command: of the stage that makes it.
        inputs: names of the earlier steps whose artefacts it reads.
    """

    name: str
    command: str
    inputs: tuple[str, ...] = ()

    @property
    def stage(self) -> Stage:
        """The stage's line in the table."""
        return STAGES[self.command]


def input_options(step: Step, pipeline: Iterable[Step], folder: Path) -> list[str]:
    """Return the options that name a step's inputs, e.g. `--content FOLDER/content`."""
    kinds = {each.name: each.stage.makes for each in pipeline}
    return [
        part
        for name in step.inputs
        for part in (f"--{kinds[name]}", str(folder / name))
    ]
