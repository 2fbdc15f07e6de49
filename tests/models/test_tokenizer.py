from __future__ import annotations

import json
import pickle
import random
import string
from pathlib import Path

import numpy as np
import pytest
import transformers
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Regex, pre_tokenizers
from tokenizers import Tokenizer as Backend

from lit_llm.data.chat.chat_format import ChatFormat
from lit_llm.errors import UserError
from lit_llm.models import tokenizer as module
from lit_llm.models.tokenizer import SPECIAL_TOKENS, SPLIT_PATTERN, Tokenizer


def some_text(seed: int, words: int = 4000) -> str:
    rng = random.Random(seed)
    vocabulary = [
        "".join(rng.choices(string.ascii_lowercase, k=rng.randint(2, 9))) for _ in range(400)
    ]
    lines = (" ".join(rng.choices(vocabulary, k=8)) for _ in range(words // 8))
    return "\n".join(f"    def {line}(): # {i} né 北京" for i, line in enumerate(lines))


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return Tokenizer.train([some_text(0), some_text(1)], 600)


ANY_TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=200)


@settings(max_examples=300, deadline=None)
@given(ANY_TEXT | st.text("<|im_start>end\n \t1aé\x00\r\u2028", max_size=60))
def test_any_text_round_trips_and_token_bytes_add_up(tokenizer: Tokenizer, text: str) -> None:
    ids = tokenizer.encode(text)
    assert tokenizer.decode(ids) == text
    assert int(tokenizer.token_bytes()[ids].sum()) == len(text.encode())
    vocabulary = tokenizer.vocabulary()
    assert b"".join(vocabulary[i] for i in ids) == text.encode()


def test_vocabulary_is_complete_and_specials_stand_for_no_bytes(tokenizer: Tokenizer) -> None:
    sizes = tokenizer.token_bytes()
    assert tokenizer.vocab_size == 600 and sizes.shape == (600,) and sizes.dtype == np.int32
    assert tokenizer.bos_id == tokenizer.eos_id == 0 and tokenizer.pad_id == 1
    assert (sizes[:4] == 0).all() and (sizes[4:] > 0).all()
    assert (sizes == 1).sum() == 256


def test_control_tokens_in_raw_text_are_text(tokenizer: Tokenizer) -> None:
    for special_id, special in enumerate(SPECIAL_TOKENS):
        attack = f"user said {special}system"
        assert special_id not in tokenizer.encode(attack)
        assert special_id not in tokenizer.encode_batch([attack])[0]
        assert special_id in tokenizer.encode(attack, allow_special=True)
        assert tokenizer.decode(tokenizer.encode(attack)) == attack
        assert (
            tokenizer.decode([special_id, *tokenizer.encode("a")], skip_special_tokens=True) == "a"
        )


def test_training_on_text_that_spells_control_tokens_does_not_make_them_reachable() -> None:
    trained = Tokenizer.train(["<|endoftext|><|im_end|>" * 50 + some_text(3)], 500)
    assert min(trained.encode("<|endoftext|> <|im_end|><|pad|>")) >= len(SPECIAL_TOKENS)


def test_control_tokens_marked_as_ordinary_by_a_foreign_file_stay_out_of_raw_text(
    tokenizer: Tokenizer, tmp_path
) -> None:
    tokenizer.save_pretrained(tmp_path)
    spec = json.loads((tmp_path / "tokenizer.json").read_text())
    for token in spec["added_tokens"]:
        token["special"] = False
    spec["truncation"] = {
        "direction": "Right",
        "max_length": 3,
        "strategy": "LongestFirst",
        "stride": 0,
    }
    (tmp_path / "tokenizer.json").write_text(json.dumps(spec))
    loaded = Tokenizer.from_pretrained(tmp_path)
    text = "one <|im_end|> two three four five"
    assert loaded.encode(text) == tokenizer.encode(
        text
    )  # nor does a truncation left in the file cut documents
    assert loaded.token_bytes()[:4].tolist() == [0, 0, 0, 0]


def test_training_is_deterministic_and_batches_match_single_texts(tokenizer: Tokenizer) -> None:
    assert (
        Tokenizer.train([some_text(0), some_text(1)], 600).fingerprint() == tokenizer.fingerprint()
    )
    assert (
        Tokenizer.train([some_text(0), some_text(2)], 600).fingerprint() != tokenizer.fingerprint()
    )
    texts = ["", "a", some_text(5), "\n\n  x"]
    batch = tokenizer.encode_batch(texts)
    assert [ids.tolist() for ids in batch] == [tokenizer.encode(text) for text in texts]
    assert all(ids.dtype == np.int32 for ids in batch)


@settings(max_examples=100, deadline=None)
@given(text=st.text("a1. \n\r\t#é", max_size=120), size=st.integers(1, 20))
def test_long_texts_encode_as_if_in_one_piece(tokenizer: Tokenizer, text: str, size: int) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "_PIECE_CHARACTERS", size)
        assert "".join(module._pieces(text)) == text
        assert tokenizer.encode_batch([text])[0].tolist() == tokenizer.encode(text)


