"""LEARN's part of the ranker: what is read for a row, and what the model makes of it.

`inputs` find the vectors, the history and the neighbours' conversions of each row;
`statistics` and `attention` let the candidate meet the history; `history_features`
makes dense features of all of it, `residual` a part of the logit.
"""
