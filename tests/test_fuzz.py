"""Whatever is given: success, or one line and exit code 2; no traceback, no hang."""

import contextlib
import copy
import functools
import json
import string
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st
from more_examples import tried
from one_line import holds
from report_run import make_predictions, retrieval_rows

from learn_torchrec import config
from learn_torchrec.apps import main as command_line
from learn_torchrec.artifact import Manifest
from learn_torchrec.content.store import KIND, write_content_store
from learn_torchrec.datasets.adapters import open_dataset
from learn_torchrec.evaluation.gate import parse_gate
from learn_torchrec.presets import Run
from learn_torchrec.publish import write_artifact

run = command_line._dispatch

# --- JSON -------------------------------------------------------------------------

NUMBERS = st.one_of(
    st.integers(-3, 3),
    st.integers(),
    st.sampled_from([10**400, 2**63, -(2**62), 2**31]),
    st.floats(),
)
NAMES = st.text(max_size=8) | st.sampled_from(["", "\0", "../x", "a\nb", "\ud800", "*"])
JSON = st.recursive(
    st.none() | st.booleans() | NUMBERS | NAMES,
    lambda part: st.lists(part, max_size=3) | st.dictionaries(NAMES, part, max_size=3),
    max_leaves=5,
)


def places(body: Any, at: tuple = ()) -> Iterator[tuple]:
    yield at
    inside = enumerate(body) if isinstance(body, list) else ()
    inside = body.items() if isinstance(body, dict) else inside
    for key, value in inside:
        yield from places(value, (*at, key))


@st.composite
def changed(draw, body: Any) -> Any:
    """Return a JSON body with some values replaced, removed or added."""
    body = copy.deepcopy(body)
    for _ in range(draw(st.integers(1, 3))):
        *path, last = ("", *draw(st.sampled_from(list(places(body)))))
        box = {"": body}
        inside = functools.reduce(lambda part, key: part[key], path, box)
        how = draw(st.sampled_from(["replace", "remove", "add"]))
        if how == "remove" and path:
            del inside[last]
        elif how == "add" and isinstance(inside[last], dict):
            inside[last][draw(NAMES)] = draw(JSON)
        else:
            inside[last] = draw(JSON)
        body = box[""]
    return body


@st.composite
def texts(draw, body: Any) -> bytes:
    """Return a changed JSON body as a file, perhaps damaged or deep."""
    data = json.dumps(draw(changed(body))).encode()
    if draw(st.integers(0, 5)) == 0:
        at = draw(st.integers(0, len(data)))
        data = data[:at] + draw(st.binary(max_size=4)) + data[at + 1 :]
    deep = st.sampled_from([b"[" * 100_000, b'{"a":' * 100_000, b"", b"\xff\xfe"])
    return draw(deep) if draw(st.integers(0, 15)) == 0 else data


# --- artefacts and configurations -------------------------------------------------


