import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import nn
from transformers import BertConfig
from transformers.models.bert.modeling_bert import BertEncoder

from learn_torchrec.errors import UserError
from learn_torchrec.towers.encoder import PreferenceEncoder
from learn_torchrec.towers.encoders.architecture import EncoderShape
from learn_torchrec.towers.official_checkpoint import (
    convert_official_checkpoint,
    read_official_checkpoint,
)
from learn_torchrec.towers.warm_start import load_encoder

CONTENT_DIM, VECTOR_DIM = 10, 6


class Theirs(nn.Module):
    """The parameters of the authors' module, under their names."""

    def __init__(self):
        super().__init__()
        shape = BertConfig(
            hidden_size=16,
            num_hidden_layers=2,
            num_attention_heads=4,
            intermediate_size=32,
            attn_implementation="eager",
        )
        self.summary_encoder = BertEncoder(shape)
        self.adaptor = nn.Linear(CONTENT_DIM, 16)
        self.mlp = nn.Sequential(nn.Linear(16, VECTOR_DIM))

    def forward(self, content, lengths):
        """Padded sequences [B, L, C] to vectors [B, L, D]."""
        positions = torch.arange(content.shape[1])
        causal = positions[None, :] <= positions[:, None]
        real = positions[None, :] < lengths[:, None]
        mask = (~(causal[None] & real[:, None, :])).float() * -1e4
        tokens = self.summary_encoder(
            self.adaptor(content), attention_mask=mask[:, None]
        ).last_hidden_state
        return F.normalize(self.mlp(tokens), dim=-1)


@pytest.fixture
def theirs():
    torch.manual_seed(0)
    model = Theirs()
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.3)
    return model.eval()


@pytest.mark.parametrize("prefix", ["", "module."])
def test_outputs_equal_transformers_with_the_same_weights(theirs, prefix):
    state = {prefix + name: value for name, value in theirs.state_dict().items()}
    shape = EncoderShape(
        width=16,
        num_layers=2,
        num_heads=4,
        feed_forward_dim=32,
        vector_dim=VECTOR_DIM,
        max_positions=0,
    )
    zeros, ones = torch.zeros(CONTENT_DIM), torch.ones(CONTENT_DIM)
    ours = PreferenceEncoder(zeros, ones, shape).eval()
    ours.load_state_dict(convert_official_checkpoint(state))
    content = torch.randn(9, CONTENT_DIM)
    lengths = torch.tensor([5, 1, 3])
    items = torch.tensor([0, 1, 2, 3, 4, 8, 6, 6, 7])
    padded = torch.zeros(3, 5, CONTENT_DIM)
    for row, part in enumerate(items.split(lengths.tolist())):
        padded[row, : len(part)] = content[part]
    expected = theirs(padded, lengths)
    expected = torch.cat([expected[row, :n] for row, n in enumerate(lengths)])
    torch.testing.assert_close(
        ours(content, items, lengths), expected, atol=1e-5, rtol=1e-5
    )


def test_other_checkpoints_are_refused(theirs):
    state = theirs.state_dict()
    with pytest.raises(UserError, match=r"embeddings\.weight is not a parameter of"):
        convert_official_checkpoint({**state, "embeddings.weight": torch.zeros(1)})
    missing = "summary_encoder.layer.1.output.dense.bias"
    with pytest.raises(UserError, match=r"layer 1 has no output\.dense\.bias"):
        convert_official_checkpoint({k: v for k, v in state.items() if k != missing})
    with pytest.raises(UserError, match="has no vector_projection"):
        convert_official_checkpoint(
            {k: v for k, v in state.items() if not k.startswith("mlp")}
        )


def test_checkpoints_are_read_from_disk(theirs, tmp_path):
    state = theirs.state_dict()
    expected = convert_official_checkpoint(state)
    save_file(state, tmp_path / "model.safetensors")
    torch.save(state, tmp_path / "model.pt")
    torch.save({"epoch": 20, "state_dict": state}, tmp_path / "checkpoint.pt")
    for name in ("model.safetensors", "model.pt", "checkpoint.pt"):
        read = read_official_checkpoint(tmp_path / name)
        assert read.keys() == expected.keys()
        assert all(torch.equal(read[key], expected[key]) for key in expected)


def test_checkpoints_that_are_none_are_refused(theirs, tmp_path):
    (tmp_path / "broken.pt").write_bytes(b"no checkpoint")
    torch.save(theirs, tmp_path / "module.pt")  # a pickled module: code, not weights
    for name in ("missing.pt", "missing.safetensors", "broken.pt", "module.pt"):
        with pytest.raises(UserError, match=f"{name}: cannot be read as a checkpoint"):
            read_official_checkpoint(tmp_path / name)
    shape = EncoderShape(width=16, num_layers=3, num_heads=4, feed_forward_dim=32)
    encoder = PreferenceEncoder(
        torch.zeros(CONTENT_DIM), torch.ones(CONTENT_DIM), shape
    )
    state = convert_official_checkpoint(theirs.state_dict())
    with pytest.raises(UserError, match=r"input_norm\.bias is missing, the configured"):
        load_encoder(encoder, state)
