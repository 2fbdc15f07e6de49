"""Options of ``lit_llm serve``."""

from __future__ import annotations

import argparse
import ipaddress
import os
from pathlib import Path

from lit_llm.settings.arguments import Parser
from lit_llm.settings.ranges import Number, Range

RANGES: dict[str, Range] = {
    "port": Range(0, 65535),
    "grace": Range(0, 86_400),
    "retention_days": Range(0, 36_500, above=True),
    "requests_per_minute": Range(1, 1e9),
    "tokens_per_minute": Range(1, 1e12),
    "tokens_per_day": Range(1, 1e15),
    "requests_at_once": Range(1, 1e6),
    "days": Range(0, 36_500, above=True),
}
"""Ranges of the commands' numbers."""


def default_store() -> Path:
    """Where keys and records lie without ``--store``: in the user's folder for programs' data."""
    home = os.environ.get("XDG_DATA_HOME") or "~/.local/share"
    return Path(home).expanduser() / "lit_llm" / "serve.sqlite"


def add_store(parser: argparse.ArgumentParser) -> None:
    """Add the option that all commands of ``lit_llm serve`` have."""
    parser.add_argument(
        "--store",
        default=str(default_store()),
        metavar="FILE|URL",
        help="keys and records: a SQLite file or postgresql://user@host/name (default %(default)s)",
    )


def network(text: str) -> str:
    """Read an address or a network in CIDR form.

    Raises:
        argparse.ArgumentTypeError: it is neither.
    """
    try:
        return str(ipaddress.ip_network(text))
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def server_parser() -> Parser:
    """The parser of ``lit_llm serve CKPT``."""
    parser = Parser(
        prog="lit_llm serve",
        description="Answer OpenAI's API with a model. lit_llm serve keys|usage|erase --help: keys "
        "and records.",
    )
    parser.add_argument(
        "ckpt", metavar="CKPT", help="Hugging Face directory, .gguf file, run folder or .ckpt file"
    )
    parser.add_argument("--name", metavar="NAME", help="of the model; default: its folder's")
    parser.add_argument("--device", default="auto", help="cpu, cuda, cuda:1, ...; default auto")
    parser.add_argument(
        "--host", default="127.0.0.1", help="address to listen on (default %(default)s)"
    )
    parser.add_argument(
        "--port",
        type=Number(int, RANGES["port"]),
        default=8000,
        metavar="N",
        help="default %(default)s; 0 takes a free one",
    )
    add_store(parser)
    parser.add_argument(
        "--no_keys", action="store_true", help="nobody needs a key, on any address"
    )
    parser.add_argument(
        "--unknown",
        choices=("refuse", "ignore"),
        default="refuse",
        help="fields that the API does not know (default %(default)s)",
    )
    parser.add_argument(
        "--prefix_scope",
        choices=("key", "all"),
        default="key",
        help="who shares cached prompts: the requests of one key, or all (default %(default)s)",
    )
    parser.add_argument(
        "--store_texts", action="store_true", help="keep prompts and answers with the records"
    )
    parser.add_argument(
        "--retention_days",
        type=Number(float, RANGES["retention_days"]),
        metavar="DAYS",
        help="delete records of requests after this time",
    )
    parser.add_argument(
        "--grace",
        type=Number(float, RANGES["grace"]),
        default=30.0,
        metavar="SECONDS",
        help="that running answers have after SIGTERM (default %(default)s)",
    )
    parser.add_argument("--root_path", default="", help="path under which a proxy serves this")
    parser.add_argument(
        "--trusted_proxy",
        type=network,
        action="append",
        default=[],
        metavar="CIDR",
        help="proxies whose X-Forwarded-* headers count; may be repeated",
    )
    return parser
