"""How every program starts and ends: logging, and one line for a user's mistake."""

import errno
import json
import logging
import os
import select
import signal
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from learn_torchrec.errors import Stopped, UserError

# What the system refuses is the user's to fix: rights, a wrong path, a full or failing
# disk, a limit. Any other OSError, a missing file of our own say, is a bug.
_REFUSALS = (PermissionError, FileExistsError, IsADirectoryError, NotADirectoryError)
_REFUSED = frozenset(
    {
        *(errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EIO),
        *(errno.ENAMETOOLONG, errno.ELOOP, errno.ENOTEMPTY, errno.EBUSY),
        *(errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.ENOLCK, errno.ESTALE),
        *(errno.EINTR, errno.ENODEV, errno.ENXIO, errno.ETIMEDOUT, errno.EHOSTDOWN),
    }
)
OWN_LOGGERS = ("learn_torchrec", "apps", "__main__")


def run(
    main: Callable[[Sequence[str] | None], None], argv: Sequence[str] | None = None
) -> None:
    """Run an app's main: a `UserError` becomes one line and exit code 2.

    So does what the system refuses. A run that was asked to stop, and has saved what it
    needs to resume, exits with 0. Output that nobody reads any more (`| head`) ends the
    program as SIGPIPE would.

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
        sys.stdout.flush()
    except Stopped as stopped:
        logging.getLogger(__name__).info("%s", stopped)
    except BrokenPipeError:
        if not _nobody_reads():
            raise
        sys.exit(128 + signal.SIGPIPE)
    except (UserError, OSError) as error:
        if not isinstance(error, UserError) and not _is_refusal(error):
            raise
        print(f"error: {error}", file=sys.stderr, flush=True)
        sys.exit(2)
    except KeyboardInterrupt:
        print("interrupted; run it again to resume", file=sys.stderr, flush=True)
        sys.exit(130)


def _is_refusal(error: OSError) -> bool:
    return isinstance(error, _REFUSALS) or error.errno in _REFUSED


def _nobody_reads() -> bool:
    """Whether standard output is the pipe that broke; if so, it leads nowhere now."""
    descriptor = sys.stdout.fileno()
    poll = select.poll()
    poll.register(descriptor, 0)
    if not any(event & select.POLLERR for _, event in poll.poll(0)):
        return False
    # Python flushes once more when it ends, and would complain.
    os.dup2(os.open(os.devnull, os.O_WRONLY), descriptor)
    return True


def is_first_rank() -> bool:
    """Whether this process is rank 0, before there is a process group."""
    return os.environ.get("RANK", "0") == "0"


def write_json(path: Path, body: object) -> None:
    """Write a JSON file that appears whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    working = path.with_name(f".{path.name}.tmp")
    working.write_text(json.dumps(body, indent=2) + "\n")
    working.replace(path)
