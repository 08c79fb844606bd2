"""Two engines that run the same SQL: DuckDB on one machine, Spark on many.

Both are optional packages, imported on use. The statements (see `prepare`) are in the
SQL that both understand.
"""

import contextlib
import functools
import importlib.util
import os
import re
import shutil
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Protocol
from urllib.parse import unquote

import pyarrow as pa
import pyarrow.dataset as ds
import pyarrow.parquet as pq
from pydantic import ByteSize, TypeAdapter

from learn_torchrec.datasets.loading.location import Location
from learn_torchrec.datasets.loading.row_groups import open_parquet
from learn_torchrec.errors import UserError, first_line
from learn_torchrec.ids import is_text
from learn_torchrec.page_checksums import VERIFIED

_STREAM_ROWS = 1 << 17
_NOT_LITERAL = frozenset("*?[\\")  # in a path that is given to DuckDB
_MISTAKEN = frozenset("?\\")  # for the start of options, and for a slash
_GLOB_SIGN = re.compile(r"([*?\[\]{}\\])")
_SIZE = re.compile(r"[0-9.]+ ?[A-Za-z]+")
_MIN_MEMORY = 50_000_000  # bytes


class Engine(Protocol):
    """Runs the statements of a preparation, which refer to tables by name."""

    def scan(self, name: str, location: Location) -> pa.Schema:
        """Create a view of a Parquet data set, reading only footers; return its schema.

        Partition keys have the types of `open_parquet`.
        """

    def register(self, name: str, table: pa.Table) -> None:
        """Create a view of a table in memory."""

    def materialize(self, name: str, sql: str) -> None:
        """Create a table on disk from a query, computed once."""

    def view(self, name: str, sql: str) -> None:
        """Create a view of a query, computed on every use."""

    def table(self, sql: str) -> pa.Table:
        """Return a query's result, which must fit into memory."""

    def stream(self, sql: str) -> Iterator[pa.RecordBatch]:
        """Yield a query's result in order."""

    def seconds(self, column: str, kind: pa.DataType) -> str:
        """Return the SQL for a time column in unix seconds, rounded down."""

    def ticks(self, column: str, kind: pa.DataType) -> str:
        """Return the SQL for a time column as integers of full resolution."""

    def close(self) -> None:
        """Release the engine's resources."""


def open_engine(name: str, scratch: Path, memory: str) -> Engine:
    """Start an engine.

    Args:
        name: "duckdb" or "spark".
        scratch: an empty folder for spilling.
        memory: limit of the engine, e.g. "2GB".

    Raises:
        UserError: its package or Java is missing, or `memory` is not a size.
    """
    size = _bytes(memory)
    return DuckDB(scratch, size) if name == "duckdb" else Spark(scratch, size)


def _bytes(memory: str) -> int:
    """Parse a size such as "2GB"."""
    try:
        if not _SIZE.fullmatch(memory):  # pydantic ignores text after the unit
            raise ValueError
        size = TypeAdapter(ByteSize).validate_python(memory)
        if size < _MIN_MEMORY:
            raise ValueError
    except ValueError:  # a ValidationError is one
        raise UserError(
            f"--memory {memory}: write a size of 50MB or more, e.g. 2GB"
        ) from None
    return size


