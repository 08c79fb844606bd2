"""No part of a secret in a URI is ever shown, logged or written."""

import contextlib
import importlib
import json
import logging
import os
import re
import string
import subprocess
import sys
import urllib.parse
from pathlib import Path

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from more_examples import tried
from vault import SECRET

from learn_torchrec import LearnInputs, config, presets
from learn_torchrec.apps import main as command_line
from learn_torchrec.apps.common import program
from learn_torchrec.apps.stages import STAGES
from learn_torchrec.credentials import hide, remember, without_credentials
from learn_torchrec.datasets.adapters import ADAPTERS, open_dataset
from learn_torchrec.errors import UserError

RUN = st.text(string.ascii_letters + string.digits, min_size=9, max_size=12)
SIGNS = st.text("/@[]%#?&=:;,'\"\\ +$!", min_size=1, max_size=3)


@st.composite
def secrets(draw) -> str:
    """Random runs of letters with signs between them, as in generated keys."""
    runs = draw(st.lists(RUN, min_size=1, max_size=3))
    return "".join(draw(SIGNS) * bool(at) + run for at, run in enumerate(runs))


SCHEMES = ("mock", "fsspec+memory", "gopher", "file", "gs", "fsspec+nothing")
SHAPES = (
    "{scheme}://user:{secret}@bucket/log",
    "{scheme}://{secret}@bucket/log",
    "{scheme}://bucket/log?token={secret}",
    "{scheme}://user:{secret}@bucket/log?region=eu&signature={secret}",
)


@st.composite
def uris(draw) -> tuple[str, str]:
    """Return a URI and its secret, percent-encoded or not."""
    secret = draw(secrets())
    encoded = urllib.parse.quote(secret, safe="") if draw(st.booleans()) else secret
    shape, scheme = draw(st.sampled_from(SHAPES)), draw(st.sampled_from(SCHEMES))
    return shape.format(scheme=scheme, secret=encoded), secret


def parts(secret: str) -> list[str]:
    """Return the runs of a secret, each long enough to be no word of a message."""
    return re.findall("[A-Za-z0-9]{9,}", secret)


def leaked(secret: str, text: str) -> list[str]:
    return [part for part in parts(secret) if part in text]


DATA = [
    *("parquet:{}", "csv:{}", "parquet:{}#user_id=uid", "csv:{}#nothing=x", "csv:{}#x"),
    *("{}", "x:{}", "parquet:{}#time_unit=x", "csv:{}#delimiter=ä,items=x"),
    *(f"{name}:{{}}" for name in ADAPTERS),
]
# Where a URI may stand in a command line, by mistake or not.
PLACES = [
    *(["evaluate-auc", "--out", "x.json", "--predictions", p] for p in ("{}", "a={}")),
    *(
        ["evaluate-ab", "--out", "x.json", "--outcomes", "{}"],
        ["{}"],
        ["prepare", "{}"],
    ),
    *(["report", "--run", "{}", "--out", "x.html"], ["report", "--out", "{}"]),
    ["evaluate-auc", "--predictions", "a=x", "--out", "x.json", "--gate", "{}"],
    ["evaluate-auc", "--predictions", "a=x", "--out", "x.json", "--set", "{}=1"],
    ["data", "market", "--out", "x", "--seed", "{}"],
    ["data", "impressions", "--data", "parquet:{}", "--out", "x"],
    ["prepare", "--data", "parquet:.", "--memory", "{}", "--out", "x"],
    ["encode-content", "--data", "parquet:.", "--out", "x", "--config", "{}"],
    ["encode-content", "--data", "parquet:.", "--out", "x", "--set", "{}"],
    [*("quickstart", "--data", "movielens:auto", "--out", "x", "--dry-run"), "--{}"],
    [
        *("encode-content", "--data", "movielens:auto", "--out", "x", "--preset"),
        *("default", "--set", "content.encoder.model={}"),
    ],
    *(
        [command, "--data", data, "--out", "x"]
        for command in ("prepare", "encode-content", "quickstart")
        for data in DATA
    ),
    *(
        [*command, "--data", "parquet:.", "--out", "x"]
        for command in (
            ["experiment", "transfer", "--source", "parquet:{}"],
            ["experiment", "transfer", "--source", "{}"],
            ["experiment", "table4", "--encoder", "llm:content.encoder.model={}"],
            ["experiment", "table4", "--encoder", "{}"],
            ["study-retrieval", "--content", "x", "--recommended", "a={}"],
            ["study-retrieval", "--content", "x", "--recommended", "{}"],
            ["study-retrieval", "--content", "x", "--arm", "a:towers.x={}"],
            ["study", "--vectors", "x", "--arm", "{}:ranker.x=1"],
            ["build-index", "--vectors", "x", "--from", "{}"],
            ["recommend", "--vectors", "x", "--index", "{}"],
        )
    ),
    *(
        ["verify", "{}"],
        ["verify", "x", "{}"],
        ["rollback", "--to", "1", "--run", "{}"],
    ),
    *(["refresh", "--data", "parquet:{}", "--run", "x"], ["align-space", "{}", "x"]),
    ["serve", "--bundle", "x", "--events", "{}"],
    ["serve", "--bundle", "x", "--data", "parquet:{}"],
    ["serve", "--run", "x", "--data", "parquet:{}"],
    ["embed-items", "--towers", "x", "--content", "x", "--items", "{}"],
    ["embed-items", "--towers", "x", "--content", "x", "--items", "{}.parquet"],
    ["recommend", "--data", "parquet:{}", "--vectors", "x", "--user", "{}"],
    *(
        [command, f"--{option}", "{}", "--data", "parquet:.", "--out", "x"]
        for command in STAGES
        for option in (*STAGES[command].reads, "out", "vectors", "content", "user")
    ),
]


