"""Sampled negatives: what they add to a logit, which training takes out again.

Where only some rows with label 0 were kept, the odds of label 1 among the rows are too
high, by the ratio of all negatives to the kept ones. Training adds the logarithm of
this ratio to the logit in its loss, so that the logit itself, and with it the score, is
that among all rows.

The ratio is one number for all rows of a task. It thus changes no order, and says
nothing of a row's label, as a row's own rate would in a log that keeps all positives.
It is exact where all negatives are kept at one rate, and else an average.
"""

import math

import numpy as np
import pyarrow as pa
import torch.distributed as dist

from learn_torchrec.arrays import Float64Array
from learn_torchrec.ranker.features.dense import encode_rates, encode_weights
from learn_torchrec.ranker.impressions import Impressions
from learn_torchrec.ranker.tasks import label_columns
from learn_torchrec.schema import ITEM_ID, SAMPLING_RATE, TIMESTAMP, USER_ID, WEIGHT
from learn_torchrec.training.distributed import gather_objects, raise_on_all_ranks


def logit_offsets(impressions: Impressions) -> dict[str, float]:
    """Return what sampling adds to the logit of each task's label.

    Of all rows the labels, rates and weights are read, each row group by one rank. The
    result is the same on every rank and at any number of ranks: empty without a column
    of rates or where all are 1.

    Raises:
        UserError: a rate that is not in (0, 1].
    """
    source, labels = impressions.source, label_columns(impressions.tasks)
    present = source.empty().schema.names
    if SAMPLING_RATE not in present:
        return {}
    # Rows are selected by the first three.
    wanted = (USER_ID, ITEM_ID, TIMESTAMP, *labels, SAMPLING_RATE, WEIGHT)
    encoder = impressions.encoder()
    narrow = source.only([name for name in wanted if name in present])
    mine: dict[int, Float64Array] = {}
    with raise_on_all_ranks():
        for group in range(dist.get_rank(), len(narrow), dist.get_world_size()):
            pieces = map(encoder.checked, narrow.pieces(group))
            sums = [_negatives(piece, labels, source.name) for piece in pieces]
            mine[group] = np.sum(sums, axis=0)
    groups = {n: sums for part in gather_objects(mine) for n, sums in part.items()}
    kept, of_all = np.sum([groups[n] for n in sorted(groups)], axis=0)
    offsets = {}
    for task in impressions.tasks:
        place = labels.index(task.label)
        if of_all[place] > kept[place]:
            offsets[task.name] = math.log(of_all[place] / kept[place])
    return offsets


def _negatives(table: pa.Table, labels: tuple[str, ...], source: str) -> Float64Array:
    """Return the weight of the negatives by label, of those kept and of all, [2, L]."""
    weights = encode_weights(table, source).astype(np.float64)
    all_weights = weights / encode_rates(table, source)
    are_negative = [table[name].to_numpy() == 0 for name in labels]
    return np.array(
        [[each[mask].sum() for mask in are_negative] for each in (weights, all_weights)]
    )
