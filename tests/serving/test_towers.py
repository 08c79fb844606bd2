"""Towers at request time, beside the stages that export vectors; new items."""

import dataclasses
import json
import shutil
from pathlib import Path

import clustered
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from forging import forge
from random_sequences import make_sequences
from shop import AS_OF, RuleRanker
from untrained_towers import statistics_of

from learn_torchrec import config as configs
from learn_torchrec.apps import embed_items
from learn_torchrec.artifact import read_manifest
from learn_torchrec.content.encoder import EncoderConfig
from learn_torchrec.content.extract import ContentConfig
from learn_torchrec.content.store import KIND, ContentStore, write_content_store
from learn_torchrec.datasets.split import SplitConfig
from learn_torchrec.errors import UserError
from learn_torchrec.publish import write_artifact
from learn_torchrec.serving import new_items
from learn_torchrec.serving.deployment import Places, load
from learn_torchrec.serving.events import Event, open_events
from learn_torchrec.serving.service import RankQuestion, RetrieveQuestion, Service
from learn_torchrec.serving.towers import ServedTowers
from learn_torchrec.towers.artifact import KIND_TOWERS, save_towers
from learn_torchrec.towers.build import build_towers
from learn_torchrec.towers.config import TowersConfig
from learn_torchrec.towers.encoders.architecture import EncoderShape
from learn_torchrec.towers.inference import encode_catalogue, encode_histories
from learn_torchrec.towers.model import TowersModelConfig
from learn_torchrec.towers.sampling import SamplingConfig

CPU = torch.device("cpu")
LENGTH = 4
ITEMS = pa.table(
    {"item_id": range(100, 140), "title": [f"red mug {n}" for n in range(40)]}
)


@pytest.fixture(scope="module", params=["content", "content+id"])
def made(request, tmp_path_factory, model_dir: Path) -> tuple[Path, Path]:
    """Folders of towers and of the content store of 40 items with texts."""
    folder = tmp_path_factory.mktemp("towers")
    content = ContentConfig(encoder=EncoderConfig(model=str(model_dir)))
    from learn_torchrec.content.encoder import ContentEncoder
    from learn_torchrec.content.prompt import render

    vectors = ContentEncoder(content.encoder).encode(render(ITEMS, content.prompt))
    saved = {"content": configs.to_dict(content)}
    with write_artifact(
        folder / "content", kind=KIND, config=saved, inputs={}
    ) as working:
        write_content_store(working, ITEMS["item_id"].combine_chunks(), vectors)
    store = ContentStore.open(folder / "content")
    torch.manual_seed(0)
    shape = EncoderShape(
        width=8, num_layers=1, num_heads=2, feed_forward_dim=16, vector_dim=16
    )
    model = TowersModelConfig(encoder=shape, inputs=request.param)
    config = TowersConfig(model=model, sampling=SamplingConfig(history_length=LENGTH))
    towers = build_towers(model, statistics_of(store))
    split = SplitConfig(actions=("like",))
    with write_artifact(
        folder / "towers",
        kind=KIND_TOWERS,
        config={
            "towers": configs.to_dict(config),
            "split": configs.to_dict(split),
        },
        inputs={"content": store.manifest.fingerprint},
        facts={"actions": ["like"]},
    ) as working:
        save_towers(working, towers.state_dict(), store.item_ids)
    return folder / "towers", folder / "content"


@pytest.fixture(scope="module")
def towers(made) -> ServedTowers:
    return ServedTowers.open(*made)


def test_users_vectors_equal_the_exported_ones(towers: ServedTowers) -> None:
    lengths = [3, 9, 1, 5]
    sequences = make_sequences(lengths)
    last = np.cumsum(lengths) - 1
    exported = encode_histories(
        towers.model, towers.store, sequences, last, LENGTH, CPU
    )
    histories = [
        [
            Event(int(100 + item), int(time), "like")
            for item, time in zip(
                sequences.items[start:end], sequences.times[start:end], strict=True
            )
        ]
        for start, end in zip(sequences.offsets[:-1], last + 1, strict=True)
    ]
    # What does not count: another action, an unknown item.
    histories[0].insert(1, Event(105, 5, "skip"))
    histories[2].append(Event(9, 5, "like"))
    vectors, has = towers.user_vectors([*histories, []])
    assert np.allclose(vectors[:4], exported.numpy(), atol=1e-5)
    assert has.tolist() == [True] * 4 + [False]
    assert not vectors[4].any()


def test_a_text_of_the_catalogue_gets_the_catalogues_vector(towers) -> None:
    content = towers.encode_texts(ITEMS.slice(3, 5))
    stored = towers.store.gather(np.arange(3, 8))
    assert np.allclose(content.astype(float), stored.astype(float), atol=2e-3)
    vectors = towers.item_vectors(stored)
    rows = np.arange(3, 8)
    exported = encode_catalogue(towers.model, towers.store, rows, CPU).numpy()
    if towers.model.ids is None:
        assert np.allclose(vectors, exported, atol=1e-5)
    else:  # a new item has no ID vector of its own
        assert not np.allclose(vectors, exported, atol=1e-3)
    assert np.allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-5)


