import errno
import fcntl
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from learn_torchrec import artifact, locks
from learn_torchrec.errors import UserError

MADE = {"kind": "content", "config": {"a": 1}, "inputs": {"items": "x"}}
RECIPE = artifact.recipe_of("content", {"a": 1}, {"items": "x"})


def make(directory: Path, text: str = "hello", **changes: object) -> None:
    with artifact.write_artifact(directory, **{**MADE, **changes}) as working:
        (working / "data.txt").write_text(text)


def fail_half_way(directory: Path) -> None:
    with artifact.write_artifact(directory, **MADE) as working:
        (working / "data.txt").write_text("hal")
        raise RuntimeError("half way")


def test_holds_files_and_manifest(tmp_path):
    make(tmp_path / "out", cutoff=5, facts={"rows": 3})
    manifest = artifact.read_manifest(tmp_path / "out", "content")
    assert manifest.recipe == RECIPE
    assert manifest.cutoff == 5
    assert manifest.facts == {"rows": 3}
    # echo -n hello | sha256sum
    digest = "2cf24dba5fb0a30e26e83b2ac5b9e29e1b161e5c1fa7425e73043362938b9824"
    assert manifest.files == {"data.txt": {"bytes": 5, "sha256": digest}}


def test_failure_leaves_nothing(tmp_path):
    with pytest.raises(RuntimeError, match="half way"):
        fail_half_way(tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


def test_failure_keeps_the_older_artefact(tmp_path):
    make(tmp_path / "out", "old")
    with pytest.raises(RuntimeError, match="half way"):
        fail_half_way(tmp_path / "out")
    assert (tmp_path / "out" / "data.txt").read_text() == "old"


def test_leftovers_of_a_killed_run_are_removed(tmp_path):
    (tmp_path / ".out.0123abcd.tmp").mkdir()
    make(tmp_path / "out")
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_only_this_artefacts_leftovers_are_removed(tmp_path):
    (tmp_path / ".out.v2.0123abcd.tmp").mkdir()
    make(tmp_path / "out")
    assert {path.name for path in tmp_path.iterdir()} == {"out", ".out.v2.0123abcd.tmp"}


def test_a_swap_killed_half_way_is_undone(tmp_path):
    make(tmp_path / "out")
    (tmp_path / "out").rename(tmp_path / ".out.0123abcd.old")
    assert artifact.is_finished(tmp_path / "out", "content", RECIPE)
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_fingerprint_follows_the_files(tmp_path):
    prints = []
    for name, text in (("one", "hello"), ("same", "hello"), ("other", "world")):
        make(tmp_path / name, text)
        prints.append(artifact.read_manifest(tmp_path / name, "content").fingerprint)
    assert prints[0] == prints[1] != prints[2]


def test_finished_is_reused_and_others_are_refused(tmp_path):
    out = tmp_path / "out"
    assert not artifact.is_finished(out, "content", RECIPE)
    make(out)
    assert artifact.is_finished(out, "content", RECIPE)
    with pytest.raises(UserError, match=r"out: holds a content artefact made with"):
        artifact.is_finished(out, "content", "another recipe")
    assert not artifact.is_finished(out, "content", "another recipe", may_replace=True)


def test_a_strange_directory_is_never_replaced(tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "thesis.txt").write_text("years of work")
    with pytest.raises(UserError, match="is not an artefact"):
        artifact.is_finished(tmp_path / "out", "content", RECIPE, may_replace=True)


def test_nothing_is_made_below_a_file(tmp_path):
    (tmp_path / "thesis.txt").write_text("years of work")
    for inner in ("out", "a/b"):
        with pytest.raises(UserError, match=r"thesis\.txt is a file; choose another"):
            artifact.is_finished(tmp_path / "thesis.txt" / inner, "content", RECIPE)


def test_nothing_is_made_inside_an_artefact(tmp_path):
    make(tmp_path / "outer")
    for inner in ("inner", "a/b"):
        with pytest.raises(UserError, match=r"lies inside the artefact .*outer, which"):
            artifact.is_finished(tmp_path / "outer" / inner, "content", RECIPE)


def test_wrong_kind_and_format_are_refused(tmp_path):
    make(tmp_path / "out")
    with pytest.raises(UserError, match="holds a content artefact, but a towers"):
        artifact.read_manifest(tmp_path / "out", "towers")
    path = tmp_path / "out" / "manifest.json"
    body = json.loads(path.read_text())
    path.write_text(json.dumps({**body, "format_version": 99}))
    with pytest.raises(UserError, match="format 99"):
        artifact.read_manifest(tmp_path / "out", "content")
    path.write_text(path.read_text()[:20])
    with pytest.raises(UserError, match="not valid JSON"):
        artifact.read_manifest(tmp_path / "out", "content")
    path.write_text("[1, 2]")
    with pytest.raises(UserError, match="format None"):
        artifact.read_manifest(tmp_path / "out", "content")
    for wrong in (tmp_path / "absent", path):
        with pytest.raises(UserError, match="no content artefact here"):
            artifact.read_manifest(wrong, "content")


@pytest.mark.parametrize(
    "changed",
    [{"kind": "towers"}, {"config": {"a": 2}}, {"inputs": {"items": "y"}}],
)
def test_recipe_follows_kind_config_and_inputs(changed):
    assert artifact.recipe_of(**MADE) == RECIPE
    assert artifact.recipe_of(**{**MADE, **changed}) != RECIPE


# --- locks ------------------------------------------------------------------------


def hold(directory: Path) -> subprocess.Popen:
    """Hold the lock from another process until its input ends."""
    code = (
        "import sys; from pathlib import Path; "
        "from learn_torchrec.locks import locked\n"
        "with locked(Path(sys.argv[1])):\n"
        "    print('held', flush=True)\n"
        "    sys.stdin.read()\n"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", code, str(directory)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout.readline() == "held\n"
    return process


def test_a_lock_names_its_holder_and_goes_with_it(tmp_path):
    process = hold(tmp_path / "out")
    with (
        pytest.raises(UserError, match=rf"another run.*\(process {process.pid}\)"),
        locks.locked(tmp_path / "out"),
    ):
        pass
    process.communicate("")
    assert list(tmp_path.iterdir()) == []


def test_what_a_killed_run_left_of_its_lock_holds_nothing(tmp_path):
    process = hold(tmp_path / "out")
    process.kill()
    process.communicate()
    lock = tmp_path / ".out.lock"
    assert lock.read_text() == f"{process.pid}\n"
    with locks.locked(tmp_path / "out"):
        assert lock.read_text() == f"{os.getpid()}\n"
    assert not lock.exists()


def test_a_lock_that_is_a_link_does_not_touch_its_target(tmp_path):
    target = tmp_path / "thesis.txt"
    target.write_text("years of work")
    lock = tmp_path / ".out.lock"
    for path in (target, tmp_path / "absent"):
        lock.symlink_to(path)
        with (
            pytest.raises(UserError, match=r"\.out\.lock: must be a plain file"),
            locks.locked(tmp_path / "out"),
        ):
            pass
        lock.unlink()
    assert target.read_text() == "years of work"
    assert not (tmp_path / "absent").exists()


@pytest.mark.parametrize("make_it", [Path.mkdir, os.mkfifo])
def test_a_lock_that_is_no_file_is_refused(make_it, tmp_path):
    make_it(tmp_path / ".out.lock")
    with (
        pytest.raises(UserError, match="must be a plain file"),
        locks.locked(tmp_path / "out"),
    ):
        pass


def test_a_file_system_without_locks_is_said(tmp_path, monkeypatch):
    def missing(*_: object) -> None:
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(fcntl, "flock", missing)
    with (
        pytest.raises(UserError, match=r"cannot be locked \(No locks available\)"),
        locks.locked(tmp_path / "out"),
    ):
        pass
