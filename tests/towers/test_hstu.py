"""The HSTU encoder beside a plain computation, and inside the towers."""

import dataclasses
import itertools
import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from random_sequences import make_sequences
from torch import nn
from untrained_towers import statistics_of

from learn_torchrec.towers.batch import attach_content
from learn_torchrec.towers.build import build_task
from learn_torchrec.towers.config import TowersConfig
from learn_torchrec.towers.encoder import PreferenceEncoder
from learn_torchrec.towers.encoders.architecture import EncoderShape
from learn_torchrec.towers.holdout import TowersSplit
from learn_torchrec.towers.inference import encode_histories
from learn_torchrec.towers.model import TowersModelConfig
from learn_torchrec.towers.objectives.config import LossConfig
from learn_torchrec.towers.sampling import SamplingConfig

SHAPE = EncoderShape(
    architecture="hstu",
    width=8,
    num_layers=2,
    num_heads=2,
    vector_dim=6,
    max_positions=4,  # less than the longest sequence: those further back share one
    dropout=0.0,
)
CONTENT = torch.randn(7, 5, generator=torch.Generator().manual_seed(3)).half()
SEQUENCES = [[0, 1, 2, 3], [6], [2, 2, 5], [4, 3, 2, 1, 0, 6]]
TIMES = [[0, 0, 5, 100], [7], [10, 70, 4000], [0, 1, 3, 4, 10**6, 10**9]]


def make_encoder(shape=SHAPE):
    torch.manual_seed(0)
    encoder = PreferenceEncoder(torch.randn(5), torch.rand(5) + 0.5, shape)
    for parameter in encoder.parameters():  # no zero biases: they hide mistakes
        nn.init.normal_(parameter, std=0.5)
    return encoder.eval()


def flat(lists):
    return torch.tensor([*itertools.chain(*lists)])


def encode(encoder, sequences, times, **options):
    items, times = (
        torch.tensor([*itertools.chain(*lists)]) for lists in (sequences, times)
    )
    lengths = torch.tensor([len(sequence) for sequence in sequences])
    return encoder(CONTENT, items, lengths, times=times, **options)


def naive(encoder, items, times):
    """One sequence, one pair of events after the other: the paper's equations."""
    x = encoder.embed(CONTENT)[items]
    for layer in encoder.sequence_encoder.layers:
        u, v, q, k = F.silu(layer.gate_value_query_key(layer.norm(x))).chunk(4, -1)
        rows = []
        for i in range(len(x)):
            heads = []
            for head in range(2):
                part = slice(head * 4, head * 4 + 4)
                total = torch.zeros(4)
                for j in range(i + 1):
                    bucket = min(int(math.log2(times[i] - times[j] + 1)), 31)
                    bias = layer.time_bias[bucket, head]
                    if layer.position_bias is not None:
                        bias = bias + layer.position_bias[min(i - j, 3), head]
                    total = total + F.silu(q[i, part] @ k[j, part] + bias) * v[j, part]
                heads.append(total / (i + 1))
            rows.append(torch.cat(heads))
        x = x + layer.output(layer.attention_norm(torch.stack(rows)) * u)
    return encoder.project(x)


@pytest.mark.parametrize("max_positions", [0, 4])
def test_equals_the_plain_computation(max_positions):
    encoder = make_encoder(dataclasses.replace(SHAPE, max_positions=max_positions))
    expected = [naive(encoder, *pair) for pair in zip(SEQUENCES, TIMES, strict=True)]
    found = encode(encoder, SEQUENCES, TIMES)
    torch.testing.assert_close(found, torch.cat(expected), atol=1e-5, rtol=1e-5)


def test_company_in_the_batch_changes_nothing():
    encoder = make_encoder()
    together = encode(encoder, SEQUENCES, TIMES).split([len(s) for s in SEQUENCES])
    for sequence, times, vectors in zip(SEQUENCES, TIMES, together, strict=True):
        torch.testing.assert_close(encode(encoder, [sequence], [times]), vectors)


def test_a_later_event_never_moves_an_earlier_vector():
    encoder = make_encoder()
    before = encode(encoder, [[0, 1, 2, 3]], [[0, 10, 20, 30]])
    after = encode(encoder, [[0, 1, 2, 6, 5]], [[0, 10, 20, 90, 99]])
    torch.testing.assert_close(before[:3], after[:3])
    assert (before[3] - after[3]).abs().max() > 1e-3