class DuckDB:
    """DuckDB in this process, spilling into the scratch folder."""

    def __init__(self, scratch: Path, memory: int) -> None:
        _require("duckdb", "duckdb")
        import duckdb

        if set(str(scratch.absolute())) & _MISTAKEN:
            raise UserError(
                f"--out {scratch.parent.parent}: DuckDB cannot write to a path with a "
                "question mark or a backslash; choose another --out, or use --engine "
                "spark"
            )
        self._place = scratch.parent.parent
        settings = {
            "memory_limit": f"{memory}B",
            "temp_directory": str(scratch / "spill"),
            "preserve_insertion_order": "false",
        }
        with self._one_line():
            self._connection = duckdb.connect(
                str(scratch / "prepare.duckdb"), config=settings
            )
        self._run("SET TimeZone = 'UTC'")  # of texts without a zone
        self._run("SET enable_progress_bar = false")  # it would go to stdout

    def scan(self, name: str, location: Location) -> pa.Schema:
        dataset = open_parquet(location)  # reports errors in the files
        if location.is_local and not _NOT_LITERAL.intersection("".join(dataset.files)):
            # DuckDB's reader respects the memory limit; Arrow's prefetches too much.
            types = {
                key: "BIGINT" if is_integer else "VARCHAR"
                for key, is_integer in _partition_keys(dataset).items()
            }
            # Names of files and folders are parameters, never text of a statement.
            hive = "true, hive_types = $2" if types else "false"
            rows = (
                "SELECT * FROM read_parquet($1, union_by_name = true, "
                f"hive_partitioning = {hive})"
            )
            given = [dataset.files, types] if types else [dataset.files]
            with self._one_line():
                self._connection.sql(rows, params=given).create_view(name)
        else:
            # Through Arrow's file systems, so that URIs mean the same everywhere and a
            # star in a file name is not a glob.
            self._connection.register(name, dataset)
        return dataset.schema

    def register(self, name: str, table: pa.Table) -> None:
        self._connection.register(name, table)

    def materialize(self, name: str, sql: str) -> None:
        self._run(f"CREATE TABLE {name} AS {sql}")

    def view(self, name: str, sql: str) -> None:
        self._run(f"CREATE VIEW {name} AS {sql}")

    def table(self, sql: str) -> pa.Table:
        with self._one_line():
            return self._connection.sql(sql).to_arrow_table()

    def stream(self, sql: str) -> Iterator[pa.RecordBatch]:
        # A relation streams; the result of `execute` would be copied.
        with self._one_line():
            yield from self._connection.sql(sql).to_arrow_reader(_STREAM_ROWS)

    def seconds(self, column: str, kind: pa.DataType) -> str:
        ticks = self.ticks(column, kind)
        # Not `epoch`: a double rounds 0.999999999 s up to the next second.
        per_second = (
            1 if pa.types.is_integer(kind) else 10 ** (9 if _is_ns(kind) else 6)
        )
        return f"({ticks} // {per_second})"

    def ticks(self, column: str, kind: pa.DataType) -> str:
        if pa.types.is_integer(kind):
            return f"CAST({column} AS BIGINT)"
        if pa.types.is_floating(kind) or pa.types.is_decimal(kind):
            return _micros(column)
        if is_text(kind):
            return f"epoch_us(CAST({column} AS TIMESTAMPTZ))"
        return f"epoch_{'ns' if _is_ns(kind) else 'us'}({column})"

    def close(self) -> None:
        self._connection.close()

    def _run(self, sql: str) -> None:
        with self._one_line():
            self._connection.execute(sql)

    @contextlib.contextmanager
    def _one_line(self) -> Iterator[None]:
        import duckdb

        try:
            yield
        except duckdb.Error as error:
            raise UserError(
                f"duckdb, working in {self._place}: {first_line(error)}"
            ) from error