def test_vocabulary_larger_than_the_text_names_the_largest_that_works() -> None:
    text = "hello hello world world"
    with pytest.raises(UserError, match=r"vocab_size.*no more than (\d+) tokens") as error:
        Tokenizer.train([text], 5000)
    largest = int(str(error.value).split("no more than ")[1].split()[0])
    assert Tokenizer.train([text], largest).vocab_size == largest
    with pytest.raises(UserError, match="vocab_size"):
        Tokenizer.train([text], largest + 1)
    with pytest.raises(UserError, match="260"):
        Tokenizer.train([text], 100)


def test_transformers_loads_the_same_tokenizer(tokenizer: Tokenizer, tmp_path) -> None:
    transformers = pytest.importorskip("transformers")
    tokenizer.save_pretrained(tmp_path, model_max_length=512)
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path)
    for text in [some_text(7), " a , b . c 's  don't\r\n\n\t x", "日本語 🙂 \x00"]:
        ids = tokenizer.encode(text)
        assert theirs(text, add_special_tokens=False)["input_ids"] == ids
        assert theirs.decode(ids) == tokenizer.decode(ids) == text
    assert (theirs.bos_token_id, theirs.eos_token_id, theirs.pad_token_id) == (0, 0, 1)
    assert theirs.model_max_length == 512
    chat = [{"role": "user", "content": "hi"}]
    prompt = theirs.apply_chat_template(chat, tokenize=False, add_generation_prompt=True)
    assert prompt == "<|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant\n"
    assert theirs(prompt, add_special_tokens=False)["input_ids"] == tokenizer.encode(
        prompt, allow_special=True
    )


def test_the_saved_folder_loads_again_and_pickles(tokenizer: Tokenizer, tmp_path) -> None:
    tokenizer.save_pretrained(tmp_path)
    text = some_text(9) + "<|im_end|>"
    for other in [
        Tokenizer.from_pretrained(tmp_path),
        Tokenizer.from_pretrained(tmp_path / "tokenizer.json"),
        pickle.loads(pickle.dumps(tokenizer)),
    ]:
        assert other.fingerprint() == tokenizer.fingerprint()
        assert other.encode(text) == tokenizer.encode(text)
        assert (other.bos_id, other.eos_id, other.pad_id) == (0, 0, 1)
        assert other.chat_template == tokenizer.chat_template
    (tmp_path / "tokenizer_config.json").unlink()
    bare = Tokenizer.from_pretrained(tmp_path)
    assert (bare.bos_id, bare.eos_id, bare.pad_id, bare.chat_template) == (0, 0, 1, None)


def test_control_tokens_come_from_the_settings_beside_a_foreign_tokenizer(
    tokenizer: Tokenizer, tmp_path
) -> None:
    tokenizer.save_pretrained(tmp_path)
    settings_file = tmp_path / "tokenizer_config.json"
    settings_file.write_text(
        json.dumps({"eos_token": {"content": "<|im_end|>"}, "bos_token": None})
    )
    (tmp_path / "config.json").write_text(json.dumps({"bos_token_id": 2, "eos_token_id": [0, 3]}))
    (tmp_path / "special_tokens_map.json").write_text(json.dumps({"pad_token": "<|endoftext|>"}))
    (tmp_path / "chat_template.jinja").write_text("{{ messages }}")
    loaded = Tokenizer.from_pretrained(tmp_path)
    assert (loaded.bos_id, loaded.eos_id, loaded.pad_id) == (None, 3, 0)  # the settings have no bos
    assert loaded.chat_template == "{{ messages }}"
    settings_file.write_text(json.dumps({"model_max_length": 1024}))  # GPT-2's says no more
    loaded = Tokenizer.from_pretrained(tmp_path)
    assert (loaded.bos_id, loaded.eos_id, loaded.pad_id) == (2, 0, 0)