def test_gaps_matter_and_the_date_does_not():
    encoder = make_encoder()
    vectors = encode(encoder, [[0, 1, 2]], [[0, 10, 20]])
    torch.testing.assert_close(
        encode(encoder, [[0, 1, 2]], [[10**9, 10**9 + 10, 10**9 + 20]]), vectors
    )
    slower = encode(encoder, [[0, 1, 2]], [[0, 10, 2000]])
    torch.testing.assert_close(slower[:2], vectors[:2])
    assert (slower[2] - vectors[2]).abs().max() > 1e-3


def test_order_matters_by_the_positions_alone():
    encoder = make_encoder()
    one, other = (encode(encoder, [s], [[5] * 4]) for s in ([0, 1, 2, 3], [2, 0, 1, 3]))
    assert (one[3] - other[3]).abs().max() > 1e-3


def test_bfloat16_is_close_and_gives_float32():
    encoder = make_encoder()
    exact = encode(encoder, SEQUENCES, TIMES)
    encoder.precision = torch.bfloat16
    rounded = encode(encoder, SEQUENCES, TIMES)
    assert rounded.dtype == torch.float32
    assert not torch.equal(rounded, exact)
    torch.testing.assert_close(rounded, exact, atol=0.1, rtol=0.0)


@pytest.mark.parametrize(
    ("objective", "item_tower"),
    [
        ("dense_all_action", "causal"),
        ("dense_all_action", "self"),
        ("dense_all_action", "projection"),
        ("next_item", "self"),
        ("next_item", "projection"),
    ],
)
def test_every_parameter_learns(store, one_rank, objective, item_tower):
    del one_rank
    sequences = make_sequences([9, 12, 7, 20])
    config = TowersConfig(
        model=TowersModelConfig(encoder=SHAPE, item_tower=item_tower),
        loss=LossConfig(objective=objective),
        sampling=SamplingConfig(history_length=8, target_length=4),
    )
    task = build_task(config, statistics_of(store))
    data = TowersSplit(
        train=sequences, cuts=None, validation=None, test=None, known_until=0
    )
    ids = task.objective.batches(data, batch_size=4, seed=0, epoch=0, start=0)
    task(next(attach_content(ids, store)))[0].backward()
    # Events are 10 s apart: from bucket 0 to that of 70 s, one position has all four.
    for name, parameter in task.named_parameters():
        if parameter.requires_grad:
            assert parameter.grad is not None, name
            rows = parameter.grad.abs().flatten(1 if parameter.ndim > 1 else 0)
            used = (rows > 0).float().mean()
            assert used > (0.1 if "time_bias" in name else 0.9), name


def test_exported_vectors_know_the_times(store, one_rank):
    del one_rank
    config = TowersConfig(model=TowersModelConfig(encoder=SHAPE))
    towers = build_task(config, statistics_of(store)).towers.eval()
    for parameter in towers.parameters():
        nn.init.normal_(parameter, std=0.5)
    sequences = make_sequences([5, 3])
    asked = store, sequences, np.array([4, 7]), 4, torch.device("cpu")
    vectors = encode_histories(towers, *asked)
    rows, times = sequences.of(0)[1:], sequences.times[1:5]
    alone = towers.encoder(
        torch.from_numpy(store.gather(rows)),
        torch.arange(4),
        torch.tensor([4]),
        times=torch.from_numpy(times),
    )
    torch.testing.assert_close(vectors[0], alone[-1])
    stretched = dataclasses.replace(sequences, times=sequences.times * 1000)
    other = encode_histories(towers, store, stretched, *asked[2:])
    assert (other - vectors).abs().max() > 1e-3


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_on_cuda_it_is_the_same():
    encoder = make_encoder()
    items, times = (
        torch.tensor([*itertools.chain(*lists)]) for lists in (SEQUENCES, TIMES)
    )
    lengths = torch.tensor([len(sequence) for sequence in SEQUENCES])
    expected = encoder(CONTENT, items, lengths, times=times)
    inputs = [x.cuda() for x in (CONTENT, items, lengths)]
    found = encoder.cuda()(*inputs, times=times.cuda())
    torch.testing.assert_close(found.cpu(), expected, atol=1e-4, rtol=1e-3)
