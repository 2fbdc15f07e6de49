#!/usr/bin/env bash
# One suite of benchmarks/gpu.py on one GPU, within 8 minutes:
#   gpu.sh --suite bf16|fp8|lora|peers|documents [--shape 1.2B] [--budget 480] [--dry-run]
# Prints the MFU formula and a table row by row. JSON goes to benchmarks/results/<machine>/gpu_<suite>.json after every
# row and, if it is set, to $OUT too. Status 1: a contender failed; its row says why.
# PYTHON names the interpreter. It needs torch with Triton, for the Trainer's rows lightning, and for peers transformers
# and litgpt (with jsonargparse, docstring_parser and typeshed_client, which litgpt imports); nanochat is a checkout that
# NANOCHAT names. Peers that are not there are left out.
set -euo pipefail
cd "$(dirname "$0")/.."
exec "${PYTHON:-python3}" benchmarks/gpu.py "$@"
