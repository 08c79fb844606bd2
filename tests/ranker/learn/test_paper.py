"""LEARN's features in somebody's ranker: plain PyTorch, and TorchRec."""

import datetime as dt
import doctest
import subprocess
import sys

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
import torch
from torch import nn
from torch.nn.functional import binary_cross_entropy_with_logits as bce
from torchrec import EmbeddingBagCollection, EmbeddingBagConfig, KeyedJaggedTensor
from torchrec.models.dlrm import DLRM
from vectors_artefact import write_vectors

from learn_torchrec import LearnFeatures
from learn_torchrec.errors import UserError
from learn_torchrec.ranker.learn import auxiliary, paper

USERS = {"a": [1.0, 0.0], "b": [0.0, 1.0]}
LABELS = torch.tensor([1.0, 0.0, 1.0])


@pytest.fixture
def directory(tmp_path):
    """A vectors artefact: users a (at 110 and 120) and b, items 7 and 8."""
    users = (
        ["a", "b"],
        [0, 2, 3],
        [110, 120, 110],
        [[9, 9], USERS["a"], USERS["b"]],
    )
    write_vectors(tmp_path / "v", users, ([7, 8], [[1, 2], [3, 4]]))
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
    with pytest.raises(UserError, match="'user_id': ids are int64, but string in"):
        learn.of_ids([1], [7])
    with pytest.raises(ValueError, match="needs vectors"):
        LearnFeatures(vector_dim=2).of_ids(["a"], [7])


NAMES, NUMBERS = ["b", "a", "x"], [8, 9, 7]
FOUND = [[*USERS["b"], 3, 4, 1, 1], [*USERS["a"], 0, 0, 1, 0], [0, 0, 1, 2, 0, 1]]


@pytest.mark.parametrize(
    ("users", "items"),
    [
        (NAMES, NUMBERS),
        (tuple(NAMES), torch.tensor(NUMBERS, dtype=torch.int32)),
        (np.array(NAMES), np.array(NUMBERS, np.int32)),
        (np.array(NAMES, object), np.array(NUMBERS, np.uint8)),
        (pd.Series(NAMES), pd.Series(NUMBERS, dtype="Int64")),
        (pd.Series(NAMES, dtype="category"), pd.Series(NUMBERS, dtype="category")),
        (pd.Index(NAMES), pd.Index(NUMBERS)),
        (pa.array(NAMES).dictionary_encode(), pa.array(NUMBERS, pa.int16())),
        (pa.chunked_array([NAMES[:1], NAMES[1:]]), pa.chunked_array([NUMBERS])),
    ],
    ids=lambda column: type(column).__name__,
)
def test_ids_as_people_hold_them(directory, users, items):
    learn = LearnFeatures.load(directory, features="vectors")
    assert learn.of_ids(users, items)[0].tolist() == FOUND


def test_one_id_and_an_empty_batch(directory):
    learn = LearnFeatures.load(directory, features="vectors")
    frame = pd.DataFrame({"user": NAMES, "item": NUMBERS, "time": [111] * 3})
    for one in (
        ("b", 8, 111),
        tuple(frame.iloc[0]),
        (np.str_("b"), np.int64(8), np.datetime64("1970-01-01T00:01:51")),
        ("b", torch.tensor(8), pd.Timestamp(111, unit="s")),
    ):
        assert learn.of_ids(*one)[0].tolist() == FOUND[:1]
    none = frame.iloc[:0]
    for empty in (
        ([], [], []),
        (none.user, none.item, none.time),
        (np.array([]), torch.tensor([]), pd.to_datetime([])),
    ):
        assert learn.of_ids(*empty)[0].shape == (0, 6)
        assert learn.of_ids(*empty[:2])[0].shape == (0, 6)


def test_frames_columns_and_iterators(directory):
    learn = LearnFeatures.load(directory, features="vectors")
    frame = pd.DataFrame({"user": NAMES, "item": NUMBERS, "time": [111] * 3})
    expected = learn.of_ids(NAMES, NUMBERS, [111] * 3)[0].tolist()
    for batch in (
        (frame[["user"]], frame[["item"]], frame[["time"]]),
        (iter(NAMES), map(int, NUMBERS), (111 for _ in NAMES)),
        (NAMES, torch.tensor(NUMBERS)[:, None], np.full((3, 1), 111)),
    ):
        assert learn.of_ids(*batch)[0].tolist() == expected
    with pytest.raises(UserError, match="user_id: ids of mixed or unknown type"):
        learn.of_ids(frame[["user", "item"]], NUMBERS)


