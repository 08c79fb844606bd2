"""LEARN's part of the ranker: what is read for a row, and what the model makes of it.

`inputs` find the vectors, the history and the neighbours' conversions of each row;
`statistics` and `attention` let the candidate meet the history; `residual` turns all of
it into a part of the logit, `paper` into dense features.
"""
