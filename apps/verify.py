"""Read every file of artefacts, and say which differ from what was written.

A stage reads large files of its inputs again only if they have changed, see `--verify`
of the stages. This finds, without running one, what damages a file unnoticed: a bit
that flips on a disk.
"""

import argparse
import os
from collections.abc import Iterator, Sequence
from pathlib import Path

from learn_torchrec.artifact import MANIFEST, read_manifest, verify
from learn_torchrec.digests import trust_no_record
from learn_torchrec.errors import UserError

from .common import options, program


def build_parser() -> argparse.ArgumentParser:
    """Return the app's options."""
    parser = program.parser("verify", __doc__)
    parser.add_argument(
        "places",
        type=program.local_path,
        nargs="+",
        metavar="DIR",
        help="an artefact, or a folder with some, such as a run",
    )
    return parser


def main(argv: Sequence[str] | None = None) -> None:
    """Check all artefacts, also those after a damaged one.

    Raises:
        UserError: names the damaged ones.
    """
    args = build_parser().parse_args(argv)
    trust_no_record()
    damages = []
    for directory in (found for place in args.places for found in _artefacts(place)):
        try:
            print(_verified(directory), flush=True)
        except UserError as error:
            damages.append(str(error))
    if damages:
        raise UserError(*damages)


def _artefacts(place: Path) -> list[Path]:
    """Return the artefacts that a folder is or holds.

    Raises:
        UserError: there are none.
    """
    found = [place] if (place / MANIFEST).exists() else sorted(_inside(place))
    if not found:
        raise UserError(f"{place}: no artefact here; name one, or a folder with some")
    return found


def _inside(place: Path) -> Iterator[Path]:
    """Yield the published artefacts in a folder; a hidden one is being made.

    Links are followed, but into no folder twice.
    """
    seen = set()
    for folder, folders, files in os.walk(place, followlinks=True):
        real = os.path.realpath(folder)
        if real in seen:
            folders.clear()
            continue
        seen.add(real)
        folders[:] = [name for name in folders if not name.startswith(".")]
        if MANIFEST in files:
            folders.clear()
            yield Path(folder)


def _verified(directory: Path) -> str:
    """Return a line on an artefact that is as it was written.

    Raises:
        UserError: it is not.
    """
    verify(directory)
    manifest = read_manifest(directory)
    size = sum(one["bytes"] for one in manifest.files.values())
    return (
        f"{directory}: {manifest.kind}, {len(manifest.files)} files, {size:,} bytes, "
        "as written"
    )


if __name__ == "__main__":
    options.run(main)