MOMENTS = [110, 111, 121]


@pytest.mark.parametrize(
    "times",
    [
        MOMENTS,
        np.array(MOMENTS, np.int32),
        np.array(MOMENTS, ">i4"),
        np.array(MOMENTS, "datetime64[s]").astype(">M8[s]"),
        torch.tensor(MOMENTS, dtype=torch.int32),
        pd.Series(MOMENTS),
        np.array(MOMENTS, "datetime64[s]"),
        np.array(MOMENTS, "datetime64[s]").astype("datetime64[ns]"),
        pd.to_datetime(MOMENTS, unit="s"),
        pd.Series(pd.to_datetime(MOMENTS, unit="s", utc=True)),
        pd.Series(pd.to_datetime(MOMENTS, unit="s", utc=True)).dt.tz_convert(
            "Asia/Tokyo"
        ),
        [dt.datetime.fromtimestamp(t, dt.UTC) for t in MOMENTS],
        pa.array(MOMENTS, pa.timestamp("s")).cast(pa.timestamp("ms")),
        # Fractions are cut off: strictly before 110.9 is no more than before 110.
        pd.to_datetime([110.9, 111.9, 121.9], unit="s"),
        np.array([110.9, 111.9, 121.9]),
        pa.array([110, 111, 121]).cast(pa.decimal128(22, 3)),
        ["1970-01-01T00:01:50Z", "1970-01-01 00:01:51", "1970-01-01T01:02:01+01:00"],
    ],
)
def test_times_as_people_hold_them(directory, times):
    learn = LearnFeatures.load(directory, features="vectors")
    found, _ = learn.of_ids(["a"] * 3, [7, 7, 7], times)
    assert found[:, :2].tolist() == [[0, 0], [9, 9], USERS["a"]]


@pytest.mark.parametrize(
    ("times", "message"),
    [
        (
            [110_000, 1_700_000_000_000],
            "timestamp holds 1700000000000, in unix seconds",
        ),
        (np.array([1, 1 << 62]), "milliseconds"),
        (pd.to_datetime([None, None]), "timestamp: null time in rows 0, 1"),
        ([5, None], "timestamp: null time in row 1"),
        (pd.Series([5, None]), "null time in row 1"),
        (
            torch.tensor([5.0, 6.0]),
            "timestamp: times are float; use int64 unix seconds or datetimes",
        ),
        (["2026-01-01", "noon"], "timestamp holds 'noon'; write times as unix"),
        (["2026-02-30"] * 2, "timestamp: .*2026-02-30.*; correct the time"),
        ([5, "a"], "times are of mixed or unknown type"),
        ([True, False], "times are bool"),
    ],
)
def test_times_that_mislead_are_refused(directory, times, message):
    learn = LearnFeatures.load(directory)
    with pytest.raises(UserError, match=message) as caught:
        learn.of_ids(["a", "b"], [7, 8], times)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("ids", [["a", None], pd.Series(["a", None])])
def test_null_ids_are_refused(directory, ids):
    learn = LearnFeatures.load(directory)
    with pytest.raises(UserError, match="user_id: null id in row 1"):
        learn.of_ids(ids, [7, 8])


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
@pytest.mark.parametrize("features", ["all", "vectors"])
def test_the_module_decides_the_precision(directory, dtype, features):
    learn = LearnFeatures.load(directory, features=features)
    whole, _ = learn.of_ids(NAMES, NUMBERS)
    assert whole.dtype == torch.float32
    other, logits = learn.to(dtype).of_ids(NAMES, NUMBERS)
    assert other.dtype == dtype
    assert other[:, -6:].tolist() == FOUND
    torch.testing.assert_close(other.float(), whole, atol=0.1, rtol=0.1)
    if logits is not None:
        assert logits.dtype == dtype
    assert "_like" not in learn.state_dict()


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


@pytest.mark.parametrize("module", [paper, auxiliary])
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
