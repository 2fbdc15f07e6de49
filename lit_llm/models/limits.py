"""Sizes at which the head works otherwise; the planner counts with one too, and imports no torch."""

LARGE_LOGITS = 128 * 2**20
"""Bytes of a step's float32 logits from which a compiled model's loss too is taken in chunks; below, one compiled pass
is faster."""
CHUNK_BYTES = 128 * 2**20
"""Bytes of logits in a chunk: smaller ones read and write the weight's gradient too often."""