class Spark:
    """PySpark: local unless `MASTER` (or spark-submit) names a cluster."""

    def __init__(self, scratch: Path, memory: int) -> None:
        _require("pyspark", "spark")
        if not (os.environ.get("JAVA_HOME") or shutil.which("java")):
            raise UserError(
                "--engine spark: Java not found (JAVA_HOME is unset and `java` is not "
                "on the PATH); install Java 17 or newer, or use --engine duckdb"
            )
        from pyspark.sql import SparkSession

        builder = SparkSession.builder.appName("learn-torchrec prepare")
        if "MASTER" in os.environ:
            builder = builder.master(os.environ["MASTER"])
        elif "SPARK_ENV_LOADED" not in os.environ:
            builder = builder.master("local[*]")
        self._session = (
            builder.config("spark.driver.memory", f"{memory >> 20}m")
            .config("spark.sql.session.timeZone", "UTC")
            .config("spark.ui.showConsoleProgress", "false")
            .config("spark.sql.sources.partitionColumnTypeInference.enabled", "false")
            .config("spark.sql.legacy.parquet.nanosAsLong", "true")
            .config("spark.sql.caseSensitive", "true")
            .config("spark.local.dir", str(scratch))
            .getOrCreate()
        )
        self._session.sparkContext.setLogLevel("ERROR")
        self._scratch = scratch

    def scan(self, name: str, location: Location) -> pa.Schema:
        from pyspark.sql.functions import expr
        from pyspark.sql.types import LongType

        dataset = open_parquet(location)
        root = _spark_root(location)
        alike: dict[pa.Schema, list[str]] = {}
        for fragment in dataset.get_fragments():
            files = alike.setdefault(fragment.physical_schema.remove_metadata(), [])
            files.append(root + fragment.path[len(location.path) :])
        keys = _partition_keys(dataset)
        _refuse_foreign_keys(keys, [one for files in alike.values() for one in files])
        # Without a base, folders `key=value` give no column.
        reader = self._session.read.options(**({"basePath": root} if keys else {}))
        with self._one_line():
            # Spark reads files of one schema; a union widens types and adds columns.
            frames = [
                reader.parquet(*(_GLOB_SIGN.sub(r"\\\1", file) for file in files))
                for files in alike.values()
            ]
            frame = functools.reduce(
                lambda one, other: one.unionByName(other, allowMissingColumns=True),
                frames,
            )
            for field in dataset.schema:
                column = f"`{field.name}`"
                if field.name in keys or field.type == pa.uint64():
                    kind = "string" if is_text(field.type) else "bigint"
                    frame = frame.withColumn(field.name, frame[column].cast(kind))
                elif (
                    _is_ns(field.type)
                    and frame.schema[field.name].dataType != LongType()
                ):
                    ticks = f"unix_micros(CAST({column} AS TIMESTAMP)) * 1000"  # INT96
                    frame = frame.withColumns({field.name: expr(ticks)})
            frame.createOrReplaceTempView(name)
        return dataset.schema

    def register(self, name: str, table: pa.Table) -> None:
        path = self._scratch / f"{name}.parquet"
        # Files that Spark wrote have its schema in their metadata, which Spark would
        # trust: columns that were added since would be missing.
        pq.write_table(table.replace_schema_metadata(), path)
        self._session.read.parquet(str(path)).createOrReplaceTempView(name)

    def materialize(self, name: str, sql: str) -> None:
        path = self._written(name, sql)
        self._session.read.parquet(str(path)).createOrReplaceTempView(name)

    def view(self, name: str, sql: str) -> None:
        self._session.sql(sql).createOrReplaceTempView(name)

    def table(self, sql: str) -> pa.Table:
        batches = list(self.stream(sql))
        table = pa.Table.from_batches(batches[1:], batches[0].schema)
        return table.replace_schema_metadata()

    def stream(self, sql: str) -> Iterator[pa.RecordBatch]:
        path = self._written("result", sql)
        files = sorted(path.glob("part-*.parquet"))  # in the order of the result
        yield pa.RecordBatch.from_pylist([], schema=pq.read_schema(files[0]))
        for file in files:
            yield from pq.ParquetFile(file, **VERIFIED).iter_batches(_STREAM_ROWS)
        shutil.rmtree(path)

    def seconds(self, column: str, kind: pa.DataType) -> str:
        if pa.types.is_integer(kind):
            return self.ticks(column, kind)
        return f"({self.ticks(column, kind)} div {10**9 if _is_ns(kind) else 10**6})"

    def ticks(self, column: str, kind: pa.DataType) -> str:
        # Spark reads nanoseconds as integers.
        if pa.types.is_integer(kind) or _is_ns(kind):
            return f"CAST({column} AS BIGINT)"
        if pa.types.is_floating(kind) or pa.types.is_decimal(kind):
            return _micros(column)
        return f"unix_micros(CAST({column} AS TIMESTAMP))"

    def close(self) -> None:
        self._session.stop()

    def _written(self, name: str, sql: str) -> Path:
        path = self._scratch / name
        with self._one_line():
            self._session.sql(sql).write.mode("overwrite").parquet(str(path))
        return path

    @contextlib.contextmanager
    def _one_line(self) -> Iterator[None]:
        from pyspark.errors import PySparkException

        try:
            yield
        except PySparkException as error:
            raise UserError(f"spark: {first_line(error)}") from error
        except Exception as error:
            if not type(error).__module__.startswith("py4j."):
                raise
            # A task that failed: the first line says which call, the second why.
            reason = str(error).splitlines()[1:2] or [first_line(error)]
            raise UserError(f"spark: {reason[0].removeprefix(': ')}") from error


def _micros(column: str) -> str:
    """Return the SQL for a time as a number in microseconds, 0 if it is implausible."""
    seconds = f"CAST({column} AS DOUBLE)"  # NaN is more than any number
    micros = f"CAST(floor({seconds} * 1000000) AS BIGINT)"
    return (
        f"(CASE WHEN abs({seconds}) < 9e12 THEN {micros} "
        f"WHEN {column} IS NOT NULL THEN 0 END)"
    )


def _is_ns(kind: pa.DataType) -> bool:
    return pa.types.is_timestamp(kind) and kind.unit == "ns"


def _spark_root(location: Location) -> str:
    """Return a location as Spark takes it, which has credentials from elsewhere."""
    if location.is_local:
        return location.path
    if "://***" in location.name or "?" in location.name:
        raise UserError(
            f"{location}: Spark takes neither credentials nor options from a URI; "
            "leave them out and configure Hadoop, or use --engine duckdb"
        )
    return location.name


def _refuse_foreign_keys(keys: Mapping[str, bool], files: Sequence[str]) -> None:
    """Refuse folders whose names Spark would decode byte by byte."""
    for file in files:
        for folder in file.split("/"):
            key, _, value = folder.partition("=")
            if key in keys and "%" in value and not unquote(value).isascii():
                raise UserError(
                    f"{file}: Spark cannot read the folder {folder!r}; use --engine "
                    "duckdb"
                )


def _partition_keys(dataset: ds.FileSystemDataset) -> dict[str, bool]:
    """Return the partition keys, and whether each is an integer."""
    keys = {
        key: None
        for fragment in dataset.get_fragments()
        for key in ds.get_partition_keys(fragment.partition_expression)
    }
    return {k: pa.types.is_integer(dataset.schema.field(k).type) for k in keys}


def _require(package: str, extra: str) -> None:
    if importlib.util.find_spec(package) is None:
        raise UserError(
            f"--engine {extra}: the package {package} is not installed; run "
            f'pip install {package}, or pip install "learn-torchrec[{extra}]"'
        )
