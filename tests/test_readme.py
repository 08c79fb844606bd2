"""What the README shows is what the code does and what a run measured."""

import re

import pytest

from learn_torchrec.apps.benchmarks import readme

ROOT = readme.ROOT

TEXTS = [document.read_text() for document in readme.DOCUMENTS]
README = TEXTS[0]


def test_it_is_short():
    assert len(README.splitlines()) < 200


def test_every_table_is_shown_once_as_it_was_measured():
    tables = readme.measured_tables()
    for text in TEXTS:
        assert readme.render(text, tables) == text
    shown = re.findall(r"<!-- (\w+):begin", "".join(TEXTS))
    assert sorted(shown) == sorted(tables)


@pytest.mark.parametrize("page", ["README.md", "docs/CONTRIBUTING.md"])
def test_files_that_it_names_are_there(page):
    """In backquotes: a whole path, or a name in the folder that was named last."""
    places = [ROOT, ROOT / "learn_torchrec"]
    folder = ROOT / "learn_torchrec"
    for name in re.findall(r"`([a-z_./\d]+(?:\.py|/))`", (ROOT / page).read_text()):
        found = [p / name for p in (*places, folder) if (p / name).exists()]
        assert found, f"{page} names {name}"
        folder = found[0] if found[0].is_dir() else found[0].parent


def test_links_lead_to_files():
    for link in re.findall(r"\]\((?!http)([^)#]+)", README):
        assert (ROOT / link).exists(), link


def test_the_example_runs():
    (example,) = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    scope = {}
    exec(example, scope)
    scope["loss"].backward()
    assert scope["learn"].network[-1].weight.grad.abs().sum() > 0
