"""The table of commands, and the steps of a pipeline that it wires.

The command line, the quickstart, the benchmarks and the tests of the torchx components
read it. A new stage is an app, its test and an entry here. Imports only the standard
library, so that the overview of the commands answers at once.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Stage:
    """One command.

    Attributes:
        command: as typed; its app is the module of that name.
        does: one line for the overview.
        makes: kind of the artefact in `--out`; None for none.
        reads: kinds of the artefacts it can read, each with the option `--KIND`.
        distributed: whether ranks under torchrun can share the work.
        example: options to start from, for the help.
    """

    command: str
    does: str
    makes: str | None = None
    reads: tuple[str, ...] = ()
    distributed: bool = False
    example: str = ""

    @property
    def app(self) -> str:
        """Name of the module in this package."""
        return self.command.replace("-", "_")

    @property
    def module(self) -> str:
        """Full name of that module."""
        return f"{__package__}.{self.app}"


_TABLE = (
    Stage(
        "quickstart",
        "run every stage on your data or on MovieLens-100K, and say what it found",
        example="--data parquet:DIR --out runs/mine",
    ),
    Stage(
        "data",
        "a generated market, or impressions drawn from a log without any",
        example="market --impressions 100000 --out runs/market",
    ),
    Stage(
        "completion",
        "print a script that completes commands, options and settings in a shell",
        example="bash > ~/.local/share/bash-completion/completions/learn-torchrec",
    ),
    Stage("doctor", "check this machine and installation, with a fix for each problem"),
    Stage(
        "prepare",
        "a log of any size -> clean, sorted, memory-mapped sequences",
        makes="prepared",
        example="--data csv:DIR --out runs/prepared",
    ),
    Stage(
        "encode-content",
        "item text -> content vectors (frozen language model)",
        makes="content",
        distributed=True,
        example="--data parquet:DIR "
        "--out runs/content --set content.encoder.model=minilm",
    ),
    Stage(
        "align-space",
        "content of a new encoder -> content in an earlier encoder's space",
        makes="content",
        example="runs/content_old runs/content_new --out runs/content_aligned",
    ),
    Stage(
        "encode-codes",
        "content vectors -> codes, which a ranker reads as ID features",
        makes="codes",
        reads=("content",),
        distributed=False,  # the clustering sees a sample, an item takes microseconds
        example="--content runs/content --out runs/codes",
    ),
    Stage(
        "train-towers",
        "interactions + content vectors -> user and item towers",
        makes="towers",
        reads=("content",),
        distributed=True,
        example="--data parquet:DIR --content runs/content --out runs/towers",
    ),
    Stage(
        "export-vectors",
        "trained towers -> user and item vectors",
        makes="vectors",
        reads=("content", "towers"),
        distributed=True,
        example="--data parquet:DIR --content runs/content "
        "--towers runs/towers --out runs/vectors",
    ),
    Stage(
        "train-ranker",
        "impressions + vectors -> ranker (TorchRec DLRM with LEARN)",
        makes="ranker",
        reads=("vectors", "content", "codes"),
        distributed=True,
        example="--data parquet:DIR --vectors runs/vectors --out runs/ranker",
    ),
    Stage(
        "plan",
        "whether a ranker's tables fit a declared cluster, and who holds what",
        reads=("ranker",),
        example="--nodes 8 --gpus 8 --hbm-gb 80 --host-gb 1000 "
        "--table user_id=1000000000x64 --set ranker.training.batch_size=65536",
    ),
    Stage(
        "predict",
        "trained ranker + impressions -> predictions",
        makes="predictions",
        reads=("ranker", "vectors", "content", "codes"),
        distributed=True,
        example="--data parquet:DIR --ranker runs/ranker "
        "--vectors runs/vectors --out runs/predictions",
    ),
    Stage(
        "export-bundle",
        "trained ranker -> a bundle to serve: quantized tables, a program, its inputs",
        makes="bundle",
        reads=("ranker", "vectors", "content", "codes"),
        example="--data parquet:DIR --ranker runs/ranker "
        "--vectors runs/vectors --out runs/bundle",
    ),
    Stage(
        "check-bundle",
        "a bundle's scores here, beside those of its export and of training",
        reads=("bundle",),
        example="--bundle runs/bundle",
    ),
    Stage(
        "verify",
        "every file of artefacts, read and compared with what was written",
        example="runs/mine",
    ),
    Stage(
        "evaluate-retrieval",
        "towers + content vectors -> hit rate, recall, NDCG and MRR at k",
        reads=("content", "towers"),
        example="--data parquet:DIR --content runs/content "
        "--towers runs/towers --out retrieval.json",
    ),
    Stage(
        "evaluate-auc",
        "predictions -> AUC, UAUC, WUAUC, NE and calibration",
        reads=("predictions",),
        distributed=True,
        example="--predictions old=FILE new=runs/predictions --out ranking.json",
    ),
    Stage(
        "study",
        "impressions + vectors -> LEARN beside a baseline tuned alike, by cohort",
        reads=("vectors", "content", "codes"),
        example="--data parquet:DIR --vectors runs/vectors --out runs/study",
    ),
    Stage(
        "study-retrieval",
        "log + content -> towers beside baselines, several seeds, by group of targets",
        reads=("content",),
        example="--data parquet:DIR --content runs/content --out runs/retrieval",
    ),
    Stage(
        "experiment",
        "a table of the paper on your data, its rows trained side by side",
        example="table4 --data movielens:auto --out runs/table4",
    ),
    Stage(
        "build-index",
        "item vectors -> an index of the best items for a vector (FAISS)",
        makes="index",
        reads=("vectors",),
        example="--data parquet:DIR --vectors runs/vectors --out runs/index",
    ),
    Stage(
        "recommend",
        "vectors -> a user's history and top items, or top items of all users",
        reads=("vectors",),
        example="--data parquet:DIR --vectors runs/vectors --user 42",
    ),
    Stage(
        "refresh",
        "a new day -> the next run, on top of the served one, served if it is good",
        example="--data parquet:DIR --run runs/daily",
    ),
    Stage(
        "rollback",
        "serve the run before the served one again",
        example="--run runs/daily",
    ),
    Stage(
        "embed-items",
        "item texts -> vectors of the item tower, at once",
        reads=("towers", "content"),
        example="--towers runs/towers --content runs/content --text 'A red mug'",
    ),
    Stage(
        "serve",
        "ranker and index -> a server: rankings, retrieval, a page for people",
        reads=("bundle", "index", "towers", "content", "vectors"),
        example="--bundle runs/bundle --index runs/index --towers runs/towers "
        "--content runs/content --data parquet:DIR",
    ),
    Stage(
        "evaluate-ab",
        "outcomes of an A/B test -> lifts by cohort and day",
        example="--outcomes outcomes.parquet --simulate --out ab.json",
    ),
    Stage(
        "report",
        "a run's directory -> one HTML page, Markdown and JSON",
        example="--run runs/quickstart --out report.html",
    ),
)
STAGES = {stage.command: stage for stage in _TABLE}


@dataclass(frozen=True)
class Step:
    """A stage of a pipeline that keeps all its artefacts in one folder.

    Attributes:
        name: of the artefact's directory in that folder.
        command: of the stage.
        inputs: names of the earlier steps whose artefacts it reads.
    """

    name: str
    command: str
    inputs: tuple[str, ...] = ()

    @property
    def stage(self) -> Stage:
        """The stage's entry in the table."""
        return STAGES[self.command]


def input_options(step: Step, pipeline: Iterable[Step], folder: Path) -> list[str]:
    """Return the options that name a step's inputs, e.g. `--content FOLDER/content`."""
    kinds = {each.name: each.stage.makes for each in pipeline}
    return [
        part
        for name in step.inputs
        for part in (f"--{kinds[name]}", str(folder / name))
    ]
