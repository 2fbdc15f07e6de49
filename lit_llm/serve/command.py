"""``lit_llm serve``: the server, and the commands that look after its keys and records."""

from __future__ import annotations

from lit_llm.people.extra import serve_extra

_ADMIN = ("keys", "usage", "erase")


def serve_main(args: list[str]) -> None:
    """Run the server for a checkpoint, or one of the commands keys, usage and erase.

    Raises:
        UserError: a mistake in the arguments, a checkpoint that does not load, an address that is
            in use, or a missing extra.
    """
    with serve_extra():
        if args and args[0] in _ADMIN:
            from lit_llm.serve.administration import COMMANDS

            COMMANDS[args[0]](args[1:])
            return
        from lit_llm.serve.server import run_server

        run_server(args)
