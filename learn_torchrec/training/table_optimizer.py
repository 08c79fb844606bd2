"""The optimizer of ID tables, which fbgemm applies in the backward pass."""

from collections.abc import Iterable
from typing import Any, Literal

import torch
from pydantic import NonNegativeFloat, PositiveFloat
from torch import nn
from torch.distributed.optim import _apply_optimizer_in_backward
from torchrec.optim import SGD, Adagrad, Adam, RowWiseAdagrad
from torchrec.optim.keyed import KeyedOptimizer, KeyedOptimizerWrapper

from learn_torchrec.config import configuration
from learn_torchrec.errors import UserError
from learn_torchrec.training.optim import DecayRate

# In the backward pass (fbgemm), and as plain optimizers of replicated tables.
_OPTIMIZERS: dict[str, tuple[Any, Any]] = {
    "rowwise_adagrad": (RowWiseAdagrad, RowWiseAdagrad),
    "adagrad": (Adagrad, torch.optim.Adagrad),
    "sgd": (SGD, torch.optim.SGD),
    "adam": (Adam, torch.optim.Adam),
}


@configuration
class TableOptimizerConfig:
    """The ID tables' precision, and their optimizer, applied in the backward pass.

    Attributes:
        precision: of the tables' weights: "float16" halves their memory; the optimizer
            and all that is computed from rows stay float32.
        optimizer: fbgemm has row-wise Adagrad, Adagrad and SGD on the CPU and CUDA, and
            Adam on CUDA only.
        learning_rate: peak; warm-up and decay are those of `ranker.optimizer`.
        eps: added to the root of the second moment.
        weight_decay: on CUDA only: fbgemm's CPU kernels ignore it.
        beta1: of Adam.
        beta2: of Adam.
    """

    precision: Literal["float32", "float16"] = "float32"
    optimizer: Literal["rowwise_adagrad", "adagrad", "sgd", "adam"] = "rowwise_adagrad"
    learning_rate: PositiveFloat = 0.05
    eps: PositiveFloat = 1e-8
    weight_decay: NonNegativeFloat = 0.0
    beta1: DecayRate = 0.9
    beta2: DecayRate = 0.999

    def arguments(self) -> dict[str, Any]:
        """Return a new dictionary of fbgemm's arguments, which fbgemm modifies."""
        result: dict[str, Any] = {"lr": self.learning_rate}
        if self.weight_decay:
            result["weight_decay"] = self.weight_decay
        if self.optimizer != "sgd":
            result["eps"] = self.eps
        if self.optimizer == "adam":
            result |= {"beta1": self.beta1, "beta2": self.beta2}
        return result


def refuse_unsupported(config: TableOptimizerConfig, device: torch.device) -> None:
    """Refuse what fbgemm's CPU kernels lack or would silently ignore.

    Raises:
        UserError: names the setting and the fix.
    """
    if device.type != "cpu":
        return
    if config.optimizer == "adam":
        raise UserError(
            "ranker.tables.optimizer=adam: fbgemm has no Adam for tables on the CPU; "
            "use rowwise_adagrad, adagrad or sgd, or train on CUDA"
        )
    if config.weight_decay:
        raise UserError(
            f"ranker.tables.weight_decay={config.weight_decay}: fbgemm ignores weight "
            "decay of tables on the CPU; set it to 0, or train on CUDA"
        )


def step_in_backward(
    tables: Iterable[nn.Parameter], config: TableOptimizerConfig
) -> None:
    """Make an unsharded model's tables update in the backward pass."""
    optimizer, _ = _OPTIMIZERS[config.optimizer]
    for parameter in tables:
        _apply_optimizer_in_backward(optimizer, [parameter], config.arguments())


def replicated_optimizer(
    tables: dict[str, nn.Parameter], config: TableOptimizerConfig
) -> KeyedOptimizer:
    """Return the same optimizer for data-parallel tables.

    TorchRec drops their in-backward optimizer; they get a plain gradient instead.
    """
    _, optimizer = _OPTIMIZERS[config.optimizer]
    arguments = config.arguments()
    if config.optimizer == "adam":
        arguments["betas"] = (arguments.pop("beta1"), arguments.pop("beta2"))
    return KeyedOptimizerWrapper(tables, lambda values: optimizer(values, **arguments))
