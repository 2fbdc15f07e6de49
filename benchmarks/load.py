"""Loading a Hugging Face directory: seconds and peak memory, ours against transformers'
``from_pretrained``.

    python benchmarks/load.py

Each load has a process of its own, taking turns; imports are done before the clock and the memory
are read. Afterwards every weight is summed inside the measured time, so that a lazy mapping is no
win. Peak memory is the growth of the resident set's high-water mark (VmHWM), pages of the mapped
file included, over the size of the checkpoint. The weights are random, in the shape of
SmolLM2-360M; the file system's cache is warm for both.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import resident
import torch
from record import write_result

from lit_llm import Transformer, TransformerConfig

SHAPE = {"vocab_size": 49152, "hidden_size": 960, "num_layers": 32, "num_heads": 15,
         "num_kv_heads": 5, "intermediate_size": 2560, "tie_embeddings": True}  # fmt: skip
TINY = {"vocab_size": 300, "hidden_size": 64, "num_layers": 2, "num_heads": 4}


def measure(contender: str, folder: str) -> dict[str, float]:
    """Load ``folder`` here and now: seconds and bytes."""
    if contender == "transformers":
        import transformers

        transformers.logging.disable_progress_bar()
        # Resolves the lazy module of the class: part of the import, not of the load.
        load = transformers.LlamaForCausalLM.from_pretrained
    else:
        import lit_llm.models.hub.huggingface  # noqa: F401

        load = Transformer.from_pretrained
    before = resident.begin()
    begin = time.perf_counter()
    model = load(folder)
    for parameter in model.parameters():
        parameter.sum()
    return {"seconds": time.perf_counter() - begin, "peak_bytes": resident.peak() - before}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--dry-run", action="store_true", help="a tiny model, one round, no file")
    parser.add_argument(
        "--measure", nargs=2, metavar=("CONTENDER", "FOLDER"), help="one load, as JSON"
    )
    args = parser.parse_args()
    if args.measure:
        print(json.dumps(measure(*args.measure)))
        return
    rounds = 1 if args.dry_run else args.rounds
    model = Transformer(TransformerConfig(**(TINY if args.dry_run else SHAPE)))
    rows = []
    for dtype in (torch.float32, torch.bfloat16):
        with tempfile.TemporaryDirectory() as folder:
            model.save_pretrained(folder, dtype)
            size = sum(file.stat().st_size for file in Path(folder).glob("*.safetensors"))
            runs: dict[str, list[dict[str, float]]] = {"ours": [], "transformers": []}
            for _ in range(rounds):
                for who, found in runs.items():
                    command = [sys.executable, __file__, "--measure", who, folder]
                    done = subprocess.run(command, capture_output=True, text=True, check=True)
                    found.append(json.loads(done.stdout))
        row: dict[str, object] = {
            "dtype": str(dtype).removeprefix("torch."),
            "checkpoint_bytes": size,
        }
        for what in ("seconds", "peak_bytes"):
            ours, theirs = (statistics.median(run[what] for run in runs[who]) for who in runs)
            row |= {
                f"ours_{what}": ours,
                f"transformers_{what}": theirs,
                f"ratio_{what}": ours / theirs,
            }
        row["peak_over_checkpoint"] = row["ours_peak_bytes"] / size  # type: ignore[operator]
        rows.append(row)
        print("{dtype:9} seconds: ours {ours_seconds:.2f}, transformers "
              "{transformers_seconds:.2f}, ratio "
              "{ratio_seconds:.2f}; peak memory ratio {ratio_peak_bytes:.2f}, ours is "
              "{peak_over_checkpoint:.2f} of "
              "the checkpoint".format(**row), flush=True)  # fmt: skip
    if not args.dry_run:
        print(f"wrote {write_result('load', {'rounds': rounds, 'shape': SHAPE, 'rows': rows})}")


if __name__ == "__main__":
    main()
