"""How a run ends that is no bug: a mistake the user can fix, or a wish to stop."""


class UserError(ValueError):
    """Bad input, option or environment.

    The message is one line that names the file, column, row, item or option and
    the fix. The command line prints it and exits with code 2; a traceback is
    reserved for our own bugs.
    """


class Stopped(Exception):
    """The run was asked to stop early, and has saved what it needs to resume."""
