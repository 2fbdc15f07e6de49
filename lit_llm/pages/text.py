"""Text from users and files on HTML pages, with control characters made visible.

Invisible characters could change how the text beside them reads.
"""

from __future__ import annotations

from functools import cache
from pathlib import Path

# Characters that are invisible and change the text around them, or make two names look alike:
# directional marks, embeddings, overrides and isolates, zero-width characters, and line separators.
_UNSEEN = (
    0x061C, 0x180E, 0x200B, 0x200E, 0x200F, 0x2028, 0x2029, *range(0x202A, 0x202F), 0x2060,
    *range(0x2066, 0x206A), 0xFEFF,
)  # fmt: skip
_SHOWN = {
    **{i: chr(0x2400 + i) for i in range(32) if chr(i) not in "\t\n\f\r"},
    0x7F: "\u2421",
    **{i: f"[U+{i:04X}]" for i in (*range(0x80, 0xA0), *_UNSEEN)},
}


def printable(text: str) -> str:
    """Return ``text``, which may be a whole page, with its control characters made visible.

    C0 controls become their symbols (HTML forbids them), all others "[U+202E]". Tabs and line ends
    stay.
    """
    return text.translate(_SHOWN)


@cache
def base_style() -> str:
    """Style sheet of all pages."""
    return Path(__file__).with_name("base.css").read_text(encoding="utf-8")
