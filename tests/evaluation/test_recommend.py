"""Recommendations of a tiny shop, as they are printed and written."""

from pathlib import Path

import pyarrow.parquet as pq
import pytest
from forging import forge

from learn_torchrec.apps import build_index, recommend
from learn_torchrec.errors import UserError


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


@pytest.mark.parametrize("is_indexed", [True, False])
def test_available_items_alone(
    shop: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str], is_indexed
) -> None:
    pytest.importorskip("faiss", reason="needs faiss-cpu")
    more = []
    if is_indexed:
        more = ["--index", str(tmp_path / "index")]
        build_index.main([*shop, "--out", more[1]])
        capsys.readouterr()
    (tmp_path / "stock.txt").write_text("11\n\n 12 \n99\n")
    available = ["--available", str(tmp_path / "stock.txt")]
    lines = printed(shop, capsys, "--user=1", *available, *more)
    assert [line[2] for line in lines[lines.index([]) + 3 :]] == ["12", "11"]
    lines = printed(shop, capsys, "--user=1", "--filter-history", *available, *more)
    assert [line[2] for line in lines[lines.index([]) + 3 :]] == ["12"]
    everyone = tmp_path / "all.parquet"
    recommend.main([*shop, "--out", str(everyone), "--k=1", *available, *more])
    found = pq.read_table(everyone).to_pylist()
    assert [(row["user_id"], row["item_id"]) for row in found] == [(1, 12), (2, 11)]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("99\n", "none of its 1 ids is an item with a vector"),
        ("cup\n", "stock.txt: .*cup.*; the items' ids are int64"),
        (None, "stock.txt: cannot be read"),
    ],
)
def test_a_bad_file_of_available_items_is_refused(
    shop: list[str], tmp_path: Path, text: str | None, message: str
) -> None:
    path = tmp_path / "stock.txt"
    if text is not None:
        path.write_text(text)
    with pytest.raises(UserError, match=message):
        recommend.main([*shop, "--user=1", "--available", str(path)])


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
        (["--user=1", "--index=Flat", "--filter-history"], "made at once does not"),
        (["--out", "."], r"--out .*: is a directory"),
    ],
)
def test_unfit_arguments_are_refused(
    shop: list[str], arguments: list[str], message: str
) -> None:
    with pytest.raises(UserError, match=message):
        recommend.main([*shop, *arguments])


def test_an_index_of_other_towers_is_refused(shop: list[str], tmp_path: Path) -> None:
    pytest.importorskip("faiss", reason="needs faiss-cpu")
    index, vectors = tmp_path / "index", Path(shop[shop.index("--vectors") + 1])
    build_index.main([*shop, "--out", str(index)])
    for place, towers in ((index, "a"), (vectors, "b")):
        space = {"towers": towers}
        forge(place, lambda body, space=space: body["facts"].update(space=space))
    with pytest.raises(UserError, match=r"of another space .other towers.*build the"):
        recommend.main([*shop, "--user=1", "--index", str(index)])
