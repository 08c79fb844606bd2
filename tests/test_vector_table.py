import doctest

import pyarrow as pa

from learn_torchrec import vector_table


def test_examples():
    results = doctest.testmod(vector_table, extraglobs={"pa": pa})
    assert results.attempted
    assert not results.failed
