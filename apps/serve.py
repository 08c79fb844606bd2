"""Serve rankings, retrieval and a page for people over HTTP.

What lies at the places is loaded again when it changes, without a failed request; a
link to the current run may be switched. The server binds to 127.0.0.1 unless --host
says otherwise, and to others only with a token.
"""

import argparse
import logging
import os
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from learn_torchrec.datasets.adapters import open_dataset
from learn_torchrec.errors import UserError, first_line

from .common import options, program
from .refreshing import served_run

if TYPE_CHECKING:
    from learn_torchrec.serving.deployment import Places
    from learn_torchrec.serving.events import EventStore
    from learn_torchrec.serving.http.app import Settings

LOOPBACK = ("127.0.0.1", "localhost", "::1")
TOKEN = "LEARN_TORCHREC_TOKEN"
_LEAST_TOKEN = 16
_MOST_PORT = 65_535

logger = logging.getLogger(__name__)


def build_parser() -> argparse.ArgumentParser:
    """Return the app's options."""
    parser = program.parser("serve", __doc__)
    what = parser.add_argument_group("what is served")
    what.add_argument(
        "--run",
        type=program.local_path,
        metavar="DIR",
        help="a finished run of quickstart; its bundles and index are made if missing",
    )
    for option, text in (
        ("--bundle", "the ranker that export-bundle wrote"),
        ("--compare", "another bundle, shown beside it"),
        ("--index", "what build-index wrote"),
        ("--towers", "trained towers: users' vectors from their latest events"),
        ("--content", "the content store of the towers"),
        ("--vectors", "exported users' vectors, where there are no towers"),
    ):
        options.add_input(what, option, text, required=False)
    what.add_argument(
        "--available",
        type=program.local_path,
        metavar="FILE",
        help="of item ids; see recommend",
    )
    what.add_argument(
        "--events",
        metavar="FILE|URL",
        help="store of users' events: a file of SQLite (default: events.sqlite, in the "
        "folder of --run), or redis://host",
    )
    what.add_argument(
        "--data", metavar="ADAPTER:PATH", help="whose log fills the store at the start"
    )
    _add_place(parser.add_argument_group("where"))
    _add_limits(parser.add_argument_group("limits"))
    return parser


def _add_place(group: "argparse._ArgumentGroup") -> None:
    group.add_argument(
        "--host", default=LOOPBACK[0], metavar="ADDRESS", help="to bind to"
    )
    group.add_argument(
        "--port", type=int, default=8080, metavar="N", help="0 for a free one"
    )
    group.add_argument(
        "--allow-host",
        action="append",
        default=[],
        metavar="NAME",
        help="a further name of this server in requests; may be repeated",
    )
    group.add_argument(
        "--token-file",
        type=program.local_path,
        metavar="FILE",
        help=f"with the token that clients show (or the variable {TOKEN})",
    )
    group.add_argument(
        "--no-token", action="store_true", help="bind to any address without a token"
    )
    group.add_argument(
        "--watch-seconds",
        type=float,
        default=2.0,
        metavar="S",
        help="between looks for another version of what is served; 0 for none",
    )
    group.add_argument(
        "--clock",
        choices=("system", "data"),
        default="system",
        help="data: the present is where the bundle's data ends, to look at old logs",
    )


def _add_limits(group: "argparse._ArgumentGroup") -> None:
    for option, default, metavar, text in (
        ("--max-candidates", 5000, "N", "of a ranking"),
        ("--max-body-kb", 1024, "KB", "of a request"),
        ("--max-requests", 512, "N", "at the same time; more get status 503"),
        ("--max-queue", 256, "N", "requests that wait; more get status 503"),
        ("--max-batch-rows", 8192, "N", "candidates that are scored together"),
        ("--history-length", 500, "N", "events of a user that are read"),
        ("--threads", 0, "N", "of the model; 0 for one a core"),
    ):
        group.add_argument(
            option, type=int, default=default, metavar=metavar, help=text
        )
    for option, seconds, text in (
        ("--timeout", 2.0, "seconds until a ranking or search is answered"),
        ("--embed-timeout", 60.0, "seconds until new items are embedded"),
        ("--body-timeout", 10.0, "seconds until a request's body has arrived"),
        ("--max-wait-ms", 1.0, "that a request waits for others to share a batch"),
    ):
        group.add_argument(option, type=float, default=seconds, metavar="S", help=text)