@pytest.mark.parametrize("command", STAGES)
def test_no_option_makes_a_path_of_a_uri(command):
    app = importlib.import_module(f"learn_torchrec.apps.{STAGES[command].app}")
    parser = app.build_parser()
    assert isinstance(parser, program.Parser)
    assert not [action.dest for action in parser._actions if action.type is Path]


def ends(capfd, *arguments: str) -> str:
    """Run a command that fails; return all that it says."""
    with pytest.raises(SystemExit) as ended:
        command_line.main(arguments)
    assert ended.value.code == 2
    said = capfd.readouterr()
    assert "Traceback" not in said.err
    return said.out + said.err


@tried(40)
@given(uris(), st.sampled_from(PLACES))
@example(("s3://KEY:hpRp8Jkzw3/t+Lm9qXw2a@b/x", "hpRp8Jkzw3/t+Lm9qXw2a"), PLACES[0])
@example(("s3://K:abcdefghi[0@b/x", "abcdefghi[0"), PLACES[-1])
def test_no_command_shows_a_secret(capfd, tmp_path, monkeypatch, made, place):
    monkeypatch.chdir(tmp_path)
    uri, secret = made
    said = ends(capfd, *(part.replace("{}", uri) for part in place))
    assert leaked(secret, said) == [], (uri, place)
    assert leaked(secret, str(list(tmp_path.rglob("*")))) == []


TEXTS = [
    *("content.encoder.revision", "content.prompt.currency"),
    *("content.prompt.template", "towers.model.encoder.language_model"),
    *("split.actions", "export.since", "refresh.gate"),
]


@pytest.mark.parametrize("name", TEXTS)
def test_no_setting_that_is_saved_takes_a_secret(name, tmp_path, capfd):
    secret = "hpRp8Jkzw3/t+Lm9qXw2a"
    uri = f"s3://KEY:{secret}@bucket/log"
    with pytest.raises(UserError, match=f"{name}=.*has credentials") as caught:
        config.apply_overrides(presets.Run(), [f"{name}={uri}"])
    assert leaked(secret, str(caught.value)) == []
    listed = f'ranker.features.dense=[{{"column": "{uri}"}}]'
    with pytest.raises(UserError, match=r"ranker\.features\.dense.*has credentials"):
        config.apply_overrides(presets.Run(), [listed])
    body = json.dumps(config.to_dict(presets.Run()))
    saved = tmp_path / "config.json"
    saved.write_text(body.replace('"currency": ""', f'"currency": "{uri}"'))
    given = config.load(presets.Run, saved)
    with pytest.raises(UserError, match=r"content\.prompt\.currency=.*has credentials"):
        config.apply_overrides(given, [])


# --- data that a secret opens ------------------------------------------------------


