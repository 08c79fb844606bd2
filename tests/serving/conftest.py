"""An exported ranker for a whole file of tests: training and exporting take seconds."""

import pytest
from exported import Exported, export
from small_market import write_small_market, write_small_store


@pytest.fixture(scope="session")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Exported:
    """A ranker that reads counts, catalogue columns and content; tables in float."""
    folder = tmp_path_factory.mktemp("exported")
    write_small_store(folder / "content")
    return export(write_small_market(folder / "market"), folder / "content")
