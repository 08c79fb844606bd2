"""The examples in docstrings run and print as documented."""

import doctest
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from learn_torchrec.content import encoder, prompt, store
from learn_torchrec.publish import write_artifact


def run_examples(module: ModuleType, **names: Any) -> None:
    results = doctest.testmod(module, extraglobs=names)
    assert results.attempted > 0
    assert results.failed == 0


def test_prompt() -> None:
    run_examples(prompt)


def test_store(tmp_path: Path) -> None:
    directory = tmp_path / "content"
    vectors = np.eye(2, dtype=np.float32)
    with write_artifact(directory, kind=store.KIND, config={}, inputs={}) as working:
        store.write_content_store(working, pa.array([3, 7]), vectors)
    run_examples(store, directory=directory)


@pytest.mark.slow
def test_encoder() -> None:
    run_examples(encoder)
