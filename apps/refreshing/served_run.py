"""A finished run as something to serve: makes the bundles and the index it lacks."""

import argparse
from pathlib import Path

from learn_torchrec.artifact import MANIFEST
from learn_torchrec.errors import UserError

from .. import build_index, export_bundle

EVENTS_FILE = "events.sqlite"
_RANKERS = {"bundle_learn": "ranker_learn", "bundle_baseline": "ranker_baseline"}


def fill_in(args: argparse.Namespace) -> None:
    """Set the options of `serve` that name what lies in the folder of `--run`.

    Raises:
        UserError: no finished run, or no --data to make what it lacks from.
    """
    run: Path = args.run
    if args.data is None:
        raise UserError("--run: give --data too, the data set of the run")
    if not _has(run / "vectors"):
        raise UserError(f"--run {run}: no finished run (vectors are missing)")
    bundles = [
        _bundle(run, name, ranker, args.data)
        for name, ranker in _RANKERS.items()
        if _has(run / ranker)
    ]
    args.bundle, args.compare = (*bundles, None, None)[:2]
    args.index = run / "index"
    if not _has(args.index):
        vectors = ["--vectors", str(run / "vectors"), "--data", args.data]
        build_index.main([*vectors, "--out", str(args.index)])
    args.towers, args.content = run / "towers", run / "content"


def _bundle(run: Path, name: str, ranker: str, data: str) -> Path:
    """Return a ranker's bundle, exported if it is not there."""
    out = run / name
    if not _has(out):
        print(f"exporting {out}", flush=True)
        command = ["--data", data, "--ranker", str(run / ranker), "--out", str(out)]
        if ranker == "ranker_learn":
            command += ["--vectors", str(run / "vectors")]
        export_bundle.main(command)
    return out


def _has(directory: Path) -> bool:
    return (directory / MANIFEST).exists()
