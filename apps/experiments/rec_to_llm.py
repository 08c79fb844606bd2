"""Table 2: recommendation data brought to the LLM, or the LLM brought to them."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from learn_torchrec.arrays import Int64Array
from learn_torchrec.content.encoder import ContentEncoder
from learn_torchrec.content.prompt import render
from learn_torchrec.content.store import ContentStore
from learn_torchrec.content.tuning import Tuning, tune_language_model
from learn_torchrec.datasets.sequences import SequenceSet
from learn_torchrec.evaluation.retrieval import ScoreBlock
from learn_torchrec.schema import ITEM_ID, ITEMS_FILE
from learn_torchrec.towers.baselines import averaged_content, content_similarity
from learn_torchrec.towers.holdout import RetrievalTask

from ..common import options
from .base import LLM, Goal, Request
from .towers_arms import divide
from .towers_tables import CAUSAL, DERIVED, LEARN, Row, TowersTable

TUNED = "tuned"
_TUNING = Tuning()
_TITLES = {
    "text": "v1: history as one text, frozen LLM",
    "tuned_text": "v2: history as one text, tuned LLM",
    "tuned_mean": "v2: averaged vectors of the tuned LLM",
    "content_mean": "v1: averaged vectors of the frozen LLM",
}
_TOWERS = TowersTable(
    rows={
        "causal": Row(
            title="LEARN, the paper's form", settings=CAUSAL, published=0.0701
        ),
        LEARN: DERIVED,
    },
    goals=(
        Goal(row="causal", than="content_mean", times=3),
        Goal(row="causal", than="text", times=3),
        Goal(row="causal", than="tuned_text", times=3),
        Goal(row="tuned_text", than="text"),
    ),
    published={"content_mean": 0.0101, "text": 0.0101, "tuned_text": 0.0180},
    titles=_TITLES,
    note="A history as one text holds the latest items that the LLM reads at once. "
    f"v2: all weights tuned with the next-token loss on {_TUNING.tokens:,} tokens of "
    f"training users' histories, written as dialogues, {_TUNING.passes} passes, the "
    "pass chosen on held-out texts; the paper names neither prompt nor length.",
)


@dataclass(frozen=True)
class RecToLlm:
    """LEARN beside a language model that reads the history as text."""

    title: str = "The LLM reads histories as text, or its vectors are aligned to them"

    def check(self, request: Request) -> None:
        """Check the towers and the encoder."""
        _TOWERS.check(request)

    def run(self, request: Request) -> dict[str, Any]:
        """Encode, tune, train and rank."""
        store = ContentStore.open(request.encode(LLM))
        run = _TOWERS.resolve(request)
        data = divide(request.args, run, store)
        frozen = _HistoriesAsText(request, store, LLM)
        encoder = request.resolved(LLM).content.encoder
        texts = list(frozen.dialogues(data.train))
        folder = tune_language_model(encoder, texts, _TUNING, request.args.out)
        settings = (*request.encoders[LLM], f"content.encoder.model={folder}")
        after = replace(request, encoders={**request.encoders, TUNED: settings})
        tuned_store = ContentStore.open(after.encode(TUNED))
        tuned = _HistoriesAsText(after, tuned_store, TUNED)
        further = {
            "text": frozen.scores(data.test),
            "tuned_text": tuned.scores(data.test),
            "tuned_mean": averaged_content(tuned_store, data.test),
        }
        return _TOWERS.run(request, {name: [one] for name, one in further.items()})


class _HistoriesAsText:
    """Writes histories as texts, and reads them with an encoder.

    Args:
        request: names the encoder.
        store: of the encoder.
        encoder: its name.
    """

    def __init__(self, request: Request, store: ContentStore, encoder: str) -> None:
        config = request.resolved(encoder).content
        items = options.dataset(request.args).items
        texts = render(items, config.prompt, ITEMS_FILE)
        rows = store.rows_of(items[ITEM_ID])
        self._texts = [""] * len(store)
        for row, text in zip(rows, texts, strict=True):
            if row >= 0:
                self._texts[row] = text
        self._store, self._encoder = store, ContentEncoder(config.encoder)
        ids = self._encoder.tokenizer(self._texts)["input_ids"]
        self._lengths = np.array([len(row) for row in ids])
        self._most = config.encoder.max_tokens

    def scores(self, task: RetrievalTask) -> ScoreBlock:
        """Return the cosines of histories as one text with every item."""
        histories = np.split(task.history.values, task.history.offsets[1:-1])
        texts = [self._fused(rows) for rows in histories]
        return content_similarity(
            self._store, self._encoder.encode(texts, progress=True)
        )

    def dialogues(self, train: SequenceSet) -> Iterator[str]:
        """Yield each training user's history as a question and the last item as answer.

        Users come in random order.
        """
        order = np.random.default_rng(0).permutation(len(train))
        for user in order:
            rows = train.items[train.starts[user] : train.ends[user]].astype(np.int64)
            if len(rows) > 1:
                yield (
                    f"User: I took, one after the other: {self._fused(rows[:-1])} What "
                    f"do I take next?\nAssistant: {self._texts[rows[-1]]}"
                )

    def _fused(self, rows: Int64Array) -> str:
        """Return the texts of the latest items that the model reads at once."""
        latest: Sequence[int] = rows[::-1].tolist()
        fit = int((np.cumsum(self._lengths[latest]) <= self._most).sum())
        return " ".join(self._texts[row] for row in latest[: max(1, fit)][::-1])


REC_TO_LLM = RecToLlm()
