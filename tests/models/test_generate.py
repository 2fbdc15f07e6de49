"""Sampling: against transformers' generate, across batches, token by token, and by its
definitions."""

from __future__ import annotations

import pytest
import torch
import transformers
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer as Backend
from tokenizers import decoders, models

from lit_llm.errors import UserError
from lit_llm.models.config import TransformerConfig
from lit_llm.models.generation import generate as generation
from lit_llm.models.generation.generate import PromptCache, generate, stream
from lit_llm.models.generation.sampling import GREEDY, Sampling
from lit_llm.models.generation.text_stream import TextStream
from lit_llm.models.tokenizer import Tokenizer
from lit_llm.models.transformer import Transformer


@pytest.fixture(scope="module")
def model() -> Transformer:
    torch.manual_seed(0)
    model = Transformer(
        TransformerConfig(vocab_size=61, hidden_size=32, num_layers=2, num_heads=4, num_kv_heads=2)
    )
    for p in model.parameters():
        torch.nn.init.normal_(p, std=0.3)
    return model


def test_greedy_equals_transformers(model: Transformer, tmp_path) -> None:
    model.save_pretrained(tmp_path)
    theirs = transformers.AutoModelForCausalLM.from_pretrained(tmp_path)
    prompt = torch.randint(0, 61, (1, 7))
    for penalty in (1.0, 1.3, 0.8):
        expected = theirs.generate(
            prompt,
            max_new_tokens=20,
            do_sample=False,
            eos_token_id=None,
            pad_token_id=0,
            repetition_penalty=penalty,
        )
        how = Sampling(temperature=0, repetition_penalty=penalty)
        assert generate(model, prompt.tolist(), 20, how)[0] == expected[0, 7:].tolist()


@given(st.lists(st.lists(st.integers(0, 60), min_size=1, max_size=12), min_size=2, max_size=4))
@settings(max_examples=15, deadline=None)
def test_answers_do_not_depend_on_company(model: Transformer, prompts: list[list[int]]) -> None:
    for how in (
        GREEDY,
        Sampling(temperature=0, repetition_penalty=1.5),
    ):  # padding is no token of the prompt
        together = generate(model, prompts, 6, how)
        assert together == [generate(model, [prompt], 6, how)[0] for prompt in prompts]


@given(
    st.lists(
        st.tuples(st.lists(st.integers(0, 60), min_size=1, max_size=12), st.integers(1, 9)),
        min_size=2,
        max_size=4,
    )
)
@settings(max_examples=15, deadline=None)
def test_every_prompt_has_a_length_of_its_own(
    any_model: Transformer, asked: list[tuple[list[int], int]]
) -> None:
    prompts, lengths = [prompt for prompt, _ in asked], [length for _, length in asked]
    together = generate(any_model, prompts, lengths, GREEDY)
    assert together == [generate(any_model, [p], n, GREEDY)[0] for p, n in asked]


def test_rows_that_are_done_stay_inside_the_context() -> None:
    """Learned positions have no row beyond the last one."""
    torch.manual_seed(2)
    shape = {"hidden_size": 32, "num_layers": 2, "num_heads": 4, "max_seq_len": 16}
    model = Transformer(TransformerConfig(vocab_size=61, **shape, learned_positions=True))
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    prompts = [[1, 2], list(range(14)), [5] * 15]
    lengths = generation.room_for(model, prompts, 99)
    assert lengths == [14, 2, 1]
    together = generate(model, prompts, lengths, GREEDY)
    assert [len(answer) for answer in together] == [14, 2, 1]
    for prompt, answer in zip(prompts, together, strict=True):
        assert answer == generate(model, [prompt], len(answer), GREEDY)[0]
    with pytest.raises(UserError, match=r"prompt of 15 tokens \+ 2 new ones exceed max_seq_len=16"):
        generate(model, prompts, [14, 2, 2], GREEDY)


def test_seed_and_stop(model: Transformer) -> None:
    prompt = [[1, 2, 3]]
    first = generate(model, prompt, 12, seed=3)
    assert first == generate(model, prompt, 12, seed=3)
    assert first != generate(model, prompt, 12, seed=4)
    stop = first[0][5]
    assert (
        generate(model, prompt, 12, seed=3, stop_ids=[stop])[0] == first[0][: first[0].index(stop)]
    )


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (([], 3), "at least one token"),
        (([[1], []], 3), "at least one token"),
        (([[1]], 0), "max_new_tokens"),
        (([[1]], 5000), "exceed max_seq_len"),
        (([[99]], 3), "beyond vocab_size"),
    ],
)
def test_bad_requests_are_named(model: Transformer, arguments: tuple, message: str) -> None:
    with pytest.raises(UserError, match=message):
        generate(model, *arguments)