def test_new_items_count_in_a_users_history(towers) -> None:
    content = towers.store.gather(np.array([7]))[0]
    events = [Event(101, 0, "like"), Event("new", 10, "like")]
    events[1] = events[1]._replace(item_id=999)
    without, _ = towers.user_vectors([events])
    with_it, _ = towers.user_vectors([events], {999: content})
    alone, _ = towers.user_vectors([events[:1]])
    assert np.allclose(without, alone)
    assert not np.allclose(with_it, alone, atol=1e-3)


@pytest.fixture
def service(made, tmp_path: Path) -> Service:
    """Towers and an index of their catalogue's vectors."""
    from learn_torchrec.apps import build_index

    towers = ServedTowers.open(*made)
    vectors = encode_catalogue(towers.model, towers.store, np.arange(40), CPU).numpy()
    users = clustered.unit_vectors(5, 0)
    ids = list(range(100, 140))
    folder = clustered.write_vectors(tmp_path / "vectors", ids, vectors, users)
    index = tmp_path / "index"
    build_index.main(["--vectors", str(folder), "--out", str(index)])
    places = Places(bundles={}, index=index, towers=made[0], content=made[1])
    store = open_events(str(tmp_path / "events.sqlite"))
    return Service(load(places), store)


def found(service: Service, user: int, **more) -> list[int]:
    question = RetrieveQuestion(user, 50, without_history=False, **more)
    return [each.item for each in service.retrieve([question])[0].items]


def scores_of(service: Service, user: int) -> list[float]:
    question = RetrieveQuestion(user, 50, without_history=False)
    return [each.score for each in service.retrieve([question])[0].items]


def test_a_new_item_is_found_at_once_and_after_a_restart(service: Service) -> None:
    service.store.append([(1, Event(105, 5, "like"))])
    assert len(found(service, 1)) == 40
    # The same text as item 105: as near to the user as that one.
    assert service.add_items({999: {"title": "red mug 5"}}) == 1
    items = found(service, 1)
    assert len(items) == 41
    if service.deployment.towers.model.ids is None:
        scores = dict(zip(items, scores_of(service, 1), strict=True))
        assert scores[999] == pytest.approx(scores[105], abs=5e-3)
    assert service.title(999, -1) == "red mug 5"
    assert 999 not in found(service, 1, excluded=(999,))
    assert found(service, 1, available=[999, 101]) in ([999, 101], [101, 999])
    again = Service(service.deployment, service.store)
    again.read_new_items()
    assert found(again, 1) == items


def test_the_ranker_gets_what_it_reads_of_a_new_item(service: Service) -> None:
    ranker = RuleRanker()
    deployment = dataclasses.replace(service.deployment, rankers={"rule": ranker})
    service = Service(deployment, service.store)
    service.add_items({999: {"title": "red mug 5"}})
    service.rank([RankQuestion(1, [105, 999], AS_OF)])
    (extra,) = ranker.requests[-1].extra_items.items()
    assert extra[0] == 999
    assert extra[1].content is None  # such a ranker reads vectors alone
    np.testing.assert_array_equal(extra[1].vector, service.vectors_of([999])[0])


def test_a_new_text_replaces_an_item_of_the_index(service: Service) -> None:
    service.store.append([(1, Event(105, 5, "like"))])
    service.add_items({101: {"title": "a very different thing, by far"}})
    items = found(service, 1)
    assert sorted(items) == list(range(100, 140))
    assert service.title(101, 1) == "a very different thing, by far"


def test_kept_items_of_another_space_are_encoded_again(service: Service) -> None:
    towers = service.deployment.towers
    encoded = new_items.encode(towers, {999: {"title": "red mug 5"}})
    wrong = {999: new_items.EncodedItem(encoded[999].fields, encoded[999].content * 0)}
    new_items.keep(service.store, {"encoder": "another"}, wrong)
    service.read_new_items()
    assert np.allclose(service.new.content[999], encoded[999].content)


def test_items_without_text_are_refused(service: Service) -> None:
    with pytest.raises(UserError, match="item 999: has no text; give it a title"):
        service.add_items({999: {"title": " "}})
    with pytest.raises(UserError, match="no text column"):
        service.add_items({999: {"color": "red"}})
    assert list(service.store.items()) == []


def test_towers_of_another_index_are_refused(made, service, tmp_path: Path) -> None:
    from vectors_artefact import write_vectors

    from learn_torchrec.apps import build_index

    users = (["a"], [0, 1], [5], np.eye(1, 8))
    write_vectors(tmp_path / "other", users, (["x", "y"], np.eye(2, 8)))
    out = ["--out", str(tmp_path / "other_index")]
    build_index.main(["--vectors", str(tmp_path / "other"), *out])
    places = Places(
        bundles={}, index=tmp_path / "other_index", towers=made[0], content=made[1]
    )
    with pytest.raises(UserError, match="vectors of 16 columns, but the index has 8"):
        load(places)


