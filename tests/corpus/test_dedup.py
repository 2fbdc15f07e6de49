"""Planted duplicates against brute force; the result depends on documents alone; nothing in a
buffer can harm."""

from __future__ import annotations

import os
import random
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from truth.planted import edited, jaccard, ngrams, sentence

from lit_llm.corpus.block import documents, funnel, texts
from lit_llm.corpus.dedup.duplicates import (
    EXACT,
    NEAR,
    Dedup,
    DropDuplicates,
    exact_duplicates,
    near_duplicates,
)
from lit_llm.corpus.kernels import lsh
from lit_llm.corpus.kernels.digest import digests
from lit_llm.corpus.kernels.minhash import sketches
from lit_llm.errors import UserError


def planted(seed: int = 0, originals: int = 300) -> tuple[list[str], dict[int, int]]:
    """Shuffled texts and, for each planted near duplicate, its original; half of all share much
    boilerplate."""
    draw = random.Random(seed)
    boilerplate = sentence(draw, 80)
    bases = [
        sentence(draw, draw.randint(60, 300))
        + (boilerplate[: draw.randint(20, 80)] if i % 2 else [])
        for i in range(originals)
    ]
    copies = [edited(words, draw.uniform(0.02, 0.05), draw) for words in bases[: originals // 2]]
    order = list(range(originals + len(copies)))
    draw.shuffle(order)
    place = {old: new for new, old in enumerate(order)}
    written = [" ".join((bases + copies)[old]) for old in order]
    return written, {place[originals + i]: place[i] for i in range(len(copies))}


def test_near_duplicates_are_found_and_nothing_else() -> None:
    given, copies = planted()
    found = {
        i: original for i, original in enumerate(near_duplicates(given)) if original is not None
    }
    # The earlier of a pair is kept, whichever of the two was edited.
    pairs = {max(pair): min(pair) for pair in copies.items()}
    assert len(found.keys() & pairs.keys()) >= 0.9 * len(pairs)
    alike = [jaccard(given[i], given[kept]) >= 0.5 for i, kept in found.items()]
    assert np.mean(alike) >= 0.95
    assert not set(found) & set(found.values())  # what is named is kept


def test_sketches_estimate_jaccard() -> None:
    """No bias, and the standard error that so many independent entries have."""
    draw = random.Random(3)
    errors = []
    for _ in range(200):
        words = sentence(draw, 300)
        pair = [" ".join(words), " ".join(edited(words, draw.choice((0.01, 0.05, 0.1, 0.2)), draw))]
        true = jaccard(*pair)
        sketch = sketches(texts(pair), 5, 112)
        errors.append((np.mean(sketch[0] == sketch[1]) - true) / np.sqrt(true * (1 - true) / 112))
    assert abs(np.mean(errors)) < 0.25 and np.std(errors) < 1.2


def test_all_exact_copies_go() -> None:
    draw = random.Random(1)
    originals = [" ".join(sentence(draw, n)) for n in (1, 3, 5, 50, 500)] + [
        "",
        "?!",
        "a\0b",
        "naïve\n",
    ]
    variants = [f"  {text.upper()}\n".replace(" ", "\t ") for text in originals]
    expected: list[int | None] = [None] * len(originals)
    assert exact_duplicates(originals + variants) == expected + list(range(len(originals)))
    assert exact_duplicates(originals + variants, normalize=False) == expected + expected
    assert (
        exact_duplicates(originals * 3, normalize=False)
        == expected + list(range(len(originals))) * 2
    )


def test_many_texts_are_signed_in_threads() -> None:
    given = [f"text {i % 1500}" for i in range(3100)]  # more than three batches
    assert near_duplicates(given) == [None] * 1500 + [i % 1500 for i in range(1500, 3100)]


def test_chains_are_cut() -> None:
    """A like B, B like C, A unlike C: C goes only for a document that is kept."""
    draw = random.Random(2)
    words = sentence(draw, 300)
    other = sentence(draw, 300)
    a, b, c = (" ".join(other[:n] + words[n:]) for n in (0, 50, 100))
    assert jaccard(a, b) > 0.65 and jaccard(b, c) > 0.65 and jaccard(a, c) < 0.55
    assert near_duplicates([a, b, c]) == [None, 0, None]
    assert near_duplicates([b, a, c]) == [None, 0, 0]
    assert near_duplicates([a, b, c], threshold=0.4) == [None, 0, 0]


def test_the_most_similar_kept_document_is_named() -> None:
    draw = random.Random(4)
    words = sentence(draw, 400)
    far, near = " ".join(edited(words, 0.08, draw)), " ".join(edited(words, 0.02, draw))
    assert near_duplicates([far, near, " ".join(words)], threshold=0.65) == [None, None, 1]


def signed(dedup: Dedup, table: pa.Table, sizes: list[int]) -> list[pa.Table]:
    edges = np.cumsum([0, *sizes])
    return [dedup.sign(table.slice(start, size)) for start, size in zip(edges, sizes, strict=False)]


GIVEN, _ = planted(5, 40)
MESSY = documents(
    [*GIVEN, *GIVEN[:5], "", " ", "one", "One", "x\0y"], id=[f"d{i * 11 % 70}" for i in range(70)]
)
MESSY = MESSY.append_column("rank", pa.array([i % 3 for i in range(70)]))
EXPECTED = Dedup().decide([Dedup().sign(MESSY)])


@settings(deadline=None, max_examples=15)
@given(
    order=st.permutations(range(70)),
    sizes=st.lists(st.integers(0, 30), max_size=8),
    memory_limit=st.sampled_from([800, 3000, 20_000, 10**9]),
)
def test_order_batches_and_memory_do_not_matter(
    order: list[int], sizes: list[int], memory_limit: int
) -> None:
    tables = signed(Dedup(), MESSY.take(order), [*sizes, 70])
    assert Dedup().decide(tables, memory_limit).equals(EXPECTED)


def test_the_lowest_rank_and_id_is_kept() -> None:
    assert {EXACT, NEAR} == set(EXPECTED["dropped"].to_pylist())
    rank = dict(zip(MESSY["id"].to_pylist(), MESSY["rank"].to_pylist(), strict=True))
    for row in EXPECTED.to_pylist():
        assert (rank[row["duplicate_of"]], row["duplicate_of"]) < (rank[row["id"]], row["id"])


def test_drop_block() -> None:
    drop = DropDuplicates(EXPECTED)
    dropped = {row["id"]: row for row in EXPECTED.to_pylist()}
    for start in (0, 33):
        table = drop(MESSY.slice(start, 37))
        for row in table.to_pylist():
            verdict = dropped.get(row["id"], {"dropped": None, "duplicate_of": None})
            assert (row["dropped"], row["duplicate_of"]) == (
                verdict["dropped"],
                verdict["duplicate_of"],
            )
        assert drop(table).equals(table)  # what is dropped stays as it is
    # A later corpus against this one: its signatures are kept, with a lower rank than any new
    # document's.
    new = documents([GIVEN[0], "something else"], id=["new-1", "new-2"], rank=[9, 9])
    later = DropDuplicates(Dedup().decide([Dedup().sign(MESSY), Dedup().sign(new)]))(new)
    assert funnel(later) == {EXACT: 1} or funnel(later) == {NEAR: 1}
    assert later["dropped"].is_valid().to_pylist() == [True, False]


def test_dropped_documents_are_not_signed() -> None:
    table = documents(["same", "same"])
    table = table.set_column(
        table.schema.get_field_index("dropped"), "dropped", pa.array(["rule: bad", None])
    )
    assert len(Dedup().decide([Dedup().sign(table)])) == 0


def test_a_crowded_bucket_is_searched_to_an_end(monkeypatch: pytest.MonkeyPatch) -> None:
    """Alike enough to share bands, too unlike to be dropped: compared with the last few kept."""
    given = [
        "common words of all the pages here " * 3 + " ".join(sentence(random.Random(i), 30))
        for i in range(50)
    ]
    full = near_duplicates([*given, given[0]], threshold=0.9)
    assert full == [None] * 50 + [0]
    monkeypatch.setattr(lsh, "_PROBES", 1)
    assert (
        near_duplicates([*given, given[0]], threshold=0.9) == full
    )  # exact copies do not go by bands


@pytest.mark.parametrize(
    ("made", "said"),
    [
        (lambda: Dedup(threshold=1.5), "dedup.threshold"),
        (lambda: Dedup(ngram=64), "dedup.ngram"),
        (lambda: Dedup(bands=0), "dedup.bands"),
        (lambda: Dedup().decide([Dedup(rows=2).sign(MESSY)]), "same settings"),
        (
            lambda: Dedup().decide([Dedup().sign(documents(["a", "b"], id=["x", "x"]))]),
            "ids unique",
        ),
    ],
)
def test_mistakes_are_named(made: object, said: str) -> None:
    with pytest.raises(UserError, match=said):
        made()  # type: ignore[operator]


@settings(deadline=None, max_examples=300)
@given(
    st.lists(
        st.text(st.sampled_from("aB é\u0301ÅK ǅ7٣中文かไ한-_\u00ad\u200b\0\n"), max_size=30),
        min_size=1,
    )
)
def test_words_are_those_of_a_regular_expression(given: list[str]) -> None:
    """Same set of n-grams, same sketch; other sets, another one. Letters of unspaced scripts are
    set apart first."""
    apart = [
        "".join(f" {c} " if c in "中文かไ" else "" if c in "\u00ad\u200b" else c for c in text)
        for text in given
    ]
    sets = [frozenset(ngrams(text)) for text in apart]
    rows = [row.tobytes() for row in sketches(texts(given), 5, 8)]
    for a, one in zip(sets, rows, strict=True):
        assert all((a == b) == (one == other) for b, other in zip(sets, rows, strict=True))


def raw(pieces: list[bytes]) -> pa.LargeStringArray:
    """An array as a careless writer makes it: bytes that are not UTF-8, and a slice of a longer
    array."""
    offsets = np.cumsum([0, 3, *map(len, pieces)]).astype(np.int64)
    data = pa.py_buffer(b"\xe4\xb8\xad" + b"".join(pieces))
    array = pa.LargeStringArray.from_buffers(len(pieces) + 1, pa.py_buffer(offsets), data)
    return array.slice(1)


FUZZ = [
    b"",
    b"\0",
    b"a",
    b"\xff",
    b"\xe4\xb8",
    b"\xf0\x9f\x98",
    b"\xc3",
    b"\xed\xa0\x80",
    b"\xf4\x90\x80\x80",
    b"a\xe4b",
]


@settings(deadline=None, max_examples=100)
@given(st.lists(st.binary(max_size=12) | st.sampled_from(FUZZ), max_size=20))
def test_any_bytes_will_do(pieces: list[bytes]) -> None:
    array = raw(pieces)
    assert sketches(array, 5, 8).shape == (len(pieces), 8)
    first = {piece: i for i, piece in reversed(list(enumerate(pieces)))}
    found = [None if first[piece] == i else first[piece] for i, piece in enumerate(pieces)]
    assert exact_duplicates(array, normalize=False) == found
    normal = digests(array, normalize=True)
    for i, piece in enumerate(pieces):
        whole = piece.decode(errors="surrogateescape").replace("\0", " ")
        same = "".join(c.lower() if len(c.lower()) == 1 else c for c in " ".join(whole.split()))
        again = raw([same.encode(errors="surrogateescape")])
        assert (digests(again, normalize=False) == normal[i]).all()


def test_kernels_stay_in_bounds(tmp_path: Path) -> None:
    """Compiled anew with checks: tiny documents in great number, a huge line, invalid bytes, every
    code point."""
    script = """
import random
from test_dedup import FUZZ, MESSY, raw
from lit_llm.corpus.block import documents
from lit_llm.corpus.dedup.decontaminate import Decontaminate
from lit_llm.corpus.dedup.duplicates import Dedup, DropDuplicates, near_duplicates
from lit_llm.data.rows.splits import clusters
draw = random.Random(0)
pieces = [draw.randbytes(draw.randrange(9)) for _ in range(3000)] + FUZZ
pieces += [draw.choice(FUZZ) + draw.choice(FUZZ) for _ in range(300)]
pieces += [b"x" * 2_000_000, b"word " * 100_000, "\u023a".encode() * 1000]
pieces.append("".join(map(chr, [*range(0xD800), *range(0xE000, 0x110000)])).encode())
near_duplicates(raw(pieces))
near_duplicates(raw([]))
alike = [f"a b c d e {n}" for n in range(99)]
clusters([piece.decode(errors="replace") for piece in pieces] + alike)
for settings in (Dedup(), Dedup(None), Dedup(bands=2, rows=1, ngram=63)):
    drop = DropDuplicates(settings.decide([settings.sign(MESSY)], memory_limit=5000))
    drop(MESSY)
against = {"task": ["one two three four five six seven eight", "a b " * 40]}
Decontaminate.against(against)(documents(raw(pieces)))
print("fine")
"""
    env = {
        **os.environ, "NUMBA_BOUNDSCHECK": "1", "NUMBA_OPT": "1", "LIT_LLM_CACHE": str(tmp_path),
        "PYTHONPATH": os.pathsep.join(sys.path),
    }  # fmt: skip
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=False, env=env
    )
    assert done.stdout == "fine\n", done.stderr
