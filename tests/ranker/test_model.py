from types import SimpleNamespace

import pytest
import torch
from torchrec import EmbeddingBagCollection, EmbeddingBagConfig, KeyedJaggedTensor
from torchrec.models.dlrm import DLRM, DLRM_DCN, DLRMTrain

from learn_torchrec import AuxiliaryNetwork, LearnFeatures, LearnRanker
from learn_torchrec.ranker.batch import RankingBatch
from learn_torchrec.ranker.learn.batch import LearnBatch
from learn_torchrec.ranker.model import LearnRankerTrain
from learn_torchrec.ranker.tasks import TaskConfig


def tables(dim=8):
    return EmbeddingBagCollection(
        tables=[
            EmbeddingBagConfig(
                name=f"t_{name}",
                embedding_dim=dim,
                num_embeddings=20,
                feature_names=[name],
            )
            for name in ("user_id", "item_id", "tags")
        ]
    )


def make_ranker(learn=None, kind=LearnRanker):
    torch.manual_seed(0)
    collection = tables()
    torch.manual_seed(1)
    options = {} if kind is DLRM else {"learn": learn}
    return kind(
        collection,
        dense_in_features=3,
        dense_arch_layer_sizes=[16, 8],
        over_arch_layer_sizes=[16, 1],
        **options,
    )


def make_batch(rows=32, vectors=False):
    random = torch.Generator().manual_seed(5)
    lengths = torch.cat(
        [torch.ones(2 * rows, dtype=torch.long), torch.arange(rows) % 4]
    )
    total = int(lengths.sum())
    batch = RankingBatch(
        dense_features=torch.randn(rows, 3, generator=random),
        sparse_features=KeyedJaggedTensor(
            keys=["user_id", "item_id", "tags"],
            values=torch.randint(0, 20, (total,), generator=random),
            lengths=lengths,
        ),
        labels={"label": torch.randint(0, 2, (rows,), generator=random).float()},
        weights=torch.ones(rows),
    )
    if vectors:
        batch.learn = LearnBatch(
            user_vectors=torch.randn(rows, 4, generator=random),
            item_vectors=torch.randn(rows, 4, generator=random),
            has_vectors=torch.ones(rows, 2),
        )
    return batch


def test_with_learn_off_it_is_torchrecs_dlrm_bit_for_bit():
    ours, theirs = make_ranker(), make_ranker(kind=DLRM)
    assert list(ours.state_dict()) == list(theirs.state_dict())
    batch = make_batch()
    logits, auxiliary, _ = ours(batch.dense_features, batch.sparse_features)
    expected = theirs(batch.dense_features, batch.sparse_features).squeeze(-1)
    assert auxiliary == {}
    assert torch.equal(logits["cvr"], expected)
    loss, output = LearnRankerTrain(ours)(batch)
    labels = batch.labels["label"]
    theirs_batch = SimpleNamespace(
        dense_features=batch.dense_features,
        sparse_features=batch.sparse_features,
        labels=labels,
    )
    their_loss, (_, their_logits, _) = DLRMTrain(theirs)(theirs_batch)
    assert torch.equal(loss, their_loss)
    assert torch.equal(output.logits["cvr"], their_logits)
    assert torch.equal(output.labels["label"], labels)
    loss.backward()
    their_loss.backward()
    for (name, one), other in zip(
        ours.named_parameters(), theirs.parameters(), strict=True
    ):
        assert torch.equal(one.grad, other.grad), name


def test_dcn_is_torchrecs_dlrm_dcn_bit_for_bit():
    sizes = [16, 8], [16, 1]
    ours = LearnRanker(tables(), 3, *sizes, dcn=(2, 4))
    theirs = DLRM_DCN(tables(), 3, *sizes, dcn_num_layers=2, dcn_low_rank_dim=4)
    assert list(ours.state_dict()) == list(theirs.state_dict())
    theirs.load_state_dict(ours.state_dict())
    batch = make_batch()
    inputs = batch.dense_features, batch.sparse_features
    logits, expected = ours(*inputs)[0]["cvr"], theirs(*inputs).squeeze(-1)
    assert torch.equal(logits, expected)
    logits.sum().backward()
    expected.sum().backward()
    for (name, one), other in zip(
        ours.named_parameters(), theirs.parameters(), strict=True
    ):
        assert torch.equal(one.grad, other.grad), name
        assert (one.grad != 0).any(), name


def test_without_dense_features_it_is_dlrm_on_a_constant():
    torch.manual_seed(0)
    ours = LearnRanker(tables(), 0, [16, 8], [16, 1])
    torch.manual_seed(0)
    theirs = DLRM(tables(), 1, [16, 8], [16, 1])
    theirs.load_state_dict(ours.state_dict())
    batch, ones = make_batch(), torch.ones(len(make_batch().weights), 1)
    nothing = batch.dense_features[:, :0]
    logits, _, _ = ours(nothing, batch.sparse_features)
    assert torch.equal(logits["cvr"], theirs(ones, batch.sparse_features).squeeze(-1))
    batch.dense_features = nothing
    LearnRankerTrain(ours)(batch)[0].backward()
    for name, parameter in ours.named_parameters():
        assert (parameter.grad != 0).any(), name


