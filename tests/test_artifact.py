import json
from pathlib import Path

import pytest

from learn_torchrec import artifact, publish
from learn_torchrec.errors import UserError

MADE = {"kind": "content", "config": {"a": 1}, "inputs": {"items": "x"}}
RECIPE = artifact.recipe_of("content", {"a": 1}, {"items": "x"})


def make(directory: Path, text: str = "hello", **changes: object) -> None:
    with publish.write_artifact(directory, **{**MADE, **changes}) as working:
        (working / "data.txt").write_text(text)


def test_holds_files_and_manifest(tmp_path):
    make(tmp_path / "out", cutoff=5, facts={"rows": 3})
    manifest = artifact.read_manifest(tmp_path / "out", "content")
    assert manifest.recipe == RECIPE
    assert manifest.cutoff == 5
    assert manifest.facts == {"rows": 3}
    # echo -n hello | sha256sum
    digest = "2cf24dba5fb0a30e26e83b2ac5b9e29e1b161e5c1fa7425e73043362938b9824"
    assert manifest.files == {"data.txt": {"bytes": 5, "sha256": digest}}


def test_fingerprint_follows_the_files(tmp_path):
    prints = []
    for name, text in (("one", "hello"), ("same", "hello"), ("other", "world")):
        make(tmp_path / name, text)
        prints.append(artifact.read_manifest(tmp_path / name, "content").fingerprint)
    assert prints[0] == prints[1] != prints[2]


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
