# ruff: noqa: UP006, UP035, UP045 - torchx turns every argument into an option, and
# its parser knows `Optional[Dict[str, str]]` but not the newer spelling.
r"""TorchX components: one per distributed stage, and `stage` for any.

    torchx run -s local_cwd torchx_components/learn.py:train_towers -j 1x2 -- \
        --data movielens:auto --out runs/towers

With this project installed, `torchx run learn.train_towers ...` needs no file. The
local scheduler runs the `torchrun` that PATH finds: activate the environment, or
put its `bin` first on PATH. torchx refuses an option given twice: write
`--set=a.b=1 --set=c.d=2`, not `--set a.b=1 --set c.d=2`.

torchx gives containers (Kubernetes, AWS Batch, Docker) a /dev/shm as large as their
memory; `mounts` makes the data and the output visible in them.

The options are declared once, on `_ddp`: torchx reads them from the signature. The
functions cannot be generated from the table of stages: torchx looks for each `def` in
the syntax tree of this file. It executes the file under another `__file__`, perhaps
where only torchx is installed, so the file can import nothing of this project. A test
compares it with the table.
"""

import inspect
from typing import Any, Callable, Dict, List, Optional, TypeAlias

import torchx.version
from torchx import specs
from torchx.components import dist

Component = Callable[..., specs.AppDef]
Job: TypeAlias = specs.AppDef  # a function that returns it by this name is no component


def _ddp(  # noqa: PLR0913
    app: str,
    *script_args: str,
    j: str = "1x2",
    image: str = torchx.version.TORCHX_IMAGE,
    cpu: int = 2,
    gpu: int = 0,
    memMB: int = 8192,
    h: Optional[str] = None,
    env: Optional[Dict[str, str]] = None,
    max_restarts: int = 0,
    name: str = "/",
    mounts: Optional[List[str]] = None,
) -> Job:
    """Return torchx's own ddp job of an app, with the environment the ranks need.

    Args:
        app: module in `learn_torchrec.apps`.
        script_args: options of the app, after `--`
        j: {nodes}x{processes per node}
        image: container image that holds this project (unused by local_cwd)
        cpu: processors per node
        gpu: GPUs per node
        memMB: memory per node, in MB
        h: named resource, in place of cpu, gpu and memMB
        env: environment of the ranks, e.g. OMP_NUM_THREADS=4,NCCL_DEBUG=INFO
        max_restarts: how often torchrun restarts the ranks after one failed
        name: name of the job, see dist.ddp
        mounts: host paths visible in the containers, see dist.ddp
    """
    defaults = {
        "OMP_NUM_THREADS": "1",  # ranks share a node's processors
        "PYTHONUNBUFFERED": "1",
        # The local scheduler ignores max_retries, so torchrun restarts the ranks. It
        # needs a new store each time, or new ranks read the addresses of dead ones.
        "PET_MAX_RESTARTS": str(max_restarts),
        "TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "1",
    }
    return dist.ddp(
        *script_args,
        m=f"learn_torchrec.apps.{app}",
        env=defaults | (env or {}),
        j=j,
        image=image,
        cpu=cpu,
        gpu=gpu,
        memMB=memMB,
        h=h,
        name=name,
        mounts=mounts,
    )


def _with_options(component: Component) -> Component:
    """Give a component the signature of `_ddp` and the help of its options."""
    shared = inspect.signature(_ddp)
    _, *parameters = shared.parameters.values()  # `app` is the component's own
    signature = shared.replace(parameters=parameters)
    component.__signature__ = signature  # type: ignore[attr-defined]
    _, _, options_help = inspect.cleandoc(_ddp.__doc__ or "").partition("Args:\n")
    component.__doc__ = f"{component.__doc__}\n\nArgs:\n{options_help}"
    return component


@_with_options
def stage(*script_args: str, **options: Any) -> specs.AppDef:
    """Run any stage: its command comes first after `--`."""
    if not script_args:
        raise ValueError("name a stage after --, e.g. -- train-towers --data ...")
    command, *rest = script_args
    return _ddp(command.replace("-", "_"), *rest, **options)


@_with_options
def encode_content(*script_args: str, **options: Any) -> specs.AppDef:
    """Encode item texts into content vectors."""
    return _ddp("encode_content", *script_args, **options)


@_with_options
def train_towers(*script_args: str, **options: Any) -> specs.AppDef:
    """Train the user and item towers."""
    return _ddp("train_towers", *script_args, **options)


@_with_options
def export_vectors(*script_args: str, **options: Any) -> specs.AppDef:
    """Export user and item vectors from trained towers."""
    return _ddp("export_vectors", *script_args, **options)


@_with_options
def train_ranker(*script_args: str, **options: Any) -> specs.AppDef:
    """Train the ranker."""
    return _ddp("train_ranker", *script_args, **options)


@_with_options
def predict(*script_args: str, **options: Any) -> specs.AppDef:
    """Score impressions with a trained ranker."""
    return _ddp("predict", *script_args, **options)


@_with_options
def evaluate_auc(*script_args: str, **options: Any) -> specs.AppDef:
    """Evaluate prediction files in batches, distributed over ranks (add --stream)."""
    return _ddp("evaluate_auc", *script_args, **options)