def vault(folder: Path) -> str:
    password = urllib.parse.quote(SECRET, safe="")
    return f"parquet:fsspec+vault://user:{password}@{folder}"


def contents(folder: Path) -> str:
    files = [path for path in folder.rglob("*") if path.is_file()]
    return " ".join(f"{path} {path.read_bytes()!r}" for path in files)


TOWERS = ["towers.training.epochs=1", "towers.model.encoder.width=8"]
RANKER = ["ranker.training.epochs=1", "ranker.training.batch_size=64"]


def test_no_secret_is_in_what_the_stages_write_and_say(market, store, tmp_path, capfd):
    data, out = ["--data", vault(market)], tmp_path / "out"
    content = ["--content", str(store.directory)]
    for command, *options in (
        ["prepare"],
        ["data", "impressions"],
        ["train-towers", *content, "--set", *TOWERS],
        ["train-ranker", "--set", *RANKER],
        ["prepare", "--set", "prepare.min_events=100000"],
    ):
        makes = "impressions" if "impressions" in options else command
        line = [command, *options, *data, "--out", str(out / f"{makes}{len(options)}")]
        failure = contextlib.nullcontext()
        if "prepare.min_events=100000" in options:
            failure = pytest.raises(SystemExit)
        with failure:
            command_line.main(line)
    assert len(list(out.glob("*/manifest.json"))) == 4
    said = capfd.readouterr()
    assert "fsspec+vault://***@" in said.err
    for text in (said.out, said.err, contents(out)):
        assert leaked(SECRET, text) == []


def test_a_library_s_own_errors_show_no_secret(market, capfd, tmp_path):
    wrong = vault(market).replace("tWq8", "wrongPassword")
    said = ends(capfd, "prepare", "--data", wrong, "--out", str(tmp_path / "x"))
    assert said.startswith("error: fsspec+vault://***@")
    assert leaked("wrongPassword" + SECRET, said) == []


BUG = """
import sys
sys.path[:0] = [{tests!r}]
import vault
from learn_torchrec.apps import main
main.main(["prepare", "--data", {data!r}, "--out", {out!r}])
"""


def test_a_traceback_of_a_bug_shows_no_secret(tmp_path):
    data = vault(tmp_path / "missing")
    code = BUG.format(
        tests=str(Path(__file__).parent), data=data, out=str(tmp_path / "x")
    )
    file = tmp_path / "error.json"
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        env=os.environ | {"TORCHELASTIC_ERROR_FILE": str(file)},
    )
    assert done.returncode == 1
    assert "RuntimeError: a bug of the library at vault://***@" in done.stderr
    for text in (done.stderr, done.stdout, file.read_text()):
        assert leaked(SECRET, text) == []


@pytest.mark.slow
def test_no_secret_is_in_a_quickstart_s_files_and_logs(market, model_dir, tmp_path):
    site, scratch, out = tmp_path / "site", tmp_path / "scratch", tmp_path / "out"
    for folder in (site, scratch):
        folder.mkdir()
    (site / "sitecustomize.py").write_text("import vault")
    (market / "impressions.parquet").unlink()
    paths = f"{site}{os.pathsep}{Path(__file__).parent}"
    settings = [f"content.encoder.model={model_dir}", *TOWERS]
    done = subprocess.run(
        [
            *(sys.executable, "-m", "learn_torchrec.apps.quickstart", "--ranks", "1"),
            *("--data", vault(market), "--out", str(out), "--set", *settings),
        ],
        capture_output=True,
        text=True,
        env=os.environ | {"PYTHONPATH": paths, "TMPDIR": str(scratch)},
    )
    assert done.returncode == 0, done.stderr
    assert "recommend --data 'parquet:fsspec+vault://***@" in done.stdout
    for text in (done.stdout, done.stderr, contents(out), contents(scratch)):
        assert leaked(SECRET, text) == []


def test_the_library_shows_no_secret_either(tmp_path):
    uri = "parquet:fsspec+vault://user:abcdefghij/klmnopqrst@/nowhere"
    for fails in (
        lambda: open_dataset(uri),
        lambda: open_dataset(uri + "#x=y"),
        lambda: LearnInputs.load(tmp_path, uri),
    ):
        with pytest.raises(UserError) as caught:
            fails()
        assert leaked("abcdefghij/klmnopqrst", str(caught.value)) == []