@pytest.fixture
def places(made, tmp_path: Path) -> dict[str, Path]:
    """Towers, their content, and an index of some vectors."""
    from learn_torchrec.apps import build_index

    vectors = np.eye(5, 16, dtype=np.float16)
    clustered.write_vectors(tmp_path / "vectors", [1, 2, 3, 4, 5], vectors, vectors)
    found = {"index": tmp_path / "index", "vectors": tmp_path / "vectors"}
    build_index.main(["--vectors", str(found["vectors"]), "--out", str(found["index"])])
    for name, place in zip(("towers", "content"), made, strict=True):
        found[name] = shutil.copytree(place, tmp_path / name)
    return found


PARTS = {
    "index": "index.faiss",
    "vectors": "users/vectors-00000.npy",
    "towers": "towers.safetensors",
    "content": "vectors-00000.npy",
}


@pytest.mark.parametrize(("role", "name"), PARTS.items())
def test_damaged_places_are_refused(places, role: str, name: str) -> None:
    load(Places(bundles={}, **places))
    path = places[role] / name
    body = path.read_bytes()
    path.write_bytes(body[:-1] + bytes([body[-1] ^ 1]))
    with pytest.raises(UserError, match=rf"{role}/{name}: damaged"):
        load(Places(bundles={}, **places))
    if role in ("towers", "content"):
        inputs = [f"--{one}={places[one]}" for one in ("towers", "content")]
        with pytest.raises(UserError, match=rf"{role}/{name}: damaged"):
            embed_items.main([*inputs, "--text", "cup"])


def test_files_that_no_manifest_lists_are_refused(places) -> None:
    users = places["vectors"] / "users"
    shutil.copy(users / "vectors-00000.npy", users / "vectors-00001.npy")
    with pytest.raises(UserError, match=r"vectors-00001\.npy: not a file of this"):
        load(Places(bundles={}, index=places["index"], vectors=places["vectors"]))


def test_vectors_of_another_space_than_the_index_are_refused(places) -> None:
    for role, towers in (("index", "a"), ("vectors", "b")):
        space = {"towers": towers}
        forge(places[role], lambda body, space=space: body["facts"].update(space=space))
    given = {role: places[role] for role in ("index", "vectors")}
    with pytest.raises(UserError, match=r"--vectors .* another space .other towers"):
        load(Places(bundles={}, **given))


def command(made) -> list[str]:
    return ["--towers", str(made[0]), "--content", str(made[1])]


def test_embed_items_from_texts_and_files(
    made, towers, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    expected = towers.item_vectors(towers.encode_texts(ITEMS.slice(0, 2)))
    embed_items.main([*command(made), "--text", "red mug 0", "--text", "red mug 1"])
    said = capsys.readouterr()
    lines = [json.loads(line) for line in said.out.splitlines()]
    assert [line["item_id"] for line in lines] == [0, 1]
    assert np.allclose([line["vector"] for line in lines], expected, atol=1e-5)
    assert "2 items in " in said.err
    assert " ms an item, after " in said.err

    pq.write_table(ITEMS.slice(0, 2), tmp_path / "items.parquet")
    (tmp_path / "items.csv").write_text("item_id,title\n100,red mug 0\n101,red mug 1\n")
    (tmp_path / "items.jsonl").write_text(
        '{"item_id": 100, "title": "red mug 0"}\n{"item_id": 101, "title": "red mug 1"}'
    )
    for name in ("items.parquet", "items.csv", "items.jsonl"):
        out = tmp_path / "out.parquet"
        items = ["--items", str(tmp_path / name), "--out", str(out)]
        embed_items.main([*command(made), *items])
        table = pq.read_table(out)
        assert table["item_id"].to_pylist() == [100, 101]
        assert np.allclose(table["vector"].to_pylist(), expected, atol=1e-5)


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("items.txt", "cup", "give .jsonl, .csv or .parquet"),
        ("items.jsonl", "{", "cannot be read"),
        ("items.csv", "title\ncup\n", "item_id.* is missing"),
        ("items.csv", "item_id,title\n", "has no items"),
        ("items.csv", "item_id,item_id\n1,2\n", "has column 'item_id' twice"),
        ("items.parquet", "PAR1", "cannot be read"),
    ],
)
def test_bad_items_are_refused(made, tmp_path: Path, name, text, message) -> None:
    (tmp_path / name).write_text(text)
    out = tmp_path / "out.parquet"
    with pytest.raises(UserError, match=message):
        embed_items.main(
            [*command(made), "--items", str(tmp_path / name), "--out", str(out)]
        )
    assert not out.exists()


def test_the_towers_actions_make_the_history(made) -> None:
    manifest = read_manifest(made[0], KIND_TOWERS)
    assert manifest.config["split"]["actions"] == ["like"]
    assert ServedTowers.open(*made).actions == frozenset({"like"})
