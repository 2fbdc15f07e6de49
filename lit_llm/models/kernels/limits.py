"""Thresholds of the chunked loss. The planner uses one of them and does not import torch."""

LARGE_LOGITS = 128 * 2**20
"""Bytes of a step's float32 logits from which a compiled model too computes its loss in chunks.

Below, one compiled pass is faster, except on a CPU.
"""


def chunk_bytes(device: str) -> int:
    """Bytes of logits in one chunk, by device type.

    Smaller chunks read and write the weight's gradient too often. On a CPU, blocks of 32 MiB and
    more go back to the system as soon as they are free (glibc's largest ``M_MMAP_THRESHOLD``), and
    each of their pages is zeroed again at its first use. That costs a third of the head's product.
    """
    return 24 * 2**20 if device == "cpu" else 128 * 2**20