def test_spark_is_given_no_stars():
    from learn_torchrec.datasets.loading.location import Location
    from learn_torchrec.datasets.preparation.engines import _spark_root

    assert _spark_root(Location.of("mock:///a/b")) == "mock:///a/b"
    for uri in ("mock://u:password@/a/b", "mock:///a?token=abcdef"):
        with pytest.raises(UserError, match="Spark takes neither credentials nor"):
            _spark_root(Location.of(uri))


# --- by hand -----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("uri", "shown"),
    [
        ("/a/b@c?d=e", "/a/b@c?d=e"),
        ("csv:/home/me@work#timestamp=a@b", "csv:/home/me@work#timestamp=a@b"),
        ("s3://bucket/log?region=eu-west-1", "s3://bucket/log?region=eu-west-1"),
        ("s3://bucket/log#timestamp=ts", "s3://bucket/log#timestamp=ts"),
        ("s3://K:S@bucket/log?region=eu", "s3://***@bucket/log?region=eu"),
        ("s3://K:S@bucket/log?region=eu&token=abc", "s3://***@bucket/log?***"),
        ("s3://bucket/log?endpoint_override=http://u:p@h", "s3://***"),
        ("s3://K:a/b@c@bucket/log", "s3://***@bucket/log"),
        ("s3://K:a?b#c@bucket/log", "s3://***"),
        ("s3://bucket/log?token=a@b", "s3://***"),
        ("a=parquet:s3://K:S@b/x#user_id=u", "a=parquet:s3://***@b/x#user_id=u"),
        ("abfs://container@account.dfs/x", "abfs://container@account.dfs/x"),
        ("abfs://:KEY+/=@account.dfs/x", "abfs://***@account.dfs/x"),
    ],
)
def test_what_is_shown_of_a_uri(uri, shown):
    assert without_credentials(uri) == shown


def test_every_spelling_of_what_is_remembered_is_hidden():
    remember(["s3://AKIAEXAMPLE0:wJal%2FrXUt%5B'nFEMI@bucket/log?sig=Qz%20T7y"])
    for spelling in (
        "AKIAEXAMPLE0",
        "wJal%2FrXUt%5B'nFEMI",
        "wJal/rXUt['nFEMI",
        "wJal%2FrXUt%5B%27nFEMI",
        "Qz T7y",
    ):
        assert hide(f"of {spelling}.") == "of ***."
    assert hide("bucket/log s3://x:y@b") == "bucket/log s3://***@b"


# --- text of others in messages -----------------------------------------------------


def test_common_words_and_digits_of_a_uri_stay_in_other_texts():
    remember(["s3://user:0000@bucket/log", "s3://bucket/log?token=word"])
    assert hide("user 7 has 100000 events, a password") == (
        "user 7 has 100000 events, a password"
    )
    assert hide("of user, 0000 and word.") == "of user, *** and ***."


def test_a_message_is_one_line_whatever_it_quotes():
    error = UserError("x.csv: column 'a\nerror: b\x1b[31m\u202e' is missing", "  2nd")
    assert str(error) == "x.csv: column 'a error: b\ufffd[31m' is missing\n  2nd"


def test_a_log_line_is_one_line_whatever_it_quotes(capfd):
    def main(argv):
        logger = logging.getLogger("apps")
        logger.warning("%s: read", "a\n12:00:00 apps: all is well\x1b[2J")
        try:
            raise ValueError("of s3://user:abc/defg@bucket/x")
        except ValueError:
            logger.exception("failed")

    program.run(main, ["--data", "parquet:s3://user:abc/defg@bucket/x"])
    first, second, *trace = capfd.readouterr().err.splitlines()
    assert first[8:] == " apps: a 12:00:00 apps: all is well\ufffd[2J: read"
    assert second[8:] == " apps: failed"
    assert trace[-1] == "ValueError: of s3://***@bucket/x"


def test_arguments_in_a_usage_error_are_printable_too(capfd):
    said = ends(
        capfd, "prepare", "--data", "x", "--out", "y", "s3://u:abcdef@b\nerror:"
    )
    assert said.splitlines()[-1].endswith("unrecognized arguments: s3://***@b error:")
