"""Recommendations of a tiny shop, as they are printed and written."""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from vectors_artefact import write_side

from learn_torchrec.apps import recommend
from learn_torchrec.artifact import write_artifact
from learn_torchrec.errors import UserError
from learn_torchrec.ranker.vectors import KIND

# Items on a line: user 1 looks up it, user 2 down it, user 3 has no vector. Item 14
# has none either.
ITEMS = {11: 1.0, 12: 2.0, 13: 3.0}
USERS = {1: 1.0, 2: -1.0}
EVENTS = [
    (1, 13, 86_400, "like"),
    (1, 11, 90_000, "like"),
    (1, 14, 80_000, "skip"),
    (2, 11, 86_400, "like"),
    (3, 12, 86_400, "like"),
]


def write_shop_vectors(directory: Path) -> None:
    split = {"split": {"actions": ["like"]}}
    with write_artifact(directory, kind=KIND, config=split, inputs={}) as working:
        # User 1 has an earlier vector, which points the other way.
        users = [[-1.0, 0.0], *([x, 0.0] for x in USERS.values())]
        moments = {"offsets": np.array([0, 2, 3]), "times": np.array([100, 200, 200])}
        write_side(working / "users", list(USERS), users, **moments)
        items = [[x, 0.0] for x in ITEMS.values()]
        write_side(working / "items", list(ITEMS), items)


@pytest.fixture
def shop(tmp_path: Path) -> list[str]:
    data = tmp_path / "data"
    data.mkdir()
    items = {
        "item_id": [14, 13, 12, 11],
        "title": ["lamp", "jug", None, "cup"],
    }
    pq.write_table(pa.table(items), data / "items.parquet")
    names = ("user_id", "item_id", "timestamp", "action")
    columns = zip(*EVENTS, strict=True)
    log = dict(zip(names, map(list, columns), strict=True))
    pq.write_table(pa.table(log), data / "interactions.parquet")
    write_shop_vectors(tmp_path / "vectors")
    return ["--data", f"parquet:{data}", "--vectors", str(tmp_path / "vectors")]


def printed(shop: list[str], capsys, *arguments: str) -> list[list[str]]:
    recommend.main([*shop, *arguments])
    return [line.split() for line in capsys.readouterr().out.splitlines()]


def test_one_user(shop: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    lines = printed(shop, capsys, "--user", "1", "--k", "2")
    assert lines == [
        ["user", "1:", "latest", "2", "of", "2", "events"],
        ["time", "action", "item", "title"],
        ["1970-01-02", "01:00", "like", "11", "cup"],
        ["1970-01-02", "00:00", "like", "13", "jug"],
        [],
        ["top", "2", "of", "3", "items"],
        ["rank", "score", "item", "title"],
        ["1", "3.0000", "13", "jug"],
        ["2", "2.0000", "12"],
    ]


def test_one_user_without_the_history(
    shop: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    lines = printed(shop, capsys, "--user=1", "--filter-history", "--history=1")
    assert [line[-1] for line in lines[1:3]] == ["title", "cup"]
    assert lines[-2:] == [["rank", "score", "item", "title"], ["1", "2.0000", "12"]]


def test_all_users_as_parquet(
    shop: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "new" / "top.parquet"
    assert printed(shop, capsys, "--out", str(out), "--k=2")[0][:2] == ["2", "users,"]
    assert [tuple(row.values()) for row in pq.read_table(out).to_pylist()] == [
        (1, 1, 13, 3.0),
        (1, 2, 12, 2.0),
        (2, 1, 11, -1.0),
        (2, 2, 12, -2.0),
    ]
    recommend.main([*shop, "--out", str(out), "--k=2", "--filter-history"])
    assert [tuple(row.values()) for row in pq.read_table(out).to_pylist()] == [
        (1, 1, 12, 2.0),
        (2, 1, 12, -2.0),
        (2, 2, 13, -3.0),
    ]


def test_an_approximate_index_prints_its_recall(
    shop: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("faiss", reason="needs faiss-cpu")
    exact, found = tmp_path / "exact.parquet", tmp_path / "found.parquet"
    recommend.main([*shop, "--out", str(exact)])
    capsys.readouterr()
    lines = printed(shop, capsys, "--out", str(found), "--index=Flat")
    assert " ".join(lines[0]) == "Flat: recall 1.0000, of 2 users"
    assert pq.read_table(found).equals(pq.read_table(exact))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--user=3"], "--user 3: no vector in"),
        (["--user=9"], "--user 9: no vector in"),
        (
            ["--user=me"],
            "--user me: users are int64 in .*interactions.parquet; give one",
        ),
        (["--user=1", "--k=0"], "--k 0: use 1 or more"),
        (["--user=1", "--history=0"], "--history 0: use 1 or more"),
        (["--user=1", "--index=Flat", "--filter-history"], "--index: does not filter"),
        (["--out", "."], r"--out \.: is a directory"),
    ],
)
def test_unfit_arguments_are_refused(
    shop: list[str], arguments: list[str], message: str
) -> None:
    with pytest.raises(UserError, match=message):
        recommend.main([*shop, *arguments])
