"""Special tokens that only the files beside tokenizer.json have: names and ids are
transformers'."""

from __future__ import annotations

import json
import pickle
from pathlib import Path
from typing import Any

import pytest
import transformers

from lit_llm.data.chat.chat_format import ChatFormat
from lit_llm.errors import UserError
from lit_llm.models.tokenizer import Tokenizer

TEXTS = ("a <|user|> b", "<extra_x>a<|usr|> <new_eos>", "x <|im_end|>\n<|a|><|b|> [PAD]")


@pytest.fixture(scope="module")
def trained() -> Tokenizer:
    return Tokenizer.train(["one two three one two three " * 20], 300, or_fewer=True)


def written(folder: Path, trained: Tokenizer, settings: dict[str, Any]) -> int:
    """Save ``trained`` with further ``settings``. Returns the first id that is free."""
    trained.save_pretrained(folder)
    file = folder / "tokenizer_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | settings))
    return trained.vocab_size


def decoder(first: int, *contents: str, special: bool = True) -> dict[str, Any]:
    flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False}
    return {
        str(first + i): {"content": content, **flags, "special": special}
        for i, content in enumerate(contents)
    }


def check(folder: Path) -> Tokenizer:
    """The folder's tokenizer, if its ids and names are AutoTokenizer's, now and saved again."""
    theirs = transformers.AutoTokenizer.from_pretrained(folder)
    ours = Tokenizer.from_pretrained(folder)
    ours.save_pretrained(folder / "again")
    again = transformers.AutoTokenizer.from_pretrained(folder / "again")
    assert ours.vocab_size == len(theirs) == len(again)
    for text in TEXTS:
        expected = theirs(text, add_special_tokens=False).input_ids
        assert ours.encode(text, allow_special=True) == expected
        assert again(text, add_special_tokens=False).input_ids == expected
    names = {key: name for key, name in ours.special_names.items() if name is not None}
    assert names == theirs.special_tokens_map == again.special_tokens_map
    assert ours.eos_id == theirs.eos_token_id and ours.pad_id == theirs.pad_token_id
    return ours


@pytest.mark.parametrize("key", ["additional_special_tokens", "extra_special_tokens"])
def test_extra_special_tokens(key: str, trained: Tokenizer, tmp_path: Path) -> None:
    new = written(tmp_path, trained, {key: ["<extra_x>"]})
    assert check(tmp_path).control_tokens["<extra_x>"] == new


def test_added_tokens_decoder(trained: Tokenizer, tmp_path: Path) -> None:
    new = trained.vocab_size
    tokens = decoder(new, "<|user|>", "<|b|>") | decoder(new + 2, "<|a|>", special=False)
    written(tmp_path, trained, {"added_tokens_decoder": dict(reversed(tokens.items()))})
    ours = check(tmp_path)
    assert [ours.control_tokens[t] for t in ("<|user|>", "<|b|>")] == [new, new + 1]


def test_added_tokens_file(trained: Tokenizer, tmp_path: Path) -> None:
    new = written(tmp_path, trained, {"eos_token": "<new_eos>"})
    (tmp_path / "added_tokens.json").write_text(json.dumps({"<|usr|>": new, "<new_eos>": new + 1}))
    assert check(tmp_path).eos_id == new + 1


@pytest.mark.parametrize("kind", ["text", "object", "map"])
def test_a_named_token_that_the_vocabulary_lacks(
    kind: str, trained: Tokenizer, tmp_path: Path
) -> None:
    token = {"__type": "AddedToken", **decoder(0, "<new_eos>")["0"]}
    entry: Any = "<new_eos>" if kind == "text" else token
    new = written(tmp_path, trained, {"pad_token": "[PAD]"} if kind == "map" else {})
    name = "special_tokens_map.json" if kind == "map" else "tokenizer_config.json"
    file = tmp_path / name
    entry = decoder(0, "<new_eos>")["0"] if kind == "map" else entry
    before = json.loads(file.read_text()) if file.exists() else {}
    file.write_text(json.dumps(before | {"eos_token": entry}))
    ours = check(tmp_path)
    assert ours.eos_id == new and "<new_eos>" in ours.control_tokens


