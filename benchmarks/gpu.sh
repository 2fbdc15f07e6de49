#!/usr/bin/env bash
# One suite of benchmarks/gpu.py on one GPU: gpu.sh --suite bf16|fp8|lora|peers|documents [--dry-run].
# Needs torch and, for the Trainer's rows, lightning; PYTHON names the interpreter. JSON goes to benchmarks/results/ and,
# if it is set, to $OUT.
set -euo pipefail
cd "$(dirname "$0")/.."
exec "${PYTHON:-python3}" benchmarks/gpu.py "$@"
