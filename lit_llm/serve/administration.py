"""``lit_llm serve keys|usage|erase``: keys, what they used, and the deletion of records."""

from __future__ import annotations

import argparse
import getpass
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import fields

from lit_llm.errors import UserError
from lit_llm.io.streams import json_text, say
from lit_llm.people.keys import SCOPES, Key, Keys
from lit_llm.people.limits import Limits
from lit_llm.people.store.database import Store
from lit_llm.people.store.records import Records
from lit_llm.serve.options import RANGES, add_store
from lit_llm.settings.arguments import Parser, run_command
from lit_llm.settings.ranges import Number

KEYS_HELP = """\
lit_llm serve keys create NAME   make a key and show it once
lit_llm serve keys list          the keys and their limits
lit_llm serve keys limit NAME    change limits; those that are not given are taken off
lit_llm serve keys rotate NAME   another secret, the old one is refused
lit_llm serve keys revoke NAME   refuse the key from now on"""
_LIMITS = {
    "requests_per_minute": "requests in any 60 seconds",
    "tokens_per_minute": "tokens of prompts and answers in any 60 seconds",
    "tokens_per_day": "tokens of a day in UTC",
    "requests_at_once": "requests that run at the same time",
}


def keys_main(args: list[str]) -> None:
    """Run a command of ``lit_llm serve keys``.

    Raises:
        UserError: a mistake in the arguments.
    """
    run_command(
        {
            "create": _create,
            "list": _list,
            "limit": _limit,
            "rotate": _rotate,
            "revoke": _revoke,
        },
        KEYS_HELP,
        args,
    )


def usage_main(args: list[str]) -> None:
    """Print requests and tokens by key and day.

    Raises:
        UserError: a mistake in the arguments.
    """
    parser = Parser(prog="lit_llm serve usage", description="Requests and tokens by key and day.")
    parser.add_argument("--json", action="store_true", help="a JSON object a line")
    add_store(parser)
    options = parser.parse_args(args)
    with _opened(options) as store:
        names = {key.id: key.name for key in Keys(store).list()}
        for row in Records(store).usage():
            row["key"] = names.get(row["key"], row["key"] or "(no key)")
            if options.json:
                say(json_text(row))
            else:
                say(
                    f"{row['day']}  {row['key']:<24} {row['requests']:>9,} requests "
                    f"{row['prompt_tokens']:>13,} + {row['completion_tokens']:,} tokens"
                )


def erase_main(args: list[str]) -> None:
    """Delete the records of a key's or a user's requests.

    Raises:
        UserError: a mistake in the arguments.
    """
    parser = Parser(
        prog="lit_llm serve erase",
        description="Delete the records of requests, with their texts. The sums of the usage stay.",
    )
    parser.add_argument("--key", metavar="NAME", help="the requests of this key")
    parser.add_argument("--user", metavar="NAME", help="those that name this user")
    add_store(parser)
    options = parser.parse_args(args)
    if (options.key is None) == (options.user is None):
        raise UserError("give --key NAME or --user NAME")
    with _opened(options) as store:
        records = Records(store)
        if options.key is not None:
            key = Keys(store).get(options.key)
            count = records.erase(key=key.id)
            _note(store, "erase", key=key.id, requests=count)
        else:
            count = records.erase(user=options.user)
            # The name itself is erased too.
            _note(store, "erase", requests=count)
    say(f"deleted {count:,} requests")


COMMANDS = {"keys": keys_main, "usage": usage_main, "erase": erase_main}


def _create(args: list[str]) -> None:
    parser = _key_parser("create", "Make a key. It is shown once and cannot be read again.")
    parser.add_argument(
        "--scope",
        choices=SCOPES,
        action="append",
        default=[],
        help="infer: the models (default); admin: metrics; may be repeated",
    )
    parser.add_argument(
        "--model",
        action="append",
        default=[],
        metavar="NAME",
        help="a model that it may use (default: all); may be repeated",
    )
    parser.add_argument(
        "--days", type=Number(float, RANGES["days"]), metavar="N", help="until it expires"
    )
    _add_limits(parser)
    options = parser.parse_args(args)
    with _opened(options) as store:
        key, secret = Keys(store).create(
            options.key_name,
            scopes=options.scope or ["infer"],
            models=options.model or None,
            days=options.days,
            limits=_limits_of(options),
        )
        _note(store, "keys create", key=key.id)
    say(secret)


def _list(args: list[str]) -> None:
    parser = Parser(prog="lit_llm serve keys list", description="The keys and their limits.")
    parser.add_argument("--json", action="store_true", help="a JSON object a line")
    add_store(parser)
    options = parser.parse_args(args)
    with _opened(options) as store:
        for key in Keys(store).list():
            say(json_text(_shown(key)) if options.json else _line(key))


def _limit(args: list[str]) -> None:
    parser = _key_parser("limit", "Change the limits. Those that are not given are taken off.")
    _add_limits(parser)
    options = parser.parse_args(args)
    with _opened(options) as store:
        key = Keys(store).limit(options.key_name, _limits_of(options))
        _note(store, "keys limit", key=key.id, **vars(key.limits))
    say(_line(key))


def _rotate(args: list[str]) -> None:
    options = _key_parser("rotate", "Give a key another secret.").parse_args(args)
    with _opened(options) as store:
        key, secret = Keys(store).rotate(options.key_name)
        _note(store, "keys rotate", key=key.id)
    say(secret)


def _revoke(args: list[str]) -> None:
    options = _key_parser("revoke", "Refuse a key from now on.").parse_args(args)
    with _opened(options) as store:
        key = Keys(store).revoke(options.key_name)
        _note(store, "keys revoke", key=key.id)
    say(_line(key))


def _key_parser(command: str, description: str) -> Parser:
    parser = Parser(prog=f"lit_llm serve keys {command}", description=description)
    parser.add_argument("key_name", metavar="NAME", help="of the key")
    add_store(parser)
    return parser


def _add_limits(parser: argparse.ArgumentParser) -> None:
    for name, said in _LIMITS.items():
        parser.add_argument(f"--{name}", type=Number(int, RANGES[name]), metavar="N", help=said)


def _limits_of(options: argparse.Namespace) -> Limits:
    return Limits(**{field.name: getattr(options, field.name) for field in fields(Limits)})


@contextmanager
def _opened(options: argparse.Namespace) -> Iterator[Store]:
    store = Store(options.store)
    try:
        yield store
    finally:
        store.close()


def _note(store: Store, act: str, **details: object) -> None:
    """Write who did what."""
    try:
        actor = getpass.getuser()
    except (KeyError, OSError):  # a container without a name for its user
        actor = "unknown"
    Records(store).note(actor, act, **details)


def _shown(key: Key) -> dict[str, object]:
    return {**{f.name: getattr(key, f.name) for f in fields(Key)}, "limits": vars(key.limits)}


def _line(key: Key) -> str:
    if key.revoked is not None:
        state = "revoked"
    elif key.is_valid(time.time()):
        state = "valid"
    else:
        state = "expired"
    limits = ", ".join(f"{name}={most:,}" for name, most in vars(key.limits).items() if most)
    models = "all models" if key.models is None else ", ".join(key.models)
    return (
        f"{key.name}  {key.prefix}...  {state}  {' '.join(key.scopes)}  {models}  "
        f"{limits or 'no limits'}"
    )