def test_ids_that_cannot_be_kept_are_refused(trained: Tokenizer, tmp_path: Path) -> None:
    new = trained.vocab_size
    written(tmp_path, trained, {"added_tokens_decoder": decoder(new + 7, "<|user|>")})
    with pytest.raises(
        UserError, match=rf"tokenizer_config.json: .*<\|user\|>.* id {new + 7}.* gets {new}"
    ):
        Tokenizer.from_pretrained(tmp_path)
    written(tmp_path, trained, {})
    (tmp_path / "added_tokens.json").write_text(json.dumps({"<|usr|>": new + 1}))
    with pytest.raises(UserError, match=rf"added_tokens.json: .*<\|usr\|>.* gets {new}"):
        Tokenizer.from_pretrained(tmp_path)
    (tmp_path / "added_tokens.json").write_text(json.dumps({"<|usr|>": None}))
    with pytest.raises(UserError, match=r"added_tokens.json"):
        Tokenizer.from_pretrained(tmp_path)


def test_every_special_name_reaches_the_template_and_is_written_back(
    trained: Tokenizer, tmp_path: Path
) -> None:
    source = (
        "{% for m in messages %}{{ unk_token }}{{ m.role }}: {{ m.content }}{{ turn_token }}"
        "{% endfor %}{{ boi }}{{ mask_token }}{% if add_generation_prompt %}{{ unk_token }}"
        "assistant: {% endif %}"
    )
    settings = {
        "unk_token": "<|im_start|>",
        "mask_token": "<|pad|>",
        "extra_special_tokens": {"turn_token": "<|im_end|>", "boi": "<|pad|>"},
        "chat_template": source,
    }
    written(tmp_path, trained, settings)
    ours = check(tmp_path)
    talk = [{"role": "user", "content": "hi"}]
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path)
    expected = theirs.apply_chat_template(talk, tokenize=False)
    assert ChatFormat(ours).render(talk) == expected
    assert expected == "<|im_start|>user: hi<|im_end|><|pad|><|pad|>"
    again = Tokenizer.from_pretrained(tmp_path / "again")
    assert again.special_names == ours.special_names
    assert ChatFormat(again).render(talk) == expected


def test_messages_with_tools_take_the_template_for_them(trained: Tokenizer, tmp_path: Path) -> None:
    turns = (
        "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}END\n{% endfor %}"
        "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
    )
    plain = turns.replace("END", "<|im_end|>")
    tool_use = "{{ tools | tojson }}\n" + turns.replace("END", "<|pad|>")
    templates = [{"name": "default", "template": plain}, {"name": "tool_use", "template": tool_use}]
    written(tmp_path, trained, {"chat_template": templates})
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path)
    ours = Tokenizer.from_pretrained(tmp_path)
    talk = [{"role": "user", "content": "hi"}]
    schema = {"name": "f", "description": "d", "parameters": {"type": "object", "properties": {}}}
    arguments = {"tools": [{"type": "function", "function": schema}]}
    chat = pickle.loads(pickle.dumps(ChatFormat(ours)))
    for given in ({}, arguments):
        expected = theirs.apply_chat_template(
            talk, tokenize=False, add_generation_prompt=True, **given
        )
        assert chat.render(talk, True, given) == expected
        ids = ours.encode(expected, allow_special=True)
        assert chat.prompt_ids(talk, given) == ids
        answered = [*talk, {"role": "assistant", "content": "yes"}]
        end = ours.control_tokens["<|pad|>" if given else "<|im_end|>"]
        (target,) = chat.targets(answered, given)
        assert target.context == ids and target.answer == [*ours.encode("yes"), end]
        row, assistant_mask = chat.encode(answered, given)
        assert (
            row[: len(ids)] == ids
            and row[assistant_mask.index(True) :][: len(target.answer)][-1] == end
        )
    assert {ours.control_tokens["<|pad|>"], ours.control_tokens["<|im_end|>"]} <= set(chat.stop_ids)
    assert ChatFormat(ours, plain).rendered_by != chat.rendered_by  # encoded data is not mixed up
    chosen = ChatFormat(ours, plain)  # a template that was asked for is used as it is
    assert chosen.render(talk, True) == ChatFormat(ours).render(talk, True)
    with pytest.raises(UserError, match="takes no 'tools'"):
        chosen.prompt_ids(talk, arguments)


def test_tokens_without_rows_in_the_model_are_left_out(trained: Tokenizer, tmp_path: Path) -> None:
    """Llama's folders often name a [PAD] for which nobody resized the embedding."""
    new = written(tmp_path, trained, {"pad_token": "[PAD]"})
    (tmp_path / "config.json").write_text(json.dumps({"vocab_size": new}))
    with pytest.warns(
        UserWarning, match=rf"left out, because the model has {new} rows \(pad_token"
    ):
        ours = Tokenizer.from_pretrained(tmp_path)
    assert ours.vocab_size == new and ours.pad_id is None and ours.eos_id == trained.eos_id
    (tmp_path / "config.json").write_text(json.dumps({"vocab_size": new + 1}))
    assert Tokenizer.from_pretrained(tmp_path).pad_id == new
