"""Character classes: one table with a bit set for each code point of Unicode.

All kernels that read text use this table.
"""

from __future__ import annotations

import functools
import re
import sys
import unicodedata

import numpy as np

from lit_llm.corpus.kernels import folding

SPACE = 1 << 0  # str.isspace
LETTER = 1 << 1  # str.isalpha
LOWER = 1 << 2  # category Ll
UPPER = 1 << 3  # category Lu
DIGIT = 1 << 4  # 0 to 9
DECIMAL = 1 << 5  # \d: the digits of every script
LINE_END = 1 << 6  # str.splitlines splits here
PUNCTUATION = 1 << 7  # category P*
TERMINAL = 1 << 8  # ends a sentence
SYMBOL = 1 << 9  # Gopher's rules do not count a word that consists of symbols alone
QUOTE = 1 << 10
ALONE = 1 << 11  # a word of its own at the start or end of a chunk between spaces
ICON = 1 << 12  # category So: a word of its own everywhere
HYPHEN = 1 << 13
UNSPACED = 1 << 14  # belongs to a script without spaces between words

# Unicode's Sentence_Terminal characters as of Unicode 15, without a few of them and with three
# Khmer signs added. FineWeb's rule for lines was tuned with this set (datatrove's
# TERMINAL_PUNCTUATION). `unicodedata` does not have the property.
_TERMINAL = """
21 2E 3F 589 61D-61F 6D4 700-702 7F9 837 839 83D-83E 964-965 104A-104B 1362 1367-1368 166E
1735-1736 17D4-17D6 17D9-17DA 1803 1809 1944-1945 1AA8-1AAB 1B5A-1B5B 1B5E-1B5F 1B7D-1B7E
1C3B-1C3C 1C7E-1C7F 203C-203D 2047-2049 2E2E 2E3C 2E53-2E54 3002 A4FF A60E-A60F A6F3 A6F7
A876-A877 A8CE-A8CF A92F A9C8-A9C9 AA5D-AA5F AAF0-AAF1 ABEB FE52 FE56-FE57 FF01 FF0E FF1F FF61
10A56-10A57 10F55-10F59 10F86-10F89 11047-11048 110BE-110C1 11141-11143 111C5-111C6 111CD
111DE-111DF 11238-11239 1123B-1123C 112A9 1144B-1144C 115C2-115C3 115C9-115D7 11641-11642
1173C-1173E 11944 11946 11A42-11A43 11A9B-11A9C 11C41-11C42 11EF7-11EF8 11F43-11F44 16A6E-16A6F
16AF5 16B37-16B38 16B44 16E98 1BC9F 1DA88
"""
# The punctuation of CCNet (github.com/facebookresearch/cc_net, text_normalizer.py), which datatrove
# uses too. It contains the fullwidth digit one, and control characters (`_CONTROLS`).
_SYMBOLS = (
    "!\"#$%&'()*+,-./:;<=>?@[\\]^_`{|}~«´»–—’“”„…"  # noqa: RUF001
    "∶━►、。〈〉《》「」【】！％（）１，．：；？～"  # noqa: RUF001
)
_CONTROLS = (*range(9), 11, 12, *range(13, 32), *range(127, 160))
_LINE_ENDS = "\n\r\v\f\x1c\x1d\x1e\x85\u2028\u2029"
_QUOTES = "'\"”“`‘´’‚,„»«「」『』（）〔〕【】《》〈〉⟦⟧"  # noqa: RUF001
# Characters of category P or S that stay part of the word beside them, because they occur in paths,
# addresses, e-mails, options and sums.
_GLUED = "-/\\|@^~+.‐‑"  # noqa: RUF001
_HYPHENS = "-–—~"  # noqa: RUF001
_ASSIGNED = 0x40000  # above are only variation selectors, tags and private use: no bit is set


@functools.cache
def terminal_points() -> frozenset[int]:
    """Code points that end a sentence."""
    ranges = [[int(end, 16) for end in part.split("-")] for part in _TERMINAL.split()]
    return frozenset(point for ends in ranges for point in range(ends[0], ends[-1] + 1))


@functools.cache
def character_table() -> np.ndarray:
    """The class bits of every code point, uint16 (0x110000,), read-only.

    The table is built once per process, in 0.1 s. Categories come from the interpreter's
    ``unicodedata``. A character that Unicode added after the interpreter's version has no bit set.
    """
    everything = "".join(map(chr, range(_ASSIGNED)))
    categories = np.array(list(map(unicodedata.category, everything)))
    major = categories.astype("U1")
    table = np.zeros(sys.maxunicode + 1, np.uint16)
    given = table[:_ASSIGNED]
    given[major == "L"] |= LETTER
    given[categories == "Ll"] |= LOWER
    given[categories == "Lu"] |= UPPER
    given[categories == "Nd"] |= DECIMAL
    given[categories == "So"] |= ICON
    given[major == "P"] |= PUNCTUATION
    given[(major == "P") | np.isin(categories, ("So", "Sc"))] |= ALONE
    for bit, characters in (
        (SPACE, re.findall(r"\s", everything)),
        (DIGIT, "0123456789"),
        (LINE_END, _LINE_ENDS),
        (QUOTE, _QUOTES),
        (HYPHEN, _HYPHENS),
        (UNSPACED, re.findall(f"[{folding.UNSPACED}]", everything)),
        (SYMBOL, _SYMBOLS),
        (ALONE, "<>=`´"),  # noqa: RUF001
    ):
        table[[ord(character) for character in characters]] |= bit
    table[list(_CONTROLS)] |= SYMBOL
    table[list(terminal_points())] |= SYMBOL | TERMINAL
    table[[ord(character) for character in _GLUED]] &= ~np.uint16(ALONE)
    table.flags.writeable = False
    return table
