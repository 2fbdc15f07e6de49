"""Sizes at which the head works otherwise; the planner counts with one too, and imports no
torch."""

LARGE_LOGITS = 128 * 2**20
"""Bytes of a step's float32 logits from which a compiled model's loss too is taken in chunks;
below, one compiled pass is faster, but on a CPU."""


def chunk_bytes(device: str) -> int:
    """Bytes of logits in a chunk, by the kind of device: smaller ones read and write the weight's
    gradient too often.

    On a CPU, blocks of 32 MiB and more are given back to the system as soon as they are free
    (glibc's largest ``M_MMAP_THRESHOLD``), and each of their pages comes back zeroed at its first
    use: a third of the head's product.
    """
    return 24 * 2**20 if device == "cpu" else 128 * 2**20
