"""Two engines that run the same SQL: DuckDB on one machine, Spark on many.

Both are optional packages, imported when they are asked for. The statements that they
are given (see `prepare`) keep to what both understand.
"""

import contextlib
import importlib.util
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Protocol

import pyarrow as pa
import pyarrow.parquet as pq

from learn_torchrec.datasets.loading.location import Location
from learn_torchrec.datasets.loading.row_groups import open_parquet
from learn_torchrec.errors import UserError

_STREAM_ROWS = 1 << 17
_GLOB = frozenset("*?[")


class Engine(Protocol):
    """What runs a preparation. Names are those of tables in the statements."""

    def read(self, name: str, location: Location) -> None:
        """Call a Parquet data set `name`; nothing is read yet."""

    def add(self, name: str, table: pa.Table) -> None:
        """Call a table that is at hand `name`."""

    def keep(self, name: str, sql: str) -> None:
        """Compute a table once, on disk, and call it `name`."""

    def view(self, name: str, sql: str) -> None:
        """Call a query `name`; it is computed wherever it is used."""

    def table(self, sql: str) -> pa.Table:
        """Return a result that fits into memory."""

    def stream(self, sql: str) -> Iterator[pa.RecordBatch]:
        """Yield the rows of a result in its order."""

    def seconds(self, column: str, kind: pa.DataType) -> str:
        """Return the expression for unix seconds of a time column."""

    def close(self) -> None:
        """Give back what the engine holds."""


def open_engine(name: str, scratch: Path, memory: str) -> Engine:
    """Start an engine.

    Args:
        name: "duckdb" or "spark".
        scratch: an empty folder for what does not fit into memory.
        memory: that the engine may use, e.g. "2GB".

    Raises:
        UserError: its package, or Java, is missing.
    """
    return DuckDB(scratch, memory) if name == "duckdb" else Spark(scratch, memory)


class DuckDB:
    """DuckDB in this process, spilling into the scratch folder."""

    def __init__(self, scratch: Path, memory: str) -> None:
        _require("duckdb", "duckdb")
        import duckdb

        with self._one_line():
            self._connection = duckdb.connect(str(scratch / "prepare.duckdb"))
        self._sources: dict[str, Any] = {}
        try:
            self._run(f"SET memory_limit = '{memory}'")
        except UserError as error:
            raise UserError(f"--memory {memory}: {error}; write it as 2GB") from None
        self._run(f"SET temp_directory = '{scratch / 'spill'}'")
        self._run("SET preserve_insertion_order = false")
        self._run("SET enable_progress_bar = false")  # it would go to stdout

    def read(self, name: str, location: Location) -> None:
        """See `Engine`."""
        dataset = open_parquet(location)  # says what is wrong, where something is
        if location.is_local and not _GLOB.intersection("".join(dataset.files)):
            # DuckDB's own reader keeps to the memory limit; Arrow's reads far ahead.
            with self._one_line():
                self._connection.read_parquet(
                    dataset.files, union_by_name=True, hive_partitioning=True
                ).create_view(name)
        else:
            # Through Arrow's file systems, so that every URI means here what it
            # means everywhere, and a name with a star is a name.
            self._connection.register(name, dataset)

    def add(self, name: str, table: pa.Table) -> None:
        """See `Engine`."""
        self._connection.register(name, table)

    def keep(self, name: str, sql: str) -> None:
        """See `Engine`."""
        self._run(f"CREATE TABLE {name} AS {sql}")

    def view(self, name: str, sql: str) -> None:
        """See `Engine`."""
        self._run(f"CREATE VIEW {name} AS {sql}")

    def table(self, sql: str) -> pa.Table:
        """See `Engine`."""
        with self._one_line():
            return self._connection.sql(sql).to_arrow_table()

    def stream(self, sql: str) -> Iterator[pa.RecordBatch]:
        """See `Engine`."""
        # A relation streams; the result of `execute` would be a second copy.
        with self._one_line():
            yield from self._connection.sql(sql).to_arrow_reader(_STREAM_ROWS)

    def seconds(self, column: str, kind: pa.DataType) -> str:
        """See `Engine`."""
        if pa.types.is_timestamp(kind) or pa.types.is_date(kind):
            return f"CAST(floor(epoch({column})) AS BIGINT)"
        return f"CAST({column} AS BIGINT)"

    def close(self) -> None:
        """See `Engine`."""
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
            raise UserError(f"duckdb: {str(error).splitlines()[0]}") from error


