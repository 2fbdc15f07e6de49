"""The prefix cache gives back what was put in for the same tokens, and nothing else."""

from __future__ import annotations

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lit_llm.models.engine.core import Engine
from lit_llm.models.engine.prefix import PrefixCache, digests, root
from lit_llm.models.engine.requests import GenerationRequest
from lit_llm.models.engine.slots import CHUNK
from tests.engine.models import drive, tiny

ROOT = root(None, "bfloat16", "key")


def test_a_digest_holds_all_that_a_chunk_depends_on() -> None:
    prompt = list(range(3 * CHUNK))
    chain = list(digests(ROOT, prompt))
    assert len(chain) == 2  # the last chunk has the prompt's last token
    assert list(digests(ROOT, [*prompt, 0])) == [*chain, *list(digests(ROOT, [*prompt, 0]))[2:]]
    changed = list(digests(ROOT, [1, *prompt[1:]]))
    assert changed[0] != chain[0] and changed[1] != chain[1]
    others = [root("a", "bfloat16", "key"), root(None, "float32", "key"),
              root(None, "bfloat16", "other")]  # fmt: skip
    firsts = {next(digests(begin, prompt)) for begin in (ROOT, *others)}
    assert len(firsts) == 4


CHUNKS = st.lists(st.lists(st.integers(0, 2), min_size=1, max_size=4), max_size=30)


@given(CHUNKS, st.integers(0, 6))
@settings(max_examples=100, deadline=None)
def test_entries_are_those_used_last(prompts: list[list[int]], most: int) -> None:
    """Prompts of 1 to 4 chunks, each of one repeated token, against a list of prefixes."""
    cache, model = PrefixCache(most * CHUNK), {}
    for number, prompt in enumerate(prompts):
        tokens = [token for token in prompt for _ in range(CHUNK)]
        chain = list(digests(ROOT, [*tokens, 9]))
        for place, digest in enumerate(chain):
            chunk = tokens[place * CHUNK : (place + 1) * CHUNK]
            entry = cache.get(digest, chunk)
            if entry is not None:
                assert model[digest] == int(entry.keys)
            elif cache.keeps(digest, place):
                model[digest] = number
                cache.put(digest, chunk, torch.tensor(number), torch.tensor(number))
        cache.touch(chain)
        assert len(cache) <= most and cache.tokens == len(cache) * CHUNK
        # The beginning of a prompt stays longer than its end.
        there = [cache.get(d, tokens[i * CHUNK : (i + 1) * CHUNK]) for i, d in enumerate(chain)]
        found = [entry is not None for entry in there]
        assert found == sorted(found, reverse=True)
        assert sum(found) == min(most, len(chain))


def test_tokens_are_compared_too() -> None:
    cache = PrefixCache(CHUNK)
    cache.put(b"same digest", [1] * CHUNK, torch.zeros(1), torch.zeros(1))
    assert cache.get(b"same digest", [2] * CHUNK) is None


def test_scopes_share_nothing() -> None:
    engine = Engine(tiny(), 2000, 2000)
    prompt = [i % 90 for i in range(300)]

    def cached(scope: str) -> int:
        return drive(engine, [GenerationRequest(prompt, 2, scope=scope)])[0][-1].cached_tokens  # type: ignore[union-attr]

    assert [cached(scope) for scope in ("a", "a", "b", "b", "a")] == [0, 256, 0, 256, 256]


def test_prompts_that_come_together_share_their_beginning() -> None:
    engine = Engine(tiny(), 4000, 2000, step_tokens=128)
    prompt = [i % 90 for i in range(300)]
    events = drive(engine, [GenerationRequest(prompt, 2) for _ in range(4)])
    assert sum(answer[-1].cached_tokens for answer in events) == 3 * 256  # type: ignore[union-attr]