@pytest.fixture(scope="module")
def artefacts(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("run")
    with write_artifact(folder / "content", kind=KIND, config={}, inputs={}) as out:
        vectors = np.random.default_rng(0).normal(size=(40, 12)).astype(np.float32)
        write_content_store(out, pa.array(range(40)), vectors)
    make_predictions(folder / "predictions", 0.5)
    return folder


def body_of(path: Path) -> Any:
    return json.loads(path.read_text())


@tried(15)
@given(st.data())
def test_manifests(capfd, artefacts, tmp_path, data):
    name = data.draw(st.sampled_from(["content", "predictions"]))
    path = artefacts / name / "manifest.json"
    before = path.read_bytes()
    try:
        path.write_bytes(data.draw(texts(body_of(path))))
        if data.draw(st.booleans()):
            forge(path)
        out = tmp_path / "out"
        command = ["encode-codes", "--content", path.parent, "--out", out]
        command += ["--set", "codes.codes_per_level=2", "--overwrite"]
        if name == "predictions":
            command = ["evaluate-auc", "--predictions", f"a={path.parent}"]
            command += ["--out", tmp_path / "x.json"]
        holds(capfd, run, *command)
    finally:
        path.write_bytes(before)


def forge(path: Path) -> None:
    """Give a manifest the checksum of what it says, if it says anything."""
    with contextlib.suppress(Exception):
        body = body_of(path)
        body["checksum"] = Manifest(**body).digest()
        path.write_text(json.dumps(body))


@tried(30)
@given(st.data())
def test_configurations(capfd, tmp_path, data):
    path = tmp_path / "config.json"
    path.write_bytes(data.draw(texts(config.to_dict(Run()))))
    holds(capfd, lambda _: config.load(Run, path))


SETTINGS = [".".join(map(str, at)) for at in places(config.to_dict(Run())) if at]
WORDS = [
    "null",
    "true",
    "inf",
    "nan",
    "1e999",
    "-1",
    "0",
    "1e23",
    "[1",
    "[]",
    '{"a":1}',
]
VALUES = NAMES | st.sampled_from(WORDS) | NUMBERS.map(str) | JSON.map(json.dumps)
SIGNS = st.text(string.ascii_letters + string.digits + "=.,@%+-<>#:/ ", max_size=20)


@tried(60)
@given(st.lists(st.tuples(st.sampled_from(SETTINGS) | SIGNS, VALUES), max_size=3))
def test_settings(capfd, pairs):
    overrides = [f"{name}={value}" for name, value in pairs]
    overrides = [one for one in overrides if "\0" not in one]
    holds(capfd, lambda _: config.apply_overrides(Run(), overrides))


# --- predictions ------------------------------------------------------------------

KINDS = [
    *(pa.int64(), pa.int8(), pa.uint64(), pa.float32(), pa.float64(), pa.float16()),
    *(pa.bool_(), pa.string(), pa.large_string(), pa.binary(), pa.null(), pa.date32()),
    *(pa.timestamp("ns"), pa.decimal128(5, 2), pa.list_(pa.int64())),
    *(pa.dictionary(pa.int32(), pa.string()), pa.struct([("a", pa.int64())])),
    *(pa.string_view(), pa.duration("s"), pa.list_(pa.float32(), 2)),
]


@st.composite
def columns(draw, usual: list[Any], rows: int) -> pa.Array:
    """Return a column: often as it should be, else of any type, nulls or extremes."""
    if draw(st.integers(0, 2)):
        return pa.array([draw(st.sampled_from(usual)) for _ in range(rows)])
    odd = [*usual, None, float("nan"), float("inf"), -1, 2**62, -(2**62), "", "x", "1"]
    odd += [b"\xff", [1], {"a": 1}, True, 1.00000001]
    values = [draw(st.sampled_from(odd)) for _ in range(rows)]
    kind = draw(st.sampled_from(KINDS))
    with contextlib.suppress(pa.ArrowException, TypeError, ValueError, OverflowError):
        return pa.array(values, kind)
    return pa.array([None] * rows, kind)


@st.composite
def tables(draw, usual: dict[str, list[Any]]) -> pa.Table:
    rows = draw(st.integers(0, 6))
    names = [name for name in usual if draw(st.integers(0, 9))]
    names += draw(st.lists(NAMES.filter(utf_8) | st.sampled_from([*usual]), max_size=2))
    made = [draw(columns(usual.get(name, [0, 1]), rows)) for name in names]
    return pa.table(made, names)


def utf_8(text: str) -> bool:
    return text.isprintable()


def write(table: pa.Table, path: Path, noise: bytes, at: int) -> None:
    """Write Parquet, with `noise` in place of some bytes if there are any."""
    path.unlink(missing_ok=True)
    try:
        pq.write_table(table, path)
    except (pa.ArrowException, ValueError):  # no type of Parquet
        return
    body = path.read_bytes()
    at %= len(body)
    path.write_bytes(body[:at] + noise + body[at + len(noise) :])


NOISE = st.just(b"") | st.just(b"") | st.just(b"") | st.binary(max_size=6)
PREDICTIONS: dict[str, list[Any]] = {
    "user_id": [1, 2],
    "item_id": [1, 2],
    "label": [0, 1],
    "score": [0.1, 0.9],
    "weight": [1.0, 2.0],
    "sampling_rate": [0.5, 1.0],
    "user_activity": [0, 50],
    "item_activity": [0, 50],
    "cohort": ["a", "b"],
}
GATES = st.sampled_from(["uauc>=0", "auc.low@user_cold>-1", "ne<9", "x.auc>0"]) | SIGNS


@tried(40)
@given(tables(PREDICTIONS), NOISE, st.integers(0, 9999), st.data())
def test_predictions(capfd, tmp_path, table, noise, at, data):
    path, out = tmp_path / "a.parquet", tmp_path / "x.json"
    write(table, path, noise, at)
    options = data.draw(
        st.sampled_from(
            [
                ["--stream"],
                ["--cohort-column", "cohort"],
                ["--metrics", "undcg", "auc"],
                ["--compare-conventions"],
                ["--label", "weight", "--score", "label"],
                [],
            ]
        )
    )
    files = [f"a={path}", f"b={path}"][: 2 - ("--stream" in options)]
    gates = [f"--gate={data.draw(GATES)}"] if len(files) == 2 else []
    command = ["evaluate-auc", "--resamples", "5", "--out", out, *options, *gates]
    holds(capfd, run, *command, "--predictions", *files)


@tried(60)
@given(SIGNS | st.text(max_size=12))
def test_gates(capfd, text):
    holds(capfd, lambda _: parse_gate(text))


# --- data -------------------------------------------------------------------------

ITEMS = {"item_id": [1, 2, 3], "title": ["a", "b"], "price": [1.5, 2.0]}
LOG = {
    "user_id": [1, 2],
    "item_id": [1, 2, 3],
    "timestamp": [86_400, 90_000, 10**9],
    "action": ["buy", "view"],
}
IMPRESSIONS = {**LOG, "label": [0, 1], "weight": [1.0]}
OPTIONS = st.sampled_from(
    [
        "items=items.parquet",
        "interactions=x",
        "timestamp=user_id",
        "item_id=title",
        "weight=label",
        "time_unit=ms",
        "time_unit=ns",
        "time_format=%d.%m.%Y",
        "delimiter=;",
        "delimiter=||",
        "decimal=,",
        "encoding=utf-16",
        "encoding=latin-1",
        "encoding=zlib",
        "escape=backslash",
        "action=title",
        "default_action=buy",
        "label=timestamp",
        "items.item_id=price",
        "user_id=user_id",
    ]
)


def read_all(spec: str, strict: bool) -> None:
    """Read every table of a data set, as the stages do."""
    dataset = open_dataset(spec, strict)
    _ = dataset.items, dataset.interactions, dataset.times
    _ = dataset.fingerprints("items.parquet", "interactions.parquet")
    if dataset.has_impressions:
        _ = dataset.impressions, dataset.impression_times
        _ = open_dataset(spec, strict).impression_moments  # without the others
        source = dataset.impressions_between(0, 2**40)
        for group in range(len(source)):
            list(source.pieces(group))


@tried(40)
@given(tables(ITEMS), tables(LOG), tables(IMPRESSIONS), NOISE, st.data())
def test_tables(capfd, tmp_path, items, log, impressions, noise, data):
    at = data.draw(st.integers(0, 9999))
    write(items, tmp_path / "items.parquet", noise, at)
    write(log, tmp_path / "interactions.parquet", b"", 0)
    write(impressions, tmp_path / "impressions.parquet", b"", 0)
    chosen = data.draw(st.lists(OPTIONS, max_size=2))
    spec = f"parquet:{tmp_path}" + ("#" + ",".join(chosen) if chosen else "")
    holds(capfd, lambda _: read_all(spec, data.draw(st.booleans())))


LINES = st.lists(
    st.lists(
        st.sampled_from(
            ["1", "2", "", "a", '"', '"a\nb"', "2026-01-01", "\0", "ü", "1e9"]
        ),
        max_size=5,
    ),
    max_size=5,
)
HEADERS = st.sampled_from(
    ["item_id,title", "user_id,item_id,timestamp,action", "a;b", "", "a,a", ",,", '"']
)


@tried(40)
@given(st.lists(st.tuples(HEADERS, LINES, NOISE), min_size=3, max_size=3), st.data())
def test_csv_and_json_lines(capfd, tmp_path, files, data):
    suffix = data.draw(st.sampled_from(["csv", "jsonl"]))
    for name, (header, lines, noise) in zip(
        ("items", "interactions", "impressions"), files, strict=True
    ):
        sign = data.draw(st.sampled_from([",", ";", "\t", "||"]))
        body = [header.encode(), *(sign.join(line).encode() for line in lines), noise]
        if suffix == "jsonl":
            body = [json.dumps(data.draw(JSON)).encode() for _ in lines] + [noise]
        (tmp_path / f"{name}.{suffix}").write_bytes(b"\n".join(body))
    chosen = data.draw(st.lists(OPTIONS | SIGNS, max_size=3))
    spec = f"{suffix}:{tmp_path}#" + ",".join(chosen)
    holds(capfd, lambda _: read_all(spec, data.draw(st.booleans())))


# Those that would wait for a network are left out.
SCHEMES = ["mock", "file", "fsspec+memory", "gopher", "S3", "", "fsspec+x", "a+b.c-d"]
PATHS = st.text("/@:?#[]%&=. ~$'\"\\*abc0é\n", max_size=20)


@tried(60)
@given(st.sampled_from(["parquet:", "csv:", ""]), st.sampled_from(SCHEMES), PATHS)
def test_uris(capfd, tmp_path, monkeypatch, adapter, scheme, path):
    monkeypatch.chdir(tmp_path)
    out = tmp_path / "out"
    holds(capfd, run, "prepare", "--data", f"{adapter}{scheme}://{path}", "--out", out)


# --- reports ----------------------------------------------------------------------


def ranked() -> dict:
    metrics = {"auc": 0.5, "uauc": 0.6, "wuauc": 0.5, "ne": 1.0, "log_loss": 0.1}
    metrics |= {"calibration": 1.0, "rows": 20, "users_kept": 3}
    gain = {"difference": 0.1, "low": 0.0, "high": 0.2, "p_value": 0.5}
    gains = dict.fromkeys(("auc", "uauc", "wuauc"), gain)
    cohorts = {"all": metrics, "user_cold": metrics}
    return {
        "ranking": {"learn": cohorts, "old": cohorts},
        "ranking_difference": {"learn-old": {"all": gains, "user_cold": gains}},
        "settings": {"convention": {"ties": "half"}},
        "gates": [],
    }


EXAMPLE = {
    "user": 1,
    "events": 2,
    "history_left_out": True,
    "history": [{"day": "2026-01-01", "item": 3, "title": "x"}],
    "top": [{"rank": 1, "item": 3, "title": "x"}],
}
REPORTED = {
    "ranking.json": ranked(),
    "retrieval.json": {"retrieval": retrieval_rows(targets=9)},
    "metrics.json": {**ranked(), "seconds": {"towers": 1.0}, "left_out": {}},
    "recommendations.json": EXAMPLE,
}


@tried(12)
@given(st.data())
def test_reports(capfd, tmp_path, data):
    folder = tmp_path / "run"
    folder.mkdir(exist_ok=True)
    name = data.draw(st.sampled_from(list(REPORTED)))
    for one, body in REPORTED.items():
        (folder / one).write_text(json.dumps(body))
    (folder / name).write_bytes(data.draw(texts(REPORTED[name])))
    page = tmp_path / "report.html"
    holds(capfd, run, "report", "--run", folder, "--out", page)


OUTCOMES: dict[str, list[Any]] = {
    "user_id": [1, 2, 3],
    "arm": ["control", "treatment"],
    "day": [0, 1],
    "impressions": [1, 2],
    "conversions": [0, 1],
    "revenue": [0.0, 5.0],
}


@tried(30)
@given(tables(OUTCOMES), NOISE, st.integers(0, 9999))
def test_outcomes(capfd, tmp_path, table, noise, at):
    path, out = tmp_path / "a.parquet", tmp_path / "x.json"
    write(table, path, noise, at)
    command = ["evaluate-ab", "--outcomes", path, "--out", out]
    holds(capfd, run, *command, "--set", "ab.resamples=5")