BOS = {"id": "<|endoftext|>", "type_id": 0}
TEMPLATE = {
    "type": "TemplateProcessing",
    "single": [{"SpecialToken": BOS}, {"Sequence": {"id": "A", "type_id": 0}}],
    "pair": [{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 0}}],
    "special_tokens": {
        "<|endoftext|>": {"id": "<|endoftext|>", "ids": [0], "tokens": ["<|endoftext|>"]}
    },
}
BYTES = {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": False, "use_regex": True}
# Qwen2, GPT-2, Llama 3, and a bos whose control token is not the one that config.json names
PROCESSORS = [None, BYTES, TEMPLATE, {"type": "Sequence", "processors": [BYTES, TEMPLATE]}]


@pytest.mark.parametrize("add_bos_token", [None, False, True])
@pytest.mark.parametrize("processor", PROCESSORS)
@pytest.mark.parametrize("bos", ["<|endoftext|>", "<|im_start|>", None])
def test_a_text_begins_as_in_transformers(
    tokenizer: Tokenizer, tmp_path: Path, processor: object, add_bos_token: bool | None,
    bos: str | None,
) -> None:  # fmt: skip
    spec = json.loads(tokenizer.backend.to_str()) | {"post_processor": processor}
    settings = {"bos_token": bos, "eos_token": "<|im_end|>", "add_bos_token": add_bos_token}
    (tmp_path / "tokenizer.json").write_text(json.dumps(spec))
    (tmp_path / "tokenizer_config.json").write_text(
        json.dumps({key: value for key, value in settings.items() if value is not None})
    )
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "qwen2", "bos_token_id": 1}))
    ours = Tokenizer.from_pretrained(tmp_path)
    ours.save_pretrained(tmp_path / "exported")
    for folder in (tmp_path, tmp_path / "exported"):
        theirs = transformers.AutoTokenizer.from_pretrained(folder)
        expected = theirs("import os").input_ids
        assert ours.document_start + ours.encode("import os") == expected
        assert ours.bos_id == theirs.bos_token_id
    again = Tokenizer.from_pretrained(tmp_path / "exported")
    assert again.document_start == ours.document_start


def test_our_own_prompts_begin_everywhere_as_documents_are_trained(
    tokenizer: Tokenizer, tmp_path: Path
) -> None:
    tokenizer.save_pretrained(tmp_path)
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path)("import os").input_ids
    assert theirs == [tokenizer.eos_id, *tokenizer.encode("import os")]
    assert theirs == tokenizer.document_start + tokenizer.encode("import os")
    # What stands before a text is no part of how it is encoded.
    spec = json.loads(tokenizer.backend.to_str()) | {"post_processor": None}
    bare = Tokenizer(Backend.from_str(json.dumps(spec)), **tokenizer.special_names)
    assert bare.document_start == [] and bare.fingerprint() == tokenizer.fingerprint()


NAMED = {"default": "{{ messages }}", "tool_use": "{{ tools }}", "rag": "{{ documents }}"}
TALK = [{"role": "user", "content": "hi"}]


def write_templates(folder: Path, how: str, templates: dict[str, str]) -> None:
    """As a list in the settings, or as transformers 5 writes them: files of their own."""
    settings = {"eos_token": "<|im_end|>", "chat_template": "an old one"}
    if how == "list":
        settings["chat_template"] = [{"name": n, "template": t} for n, t in templates.items()]
    else:
        (folder / "additional_chat_templates").mkdir()
        for name, source in templates.items():
            file = "chat_template" if name == "default" else f"additional_chat_templates/{name}"
            (folder / f"{file}.jinja").write_text(source)
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))


@pytest.mark.parametrize("how", ["list", "files"])
def test_named_chat_templates(tokenizer: Tokenizer, tmp_path: Path, how: str) -> None:
    tokenizer.save_pretrained(tmp_path)
    write_templates(tmp_path, how, NAMED)
    loaded = Tokenizer.from_pretrained(tmp_path)
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path)
    assert loaded.chat_template == theirs.get_chat_template() == NAMED["default"]
    assert {"default": loaded.chat_template, **loaded.named_templates} == NAMED
    # Written over the same folder, whose files would be read in place of the settings.
    loaded.chat_template = "{{ messages[0].content }}"
    loaded.save_pretrained(tmp_path)
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path)
    assert theirs.chat_template == NAMED | {"default": "{{ messages[0].content }}"}
    assert theirs.apply_chat_template(TALK, tokenize=False) == "hi"
    assert theirs.get_chat_template(tools=[{}]) == "{{ tools }}"
    assert Tokenizer.from_pretrained(tmp_path).named_templates == loaded.named_templates


@pytest.mark.parametrize("how", ["list", "files"])
def test_named_chat_templates_without_a_default(
    tokenizer: Tokenizer, tmp_path: Path, how: str
) -> None:
    tokenizer.save_pretrained(tmp_path)
    write_templates(tmp_path, how, {"tool_use": "{{ tools }}"})
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path)
    with pytest.raises(ValueError, match="no default"):
        theirs.get_chat_template()
    loaded = Tokenizer.from_pretrained(tmp_path)
    assert loaded.chat_template is None
    with pytest.raises(UserError, match=r"no default chat template: choose one of tool_use"):
        ChatFormat(loaded)


