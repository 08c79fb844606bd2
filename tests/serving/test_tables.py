"""Packed tables: the bits of TorchRec's tools, and what is read of them."""

import numpy as np
import pytest
import torch
from torchrec import EmbeddingBagCollection, EmbeddingBagConfig, KeyedJaggedTensor
from torchrec.inference.modules import quantize_embeddings

from learn_torchrec.serving.tables import Group, Ids, Lookup, Table, pack, unpack

CPU = torch.device("cpu")
WEIGHTS = {
    "t_a": torch.randn(20, 8, generator=torch.Generator().manual_seed(0)),
    "t_b": torch.randn(5, 32, generator=torch.Generator().manual_seed(1)),
}
TABLES = tuple(
    Table(name=name, rows=len(table), dim=table.shape[1])
    for name, table in WEIGHTS.items()
)


def lookup(precision: str, features, pooled: bool, tables=TABLES) -> Lookup:
    group = Group(name="g", tables=tables, features=features, pooled=pooled)
    packed = {name: pack(table, precision) for name, table in WEIGHTS.items()}
    return Lookup(group, precision, packed, CPU)


def test_int8_is_what_torchrec_quantizes_to():
    configs = [
        EmbeddingBagConfig(
            name=table.name,
            embedding_dim=table.dim,
            num_embeddings=table.rows,
            feature_names=[name],
        )
        for table, name in zip(TABLES, ("a", "b"), strict=True)
    ]
    plain = EmbeddingBagCollection(tables=configs)
    names = {f"embedding_bags.{n}.weight": table for n, table in WEIGHTS.items()}
    plain.load_state_dict(names)
    holder = torch.nn.Sequential(plain)
    quantized = quantize_embeddings(holder, torch.qint8, inplace=False)[0]
    rows, lengths = [3, 19, 0, 4, 4, 1], [[2, 1], [3, 0]]
    ids = KeyedJaggedTensor(
        keys=["a", "b"],
        values=torch.tensor(rows, dtype=torch.int32),
        lengths=torch.tensor(lengths, dtype=torch.int32).flatten(),
    )
    expected = quantized(ids).to_dict()

    found = lookup("int8", (("a", 0), ("b", 1)), pooled=True)(
        Ids(torch.tensor(rows), torch.tensor(lengths))
    )

    for name, values in found.items():
        np.testing.assert_array_equal(values, expected[name])


@pytest.mark.parametrize("precision", ["float", "half", "int8"])
def test_bags_are_summed_and_weighted(precision):
    tables = {n: unpack(pack(t, precision), precision) for n, t in WEIGHTS.items()}
    rows, weights = torch.tensor([3, 19, 7, 4]), torch.tensor([0.5, 2.0, 1.0, -1.0])
    ids = Ids(rows, torch.tensor([[2, 0], [0, 1], [1, 0]]), weights)

    found = lookup(precision, (("a", 0), ("a2", 0), ("b", 1)), pooled=True)(ids)

    a, b = tables["t_a"], tables["t_b"]
    zero = torch.zeros(8)
    for name, expected in {
        "a": [0.5 * a[3] + 2 * a[19], zero],
        "a2": [zero, a[7]],
        "b": [-b[4], torch.zeros(32)],
    }.items():
        np.testing.assert_allclose(found[name], torch.stack(expected), atol=1e-6)


@pytest.mark.parametrize("precision", ["float", "half", "int8"])
def test_unpooled_ids_keep_their_rows(precision):
    tables = lookup(precision, (("a", 0), ("a2", 0)), pooled=False, tables=TABLES[:1])
    expected = unpack(pack(WEIGHTS["t_a"], precision), precision)
    lengths = torch.tensor([[1, 2], [2, 0]])

    found = tables(Ids(torch.tensor([1, 2, 3, 7, 5]), lengths))
    none = tables(Ids(torch.tensor([], dtype=torch.int64), torch.zeros_like(lengths)))

    np.testing.assert_array_equal(found["a"], expected[[1, 2, 3]])
    np.testing.assert_array_equal(found["a2"], expected[[7, 5]])
    assert none["a"].shape == (0, 8)


@pytest.mark.parametrize(("precision", "most"), [("int8", 0.005), ("half", 0.0005)])
def test_rounding_is_small_and_the_size_as_stated(precision, most):
    for table in WEIGHTS.values():
        packed = pack(table, precision)
        error = (unpack(packed, precision) - table).abs().max()
        assert error <= most * (table.max() - table.min())
        dim = table.shape[1]
        assert packed.shape[1] == {"int8": dim + 4, "half": 2 * dim}[precision]