SETTINGS = [
    {"sampling": GREEDY},
    {"sampling": Sampling(temperature=0.8), "seed": 5},
    {"sampling": Sampling(top_k=4, repetition_penalty=1.3), "seed": 1},
    {"sampling": Sampling(top_p=0.6), "seed": 2, "stop_ids": list(range(0, 61, 7))},
]


@pytest.mark.parametrize("how", SETTINGS)
def test_stream_equals_generate(model: Transformer, how: dict) -> None:
    for prompt in ([3], [1, 2, 3, 4, 5, 6, 7]):
        assert list(stream(model, prompt, 15, **how)) == generate(model, [prompt], 15, **how)[0]


MIXED = {
    "embedding_norm": True, "value_embeddings": [1], "smear_channels": 8, "embedding_mix": True,
    "bigram_rows": 50, "exclusive_attention": True,
    "backout_layer": 0,
}  # fmt: skip


@pytest.fixture(
    scope="module", params=[{}, {"sliding_window": 5}, MIXED], ids=["full", "windowed", "mixed"]
)
def any_model(request: pytest.FixtureRequest) -> Transformer:
    torch.manual_seed(1)
    model = Transformer(
        TransformerConfig(vocab_size=61, hidden_size=32, num_layers=2, num_heads=4, **request.param)
    )
    for p in model.parameters():
        torch.nn.init.normal_(p, std=0.3)
    return model


IDS = st.lists(st.integers(0, 60), min_size=1, max_size=10)


@given(st.lists(st.tuples(st.integers(0, 40), IDS), min_size=1, max_size=5))
@settings(max_examples=15, deadline=None)
def test_a_reused_cache_changes_no_answer(
    any_model: Transformer, turns: list[tuple[int, list[int]]]
) -> None:
    cache, said = PromptCache(), []
    for keep, new in turns:
        prompt = said[:keep] + new
        answer = list(stream(any_model, prompt, 6, GREEDY, cache=cache))
        assert answer == generate(any_model, [prompt], 6, GREEDY)[0]
        said = prompt + answer


def test_a_reused_cache_feeds_new_tokens_only(model: Transformer) -> None:
    fed = []
    hook = model.embed.register_forward_pre_hook(lambda module, args: fed.append(args[0].shape[1]))
    cache = PromptCache()
    first = list(range(20))
    answer = list(stream(model, first, 5, GREEDY, cache=cache))
    second = [*first, *answer, 7, 8, 9]
    list(stream(model, second, 2, GREEDY, cache=cache))
    list(
        stream(model, second[:10], 1, GREEDY, cache=cache)
    )  # shorter than what is known: its last token
    hook.remove()
    # The answer's last token was sampled but never fed, so it comes with the three new ones.
    assert fed == [20, 1, 1, 1, 1, 4, 1, 1]


