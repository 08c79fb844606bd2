"""LEARN on TorchRec: a language model's knowledge in a production ranker.

The names below are the public surface; each is imported when first used, so that
`import learn_torchrec` costs nothing and needs no distributed set-up.
"""

import importlib
from typing import Any

_PUBLIC = {
    "AuxiliaryNetwork": "learn_torchrec.ranker.auxiliary",
    "ContentEncoder": "learn_torchrec.content.encoder",
    "ContentStore": "learn_torchrec.content.store",
    "LearnFeatures": "learn_torchrec.ranker.learn_features",
    "LearnRanker": "learn_torchrec.ranker.model",
    "TwinTower": "learn_torchrec.towers.model",
    "UserError": "learn_torchrec.errors",
    "evaluate_auc": "learn_torchrec.evaluation.auc",
    "evaluate_retrieval": "learn_torchrec.evaluation.retrieval",
}
__all__ = list(_PUBLIC)


def __getattr__(name: str) -> Any:
    if name not in _PUBLIC:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(_PUBLIC[name]), name)
