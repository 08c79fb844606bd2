"""The precision of a ranker's matrix products, and of what its ranks send."""

import json

import communication_ranks
import problem
import pytest
import torch
from problem import Recorder

from learn_torchrec import HistoryBatch, LearnShape
from learn_torchrec.config import replace
from learn_torchrec.errors import UserError
from learn_torchrec.ranker.build import build_ranker, build_task
from learn_torchrec.ranker.learn.batch import LearnBatch
from learn_torchrec.ranker.learn.config import LearnConfig
from learn_torchrec.ranker.model import LearnRankerTrain
from learn_torchrec.ranker.scoring import score
from learn_torchrec.ranker.training import train_ranker

pytest_plugins = ["forked_ranks"]


def config(precision="float32", base=None):
    base = base or problem.config("auto")
    return replace(base, training=replace(base.training, precision=precision))


def trained(settings, device):
    log, rows = Recorder(), problem.impressions(settings)
    model, *_ = train_ranker(settings, rows, device, log)
    return model, [line["loss"] for line in log.lines]


@pytest.fixture
def seen(monkeypatch):
    """What the training's forward passes see: dtypes of products, use of TF32."""
    found = []
    original = LearnRankerTrain.forward

    def forward(self, batch):
        def note(module, inputs, output):
            use = torch.backends.cuda.matmul.fp32_precision
            found.append((self.training, output.dtype, use))

        with self.ranker.over_arch.register_forward_hook(note):
            return original(self, batch)

    monkeypatch.setattr(LearnRankerTrain, "forward", forward)
    return found


@pytest.mark.parametrize("case", ["auto", "architecture"])
def test_bfloat16_learns_nearly_the_same(case, one_rank, seen):
    base = problem.architecture("auto") if case == "architecture" else None
    model, losses = trained(config("bfloat16", base), one_rank)
    assert {one[:2] for one in seen} >= {(True, torch.bfloat16)}
    assert {p.dtype for p in model.module.parameters()} == {torch.float32}
    _, expected = trained(config("float32", base), one_rank)
    assert losses == pytest.approx(expected, abs=1e-2)
    assert losses != expected


def test_a_ranker_that_learned_in_bfloat16_scores_in_float32(one_rank, seen):
    settings = config("bfloat16")
    model, _ = trained(settings, one_rank)
    seen.clear()
    rows = problem.impressions(settings)
    found = score(model, rows, 50, one_rank)["score"].tolist()
    assert {one[:2] for one in seen} == {(False, torch.float32)}
    other = build_ranker(config("float32"), problem.SHAPE, one_rank)
    other.load_state_dict(model.state_dict())
    assert score(other, rows, 50, one_rank)["score"].tolist() == found


@pytest.mark.parametrize(
    ("precision", "use"), [("tf32", "tf32"), ("float32", "ieee"), ("bfloat16", "ieee")]
)
def test_tf32_is_used_while_training_alone(precision, use, one_rank, seen):
    before = torch.backends.cuda.matmul.fp32_precision
    trained(config(precision), one_rank)
    assert {one[2] for one in seen if one[0]} == {use}
    assert torch.backends.cuda.matmul.fp32_precision == before


def test_the_residual_is_float32():
    """Statistics of cosines need more than bfloat16's eight bits."""
    base = replace(config("bfloat16"), learn=LearnConfig())
    task = build_task(base, LearnShape(content_dim=4), torch.device("cpu"))
    history = HistoryBatch.of([1, 0], [2, 1], [1, 1], [3.0, 5.0], torch.randn(3, 4))
    baseline, residual = [], []
    ranker = task.ranker
    ranker.sparse_arch = Rows(len(ranker.sparse_arch.names))
    ranker.over_arch.register_forward_hook(lambda *x: baseline.append(x[2].dtype))
    ranker.residual.register_forward_pre_hook(
        lambda *_: residual.append(torch.is_autocast_enabled("cpu"))
    )
    logits = ranker(torch.rand(2, 1), None, LearnBatch.of(history)).logits["cvr"]
    assert (baseline, residual) == ([torch.bfloat16], [False])
    assert logits.dtype == torch.float32


class Rows(torch.nn.Module):
    """Stands for tables: embeddings of two rows."""

    def __init__(self, features: int) -> None:
        super().__init__()
        self.features = features

    def forward(self, *_: object) -> torch.Tensor:
        return torch.ones(2, self.features, problem.EMBEDDING_DIM)


def test_halves_sent_between_ranks_train_nearly_the_same(run_ranks, tmp_path):
    out = tmp_path / "losses.json"
    ended = run_ranks(communication_ranks.train, out, out)
    assert [code for code, _ in ended] == [0, 0], ended[0][1]
    for case, found in json.loads(out.read_text()).items():
        assert found["float16"] == pytest.approx(found["float32"], abs=2e-3), case
        assert found["float16"] != found["float32"], case


def test_gloo_cannot_send_bfloat16(one_rank):
    settings = communication_ranks.settings("row_wise", "bfloat16")
    with pytest.raises(UserError, match="communication=bfloat16: gloo cannot send it"):
        build_ranker(settings, problem.SHAPE, one_rank)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize(
    ("precision", "communication"),
    [("tf32", "float32"), ("bfloat16", "float32"), ("bfloat16", "bfloat16")],
)
def test_on_cuda_lower_precision_learns_nearly_the_same(
    precision, communication, one_rank
):
    base = communication_ranks.settings("row_wise", communication)
    _, losses = trained(config(precision, base), one_rank)
    _, expected = trained(config("float32"), one_rank)
    assert losses == pytest.approx(expected, abs=1e-2)
