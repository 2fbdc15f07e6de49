"""What is learnt of a conversation: answers, parts of them, thoughts, and how long it may be."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import transformers
from hypothesis import given, settings
from hypothesis import strategies as st
from test_instructions import PAIR, chat, module, write
from test_templates import chat_of, learnt

from lit_llm import InstructionDataModule, UserError
from lit_llm.data.chat.chat_format import ChatFormat
from lit_llm.data.chat.learnt import prepare
from lit_llm.data.rows.policy import RowPolicy
from lit_llm.data.rows.too_long import fit
from lit_llm.models.tokenizer import Tokenizer

USER, ONE = {"role": "user", "content": "q"}, {"role": "assistant", "content": "one"}
TWO, THREE = {**ONE, "content": "two"}, {**ONE, "content": "three"}
TALK = [USER, ONE, USER, TWO, USER, THREE]
THOUGHTS = {**ONE, "content": "words", "reasoning_content": "thoughts"}


def of(*parts: Any) -> dict[str, Any]:
    """An answer of text parts: texts, or (text, marks)."""
    texts = [(part, {}) if isinstance(part, str) else part for part in parts]
    content = [{"type": "text", "text": text, **marks} for text, marks in texts]
    return {"role": "assistant", "content": content}


def runs(template: str, messages: list, **policy: Any) -> list[str]:
    chosen = chat_of(template)
    return learnt(chosen, prepare(messages, RowPolicy(**policy), chosen.knows_reasoning()))


@pytest.mark.parametrize(
    ("messages", "policy", "said"),
    [
        (TALK, {}, ["one", "two", "three"]),
        (TALK, {"train_on": "last"}, ["three"]),
        ([*TALK, USER], {"train_on": "last"}, ["three"]),
        (TALK, {"train_on": "none-but-marked"}, []),
        ([USER, {**ONE, "train": True}, *TALK[2:]], {"train_on": "none-but-marked"}, ["one"]),
        ([USER, {**ONE, "weight": 1}, *TALK[2:]], {"train_on": "none-but-marked"}, ["one"]),
        ([USER, {**ONE, "weight": 0}, *TALK[2:]], {}, ["two", "three"]),
        # Consecutive turns of one role, and an assistant's turn first.
        ([ONE, USER, TWO], {}, ["two"]),
        ([USER, USER, ONE], {}, ["one"]),
        ([USER, ONE, TWO], {}, ["one", "two"]),
    ],
)
def test_the_answers_that_are_learnt(messages: list, policy: dict, said: list[str]) -> None:
    assert runs("chatml", messages, **policy) == [f"{text}<|im_end|>" for text in said]


@pytest.mark.parametrize(
    ("answer", "policy", "said"),
    [
        # Tokens hold the space before a word: it follows the word.
        (of("a ", ("b ", {"train": False}), "c"), {}, ["a", " c<|im_end|>"]),
        (of(("a ", {"weight": 0}), "b"), {}, [" b<|im_end|>"]),
        (of("a", (" b", {"train": False})), {}, ["a", "<|im_end|>"]),
        (of(("a ", {"train": True}), "b"), {"train_on": "none-but-marked"}, ["a", "<|im_end|>"]),
        # A control token that a part spells stays text and does not move the parts after it.
        (of("x<|im_end|>y ", ("b ", {"train": False}), "c"), {}, ["x<|im_end|>y", " c<|im_end|>"]),
        (of("a", ("  ", {"train": False}), "b"), {}, ["a  b<|im_end|>"]),
    ],
)
def test_parts_of_an_answer(answer: dict, policy: dict, said: list[str]) -> None:
    assert runs("chatml", [USER, answer], **policy) == said
    # A template that takes parts renders and learns the same words.
    by_parts = "".join(runs("parts_like", [USER, answer], **policy))
    assert by_parts.partition("<end")[0].split() == "".join(said)[: -len("<|im_end|>")].split()
    ids, _ = chat_of("chatml").encode([USER, answer])
    whole = "".join(part["text"] for part in answer["content"])
    assert ids == chat_of("chatml").encode([USER, {**ONE, "content": whole}])[0]


def test_thoughts_are_learnt_masked_or_dropped() -> None:
    block, words = "<think>\nthoughts\n</think>\n\n", "words<|im_end|>"
    assert runs("qwen3_like", [USER, THOUGHTS]) == [block + words]
    assert runs("qwen3_like", [USER, THOUGHTS], reasoning="mask") == [words]
    dropped = runs("qwen3_like", [USER, THOUGHTS], reasoning="drop")
    assert dropped == runs("qwen3_like", [USER, {**ONE, "content": "words"}])
    assert not any("thoughts" in text for text in dropped)
    # What is masked is still seen.
    ids, _ = chat_of("qwen3_like").encode(
        prepare([USER, THOUGHTS], RowPolicy(reasoning="mask"), True)
    )
    assert ids == chat_of("qwen3_like").encode([USER, THOUGHTS])[0]


@pytest.mark.parametrize(
    "text", ["<think>\nthoughts\n</think>\n\nwords", "\n<think>thoughts</think>words"]
)
def test_a_block_of_thoughts_becomes_the_field(text: str) -> None:
    message = {**ONE, "content": text}
    split = {**ONE, "content": "words", "reasoning_content": "thoughts"}
    assert prepare([USER, message], RowPolicy(), True) == [USER, split]
    assert prepare([USER, message], RowPolicy(), False) == [USER, message]
    assert prepare([USER, message], RowPolicy(split_reasoning="off"), True) == [USER, message]
    assert prepare([USER, message], RowPolicy(reasoning="drop"), False) == [
        USER, {**ONE, "content": "words"}
    ]  # fmt: skip
    assert chat_of("qwen3_like").knows_reasoning() and not chat_of("chatml").knows_reasoning()
    # Text without the field is masked too, and a block that does not close is no block.
    assert runs("chatml", [USER, message], reasoning="mask")[-1] == "words<|im_end|>"
    open_one = {**ONE, "content": "<think>thoughts"}
    assert prepare([USER, open_one], RowPolicy(reasoning="drop"), True) == [USER, open_one]


def test_parts_that_the_template_changes_are_refused() -> None:
    changing = (
        "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content | replace('a', 'e') }}"
        "<|im_end|>\n"
        "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
    )
    with pytest.raises(UserError, match="changes the text of an answer"):
        runs(changing, [USER, of("a ", ("b", {"train": False}))])
    for part, said in (
        ({"train": "no"}, "'train' 'no'"),
        ({"loss": True}, "'loss', which is not used"),
        ({"weight": -0.5}, "'weight' '-0.5'"),
    ):
        with pytest.raises(UserError, match=said):
            runs("chatml", [USER, of(("a", part))])
    with pytest.raises(UserError, match="of the user has 'train' true"):
        runs("chatml", [{**of(("a", {"train": True})), "role": "user"}, ONE])


turns = st.lists(st.tuples(st.integers(1, 12), st.integers(1, 12), st.booleans()),
                 min_size=1, max_size=5)  # fmt: skip


@settings(max_examples=60, deadline=None)
@given(drawn=turns, size=st.integers(8, 120), template=st.sampled_from(["chatml", "qwen3_like"]))
def test_a_row_that_fits_ends_with_a_whole_answer(drawn: list, size: int, template: str) -> None:
    messages: list[dict[str, Any]] = []
    for asked, told, train in drawn:
        messages.append({"role": "user", "content": "x " * asked})
        messages.append({"role": "assistant", "content": "y " * told + "z", "train": train})
    chosen = chat_of(template)
    row = chosen.encode_conversation(messages)
    end = chosen.tokenizer.control_tokens["<|im_end|>"]
    found = fit(row, size, "turns", chosen, messages, {})
    targets = chosen.targets(messages)
    fitting = [one for one in targets if len(one.context) + len(one.answer) <= size]
    if len(fitting) == len(targets):
        assert found.row is not None and found[1:] == (0, False)
    elif found.row is None:
        assert not fitting
    assert (found.row is None) == (bool(targets) and not fitting)
    if found.row is None or not targets:
        return
    # What is learnt is every answer that fits, whole; no more turns are left off than is needed.
    assert found.turns == len(targets) - len(fitting) and not found.cut
    learnt_ends = set()
    for path in found.row.paths:
        assert len(path.ids) <= size
        last = int(np.flatnonzero(path.learnt).max())
        assert path.ids[last] == end
        learnt_ends.add(tuple(path.ids[: last + 1].tolist()))
    assert tuple(fitting[-1].context + fitting[-1].answer) in learnt_ends


def test_too_long_in_a_run(tmp_path: Path, tokenizer_folder: Path,
                           caplog: pytest.LogCaptureFixture) -> None:  # fmt: skip
    long = {"messages": [*chat(50)["messages"], *chat(51, 60)["messages"]]}
    whole = {"prompt": "x " * 100, "completion": "a"}
    file = write(tmp_path / "a.jsonl", [*(chat(i) for i in range(9)), long, whole])

    def card(too_long: str) -> dict:
        data = module(tmp_path, tokenizer_folder, file, seq_len=96, too_long=too_long)
        return json.loads(data.datacard_file.read_text())

    with caplog.at_level("INFO"):
        found = card("turns")
    assert found["too_long"] == {"shortened": 1, "turns_left_off": 1, "dropped": 1, "cut": 0}
    assert "1 examples are longer than data.seq_len allows and were shortened by 1" in caplog.text
    assert "1 examples are longer than data.seq_len allows and were left out" in caplog.text
    assert sum(split["examples"] for split in found["splits"].values()) == 10
    found = card("drop")
    assert found["too_long"] == {"shortened": 0, "turns_left_off": 0, "dropped": 2, "cut": 0}
    with pytest.raises(
        UserError, match=r"a\.jsonl:10: the example has \d+ tokens, data.seq_len=96"
    ):
        card("raise")
    with pytest.raises(UserError, match=r"a\.jsonl:11: the prompt alone takes"):
        card("cut")
    cut = module(tmp_path, tokenizer_folder, file, seq_len=96, too_long="cut", bad_rows="skip")
    found = json.loads(cut.datacard_file.read_text())
    assert found["too_long"]["cut"] == 1 and sum(found["dropped"].values()) == 1


def test_columns_of_other_names(tmp_path: Path, tokenizer_folder: Path) -> None:
    names = {"messages": "dialog", "role": "speaker", "content": "text", "split": "fold"}
    rows = [
        {"dialog": [{"speaker": "user", "text": f"question {i}"},
                    {"speaker": "assistant", "text": f"answer {i}"}],
         "messages": "not this one", "fold": "dev" if i < 2 else "train"}
        for i in range(9)
    ]  # fmt: skip
    file = write(tmp_path / "a.jsonl", rows)
    data = module(tmp_path, tokenizer_folder, file, columns=names)
    card = json.loads(data.datacard_file.read_text())
    assert [card["splits"][split]["examples"] for split in ("train", "validation")] == [7, 2]
    with pytest.raises(UserError, match=r"data\.columns: 'dialog' is not a key"):
        InstructionDataModule(file, columns={"dialog": "messages"})
    with pytest.raises(UserError, match=r"data\.columns\.group: no row .* has 'topic'"):
        module(tmp_path, tokenizer_folder, file, columns={**names, "group": "topic"})


@pytest.mark.parametrize(
    ("format", "row", "said"),
    [
        ("messages", {"conversations": PAIR}, "data.format=messages: the row has no 'messages'"),
        ("conversations", {"messages": PAIR}, "the row has no 'conversations'"),
        ("prompt_completion", {"question": "q", "answer": "a"}, "'prompt' with 'completion' or"),
        ("alpaca", {"input": "q", "output": "a"}, "'instruction' with 'output'"),
        ("text", {"messages": PAIR}, "the row has no 'text'"),
        ("segments", {"text": "x"}, "the row has no 'segments'"),
    ],
)
def test_a_named_format_takes_no_other(
    tmp_path: Path, tokenizer_folder: Path, format: str, row: dict, said: str
) -> None:
    file = write(tmp_path / "a.jsonl", [row])
    with pytest.raises(UserError, match=rf"a\.jsonl:1: .*{said}"):
        module(tmp_path, tokenizer_folder, file, format=format)
    with pytest.raises(UserError, match=r"data\.format must be"):
        InstructionDataModule(file, format="sharegpt")  # type: ignore[arg-type]


def test_a_named_format_decides_between_two(tmp_path: Path, tokenizer_folder: Path) -> None:
    rows = [{"messages": chat(i)["messages"], "conversations": [], "question": f"other {i}",
             "answer": "not this"} for i in range(9)]  # fmt: skip
    file = write(tmp_path / "a.jsonl", [{**row, "question": None} for row in rows])
    data = module(tmp_path, tokenizer_folder, file, format="messages")
    lines = [json.loads(line) for line in (data.datacard_file.parent / "manifest.jsonl").open()]
    assert all(line["question"].startswith("question") for line in lines)


def row_of(data: InstructionDataModule, row: dict) -> tuple[list[int], list[bool]]:
    from lit_llm.data.rows.segments import Segments, encode_segments

    made = data.format_example(row)
    assert isinstance(made, Segments)
    ((ids, learns, _),) = encode_segments(made, data.chat).paths
    return ids.tolist(), learns.tolist()


def test_segments_and_text_need_no_template(tokenizer_folder: Path) -> None:
    data = InstructionDataModule(tokenizer=str(tokenizer_folder))
    tokenizer: Tokenizer = data.tokenizer
    start, end = tokenizer.document_start, tokenizer.eos_id
    stop = tokenizer.control_tokens["<|im_end|>"]

    def said(row: dict) -> tuple[str, list[int]]:
        ids, mask = row_of(data, row)
        assert ids[: len(start)] == start and not any(mask[: len(start)])
        learnt_ids = [token for token, on in zip(ids, mask, strict=True) if on]
        return tokenizer.decode(ids[len(start) :]), learnt_ids

    text, ids = said({"text": "All of it, <|im_end|> too.", "id": 3})
    assert text == "All of it, <|im_end|> too.<|endoftext|>"
    assert ids[-1] == end and stop not in ids and tokenizer.decode(ids) == text
    pieces = [{"text": "<|im_start|>user\nq<|im_end|>\n", "train": False},
              {"text": "a<|im_end|>", "train": True}]  # fmt: skip
    text, ids = said({"segments": pieces})
    # A segment writes its own control tokens, and its end is not doubled.
    assert text == "<|im_start|>user\nq<|im_end|>\na<|im_end|>" and ids[-1] == stop
    assert tokenizer.decode(ids) == "a<|im_end|>"
    text, ids = said({"segments": [{"text": "a "}, {"text": "b", "label": False}]})
    assert text == "a b<|endoftext|>" and tokenizer.decode(ids) == "a"
    # Beside a column that may be the conversation, "text" is taken by its name alone.
    both = {"text": "x y", "dialog": [{"speaker": "user"}]}
    with pytest.raises(UserError, match=r"no conversation in the row.*data.format=text learns"):
        data.format_example(both)
    named = InstructionDataModule(tokenizer=str(tokenizer_folder), format="text")
    assert row_of(named, both) == row_of(data, {"text": "x y"})


@pytest.mark.parametrize(
    ("row", "said"),
    [
        ({"segments": []}, "must be a list of {text, train} and not empty"),
        ({"segments": "x"}, "must be a list"),
        ({"segments": [{"train": True}]}, "segment 1 must be an object with a text"),
        ({"segments": [{"text": "x", "train": "yes"}]}, "segment 1: 'train' is true or false"),
        ({"segments": [{"text": "x", "train": 1, "label": 0}]}, "segment 1: 'train' is true or"),
        ({"segments": [{"text": "x", "mask": 1}]}, "segment 1 has the key 'mask'"),
        ({"segments": [{"text": "x"}], "tools": [{"name": "f"}]}, "'tools' beside 'segments'"),
        ({"segments": [{"text": "x"}], "train": 0.5}, "'train' '0.5', which may say not to"),
        ({"text": 3}, "'text' must be a text, not int"),
        ({"text": "\ud83d"}, "lone surrogate"),
    ],
)
def test_segments_that_cannot_be_used(tokenizer_folder: Path, row: dict, said: str) -> None:
    with pytest.raises(UserError, match=said):
        InstructionDataModule(tokenizer=str(tokenizer_folder)).format_example(row)


def test_a_run_of_texts(tmp_path: Path, tokenizer_folder: Path) -> None:
    rows = [{"text": f"text number {i}"} for i in range(9)]
    data = module(tmp_path, tokenizer_folder, write(tmp_path / "a.jsonl", rows))
    assert "text number" in data.tokenizer.decode(data.train_dataset[0]["input_ids"])


SHIPPED = {
    "chatml": (["<|im_start|>", "<|im_end|>"],
               "<|im_start|>system\ns<|im_end|>\n<|im_start|>user\nq<|im_end|>\n"
               "<|im_start|>assistant\na<|im_end|>\n"),
    "hermes": (["<|im_start|>", "<|im_end|>"],
               "<|im_start|>system\ns<|im_end|>\n<|im_start|>user\nq<|im_end|>\n"
               "<|im_start|>assistant\na<|im_end|>\n"),
    "llama3": (["<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"],
               "<s><|start_header_id|>system<|end_header_id|>\n\ns<|eot_id|>"
               "<|start_header_id|>user<|end_header_id|>\n\nq<|eot_id|>"
               "<|start_header_id|>assistant<|end_header_id|>\n\na<|eot_id|>"),
    "gemma": (["<start_of_turn>", "<end_of_turn>"],
              "<s><start_of_turn>user\ns\n\nq<end_of_turn>\n<start_of_turn>model\na<end_of_turn>\n"),
    "plain": ([], "<s>System:\ns\nUser:\nq\nAssistant:\na</s>\n"),
}  # fmt: skip


@pytest.mark.parametrize("name", SHIPPED)
def test_templates_of_the_package(tmp_path: Path, name: str) -> None:
    from chat_templates import TOKENIZERS

    from lit_llm.data.chat.shipped_templates import missing_tokens, template_source
    from lit_llm.data.chat.stopping import learns_to_stop

    tokens, text = SHIPPED[name]
    backend = TOKENIZERS["byte-level"](["<s>", "</s>", *tokens])
    marked = {f"own_{n}": token for n, token in enumerate(tokens)}
    base = Tokenizer(backend, bos_token="<s>", eos_token="</s>", further_names=marked)
    chosen = ChatFormat(base, template_source(name, base))
    messages = [{"role": "system", "content": "s"}, USER, {**ONE, "content": "a"}]
    assert chosen.render(messages) == text and learns_to_stop(chosen)
    prompt = chosen.prompt_ids(messages[:2])
    ids, mask = chosen.encode(messages)
    assert ids[: len(prompt)] == prompt and mask[len(prompt)]
    assert learnt(chosen, messages) == [f"a{tokens[-1] if tokens else '</s>'}"]
    bare = Tokenizer(TOKENIZERS["byte-level"](["<s>", "</s>"]), bos_token="<s>")
    assert missing_tokens(name, bare) == tokens and missing_tokens(name, base) == []
    if name == "plain":
        with pytest.raises(UserError, match="plain: the tokenizer lacks an end-of-text token"):
            template_source(name, bare)


def test_hermes_renders_every_conversation() -> None:
    from chat_templates import check_template

    from lit_llm.data.chat import shipped_templates

    assert set(SHIPPED) == set(shipped_templates.TOKENS)
    source = (Path(shipped_templates.__file__).parent / "templates/hermes.jinja").read_text()
    assert set(check_template(source).values()) == {"ok"}
    calls = [{"function": {"name": f, "arguments": {"x": 1}}} for f in "fg"]
    messages = [USER, {"role": "assistant", "content": None, "tool_calls": calls},
                {"role": "tool", "content": "1"}, {"role": "tool", "content": "2"}]  # fmt: skip
    tools = [{"type": "function", "function": {"name": f, "description": "does"}} for f in "fg"]
    said = ChatFormat(chat_of("chatml").tokenizer, source).render(messages, True, {"tools": tools})
    assert said.endswith(
        '<|im_start|>assistant\n<tool_call>\n{"name": "f", "arguments": {"x": 1}}\n</tool_call>\n'
        '<tool_call>\n{"name": "g", "arguments": {"x": 1}}\n</tool_call><|im_end|>\n'
        "<|im_start|>user\n<tool_response>\n1\n</tool_response>\n<tool_response>\n2\n"
        "</tool_response><|im_end|>\n<|im_start|>assistant\n"
    )


def test_the_shipped_chatml_is_the_tokenizers(tokenizer_folder: Path) -> None:
    data = InstructionDataModule(tokenizer=str(tokenizer_folder), chat_template="chatml")
    other = InstructionDataModule(tokenizer=str(tokenizer_folder))
    assert data.chat.encode(TALK) == other.chat.encode(TALK)
    assert data.added_tokens == {}
    for name in ("llama3", "gemma"):
        data = InstructionDataModule(tokenizer=str(tokenizer_folder), chat_template=name)
        assert list(data.added_tokens) == SHIPPED[name][0] and data.base_tokenizer.vocab_size == 512
        assert learnt(data.chat, [USER, {**ONE, "content": "a"}]) == [f"a{SHIPPED[name][0][-1]}"]


@settings(max_examples=60, deadline=None)
@given(
    roles=st.lists(st.sampled_from(["user", "assistant"]), min_size=1, max_size=6),
    template=st.sampled_from(["chatml", "qwen3_like", "gemma_like", "llama2_like", "mistral_like"]),
)
def test_turns_in_any_order_have_the_context_of_a_server(roles: list[str], template: str) -> None:
    """Consecutive turns and an assistant's first one are legal where the template takes them."""
    messages = [{"role": role, "content": f"{role} {n}"} for n, role in enumerate(roles)]
    chosen = chat_of(template)
    theirs = transformers.PreTrainedTokenizerFast(
        tokenizer_object=chosen.tokenizer.backend, bos_token="<s>", eos_token="</s>"
    )

    def context(before: list) -> list[int]:
        return theirs.apply_chat_template(
            before, chat_template=chosen.template, add_generation_prompt=True, return_dict=False
        )

    try:
        targets = chosen.targets(messages)
    except UserError as error:
        # The template itself refuses the order, and transformers says so too.
        assert "the chat template" in str(error)
        with pytest.raises(Exception, match=r".*"):
            theirs.apply_chat_template(messages, chat_template=chosen.template)
            for turn, role in enumerate(roles):
                if role == "assistant" and turn:
                    context(messages[:turn])
        return
    assert [target.turn for target in targets] == [
        turn for turn, role in enumerate(roles) if role == "assistant" and turn
    ]
    for target in targets:
        assert target.context == context(messages[: target.turn])
        said = chosen.tokenizer.decode(target.answer).lstrip()
        assert said.startswith((f"assistant {target.turn}", "<think>"))
