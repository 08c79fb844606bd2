import contextlib
import errno
import functools
import os
from pathlib import Path

import pytest

from learn_torchrec import artifact, publish
from learn_torchrec.errors import UserError

MADE = {"kind": "content", "config": {"a": 1}, "inputs": {"items": "x"}}
RECIPE = artifact.recipe_of("content", {"a": 1}, {"items": "x"})


def make(directory: Path, text: str = "hello", **changes: object) -> None:
    with publish.write_artifact(directory, **{**MADE, **changes}) as working:
        (working / "data.txt").write_text(text)


def fail_half_way(directory: Path) -> None:
    with publish.write_artifact(directory, **MADE) as working:
        (working / "data.txt").write_text("hal")
        raise RuntimeError("half way")


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
    with publish.making(tmp_path / "out"):
        assert publish.is_finished(tmp_path / "out", "content", RECIPE)
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_looking_without_the_lock_undoes_no_swap(tmp_path):
    """Another run may be between the two renames of its swap."""
    make(tmp_path / "out")
    (tmp_path / "out").rename(tmp_path / ".out.0123abcd.old")
    assert not publish.is_finished(tmp_path / "out", "content", RECIPE)
    assert [path.name for path in tmp_path.iterdir()] == [".out.0123abcd.old"]


def test_a_swap_is_one_step_that_nothing_can_interrupt(tmp_path, monkeypatch):
    """On a disk that becomes read-only, a second rename could not be undone."""
    make(tmp_path / "out", "old")

    def refuse(path, target):
        raise OSError(errno.EROFS, os.strerror(errno.EROFS))

    monkeypatch.setattr(Path, "rename", refuse)
    make(tmp_path / "out", "new")
    assert (tmp_path / "out" / "data.txt").read_text() == "new"
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_a_swap_that_the_system_refuses_leaves_the_older_artefact(
    tmp_path, monkeypatch
):
    make(tmp_path / "out", "old")
    # As where two directories cannot be exchanged.
    monkeypatch.setattr(publish, "_exchange", lambda one, other: False)
    rename = Path.rename

    def refuse(path, target):
        if path.suffix == ".tmp":
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        return rename(path, target)

    monkeypatch.setattr(Path, "rename", refuse)
    with pytest.raises(OSError, match="Input/output error"):
        make(tmp_path / "out", "new")
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
    assert (tmp_path / "out" / "data.txt").read_text() == "old"


def test_what_was_made_before_the_lock_was_free_is_not_made_again(
    tmp_path, monkeypatch
):
    out, made = tmp_path / "out", []
    making = publish.making

    @contextlib.contextmanager
    def after_another_run(directory):
        make(directory, "theirs")
        with making(directory):
            yield

    monkeypatch.setattr(publish, "making", after_another_run)
    is_done = functools.partial(publish.is_finished, out, "content", RECIPE)
    assert not publish.make_once(out, is_done, lambda: made.append("ours"))
    assert not made
    assert (out / "data.txt").read_text() == "theirs"


def test_a_symbolic_link_is_followed_not_replaced(tmp_path):
    make(tmp_path / "real", "old")
    link = tmp_path / "link"
    link.symlink_to("real")
    make(link, "new")
    assert link.is_symlink()
    assert (tmp_path / "real" / "data.txt").read_text() == "new"


def test_finished_is_reused_and_others_are_refused(tmp_path):
    out = tmp_path / "out"
    assert not publish.is_finished(out, "content", RECIPE)
    make(out)
    assert publish.is_finished(out, "content", RECIPE)
    with pytest.raises(UserError, match=r"out: holds a content artefact made with"):
        publish.is_finished(out, "content", "another recipe")
    assert not publish.is_finished(out, "content", "another recipe", may_replace=True)


def test_a_strange_directory_is_never_replaced(tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "thesis.txt").write_text("years of work")
    with pytest.raises(UserError, match="is not an artefact"):
        publish.is_finished(tmp_path / "out", "content", RECIPE, may_replace=True)


def test_nothing_is_made_below_a_file(tmp_path):
    (tmp_path / "thesis.txt").write_text("years of work")
    for inner in ("out", "a/b"):
        with pytest.raises(UserError, match=r"thesis\.txt is a file; choose another"):
            publish.is_finished(tmp_path / "thesis.txt" / inner, "content", RECIPE)


def test_nothing_is_made_inside_an_artefact(tmp_path):
    make(tmp_path / "outer")
    for inner in ("inner", "a/b"):
        with pytest.raises(UserError, match=r"lies inside the artefact .*outer, which"):
            publish.is_finished(tmp_path / "outer" / inner, "content", RECIPE)
