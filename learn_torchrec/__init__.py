"""LEARN on TorchRec: an LLM's knowledge in a production ranker.

The names below are the public API. Each is imported on first use, so that
`import learn_torchrec` is cheap and needs no distributed set-up; editors and type
checkers read the imports under `TYPE_CHECKING`.
"""

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from learn_torchrec.content.encoder import ContentEncoder as ContentEncoder
    from learn_torchrec.content.encoder import EncoderConfig as EncoderConfig
    from learn_torchrec.content.store import ContentStore as ContentStore
    from learn_torchrec.errors import UserError as UserError
    from learn_torchrec.evaluation.auc import evaluate_auc as evaluate_auc
    from learn_torchrec.evaluation.conventions import Convention as Convention
    from learn_torchrec.evaluation.retrieval import (
        evaluate_retrieval as evaluate_retrieval,
    )
    from learn_torchrec.jagged import Jagged as Jagged
    from learn_torchrec.ranker.learn.auxiliary import (
        AuxiliaryNetwork as AuxiliaryNetwork,
    )
    from learn_torchrec.ranker.learn.batch import HistoryBatch as HistoryBatch
    from learn_torchrec.ranker.learn.batch import LearnBatch as LearnBatch
    from learn_torchrec.ranker.learn.config import LearnConfig as LearnConfig
    from learn_torchrec.ranker.learn.history_features import (
        HistoryFeatures as HistoryFeatures,
    )
    from learn_torchrec.ranker.learn.inputs import LearnInputs as LearnInputs
    from learn_torchrec.ranker.learn.paper import LearnFeatures as LearnFeatures
    from learn_torchrec.ranker.learn.residual import LearnResidual as LearnResidual
    from learn_torchrec.ranker.learn.shape import LearnShape as LearnShape
    from learn_torchrec.ranker.learn.vectors import LearnVectors as LearnVectors
    from learn_torchrec.ranker.model import LearnRanker as LearnRanker
    from learn_torchrec.towers.encoder import PreferenceEncoder as PreferenceEncoder
    from learn_torchrec.towers.encoders.architecture import EncoderShape as EncoderShape
    from learn_torchrec.towers.model import TwinTower as TwinTower

_PUBLIC = {
    "AuxiliaryNetwork": "ranker.learn.auxiliary",
    "ContentEncoder": "content.encoder",
    "ContentStore": "content.store",
    "Convention": "evaluation.conventions",
    "EncoderConfig": "content.encoder",
    "EncoderShape": "towers.encoders.architecture",
    "HistoryBatch": "ranker.learn.batch",
    "HistoryFeatures": "ranker.learn.history_features",
    "Jagged": "jagged",
    "LearnBatch": "ranker.learn.batch",
    "LearnConfig": "ranker.learn.config",
    "LearnFeatures": "ranker.learn.paper",
    "LearnInputs": "ranker.learn.inputs",
    "LearnRanker": "ranker.model",
    "LearnResidual": "ranker.learn.residual",
    "LearnShape": "ranker.learn.shape",
    "LearnVectors": "ranker.learn.vectors",
    "PreferenceEncoder": "towers.encoder",
    "TwinTower": "towers.model",
    "UserError": "errors",
    "evaluate_auc": "evaluation.auc",
    "evaluate_retrieval": "evaluation.retrieval",
}
__all__ = list(_PUBLIC)

if not TYPE_CHECKING:  # would make every name an `Any`

    def __getattr__(name):
        if name not in _PUBLIC:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        return getattr(importlib.import_module(f"{__name__}.{_PUBLIC[name]}"), name)

    def __dir__():
        return sorted({*globals(), *_PUBLIC})
