"""How programs end: a user's mistake, the system's refusal, a reader that left."""

import errno
import importlib
import importlib.util
import json
import os
import shutil
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from learn_torchrec.apps import main
from learn_torchrec.apps.benchmarks import measure
from learn_torchrec.apps.common import program
from learn_torchrec.artifact import recipe_of
from learn_torchrec.errors import UserError
from learn_torchrec.publish import is_finished, write_artifact


@pytest.mark.parametrize(
    "number",
    [
        *(errno.EROFS, errno.EIO, errno.ENAMETOOLONG, errno.EINTR, errno.ENOSPC),
        *(errno.EDQUOT, errno.EACCES, errno.EISDIR, errno.ESTALE, errno.EMFILE),
    ],
    ids=errno.errorcode.get,
)
def test_what_the_system_refuses_is_one_line_and_code_2(number, capsys):
    def refused(argv):
        raise OSError(number, os.strerror(number), "runs/x")

    with pytest.raises(SystemExit) as ended:
        program.run(refused, [])
    assert ended.value.code == 2
    said = capsys.readouterr().err
    assert said.startswith(f"error: runs/x: {os.strerror(number)}; ")
    assert said.count("\n") == 1


@pytest.mark.parametrize("argv", [["--out", "runs/x"], ["--k=1", "--out=runs/x"]])
def test_an_error_that_names_no_file_names_the_output(argv, capsys):
    def refused(argv):
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    with pytest.raises(SystemExit):
        program.run(refused, argv)
    assert capsys.readouterr().err.startswith("error: runs/x: Input/output error; ")


def test_a_full_standard_output_is_one_line():
    code = (
        "from learn_torchrec.apps.common import program; "
        "program.run(lambda _: print('x'))"
    )
    with Path("/dev/full").open("w") as full:
        done = subprocess.run(
            [sys.executable, "-c", code],
            env=os.environ | {"PYTHONUNBUFFERED": ""},
            stdout=full,
            stderr=subprocess.PIPE,
            text=True,
        )
    assert done.returncode == 2
    assert done.stderr == (
        "error: standard output: No space left on device; free space there, or choose "
        "another place\n"
    )


def test_a_full_standard_error_does_not_change_the_exit_code():
    code = "from learn_torchrec.apps import main; main.main(['nothing'])"
    with Path("/dev/full").open("w") as full:
        done = subprocess.run([sys.executable, "-c", code], stderr=full)
    assert done.returncode == 2


def test_a_thread_that_the_system_refuses_says_so_in_one_line(capsys):
    def start_thread(argv):
        thread = threading.Thread(target=Path("/dev/full").write_text, args=("x",))
        thread.start()
        thread.join()

    program.run(start_thread)
    said = capsys.readouterr().err
    assert said.endswith(
        ": a background thread ended: No space left on device; free space there, or "
        "choose another place\n"
    )
    assert said.count("\n") == 1


@pytest.mark.parametrize(
    "bug",
    [
        OSError(errno.EBADF, "Bad file descriptor"),
        OSError("of a library"),
        BrokenPipeError(errno.EPIPE, "another process's"),
        ValueError("a bug"),
    ],
    ids=repr,
)
def test_a_bug_keeps_its_traceback(bug):
    def broken(argv):
        raise bug

    with pytest.raises(type(bug)) as caught:
        program.run(broken, [])
    assert caught.value is bug


def unread(*arguments: str) -> subprocess.CompletedProcess[str]:
    """Run a program whose output nobody reads."""
    read, write = os.pipe()
    os.close(read)
    try:
        return subprocess.run(
            [sys.executable, *arguments],
            stdout=write,
            stderr=subprocess.PIPE,
            text=True,
        )
    finally:
        os.close(write)


@pytest.mark.parametrize("lines", [1, 100_000])
def test_output_that_nobody_reads_ends_the_program_quietly(lines):
    code = (
        "import sys; from learn_torchrec.apps.common import program\n"
        "program.run(lambda argv: print('x\\n' * int(sys.argv[1])))\n"
    )
    done = unread("-c", code, str(lines))
    assert (done.returncode, done.stderr) == (141, "")


def test_the_overview_may_be_cut_short():
    done = unread("-m", "learn_torchrec.apps.main", "--help")
    assert (done.returncode, done.stderr) == (141, "")


def test_results_are_written_before_tables_are_printed(tmp_path):
    out, outcomes = tmp_path / "ab.json", tmp_path / "outcomes.parquet"
    small = ["--set", "replay.users=2000", "ab.resamples=10"]
    app = ["-m", "learn_torchrec.apps.evaluate_ab", "--simulate", *small]
    done = unread(*app, "--outcomes", str(outcomes), "--out", str(out))
    assert done.returncode == 141, done.stderr
    assert "lifts" in json.loads(out.read_text())


# --- benchmarks -------------------------------------------------------------------

ROOT = Path(__file__).parents[1]
# What `make env` does not install; a program that wants it says so when it starts.
ONLY_DEV = [
    *("duckdb", "faiss", "hypothesis", "kubernetes", "playwright", "polars", "pyspark"),
    *("pytest", "sentence_transformers", "sklearn"),
]
START_ALL = f"""
import contextlib, importlib, sys
sys.modules.update(dict.fromkeys({ONLY_DEV}))  # none can be imported
for name in sys.argv[1:]:
    program = importlib.import_module("apps.benchmarks." + name)
    if hasattr(program, "main"):
        with contextlib.suppress(SystemExit):
            program.main(["--help"])
"""