def test_an_interrupted_stream_leaves_a_sound_cache(
    model: Transformer, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache, prompt = PromptCache(), [5, 6, 7, 8]
    forward, calls = model.layers[1].forward, []

    def interrupted(*args: object, **kwargs: object) -> torch.Tensor:
        calls.append(1)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return forward(*args, **kwargs)

    with monkeypatch.context() as patch:
        patch.setattr(model.layers[1], "forward", interrupted)
        with pytest.raises(KeyboardInterrupt):
            list(stream(model, prompt, 8, GREEDY, cache=cache))
    longer = [*prompt, *cache.ids[4:], 9]
    assert len(longer) == 7  # two tokens came before the third step broke off
    assert (
        list(stream(model, longer, 8, GREEDY, cache=cache))
        == generate(model, [longer], 8, GREEDY)[0]
    )


def test_between_tokens_the_caller_is_left_alone(model: Transformer) -> None:
    model.train()
    model.embed.eval()  # a module that the caller has set apart
    tokens = stream(model, [1, 2], 5)
    next(tokens)
    assert not torch.is_inference_mode_enabled() and torch.is_grad_enabled()
    tokens.close()
    assert model.training and not model.embed.training
    model.eval()


def test_stream_refuses_at_the_call(model: Transformer) -> None:
    with pytest.raises(UserError, match="exceed max_seq_len"):
        stream(model, [1], 5000)
    with pytest.raises(UserError, match="max_new_tokens"):
        stream(model, [1], 0)


TEXT = "the naïve café of 北京 said 🙂 to the 🙃 cat\n" * 8


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return Tokenizer.train([TEXT], 280)


def first_stop(text: str, stop: list[str]) -> int:
    """Where the stop string begins that is complete first."""
    ends = [(text.index(s) + len(s), text.index(s)) for s in stop if s in text]
    return min(ends)[1] if ends else len(text)


@given(
    st.text("the naïvecafé北京🙂🙃\n", max_size=25),
    st.lists(st.integers(0, 279), max_size=6),
    st.lists(st.text("thecafé 北🙂", min_size=1, max_size=4), max_size=3),
)
@settings(max_examples=200, deadline=None)
def test_text_comes_whole_and_without_stop_strings(
    tokenizer: Tokenizer, text: str, noise: list[int], stop: list[str]
) -> None:
    ids = tokenizer.encode(text) + noise
    whole = tokenizer.decode(ids)
    cut = first_stop(whole, stop)
    out = TextStream(tokenizer, stop)
    shown = ""
    for token in ids:
        shown += out.push(token)
        assert whole[:cut].startswith(shown)  # nothing is shown that a later token takes back
        if out.stopped:
            break
    assert shown + out.flush() == whole[:cut]
    assert out.stopped == any(s in whole for s in stop)


@pytest.fixture(scope="module")
def byte_fallback() -> Tokenizer:
    """As Llama 2's: what has no token of its own is written as a run of byte tokens."""
    names = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256))]
    vocabulary = {name: i for i, name in enumerate([*names, *"ab\u2581é\ufffd你", "\u2581a"])}
    backend = Backend(
        models.BPE(vocab=vocabulary, merges=[], byte_fallback=True, unk_token="<unk>")
    )
    steps = [decoders.Replace("\u2581", " "), decoders.ByteFallback(), decoders.Fuse()]
    backend.decoder = decoders.Sequence([*steps, decoders.Strip(" ", 1, 0)])
    return Tokenizer(backend, bos_token="<s>", eos_token="</s>")


BYTES = st.sampled_from(["é", "你", "🙂", "ab"]).map(lambda text: [3 + b for b in text.encode()])
RUNS = st.lists(
    st.one_of(BYTES, BYTES.map(lambda run: run[:-1]), st.integers(0, 269).map(lambda i: [i]))
)


@given(RUNS, st.lists(st.sampled_from(["a", "é", " a", "\ufffd", "你b"]), max_size=2))
@settings(max_examples=300, deadline=None)
def test_runs_of_bytes_come_as_they_are_decoded(
    byte_fallback: Tokenizer, runs: list[list[int]], stop: list[str]
) -> None:
    """An invalid byte spoils its whole run; ids without a token do not end a run."""
    ids = [i for run in runs for i in run]
    whole = byte_fallback.decode(ids)
    cut = first_stop(whole, stop)
    out = TextStream(byte_fallback, stop)
    shown = ""
    for token in ids:
        shown += out.push(token)
        assert whole[:cut].startswith(shown)
        if out.stopped:
            break
    assert shown + out.flush() == whole[:cut]


def test_characters_and_stop_strings_across_tokens(tokenizer: Tokenizer) -> None:
    raw = [_byte_token(tokenizer, byte) for byte in "€".encode()]
    out = TextStream(tokenizer)
    assert [out.push(token) for token in raw] == ["", "", "€"]
    assert out.push(raw[0]) == "" and out.flush() == "\ufffd"
    out = TextStream(tokenizer, ["END"])
    letters = [_byte_token(tokenizer, byte) for byte in b"aENbENDc"]
    assert [out.push(token) for token in letters[:7]] == ["a", "", "", "ENb", "", "", ""]
    assert out.stopped and out.flush() == ""
    with pytest.raises(UserError, match="empty"):
        TextStream(tokenizer, [""])


def _byte_token(tokenizer: Tokenizer, byte: int) -> int:
    """The token of a single byte, by GPT-2's table of bytes as printable characters."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    character = (
        chr(byte)
        if byte in printable
        else chr(256 + [b for b in range(256) if b not in printable].index(byte))
    )
    return tokenizer.backend.token_to_id(character)
