import pytest
import torch
import torch.nn.functional as F
from torch import nn

from learn_torchrec.towers.encoder import PreferenceEncoder
from learn_torchrec.towers.encoders import transformer
from learn_torchrec.towers.encoders.architecture import EncoderShape
from learn_torchrec.towers.model import TwinTower
from learn_torchrec.towers.packing import Packing

SHAPE = EncoderShape(
    width=16,
    num_layers=2,
    num_heads=4,
    feed_forward_dim=32,
    vector_dim=6,
    max_positions=10,
)


def make_encoder(shape=SHAPE, content_dim=5):
    torch.manual_seed(0)
    encoder = PreferenceEncoder(
        torch.randn(content_dim), torch.rand(content_dim) + 0.5, shape
    )
    for parameter in encoder.parameters():  # no zero biases: they hide mistakes
        nn.init.normal_(parameter, std=0.3)
    return encoder.eval()


def naive(encoder, content, items):
    """One sequence, one position after the other, in plain matrix algebra."""
    x = (content.float() - encoder.mean) / encoder.std
    x = encoder.content_projection(x)[items]
    inner = encoder.sequence_encoder
    x = inner.input_norm(x + inner.positions.weight[: len(items)])
    for layer in inner.layers:
        q, k, v = layer.query_key_value(x).chunk(3, dim=-1)
        heads = []
        for head in range(layer.num_heads):
            part = slice(head * 4, head * 4 + 4)
            scores = q[:, part] @ k[:, part].T / 2.0  # sqrt of head size 4
            future = torch.ones(len(x), len(x)).triu(1).bool()
            attention = scores.masked_fill(future, -torch.inf).softmax(-1)
            heads.append(attention @ v[:, part])
        attended = layer.attention_output(torch.cat(heads, -1))
        x = layer.attention_norm(x + attended)
        inner = F.gelu(layer.feed_forward_in(x))
        x = layer.feed_forward_norm(x + layer.feed_forward_out(inner))
    return F.normalize(encoder.vector_projection(x), dim=-1)


CONTENT = torch.randn(7, 5, generator=torch.Generator().manual_seed(3)).half()
SEQUENCES = [[0, 1, 2, 3], [6], [2, 2, 5], [4, 3, 2, 1, 0, 6]]


def encode(encoder, sequences, **options):
    items = torch.tensor([item for sequence in sequences for item in sequence])
    lengths = torch.tensor([len(sequence) for sequence in sequences])
    return encoder(CONTENT, items, lengths, **options)


def test_equals_the_plain_computation():
    encoder = make_encoder()
    expected = torch.cat([naive(encoder, CONTENT, s) for s in SEQUENCES])
    torch.testing.assert_close(
        encode(encoder, SEQUENCES), expected, atol=1e-6, rtol=1e-5
    )


def test_attention_with_dropout_is_the_fused_kernels(monkeypatch):
    query, key, value = torch.randn(3, 2, 4, 5, 8)
    monkeypatch.setattr(transformer, "dropout", lambda x, p, training: x)
    torch.testing.assert_close(
        transformer._causal_attention(query, key, value, 0.5),
        F.scaled_dot_product_attention(query, key, value, is_causal=True),
    )


def test_company_in_the_batch_changes_nothing():
    encoder = make_encoder()
    together = encode(encoder, SEQUENCES).split([len(s) for s in SEQUENCES])
    for sequence, vectors in zip(SEQUENCES, together, strict=True):
        torch.testing.assert_close(encode(encoder, [sequence]), vectors)


def test_a_later_item_never_moves_an_earlier_vector():
    encoder = make_encoder()
    before = encode(encoder, [[0, 1, 2, 3]])
    after = encode(encoder, [[0, 1, 2, 6, 5]])
    torch.testing.assert_close(before[:3], after[:3])
    assert (before[3] - after[3]).abs().max() > 1e-3


def test_vectors_have_unit_norm_and_positions_matter():
    encoder = make_encoder()
    vectors = encode(encoder, [[1, 1, 1]])
    torch.testing.assert_close(vectors.norm(dim=-1), torch.ones(3))
    assert (vectors[0] - vectors[2]).abs().max() > 1e-3


def test_read_picks_tokens():
    encoder = make_encoder()
    read = torch.tensor([[3, 0], [4, 13]])
    torch.testing.assert_close(
        encode(encoder, SEQUENCES, read=read), encode(encoder, SEQUENCES)[read]
    )


def test_without_positions_order_of_the_past_does_not_matter():
    encoder = make_encoder(
        EncoderShape(**{**vars(SHAPE), "max_positions": 0, "num_layers": 1})
    )
    one, other = encode(encoder, [[0, 1, 2, 3]]), encode(encoder, [[2, 0, 1, 3]])
    torch.testing.assert_close(one[3], other[3])


def test_too_long_sequences_are_refused():
    with pytest.raises(ValueError, match="11 tokens, more than max_positions 10"):
        encode(make_encoder(), [[0] * 11])


def test_width_must_fit_the_heads():
    with pytest.raises(ValueError, match="width: 10 is not a multiple of num_heads, 4"):
        EncoderShape(width=10, num_heads=4)


def test_an_item_is_its_sequence_of_length_one():
    encoder = make_encoder()
    towers = TwinTower(encoder, "causal").eval()
    items = torch.tensor([4, 0, 4])
    alone = torch.cat([encode(encoder, [[int(item)]]) for item in items])
    torch.testing.assert_close(towers.encode_items(CONTENT, items), alone)


def test_packing_groups_sequences_of_like_length():
    packing = Packing(torch.tensor([2, 1, 5, 3, 1]))
    tokens = torch.arange(1.0, 13.0)
    ordered = tokens[packing.order]
    assert ordered.tolist() == [3, 12, 1, 2, 9, 10, 11, 4, 5, 6, 7, 8]
    assert packing.positions.tolist() == [0, 0, 0, 1, 0, 1, 2, 0, 1, 2, 3, 4]
    assert ordered[packing.inverse].tolist() == tokens.tolist()
    padded = [group.pad(part) for group, part in packing.split(ordered)]
    assert [grid.tolist() for grid in padded] == [
        [[3], [12]],
        [[1, 2, 0], [9, 10, 11]],
        [[4, 5, 6, 7, 8]],
    ]
    pieces = [g.unpad(grid) for g, grid in zip(packing.groups, padded, strict=True)]
    assert torch.cat(pieces).tolist() == ordered.tolist()


def test_gradients_come_back_from_the_padded_grid():
    (group,) = Packing(torch.tensor([2, 3])).groups
    tokens = torch.arange(10.0).view(5, 2).requires_grad_()
    (group.unpad(group.pad(tokens) * 3) * tokens.detach()).sum().backward()
    assert torch.equal(tokens.grad, 3 * tokens.detach())


def test_bfloat16_is_close_and_gives_float32():
    torch.manual_seed(0)
    encoder = PreferenceEncoder(
        torch.zeros(6),
        torch.ones(6),
        EncoderShape(width=16, num_layers=2, num_heads=2, feed_forward_dim=32),
    ).eval()
    content, lengths = torch.randn(5, 6).half(), torch.tensor([3, 4])
    items = torch.tensor([0, 1, 2, 3, 4, 0, 1])
    exact = encoder(content, items, lengths)
    encoder.precision = torch.bfloat16
    rounded = encoder(content, items, lengths)
    assert rounded.dtype == torch.float32
    assert not torch.equal(rounded, exact)
    torch.testing.assert_close(rounded, exact, atol=0.05, rtol=0.0)
    torch.testing.assert_close(rounded.norm(dim=-1), torch.ones(7))
