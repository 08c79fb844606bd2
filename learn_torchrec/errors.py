"""The one exception type for mistakes a user can mend."""


class UserError(ValueError):
    """Bad input, option or environment.

    The message is one line that names the file, column, row, item or option and
    the mend. The command line prints it and exits with code 2; a traceback is
    reserved for our own bugs.
    """


class Stopped(Exception):
    """The run was asked to end early and has saved what it needs to go on."""
