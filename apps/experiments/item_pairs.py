"""I2I: do vectors know what people take together, before and after the towers?"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from learn_torchrec.arrays import AnyArray, Float64Array
from learn_torchrec.artifact import versions
from learn_torchrec.content.align import standardized
from learn_torchrec.content.encoder import ContentEncoder
from learn_torchrec.content.store import ContentStore
from learn_torchrec.errors import UserError
from learn_torchrec.evaluation.retrieval_study import compare_rows
from learn_torchrec.towers.artifact import load_towers
from learn_torchrec.towers.inference import encode_catalogue
from learn_torchrec.towers.item_pairs import ItemPairs, PairCosines
from learn_torchrec.training.distributed import process_group

from .base import BERT, LLM, Goal, Request, judged
from .towers_arms import TowersArm, divide, train_arms

ALIGNED, LAYERS = "aligned", "llm_layers"
_MOST_PAIRS = 1_000_000
_COMPARED_LAYERS = 9
_TOWERS = {
    ALIGNED: ("towers.model.inputs=content",),
    "aligned_id": (),
}
_TITLES = {
    BERT: "BERT",
    LLM: "LLM",
    "llm_standardized": "LLM, standardized",
    ALIGNED: "towers on the LLM's vectors",
    "aligned_id": "towers on the LLM's vectors and IDs",
}
_GOALS = (
    Goal(row=LLM, than=BERT),
    Goal(row=ALIGNED, than="llm_standardized"),
)


@dataclass(frozen=True)
class ItemPairsTable:
    """Pair AUC of vectors: of encoders, layer by layer, and of towers."""

    title: str = "Do vectors know what people take together (I2I)?"

    def check(self, request: Request) -> None:
        """Look for the encoders, and resolve the towers."""
        request.refuse_absent([LLM, BERT])
        for arm in _arms(request).values():
            arm.resolve(request.args)

    def run(self, request: Request) -> dict[str, Any]:
        """Encode, train, compare pairs."""
        stores = {name: ContentStore.open(request.encode(name)) for name in (LLM, BERT)}
        layered = _with_layers(request)
        stores[LAYERS] = ContentStore.open(layered.encode(LAYERS))
        arms = _arms(request)
        trained = train_arms(request.args, arms, request.towers)
        run = arms[ALIGNED].resolve(request.args)
        data = divide(request.args, run, stores[LLM])
        pairs = ItemPairs.of(data.test, _MOST_PAIRS)
        if not len(pairs.users):
            raise UserError("i2i: no test user took two different items in a row")
        layers = _layers_of(layered)
        cosines = {
            name: [pairs.compare(vectors)] for name, vectors in _frozen(stores, layers)
        }
        with process_group() as device:
            for name, towers in trained.items():
                cosines[name] = [
                    pairs.compare(_item_vectors(one, stores[LLM], device))
                    for one in towers
                ]
        return {
            "data": request.args.data.partition(":")[0],
            "versions": versions(),
            "users": {"test": len(np.unique(pairs.users))},
            "items": len(stores[LLM]),
            "seeds": request.args.seeds,
            "pairs": len(pairs.users),
            **_summary(cosines),
        }


def _summary(cosines: Mapping[str, Sequence[PairCosines]]) -> dict[str, Any]:
    by_user: dict[str, list[Float64Array]] = {}
    for name, seeds in cosines.items():
        by_user[name] = [one.by_user()[0] for one in seeds]
    weights = cosines[ALIGNED][0].by_user()[1]
    found = compare_rows(by_user, ALIGNED, weights)["rows"]
    shown = [name for name in cosines if name in _TITLES]
    return {
        "rows": {
            name: {"title": _TITLES.get(name, _layer_title(name)), "auc": one}
            for name, one in found.items()
        },
        "reference": ALIGNED,
        "metrics": ["auc"],
        "goal_metric": "auc",
        "goals": judged(_GOALS, {"all": found}),
        "notes": [
            "Cosines of items that held-out events follow one another with, against as "
            "many random pairs of the same items; raw vectors but where standardized "
            "is said; layers are standardized, layer 0 is the embedding."
        ],
        "histograms": {name: cosines[name][0].histogram() for name in shown},
    }


def _layer_title(name: str) -> str:
    return f"LLM, layer {name.removeprefix('layer_')}"


def _arms(request: Request) -> dict[str, TowersArm]:
    return {
        name: TowersArm(request.content(LLM), settings)
        for name, settings in _TOWERS.items()
    }


def _with_layers(request: Request) -> Request:
    """Return the request with an encoder of several layers of the language model."""
    config = request.resolved(LLM).content.encoder
    last = ContentEncoder(config).num_layers
    layers = np.unique(np.linspace(0, last, _COMPARED_LAYERS).round().astype(int))
    chosen = f"content.encoder.layers={','.join(map(str, layers))}"
    encoders = {**request.encoders, LAYERS: (*request.encoders[LLM], chosen)}
    return replace(request, encoders=encoders)


def _layers_of(request: Request) -> tuple[int, ...]:
    layers: tuple[int, ...] = request.resolved(LAYERS).content.encoder.layers
    return layers


def _frozen(
    stores: Mapping[str, ContentStore], layers: Sequence[int]
) -> Iterator[tuple[str, AnyArray]]:
    """Yield the vectors of the encoders, raw, standardized and by layer."""
    for name in (BERT, LLM):
        yield name, _all(stores[name])
    yield "llm_standardized", standardized(stores[LLM], _all(stores[LLM]))
    whole = standardized(stores[LAYERS], _all(stores[LAYERS]))
    for layer, part in zip(layers, np.split(whole, len(layers), axis=1), strict=True):
        yield f"layer_{layer}", part


def _all(store: ContentStore) -> AnyArray:
    return store.gather(np.arange(len(store)))


def _item_vectors(towers: Path, store: ContentStore, device: torch.device) -> AnyArray:
    model, _, _ = load_towers(towers, device, store)
    model.eval()
    rows = np.arange(len(store))
    vectors: AnyArray = encode_catalogue(model, store, rows, device).numpy()
    return vectors


ITEM_PAIRS = ItemPairsTable()
