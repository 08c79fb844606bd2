"""What takes seconds to make, for many tests: an exported ranker, a served shop."""

import functools
from collections.abc import Iterator
from pathlib import Path

import pytest
import shop
from exported import Exported, export
from small_market import write_small_market, write_small_store
from starlette.testclient import TestClient

from learn_torchrec.datasets.adapters import open_dataset
from learn_torchrec.serving.deployment import Places
from learn_torchrec.serving.events import open_events
from learn_torchrec.serving.http.app import Settings, create_app
from learn_torchrec.serving.http.guard import Limits
from learn_torchrec.serving.seed import seed


@pytest.fixture(scope="session")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Exported:
    """A ranker that reads counts, catalogue columns and content; tables in float."""
    folder = tmp_path_factory.mktemp("exported")
    write_small_store(folder / "content")
    return export(write_small_market(folder / "market"), folder / "content")


@pytest.fixture(scope="session")
def places(tmp_path_factory: pytest.TempPathFactory) -> Places:
    """The artefacts of the shop; not to be changed."""
    return shop.write_shop(tmp_path_factory.mktemp("shop"))


@pytest.fixture
def serve(places: Places, tmp_path: Path):
    """Return a function that starts a server of the shop and returns its client."""
    opened = []

    def start(places: Places = places, limits=None, load=None, **settings):
        store = open_events(str(tmp_path / "events.sqlite"))
        folder = next(iter(places.bundles.values())).parent
        seed(store, open_dataset(f"parquet:{folder / 'data'}"), None)
        limits = Limits(**{"hosts": None, **(limits or {})})
        app = create_app(
            load or functools.partial(shop.load_shop, places),
            places.version,
            store,
            Settings(limits=limits, **{"watch_seconds": 0, **settings}),
        )
        client = TestClient(app, raise_server_exceptions=False)
        client.__enter__()
        opened.append((client, store))
        client.app_state, client.store = app.state, store
        return client

    yield start
    for client, store in opened:
        client.__exit__(None, None, None)
        store.close()


@pytest.fixture
def client(serve) -> Iterator[TestClient]:
    """A client of the shop."""
    return serve()
