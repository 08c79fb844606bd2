"""What many tests share: a process group of one, and a small market on disk."""

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from small_market import write_small_market, write_small_store

from learn_torchrec import credentials
from learn_torchrec.content.store import ContentStore
from learn_torchrec.training.distributed import process_group

pytest_plugins = ["no_skips"]


@pytest.fixture(autouse=True)
def _no_credentials() -> Iterator[None]:
    """Nothing that one test's URIs hold is hidden in another's messages."""
    yield
    credentials.forget()


@pytest.fixture
def one_rank() -> Iterator[torch.device]:
    """A process group with this process alone."""
    with process_group() as device:
        yield device


@pytest.fixture
def store(tmp_path: Path) -> ContentStore:
    """Content vectors of 40 items with ids 100 to 139; the first says odd or even."""
    return write_small_store(tmp_path / "content")


@pytest.fixture
def market(tmp_path: Path) -> Path:
    """A data set in our own schema: 40 items, 60 users, a log of 60 days."""
    return write_small_market(tmp_path / "market")


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    """Chromium, as a person has it or as Playwright installs it."""
    sync_api = pytest.importorskip("playwright.sync_api", reason="needs playwright")
    path = shutil.which("chromium") or shutil.which("google-chrome")
    with sync_api.sync_playwright() as playwright:
        if path is None and not Path(playwright.chromium.executable_path).exists():
            pytest.skip("needs a browser: apt-get install chromium")
        options = {"executable_path": path} if path else {}
        browser = playwright.chromium.launch(args=["--no-sandbox"], **options)
        yield browser
        browser.close()


@pytest.fixture(scope="session")
def model_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny language model on disk."""
    import tiny_model  # transformers takes seconds to import

    directory: Path = tmp_path_factory.mktemp("tiny-llama")
    tiny_model.save(directory)
    return directory


@pytest.fixture(scope="session")
def wide_model_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A language model as wide as a real one, few of its layers: for rounding."""
    import tiny_model

    directory: Path = tmp_path_factory.mktemp("wide-llama")
    tiny_model.save(directory, hidden=576, spread=0.05)
    return directory