class Spark:
    """PySpark: local unless `MASTER` (or spark-submit) names a cluster."""

    def __init__(self, scratch: Path, memory: str) -> None:
        _require("pyspark", "spark")
        if not (os.environ.get("JAVA_HOME") or shutil.which("java")):
            raise UserError(
                "--engine spark: no Java here (JAVA_HOME is unset and `java` is not on "
                "the PATH); install Java 17 or newer, or use --engine duckdb"
            )
        from pyspark.sql import SparkSession

        builder = SparkSession.builder.appName("learn-torchrec prepare")
        if "MASTER" in os.environ:
            builder = builder.master(os.environ["MASTER"])
        elif "SPARK_ENV_LOADED" not in os.environ:
            builder = builder.master("local[*]")
        self._session = (
            builder.config("spark.driver.memory", memory.replace("B", ""))
            .config("spark.sql.session.timeZone", "UTC")
            .config("spark.ui.showConsoleProgress", "false")
            .config("spark.local.dir", str(scratch))
            .getOrCreate()
        )
        self._session.sparkContext.setLogLevel("ERROR")
        self._scratch = scratch

    def read(self, name: str, location: Location) -> None:
        """See `Engine`."""
        path = location.path if location.is_local else location.name
        self._session.read.parquet(path).createOrReplaceTempView(name)

    def add(self, name: str, table: pa.Table) -> None:
        """See `Engine`."""
        path = self._scratch / f"{name}.parquet"
        # A table that Spark once wrote carries its schema of then, which Spark would
        # believe: columns added since would be missing.
        pq.write_table(table.replace_schema_metadata(), path)
        self._session.read.parquet(str(path)).createOrReplaceTempView(name)

    def keep(self, name: str, sql: str) -> None:
        """See `Engine`."""
        path = self._written(name, sql)
        self._session.read.parquet(str(path)).createOrReplaceTempView(name)

    def view(self, name: str, sql: str) -> None:
        """See `Engine`."""
        self._session.sql(sql).createOrReplaceTempView(name)

    def table(self, sql: str) -> pa.Table:
        """See `Engine`."""
        batches = list(self.stream(sql))
        table = pa.Table.from_batches(batches[1:], batches[0].schema)
        return table.replace_schema_metadata()

    def stream(self, sql: str) -> Iterator[pa.RecordBatch]:
        """See `Engine`."""
        path = self._written("result", sql)
        files = sorted(path.glob("part-*.parquet"))  # their order is the result's
        yield pa.RecordBatch.from_pylist([], schema=pq.read_schema(files[0]))
        for file in files:
            yield from pq.ParquetFile(file).iter_batches(_STREAM_ROWS)
        shutil.rmtree(path)

    def seconds(self, column: str, kind: pa.DataType) -> str:
        """See `Engine`."""
        if pa.types.is_timestamp(kind) or pa.types.is_date(kind):
            return f"unix_timestamp({column})"
        return f"CAST({column} AS BIGINT)"

    def close(self) -> None:
        """See `Engine`."""
        self._session.stop()

    def _written(self, name: str, sql: str) -> Path:
        from pyspark.errors import PySparkException

        path = self._scratch / name
        try:
            self._session.sql(sql).write.mode("overwrite").parquet(str(path))
        except PySparkException as error:
            raise UserError(f"spark: {str(error).splitlines()[0]}") from error
        return path


def _require(package: str, extra: str) -> None:
    if importlib.util.find_spec(package) is None:
        raise UserError(
            f"--engine {extra}: the package {package} is not installed; run "
            f'pip install {package}, or pip install "learn-torchrec[{extra}]"'
        )
