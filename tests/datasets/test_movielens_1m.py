import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from learn_torchrec.datasets import open_dataset
from learn_torchrec.errors import UserError


@pytest.fixture
def directory(tmp_path):
    parts = {
        "train": ([2, 1], [7, 8], [1, 0], [20, 10], ["Seven", "Eight"]),
        "valid": ([1], [7], [1], [30], ["Seven"]),
        "test": ([2], [9], [0], [40], ["Nine"]),
    }
    for name, columns in parts.items():
        table = dict(
            zip(("uid", "iid", "label", "timestamp", "title"), columns, strict=True)
        )
        table["his_title"] = [[""]] * len(columns[0])
        pq.write_table(pa.table(table), tmp_path / f"{name}.parquet")
    return tmp_path


def test_three_files_are_one_log(directory):
    dataset = open_dataset(f"movielens-1m:{directory}")
    assert dataset.items.to_pylist() == [
        {"item_id": 7, "title": "Seven"},
        {"item_id": 8, "title": "Eight"},
        {"item_id": 9, "title": "Nine"},
    ]
    log = dataset.interactions
    assert log["timestamp"].to_pylist() == [10, 20, 30, 40]
    assert log["action"].to_pylist() == ["dislike", "like", "like", "dislike"]
    rows = dataset.impressions
    assert rows["label"].to_pylist() == [0, 1, 1, 0]


def test_files_that_do_not_belong_together_are_refused(directory):
    table = pq.read_table(directory / "test.parquet")
    index = table.column_names.index("title")
    other = table.set_column(index, "title", pa.array(["Seven"]))
    pq.write_table(other, directory / "test.parquet")
    with pytest.raises(UserError, match="title 'Seven' has more than one item_id"):
        open_dataset(f"movielens-1m:{directory}").items  # noqa: B018
    pq.write_table(table.drop_columns(["title"]), directory / "test.parquet")
    with pytest.raises(UserError, match=r"test\.parquet: column 'title' is missing"):
        open_dataset(f"movielens-1m:{directory}").items  # noqa: B018
