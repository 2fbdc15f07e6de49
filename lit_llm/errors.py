"""The one exception that means "the user can mend this"."""

from __future__ import annotations


class UserError(ValueError):
    """A mistake in a config, a file or a machine's set-up, said in one line that names the key or file and the mend.

    The command line prints the message and exits with status 2, without a traceback; in a library it is an ordinary
    ``ValueError``.
    """