def main(argv: Sequence[str] | None = None) -> None:
    """Serve until SIGTERM or Ctrl-C; requests in flight are answered first."""
    args = build_parser().parse_args(argv)
    token = _token(args)
    _check(args)
    try:
        from learn_torchrec.serving.http.server import listen, serve
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] in ("learn_torchrec", "torch"):
            raise
        raise UserError(
            f"serve needs {error.name}: pip install 'learn-torchrec[serve]'"
        ) from None
    import torch

    from learn_torchrec.serving.deployment import load

    if args.threads:
        torch.set_num_threads(args.threads)
    if args.run is not None:
        served_run.fill_in(args)
    places = _places(args)
    places.version()  # what is missing is said before anything is loaded
    store = _store(args)
    try:
        first = load(places)
        with listen(args.host, args.port) as listening:
            settings = _settings(args, token, first.as_of)
            name = f"http://{_shown(args.host)}:{listening.getsockname()[1]}"
            print(f"serving version {first.version} on {name}", flush=True)
            serve(
                lambda: load(places), places.version, store, settings, listening, first
            )
    finally:
        store.close()


def _check(args: argparse.Namespace) -> None:
    """Refuse numbers that make no server."""
    for name, value in vars(args).items():
        is_number = isinstance(value, int | float) and not isinstance(value, bool)
        may_be_zero = name in ("port", "threads", "watch_seconds", "max_wait_ms")
        if is_number and (value < 0 or (value == 0 and not may_be_zero)):
            option = "--" + name.replace("_", "-")
            raise UserError(
                f"{option} {value}: use {'0 or' if may_be_zero else '1 or'} more"
            )
    if args.port > _MOST_PORT:
        raise UserError(f"--port {args.port}: use at most {_MOST_PORT}")


def _token(args: argparse.Namespace) -> str | None:
    """Return the token that clients show; None for none.

    Raises:
        UserError: one that is too short, or none for an address that others reach.
    """
    token = os.environ.get(TOKEN)
    source = f"the variable {TOKEN}"
    if args.token_file is not None:
        source = f"--token-file {args.token_file}"
        try:
            token = args.token_file.read_text(encoding="ascii")
        except (OSError, UnicodeDecodeError) as error:
            raise UserError(f"{source}: cannot be read ({first_line(error)})") from None
    token = None if token is None else token.strip()
    if token is not None and (len(token) < _LEAST_TOKEN or not token.isascii()):
        raise UserError(
            f"{source}: give at least {_LEAST_TOKEN} characters, as "
            "`openssl rand -hex 32` does"
        )
    if args.host not in LOOPBACK and token is None and not args.no_token:
        raise UserError(
            f"--host {args.host}: others could use this server; give --token-file "
            f"FILE, or {TOKEN}, or --no-token if only those who may can reach it"
        )
    return token


def _places(args: argparse.Namespace) -> "Places":
    from learn_torchrec.serving.deployment import Places

    if args.compare is not None and args.bundle is None:
        raise UserError("--compare: give --bundle too, to compare with")
    paths = [path for path in (args.bundle, args.compare) if path is not None]
    names = [path.name for path in paths]
    if len(set(names)) < len(names):
        names = [f"{path.parent.name}/{path.name}" for path in paths]
    if len(set(names)) < len(names):
        names = ["A", "B"]
    return Places(
        bundles=dict(zip(names, paths, strict=True)),
        index=args.index,
        towers=args.towers,
        content=args.content,
        vectors=args.vectors,
        available=args.available,
    )


def _store(args: argparse.Namespace) -> "EventStore":
    """Open the store of events and fill it from the log."""
    from learn_torchrec.serving.events import open_events
    from learn_torchrec.serving.seed import seed

    default = (args.run or Path()) / served_run.EVENTS_FILE
    store = open_events(args.events or str(default))
    if args.data is not None:
        added = seed(store, open_dataset(args.data), None)
        logger.info("%d events of the log are new to the store", added)
    return store


def _settings(
    args: argparse.Namespace, token: str | None, as_of: int | None
) -> "Settings":
    from learn_torchrec.serving.batching import BatchLimits
    from learn_torchrec.serving.http.app import Settings
    from learn_torchrec.serving.http.guard import LOOPBACK_NAMES, Limits

    hosts = (*LOOPBACK_NAMES, *(name.lower() for name in args.allow_host))
    is_public = args.host not in LOOPBACK
    return Settings(
        limits=Limits(
            body_bytes=args.max_body_kb << 10,
            body_seconds=args.body_timeout,
            requests=args.max_requests,
            hosts=None if is_public and not args.allow_host else hosts,
            token=token,
        ),
        batches=BatchLimits(
            rows=args.max_batch_rows, wait_ms=args.max_wait_ms, queued=args.max_queue
        ),
        candidates=args.max_candidates,
        seconds=args.timeout,
        embed_seconds=args.embed_timeout,
        history_length=args.history_length,
        watch_seconds=args.watch_seconds,
        now=_clock(as_of) if args.clock == "data" else None,
    )


def _clock(as_of: int | None) -> Callable[[], int]:
    """Return a clock that started where the data ends."""
    if as_of is None:
        raise UserError(
            "--clock data: needs a --bundle, which says where its data ends"
        )
    start = time.monotonic()
    return lambda: as_of + int(time.monotonic() - start)


def _shown(host: str) -> str:
    return f"[{host}]" if ":" in host else host


if __name__ == "__main__":
    program.run(main)