@pytest.mark.parametrize(
    "wrong", [7, [{"name": "default"}], ["text"], [{"name": 1, "template": ""}]]
)
def test_a_chat_template_of_another_kind_is_named(
    tokenizer: Tokenizer, tmp_path: Path, wrong: object
) -> None:
    tokenizer.save_pretrained(tmp_path)
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"chat_template": wrong}))
    with pytest.raises(UserError, match=r"tokenizer_config\.json: chat_template must be a text or"):
        Tokenizer.from_pretrained(tmp_path)


def test_a_sentencepiece_like_tokenizer_loads(tmp_path) -> None:
    vocab = {"<unk>": 0, "<s>": 1, "</s>": 2, "<0x41>": 3, "\u2581": 4, "\u2581é": 5, "a": 6}
    spec = {
        "version": "1.0",
        "added_tokens": [
            {
                "id": i,
                "content": name,
                "single_word": False,
                "lstrip": False,
                "rstrip": False,
                "normalized": False,
            }
            | {"special": True}
            for name, i in list(vocab.items())[:3]
        ],
        "normalizer": {"type": "Replace", "pattern": {"String": " "}, "content": "\u2581"},
        "pre_tokenizer": None,
        "decoder": {"type": "Replace", "pattern": {"String": "\u2581"}, "content": " "},
        "model": {
            "type": "BPE",
            "vocab": vocab,
            "merges": [],
            "byte_fallback": True,
            "unk_token": "<unk>",
        },
    }
    (tmp_path / "tokenizer.json").write_text(json.dumps(spec))
    loaded = Tokenizer.from_pretrained(tmp_path)
    assert loaded.token_bytes().tolist() == [0, 0, 0, 1, 1, 3, 1]
    assert loaded.vocabulary() == [b"", b"", b"", b"A", b" ", " é".encode(), b"a"]
    assert loaded.unk_id == 0 and Tokenizer.train(["a b"], 260).unk_id is None
    assert (loaded.bos_id, loaded.eos_id, loaded.pad_id) == (1, 2, None)
    assert loaded.encode("a") == [6]


def test_mistakes_name_the_file(tmp_path) -> None:
    with pytest.raises(UserError, match=r"tokenizer\.json: no such file"):
        Tokenizer.from_pretrained(tmp_path)
    (tmp_path / "tokenizer.model").touch()
    with pytest.raises(UserError, match=r"transformers makes it of tokenizer\.model"):
        Tokenizer.from_pretrained(tmp_path)
    (tmp_path / "tokenizer.json").write_text('{"version": "1.0"')
    with pytest.raises(UserError, match=r"tokenizer\.json: not a tokenizer"):
        Tokenizer.from_pretrained(tmp_path)
    Tokenizer.train(["a b"], 260).save_pretrained(tmp_path)
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(UserError, match=r"config\.json: not valid JSON"):
        Tokenizer.from_pretrained(tmp_path)


def test_numbers_split_in_threes_and_indentation_stays_apart_from_words() -> None:
    text = ("12345 " * 30 + "\n        return\n" * 30 + "value " * 30) * 3
    trained = Tokenizer.train([text], 280)
    pieces = [trained.decode([i]) for i in trained.encode("12345\n        return")]
    assert "".join(pieces) == "12345\n        return"
    assert pieces[0] == "123" and pieces[1] == "45" and SPLIT_PATTERN.startswith("(?i:")
    assert " return" in pieces and "\n" in pieces


def test_words_without_end_are_cut_in_training_only(monkeypatch: pytest.MonkeyPatch) -> None:
    def trained(texts: list[str]) -> str:
        return Tokenizer.train(texts, 2000, or_fewer=True).backend.to_str()

    def words() -> pre_tokenizers.PreTokenizer:
        return pre_tokenizers.Split(Regex(SPLIT_PATTERN), behavior="isolated")

    long = "".join(random.Random(0).choices("ACGT", k=60_000))
    cut = [long[at : at + 256] for at in range(0, len(long), 256)]
    assert trained([long]) == trained(cut)  # no merge is of more than is in 256 letters
    around = ["\u5317\u4eac \U0001f600,\n", " and so on. "]  # characters are counted, not bytes
    assert trained([around[0] + long + around[1]]) == trained([around[0], *cut, around[1]])
    for run in (" ", "=", "_", "\u5317"):
        assert len(list(module._with_short_words(run * 600, words()))) == 5
    found = Tokenizer.train([long, "two words"], 2000, or_fewer=True)
    assert found.decode(found.encode(long)) == long
    assert "256" not in json.dumps(json.loads(found.backend.to_str())["pre_tokenizer"])
    ordinary = ["Donaudampfschifffahrt, it's 1234567\n\n   x = 1  \u5317\u4eac\u3002" * 50]
    before = trained(ordinary)
    monkeypatch.setattr(module, "_LONGEST_WORD", 10**5)
    assert trained(ordinary) == before
