"""Options of ``lit_llm serve``."""

from __future__ import annotations

import argparse
import os
from pathlib import Path
from urllib.parse import urlsplit

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
    "kv_gb": Range(0, 1e6, above=True),
    "prefix_gb": Range(0, 1e6),
    "step_tokens": Range(1, 1e7),
    "max_waiting": Range(1, 1e6),
    "max_waiting_tokens": Range(1, 1e12),
    "step_timeout": Range(1, 86_400),
    "days": Range(0, 36_500, above=True),
}
"""Ranges of the commands' numbers."""
BACKEND_KEY = "LIT_LLM_BACKEND_KEY"
"""Environment variable with the key for the servers of ``--backend``."""


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


def backend(text: str) -> str:
    """Check a backend: a name and a URL.

    Raises:
        argparse.ArgumentTypeError: it is something else.
    """
    name, _, url = text.partition("=")
    if not name or urlsplit(url).scheme not in ("http", "https") or not urlsplit(url).netloc:
        raise argparse.ArgumentTypeError(
            f"{text!r} is not NAME=URL, as in qwen=http://host:8000/v1"
        )
    return text


def _add_engine(parser: argparse.ArgumentParser) -> None:
    """Add the options of the engine."""
    parser.add_argument(
        "--kv_gb",
        type=Number(float, RANGES["kv_gb"]),
        metavar="GB",
        help="memory for keys and values (default: half of what is free)",
    )
    parser.add_argument(
        "--prefix_gb",
        type=Number(float, RANGES["prefix_gb"]),
        metavar="GB",
        help="of it for beginnings of prompts that may come again (default: a quarter)",
    )
    parser.add_argument(
        "--step_tokens",
        type=Number(int, RANGES["step_tokens"]),
        metavar="N",
        help="prompt tokens beside the running answers in a step (default: 256, on a GPU 2,048)",
    )
    for name, default, said in (
        ("max_waiting", 256, "requests that wait; more are refused"),
        ("max_waiting_tokens", 1_000_000, "tokens of the prompts that wait"),
    ):
        parser.add_argument(
            f"--{name}",
            type=Number(int, RANGES[name]),
            default=default,
            metavar="N",
            help=f"{said} (default %(default)s)",
        )
    parser.add_argument(
        "--step_timeout",
        type=Number(float, RANGES["step_timeout"]),
        default=60.0,
        metavar="SECONDS",
        help="after which the engine counts as dead (default %(default)s)",
    )
    parser.add_argument(
        "--check",
        action="store_true",
        help="say whether answers depend on their company on this machine, and exit",
    )


def server_parser() -> Parser:
    """The parser of ``lit_llm serve CKPT``."""
    parser = Parser(
        prog="lit_llm serve",
        description="Answer OpenAI's API with a model. lit_llm serve keys|usage|erase --help: keys "
        "and records.",
    )
    parser.add_argument(
        "ckpt",
        metavar="CKPT",
        nargs="?",
        help="Hugging Face directory, .gguf file, run folder or .ckpt file",
    )
    parser.add_argument(
        "--name", metavar="NAME", help="of the model; default: that of its run, folder or file"
    )
    parser.add_argument(
        "--adapter",
        action="append",
        default=[],
        metavar="[NAME=]DIR",
        help="LoRA adapter to serve beside the model, as a model of its own; may be repeated",
    )
    parser.add_argument(
        "--backend",
        type=backend,
        action="append",
        default=[],
        metavar="NAME=URL",
        help="a model of another OpenAI-compatible server, whose API is at the URL; may be "
        f"repeated; its key is in ${BACKEND_KEY}",
    )
    parser.add_argument("--device", default="auto", help="cpu, cuda, cuda:1, ...; default auto")
    _add_engine(parser)
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
    parser.add_argument("--no_keys", action="store_true", help="nobody needs a key, on any address")
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
        "--allow_host",
        action="append",
        default=[],
        metavar="NAME",
        help="name under which a proxy on this machine serves this; may be repeated",
    )
    return parser
