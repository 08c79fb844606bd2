# ruff: noqa: PLR0913, UP006, UP035, UP045 - torchx turns every argument into an
# option, and its parser knows `Optional[Dict[str, str]]` but not the newer spelling.
r"""TorchX components: one per stage that runs on several ranks.

    torchx run -s local_cwd torchx_components/learn.py:train_towers -j 1x2 -- \
        --data movielens:auto --out runs/towers

With this project installed, `torchx run learn.train_towers ...` needs no file. The
local scheduler runs the `torchrun` that PATH finds: activate the environment, or
put its `bin` first on PATH. torchx refuses an option given twice: write
`--set=a.b=1 --set=c.d=2`, not `--set a.b=1 --set c.d=2`.

torchx itself gives containers (Kubernetes, AWS Batch, Docker) a /dev/shm as large
as their memory; `mounts` is for the data and the output, which they do not see.
"""

from typing import Any, Callable, Dict, List, Optional

import torchx.version
from torchx import specs
from torchx.components import dist

_OPTIONS_HELP = """
Args:
    script_args: options of the app, after `--`
    j: {nodes}x{processes per node}
    image: container image that holds this project (unused by local_cwd)
    cpu: processors per node
    gpu: GPUs per node
    memMB: memory per node, in MB
    h: named resource, in place of cpu, gpu and memMB
    env: environment of the ranks, e.g. OMP_NUM_THREADS=4,NCCL_DEBUG=INFO
    max_restarts: how often torchrun starts the ranks again after one failed
    name: name of the job, see dist.ddp
    mounts: what containers see of the host, see dist.ddp
"""


def _documented(component: Callable[..., specs.AppDef]) -> Callable[..., specs.AppDef]:
    """Append the help of the options, which every component has."""
    component.__doc__ = f"{component.__doc__}\n{_OPTIONS_HELP}"
    return component


@_documented
def encode_content(
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
) -> specs.AppDef:
    """Encode item texts into content vectors."""
    size = {"j": j, "cpu": cpu, "gpu": gpu, "memMB": memMB, "h": h}
    place = {"image": image, "name": name, "mounts": mounts}
    return _ddp("apps.encode_content", script_args, env, max_restarts, **size, **place)


@_documented
def train_towers(
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
) -> specs.AppDef:
    """Train the user and item towers."""
    size = {"j": j, "cpu": cpu, "gpu": gpu, "memMB": memMB, "h": h}
    place = {"image": image, "name": name, "mounts": mounts}
    return _ddp("apps.train_towers", script_args, env, max_restarts, **size, **place)


@_documented
def export_vectors(
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
) -> specs.AppDef:
    """Export user and item vectors from trained towers."""
    size = {"j": j, "cpu": cpu, "gpu": gpu, "memMB": memMB, "h": h}
    place = {"image": image, "name": name, "mounts": mounts}
    return _ddp("apps.export_vectors", script_args, env, max_restarts, **size, **place)


@_documented
def train_ranker(
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
) -> specs.AppDef:
    """Train the ranker."""
    size = {"j": j, "cpu": cpu, "gpu": gpu, "memMB": memMB, "h": h}
    place = {"image": image, "name": name, "mounts": mounts}
    return _ddp("apps.train_ranker", script_args, env, max_restarts, **size, **place)


@_documented
def predict(
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
) -> specs.AppDef:
    """Score impressions with a trained ranker."""
    size = {"j": j, "cpu": cpu, "gpu": gpu, "memMB": memMB, "h": h}
    place = {"image": image, "name": name, "mounts": mounts}
    return _ddp("apps.predict", script_args, env, max_restarts, **size, **place)


def _ddp(
    module: str,
    script_args: tuple[str, ...],
    env: Optional[Dict[str, str]],
    max_restarts: int,
    **options: Any,
) -> specs.AppDef:
    """Return torchx's own ddp job of `module`, with the environment the ranks need."""
    defaults = {
        "LOGLEVEL": "INFO",
        "OMP_NUM_THREADS": "1",  # ranks share a node's processors
        "PYTHONUNBUFFERED": "1",
        # The local scheduler ignores max_retries: torchrun restarts the ranks, and
        # needs a store per attempt, or new ranks read the addresses of dead ones.
        "PET_MAX_RESTARTS": str(max_restarts),
        "TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "1",
    }
    return dist.ddp(*script_args, m=module, env=defaults | (env or {}), **options)
