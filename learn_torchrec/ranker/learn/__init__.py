"""LEARN's part of the ranker: what is read for a row, and what the model makes of it.

`inputs` finds and fetches a row's vectors (`vectors`, `reduced`), history (`histories`)
and neighbours' conversions (`neighbours`). `statistics` and `attention` let the
candidate meet the history, `history_features` puts all of it side by side, `residual`
makes a part of the logit of it. `paper` is the paper's form, dense features with the
`auxiliary` network; `content` stands in for towers.
"""
