"""Command-line options that ``lit_llm chat`` and ``lit_llm generate`` share."""

from __future__ import annotations

import argparse
from dataclasses import fields
from typing import TYPE_CHECKING

from lit_llm.errors import UserError
from lit_llm.settings.arguments import adapter_name, named_adapter
from lit_llm.settings.ranges import SAMPLING, Number, Range

if TYPE_CHECKING:
    from lit_llm.models.generation.sampling import Sampling

RANGES: dict[str, Range] = {"max_new_tokens": Range(1, 1e9), "seed": Range(0, 2**63 - 1)}
"""Ranges of the numbers that are not settings of `Sampling`."""


def add_options(
    parser: argparse.ArgumentParser, *, max_new_tokens: int, temperature: float, top_p: float
) -> None:
    """Add options for checkpoint, sampling and device to ``parser``, with the verb's defaults."""
    parser.add_argument(
        "ckpt", metavar="CKPT", help="Hugging Face directory, .gguf file, run folder or .ckpt file"
    )
    parser.add_argument(
        "--adapter", metavar="[NAME=]DIR", action="append", default=[],
        help="PEFT adapter to put on the model; several, or one with a name, can be switched",
    )  # fmt: skip
    parser.add_argument(
        "--max_new_tokens", type=Number(int, RANGES["max_new_tokens"]), default=max_new_tokens,
        metavar="N",
        help="longest answer in tokens (default %(default)s); the context may end it sooner",
    )  # fmt: skip
    parser.add_argument(
        "--temperature", type=Number(float, SAMPLING["temperature"]), default=temperature,
        metavar="T", help="0 always takes the likeliest token (default %(default)s)",
    )  # fmt: skip
    parser.add_argument(
        "--top_p", type=Number(float, SAMPLING["top_p"]), default=top_p, metavar="P",
        help="sample among the likeliest tokens that reach this probability (default %(default)s)",
    )  # fmt: skip
    parser.add_argument(
        "--top_k",
        type=Number(int, SAMPLING["top_k"]),
        metavar="K",
        help="sample among the K likeliest tokens",
    )
    parser.add_argument(
        "--min_p",
        type=Number(float, SAMPLING["min_p"]),
        metavar="P",
        help="sample among tokens at least P times as likely as the likeliest",
    )
    parser.add_argument(
        "--repetition_penalty", type=Number(float, SAMPLING["repetition_penalty"]), default=1.0,
        metavar="R",
        help="above 1: tokens that are already there become less likely (default %(default)s)",
    )  # fmt: skip
    parser.add_argument(
        "--seed",
        type=Number(int, RANGES["seed"]),
        default=0,
        metavar="N",
        help="of the sampling (default %(default)s)",
    )
    parser.add_argument(
        "--stop",
        type=shell_text,
        nargs="+",
        action="extend",
        default=[],
        metavar="TEXT",
        help="end an answer before any of these",
    )
    parser.add_argument(
        "--device",
        default="auto",
        help="cpu, cuda, cuda:1, ...; auto: CUDA if there is one, else CPU",
    )


def read_adapters(given: list[str]) -> tuple[str | None, dict[str, str]]:
    """The values of ``--adapter``: one to fold into the weights, or several to switch between.

    A single directory without a name is folded in. Otherwise the result is a mapping from names to
    directories. A directory without a name is called after its folder, and the adapter of a run
    after the run's folder.

    Raises:
        UserError: a name occurs twice, or is the one of the model without an adapter.
    """
    from lit_llm.models.hub.adapter_choice import BASE

    pairs = [named_adapter(text) for text in given]
    if len(pairs) == 1 and pairs[0][0] is None:
        return pairs[0][1], {}
    found: dict[str, str] = {}
    for named, folder in pairs:
        name = named or adapter_name(folder)
        if name in found or name == BASE:
            why = "stands for no adapter" if name == BASE else f"is {found[name]} already"
            raise UserError(f"--adapter {folder}: the name {name!r} {why}; write NAME={folder}")
        found[name] = folder
    return None, found


def shell_text(word: str) -> str:
    """Decode a word of the command line as UTF-8, even if the locale is different (LC_ALL=C).

    Raises:
        argparse.ArgumentTypeError: the word is not UTF-8.
    """
    try:
        return word.encode("utf-8", "surrogateescape").decode("utf-8")
    except UnicodeDecodeError:
        raise argparse.ArgumentTypeError(f"not UTF-8: {word!a}") from None
    except UnicodeEncodeError:  # half of a surrogate pair, from a file: reported where it is used
        return word


def read_sampling(options: argparse.Namespace) -> Sampling:
    """Build `Sampling` from the parsed options.

    Raises:
        UserError: a setting out of range.
    """
    from lit_llm.models.generation.sampling import Sampling

    return Sampling(**{field.name: getattr(options, field.name) for field in fields(Sampling)})
