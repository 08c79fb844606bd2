"""LEARN's features in somebody's ranker: plain PyTorch, and TorchRec."""

import doctest
import subprocess
import sys

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from torch import nn
from torch.nn.functional import binary_cross_entropy_with_logits as bce
from torchrec import EmbeddingBagCollection, EmbeddingBagConfig, KeyedJaggedTensor
from torchrec.models.dlrm import DLRM

from learn_torchrec import LearnFeatures
from learn_torchrec.artifact import write_artifact
from learn_torchrec.errors import UserError
from learn_torchrec.ranker import auxiliary, learn_features, vectors

USERS = {"a": [1.0, 0.0], "b": [0.0, 1.0]}
LABELS = torch.tensor([1.0, 0.0, 1.0])


def as_lists(matrix):
    flat = pa.array(np.asarray(matrix, np.float32).reshape(-1))
    return pa.FixedSizeListArray.from_arrays(flat, len(matrix[0]))


@pytest.fixture
def directory(tmp_path):
    """A vectors artefact: users a (at 110 and 120) and b, items 7 and 8."""
    users = {
        "user_id": ["a", "a", "b"],
        "timestamp": [110, 120, 110],
        "vector": as_lists([[9, 9], USERS["a"], USERS["b"]]),
    }
    items = {"item_id": [7, 8], "vector": as_lists([[1, 2], [3, 4]])}
    with write_artifact(
        tmp_path / "v", kind=vectors.KIND, config={}, inputs={}, cutoff=100
    ) as out:
        pq.write_table(pa.table(users), out / "user_vectors.parquet")
        pq.write_table(pa.table(items), out / "item_vectors.parquet")
    return tmp_path / "v"


def test_in_a_plain_pytorch_model(directory):
    learn = LearnFeatures.load(directory)
    ranker = nn.Linear(3 + learn.out_features, 1)
    learned, auxiliary_logits = learn.of_ids(["a", "b", "c"], [7, 9, 8])
    logits = ranker(torch.cat([torch.randn(3, 3), learned], dim=1)).squeeze(1)
    loss = bce(logits, LABELS) + learn.auxiliary_loss(auxiliary_logits, LABELS)
    loss.backward()
    for module in (ranker, learn):
        assert all(p.grad.abs().sum() > 0 for p in module.parameters())
    # User c and item 9 have no vector: zeros, and flags of 0.
    assert learned[:, -2:].tolist() == [[1, 1], [1, 0], [0, 1]]
    pairs = [[*USERS["a"], 1, 2], [*USERS["b"], 0, 0], [0, 0, 3, 4]]
    assert learned[:, -6:-2].tolist() == pairs


def test_in_a_torchrec_model(directory):
    learn = LearnFeatures.load(directory)
    config = EmbeddingBagConfig(
        name="t_city", embedding_dim=4, num_embeddings=9, feature_names=["city"]
    )
    dlrm = DLRM(
        EmbeddingBagCollection(tables=[config]),
        dense_in_features=3 + learn.out_features,
        dense_arch_layer_sizes=[8, 4],
        over_arch_layer_sizes=[8, 1],
    )
    cities = KeyedJaggedTensor(
        ["city"], torch.tensor([1, 2, 3]), lengths=torch.ones(3).int()
    )
    learned, auxiliary_logits = learn.of_ids(["a", "b", "c"], [7, 9, 8])
    logits = dlrm(torch.cat([torch.randn(3, 3), learned], dim=1), cities).squeeze(1)
    loss = bce(logits, LABELS) + learn.auxiliary_loss(auxiliary_logits, LABELS)
    loss.backward()
    assert all(p.grad is not None for p in (*dlrm.parameters(), *learn.parameters()))


def test_users_are_seen_as_of_strictly_before(directory):
    learn = LearnFeatures.load(directory, features="vectors")
    assert list(learn.parameters()) == []
    found, logits = learn.of_ids(["a"] * 3, [7, 7, 7], [110, 111, 121])
    assert logits is None
    assert found[:, :2].tolist() == [[0, 0], [9, 9], USERS["a"]]
    tensors = torch.tensor([7, 7, 7]), torch.tensor([110, 111, 121])
    again, _ = learn.of_ids(np.array(["a"] * 3), *tensors)
    assert again.equal(found)


def test_ids_of_another_type_are_refused(directory):
    learn = LearnFeatures.load(directory)
    with pytest.raises(UserError, match="'user_id' is int64 but string in the vectors"):
        learn.of_ids([1], [7])
    with pytest.raises(ValueError, match="needs vectors"):
        LearnFeatures(vector_dim=2).of_ids(["a"], [7])


@pytest.mark.parametrize(
    ("switch", "width"), [("all", 5 + 8 + 2), ("vectors", 8 + 2), ("fusion", 5 + 2)]
)
def test_switches(switch, width):
    network = auxiliary.AuxiliaryNetwork(vector_dim=4, fusion_dim=5)
    learn = LearnFeatures(4, network, features=switch)
    users, items = torch.randn(6, 4), torch.randn(6, 4)
    learned, logits = learn(users, items)
    assert learned.shape == (6, width)
    assert learn.out_features == width
    assert (logits is None) == (switch == "vectors")
    if switch != "vectors":
        assert learned[:, :5].equal(network(users, items)[0])
    if switch != "fusion":
        assert learned[:, -10:-2].equal(torch.cat([users, items], dim=1))


@pytest.mark.parametrize("stop", [False, True])
def test_stop_gradient_keeps_the_main_loss_out(stop):
    learn = LearnFeatures(vector_dim=4, stop_gradient=stop)
    learned, logits = learn(torch.randn(50, 4), torch.randn(50, 4))
    fusion = learn.auxiliary.fusion_out.weight
    through_main = learned.sum() + 0 * logits.sum()  # so that there is a path
    main = torch.autograd.grad(through_main, fusion, retain_graph=True)[0]
    assert (main.abs().sum() == 0) == stop
    own = torch.autograd.grad(learn.auxiliary_loss(logits, torch.ones(50)), fusion)[0]
    assert own.abs().sum() > 0


def test_the_auxiliary_loss_by_hand():
    logits, labels = torch.tensor([0.0, 0.0]), torch.tensor([1.0, 0.0])
    weights = torch.tensor([3.0, 1.0])
    expected = float(np.log(2))
    assert LearnFeatures.auxiliary_loss(logits, labels).item() == pytest.approx(
        expected
    )
    weighted = LearnFeatures.auxiliary_loss(logits, labels, weights)
    assert weighted.item() == pytest.approx(2 * expected)


@pytest.mark.parametrize("module", [learn_features, auxiliary])
def test_docstring_examples(module):
    results = doctest.testmod(module)
    assert results.attempted > 0
    assert results.failed == 0


def test_importing_it_needs_neither_torchrec_nor_a_process_group():
    code = (
        "import sys, torch.distributed as dist\n"
        "from learn_torchrec import LearnFeatures\n"
        "LearnFeatures(vector_dim=4)\n"
        "assert 'torchrec' not in sys.modules and not dist.is_initialized()"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