def test_every_parameter_learns_and_the_vectors_do_not():
    task = LearnRankerTrain(make_ranker(LearnFeatures(vector_dim=4)))
    batch = make_batch(rows=256, vectors=True)
    task(batch)[0].backward()
    for name, parameter in task.named_parameters():
        assert parameter.grad is not None, name
        assert (parameter.grad != 0).any(), name
    assert not batch.learn.user_vectors.requires_grad


def test_the_loss_is_main_plus_weighted_auxiliary():
    batch = make_batch(vectors=True)
    labels = batch.labels["label"]
    batch.weights = torch.rand(len(labels))
    ranker = make_ranker(LearnFeatures(vector_dim=4))
    logits, auxiliary, _ = ranker(
        batch.dense_features, batch.sparse_features, batch.learn
    )

    def bce(values):
        p = torch.sigmoid(values)
        losses = -(labels * p.log() + (1 - labels) * (1 - p).log())
        return (batch.weights * losses).sum() / len(losses)

    loss = LearnRankerTrain(ranker, [TaskConfig(auxiliary_weight=0.3)])(batch)[0]
    expected = bce(logits["cvr"]) + 0.3 * bce(auxiliary["cvr"])
    torch.testing.assert_close(loss, expected)


def test_the_auxiliary_head_learns_from_its_own_label():
    batch = make_batch(vectors=True)
    ranker = make_ranker(LearnFeatures(vector_dim=4))
    same = LearnRankerTrain(ranker)(batch)[1]
    batch.labels["other"] = 1 - batch.labels["label"]
    task = TaskConfig(auxiliary_label="other")
    other = LearnRankerTrain(ranker, [task])(batch)[1]
    main = [output.loss - output.auxiliary_loss for output in (same, other)]
    torch.testing.assert_close(*main)
    assert abs(same.auxiliary_loss - other.auxiliary_loss) > 1e-4


def test_rows_of_weight_zero_teach_nothing():
    task = LearnRankerTrain(make_ranker())
    batch = make_batch()
    batch.weights[::2] = 0
    task(batch)[0].backward()
    gradient = task.ranker.over_arch.model[1].weight.grad.clone()
    task.zero_grad()
    batch.labels["label"][::2] = 1 - batch.labels["label"][::2]
    task(batch)[0].backward()
    torch.testing.assert_close(task.ranker.over_arch.model[1].weight.grad, gradient)


def test_missing_vectors_become_zeros_and_a_flag():
    learn = LearnFeatures(vector_dim=4)
    has = torch.tensor([[1.0, 1.0], [0.0, 1.0], [0.0, 0.0]])
    users, items = torch.randn(3, 4) * has[:, :1], torch.randn(3, 4) * has[:, 1:]
    features, _ = learn(users, items, has.bool())
    fusion = learn.auxiliary.fusion_dim
    assert features.shape == (3, learn.out_features)
    assert (features[1:, fusion : fusion + 4] == 0).all()
    assert (features[2, fusion + 4 : fusion + 8] == 0).all()
    assert (features[0, fusion : fusion + 8] != 0).all()
    assert features[:, -2:].tolist() == has.tolist()


def test_auxiliary_network_by_hand():
    network = AuxiliaryNetwork(vector_dim=1, hidden_dim=2, fusion_dim=1, head_dim=1)
    with torch.no_grad():
        network.fusion_in.weight.copy_(torch.tensor([[1.0, 2.0], [-1.0, 0.0]]))
        network.fusion_in.bias.copy_(torch.tensor([0.5, 0.0]))
        network.fusion_out.weight.copy_(torch.tensor([[2.0, 5.0]]))
        network.fusion_out.bias.fill_(-1.0)
        for layer, weight in ((network.head[0], 3.0), (network.head[2], -1.0)):
            layer.weight.fill_(weight)
            layer.bias.fill_(0.25)
    fusion, logits = network(torch.tensor([[1.0]]), torch.tensor([[0.5]]))
    # hidden = relu(1 + 1 + 0.5), relu(-1) = 2.5, 0; fusion = 2 * 2.5 - 1 = 4;
    # head = -(3 * 4 + 0.25) + 0.25 = -12.
    assert fusion.tolist() == [[4.0]]
    assert logits.tolist() == [-12.0]


def test_sizes_must_fit():
    with pytest.raises(ValueError, match=r"embedding dims \[8\].*4 must be equal"):
        LearnRanker(tables(), 3, [16, 4], [16, 1])
