"""Exceptions that are no faults of the program: "the user can mend this", "go on later", and "another one's fault"."""

from __future__ import annotations


class UserError(ValueError):
    """A mistake in a config, a file or a machine's set-up, said in one line that names the key or file and the mend.

    The command line prints the message and exits with status 2, without a traceback; in a library it is an ordinary
    ``ValueError``.
    """


class Preempted(Exception):
    """SIGTERM came, and the optimizer step it came in has been finished and saved.

    The command line exits with `Preempted.status`, 75: "temporary failure, try again" in sysexits.h, for a scheduler to
    requeue the job on. The same command with ``--ckpt_path last`` goes on.
    """

    status = 75


class PeerLost(Exception):
    """Another process of the run ended, and a collective with it: what it said is the reason. Exit status 1."""
