"""The `learn-torchrec` command: one program per stage, found by name.

The overview must answer at once and must work where torch does not, so an app is
imported only when it is asked for.
"""

import difflib
import importlib
import importlib.metadata
import sys
from collections.abc import Callable, Sequence

from apps import program
from learn_torchrec.errors import UserError

COMMANDS = {
    "quickstart": "run every stage on MovieLens-100K and report the metrics",
    "data": "a generated market of any size, its true probabilities with it",
    "doctor": "check this machine and installation, with a mend for each problem",
    "prepare": "a log of any size -> clean, sorted, memory-mapped sequences",
    "encode-content": "item text -> content vectors (frozen language model)",
    "train-towers": "interactions + content vectors -> user and item towers",
    "export-vectors": "trained towers -> user and item vectors",
    "train-ranker": "impressions + vectors -> ranker (TorchRec DLRM with LEARN)",
    "predict": "trained ranker + impressions -> predictions",
    "evaluate-retrieval": "vectors -> hit rate, recall, NDCG and MRR at k",
    "evaluate-auc": "predictions -> AUC, UAUC, WUAUC, NE and calibration",
    "evaluate-ab": "outcomes of an A/B test -> lifts by cohort and day",
    "recommend": "vectors -> a user's history and top items, or all users' top items",
    "report": "a run's directory -> one HTML page, Markdown and JSON",
}
_OWN_PACKAGES = ("apps", "learn_torchrec")


def main(argv: Sequence[str] | None = None) -> None:
    """Run `learn-torchrec <command> [options]`."""
    command, *options = list(sys.argv[1:] if argv is None else argv) or ["--help"]
    if command in ("-h", "--help"):
        print(_overview())
    elif command == "--version":
        print(f"learn-torchrec {_version()}")
    else:
        program.run(lambda _: _app_main(command)(options))


def _overview() -> str:
    width = max(map(len, COMMANDS))
    return "\n".join(
        [
            "usage: learn-torchrec <command> [options]",
            "",
            *(f"  {name:<{width}}  {what}" for name, what in COMMANDS.items()),
            "",
            "learn-torchrec <command> --help lists the options of a command.",
        ]
    )


def _version() -> str:
    try:
        return importlib.metadata.version("learn-torchrec")
    except importlib.metadata.PackageNotFoundError:
        return "(not installed: running from a checkout)"


def _app_main(command: str) -> Callable[[Sequence[str]], None]:
    """Import the app that `command` names, with dashes or underscores.

    Raises:
        UserError: no such command, or a package the app needs cannot be loaded.
    """
    name = command.replace("_", "-")
    if name not in COMMANDS:
        near = difflib.get_close_matches(name, COMMANDS, n=1)
        hint = f"did you mean {near[0]}?" if near else "learn-torchrec --help lists all"
        raise UserError(f"unknown command {command!r}; {hint}")
    try:
        app = importlib.import_module(f"apps.{name.replace('-', '_')}")
    except (ImportError, OSError) as error:  # OSError: a wheel's library cannot load
        if _is_ours(error):
            raise
        reason = str(error).splitlines()[0]
        raise UserError(
            f"{name} cannot start: {reason}; learn-torchrec doctor names the mend"
        ) from error
    return app.main


def _is_ours(error: BaseException) -> bool:
    """Whether a failed import is a bug of this project, not of the machine."""
    missing = getattr(error, "name", None) or ""
    return missing.partition(".")[0] in _OWN_PACKAGES


if __name__ == "__main__":
    main()