def test_every_benchmark_starts_from_a_checkout():
    files = sorted((ROOT / "apps" / "benchmarks").glob("[!_]*.py"))
    started = subprocess.run(
        [sys.executable, "-c", START_ALL, *(path.stem for path in files)],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert started.returncode == 0, started.stderr
    programs = [p.stem for p in files if '__name__ == "__main__"' in p.read_text()]
    assert {"ranker", "readme", "towers"} <= set(programs)
    for name in programs:
        assert f"usage: python -m apps.benchmarks.{name} [-h]" in started.stdout


def test_figures_are_written_before_they_are_printed(tmp_path, capsys):
    path = tmp_path / "figures.json"
    path.write_text('{"soak": 1, "kills": 2}')
    measure.publish({"kills": 3}, path, merge=True)
    assert json.loads(path.read_text()) == {"soak": 1, "kills": 3}
    assert json.loads(capsys.readouterr().out) == {"kills": 3}
    measure.publish({"kills": 4}, path)
    assert json.loads(path.read_text()) == {"kills": 4}


@pytest.mark.parametrize(
    ("name", "options", "wheels"),
    [
        ("content", [], "sentence-transformers"),
        ("data", [], "duckdb pytest"),
        ("faults", [], "pytest"),
        ("metrics", ["--json", "x.json"], "faiss-cpu scikit-learn"),
    ],
)
def test_a_benchmark_without_its_wheels_does_not_start(
    name, options, wheels, monkeypatch
):
    benchmark = importlib.import_module(f"learn_torchrec.apps.benchmarks.{name}")
    monkeypatch.setattr(importlib.util, "find_spec", lambda module: None)
    with pytest.raises(UserError) as caught:
        benchmark.main(options)
    needs = wheels.replace(" ", " and ")
    assert str(caught.value) == (
        f"this benchmark needs {needs}; run {sys.executable} -m pip install {wheels}"
    )


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("data", [], r"10\.0 GB of disk; .* has 1\.0 free; ask for fewer --rows"),
        ("metrics", [], r"1\.4 GB of disk; .* has 1\.0 free"),
        ("ranker", [], "2 processors, one for each rank; this process may use 1"),
        ("faults", [], "2 processors"),
        ("soak", [], "2 processors"),
        ("content", ["--model", "/none"], "model /none"),
        ("content", ["--sentence-model", "/none"], "model /none"),
    ],
)
def test_a_benchmark_without_the_machine_it_needs_does_not_start(
    name, options, message, monkeypatch
):
    benchmark = importlib.import_module(f"learn_torchrec.apps.benchmarks.{name}")
    usage = shutil.disk_usage("/")._replace(free=10**9)
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: usage)
    monkeypatch.setattr(measure.machine_checks, "processors", lambda: 1)
    with pytest.raises(UserError, match=message):
        benchmark.main(options)


@pytest.mark.parametrize("app", ["evaluate-auc", "evaluate-ab", "recommend", "report"])
def test_a_file_below_a_file_is_refused_before_the_work(app, tmp_path, capsys):
    (tmp_path / "thesis.txt").write_text("years of work")
    out = tmp_path / "thesis.txt" / "x.html"
    options = {
        "evaluate-auc": ["--predictions", "a=none"],
        "evaluate-ab": ["--outcomes", "none"],
        "recommend": ["--data", "movielens:auto", "--vectors", "none"],
        "report": ["--run", "none"],
    }
    with pytest.raises(SystemExit) as ended:
        main.main([app, *options[app], "--out", str(out)])
    assert ended.value.code == 2
    assert (
        f"--out {out}: {tmp_path / 'thesis.txt'} is a file" in capsys.readouterr().err
    )


@pytest.mark.parametrize(
    ("out", "reason"),
    [
        ("/proc/x", "cannot be written"),
        ("/proc/x/y.json", "cannot be written"),
        ("/dev/null", "is no plain file"),
        ("x" * 245, "File name too long"),
        ("loop/x", "Too many levels of symbolic links"),
    ],
)
def test_odd_places_are_refused_before_the_work(out, reason, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("loop").symlink_to("loop")
    with pytest.raises(UserError, match=reason) as caught:
        program.check_output_file(Path(out))
    assert str(caught.value).startswith(f"--out {out}: ")


def test_a_finished_artefact_is_reused_where_nothing_can_be_written(
    tmp_path, monkeypatch
):
    with write_artifact(tmp_path / "x", kind="k", config={}, inputs={}) as working:
        (working / "file").write_text("content")
    recipe = recipe_of("k", {}, {})

    def refuse(*_, **__):
        raise OSError(errno.EROFS, os.strerror(errno.EROFS))

    monkeypatch.setattr("tempfile.TemporaryDirectory", refuse)
    assert is_finished(tmp_path / "x", "k", recipe)
    with pytest.raises(UserError, match=r"--out .*y: cannot be written \(Read-only"):
        is_finished(tmp_path / "y", "k", recipe)


@pytest.mark.parametrize("locale", ["C", "en_US.ISO-8859-1"])
def test_titles_can_be_printed_in_every_locale(locale):
    code = (
        "from learn_torchrec.apps.common import program\n"
        "program.run(lambda _: print('a cup \\u2615'), [])"
    )
    done = subprocess.run(
        [sys.executable, "-X", "utf8=0", "-c", code],
        env=os.environ | {"LC_ALL": locale, "PYTHONCOERCECLOCALE": "0"},
        capture_output=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert b"\\u2615" in done.stdout or "☕".encode() in done.stdout
