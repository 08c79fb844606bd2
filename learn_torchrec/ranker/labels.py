"""Labels to learn from: refused before training if there is nothing to learn."""

import numpy as np

from learn_torchrec.errors import UserError
from learn_torchrec.ranker.features.dense import encode_weights
from learn_torchrec.ranker.impressions import Impressions
from learn_torchrec.ranker.tasks import label_columns


def refuse_one_class(impressions: Impressions, use: str = "learn from") -> None:
    """Refuse labels that are all 0 or all 1 among the rows with a weight above 0.

    Rows are read only until every label column has shown both classes. `use` says what
    the rows are for.

    Raises:
        UserError: names the column, or that no row has a weight.
    """
    source, encoder = impressions.source, impressions.encoder()
    found: dict[str, set[float]] = {n: set() for n in label_columns(impressions.tasks)}
    rows = 0
    for group in range(len(source)):
        for piece in source.pieces(group):
            table = encoder.checked(piece)
            has_weight = encode_weights(table, source.name) > 0
            rows += int(has_weight.sum())
            for name, classes in found.items():
                labels = table[name].to_numpy()[has_weight]
                classes.update(np.unique(labels).tolist())
            if all(len(classes) == 2 for classes in found.values()):
                return
    if not rows:
        raise UserError(
            f"{source.name}: all {len(impressions)} rows to {use} have weight 0; "
            "give some a weight above 0, or drop the column"
        )
    name, classes = next(one for one in found.items() if len(one[1]) < 2)
    raise UserError(
        f"{source.name}: column {name!r} is {classes.pop():g} in all {rows} rows to "
        f"{use}, so there is nothing to {use.split()[0]}; a ranker needs impressions "
        "with label 0 and with label 1"
    )
