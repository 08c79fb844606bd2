import os
from pathlib import Path

import pyarrow as pa
import pyarrow.fs as pafs
import pyarrow.parquet as pq
import pytest

from learn_torchrec.datasets.loading.location import Location, content_digests
from learn_torchrec.datasets.loading.row_groups import RowGroups
from learn_torchrec.errors import UserError


def test_files_are_sorted_and_bookkeeping_left_out(tmp_path: Path) -> None:
    for name in ("b.parquet", "a.parquet", "_SUCCESS", ".part.crc", "d/c.parquet"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    (tmp_path / "_temporary").mkdir()
    (tmp_path / "_temporary" / "x.parquet").touch()
    for where in (tmp_path, f"file://{tmp_path}"):
        files = Location.of(where).files(".parquet")
        assert [file.file_name for file in files] == [
            "a.parquet",
            "b.parquet",
            "c.parquet",
        ]
        assert files[2].name == f"{where}/d/c.parquet"
    assert not Location.of(tmp_path / "no").exists()
    assert (Location.of(str(tmp_path)) / "d").is_dir()


def test_a_file_system_of_objects() -> None:
    """A file system of fsspec stands for S3, HDFS and GCS."""
    folder = Location.of("fsspec+memory:///bucket/log")
    folder.filesystem.create_dir(folder.path)
    for name, value in (("b", 2), ("a", 1)):
        with folder.filesystem.open_output_stream(f"{folder.path}/{name}.parquet") as f:
            pq.write_table(pa.table({"value": [value]}), f)
    rows = RowGroups("fsspec+memory:///bucket/log")
    assert [next(rows.pieces(group))["value"][0].as_py() for group in range(2)] == [
        1,
        2,
    ]
    first, second = content_digests(folder.files())
    assert first != second


def test_the_mock_file_system_of_arrow() -> None:
    location = Location.of("mock:///a/b")
    assert not location.exists()
    with pytest.raises(UserError, match=r"mock:///a/b: no such file or folder"):
        RowGroups(location)


def test_unknown_schemes_are_one_line() -> None:
    with pytest.raises(UserError, match=r"^gopher://x/y: .*; write a path, or a URI"):
        Location.of("gopher://x/y")


def test_compressed_files_are_read_as_they_are(tmp_path: Path) -> None:
    path = tmp_path / "x.json.gz"
    local = pafs.LocalFileSystem()
    with local.open_output_stream(str(path), compression="gzip") as stream:
        stream.write(b"line")
    assert Location.of(path).open().read() == b"line"
    with pytest.raises(UserError, match="no such file"):
        Location.of(tmp_path / "absent").open()


def test_no_secret_reaches_a_message():
    uri = "nothing://KEY:SECRET@bucket/log?region=eu&token=SECRET"
    with pytest.raises(UserError) as refused:
        Location.of(uri)
    assert "SECRET" not in str(refused.value)
    assert "***@bucket/log?***" in str(refused.value)
    kept = Location.of("s3://KEY:SECRET@bucket/log?region=eu-west-1")
    assert str(kept) == "s3://***@bucket/log?region=eu-west-1"
    assert str(Location.of("s3://bucket/log?region=eu") / "x.parquet") == (
        "s3://bucket/log/x.parquet?region=eu"
    )


@pytest.mark.parametrize("make", [os.mkfifo, lambda path: path.symlink_to("/dev/zero")])
def test_what_would_not_end_is_refused(tmp_path: Path, make) -> None:
    """Reading a pipe waits for its writer; a device may give bytes without end."""
    make(tmp_path / "items.jsonl")
    place = Location.of(tmp_path / "items.jsonl")

    def digest() -> list[str]:
        return content_digests([place])

    for read in (place.open, digest, place.files, place.exists, place.state):
        with pytest.raises(UserError, match=r"items\.jsonl: is no plain file; copy"):
            read()
