"""How every program starts and ends: logging, and one line for a user's mistake."""

import errno
import json
import logging
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from learn_torchrec.errors import Stopped, UserError

# What the system refuses is a user's to mend: rights, a full disk, a wrong path.
_MENDABLE = (PermissionError, FileExistsError, IsADirectoryError, NotADirectoryError)
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
OWN_LOGGERS = ("learn_torchrec", "apps", "__main__")


def run(
    main: Callable[[Sequence[str] | None], None], argv: Sequence[str] | None = None
) -> None:
    """Run an app's main: a `UserError` becomes one line and exit code 2.

    A run that was asked to stop, and has saved what it needs to go on, exits with 0.

    Args:
        main: the app's entry point.
        argv: its options; None for those of the command line.
    """
    logging.basicConfig(
        format="%(asctime)s %(name)s: %(message)s",
        datefmt="%H:%M:%S",
        force=True,  # importing torchrec has set up another format
    )
    level = logging.INFO if is_first_rank() else logging.WARNING
    for name in OWN_LOGGERS:  # others at INFO drown ours (fbgemm: a line per library)
        logging.getLogger(name).setLevel(level)
    try:
        main(argv)
    except Stopped as stopped:
        logging.getLogger(__name__).info("%s", stopped)
    except (UserError, OSError) as error:
        mendable = isinstance(error, (UserError, *_MENDABLE))
        if not mendable and getattr(error, "errno", None) not in _FULL:
            raise
        print(f"error: {error}", file=sys.stderr, flush=True)
        sys.exit(2)
    except KeyboardInterrupt:
        print("interrupted; run it again to go on", file=sys.stderr, flush=True)
        sys.exit(130)


def is_first_rank() -> bool:
    """Whether this process is rank 0, before there is a process group."""
    return os.environ.get("RANK", "0") == "0"


def write_json(path: Path, body: object) -> None:
    """Write a JSON file that appears whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    working = path.with_name(f".{path.name}.tmp")
    working.write_text(json.dumps(body, indent=2) + "\n")
    working.replace(path)
