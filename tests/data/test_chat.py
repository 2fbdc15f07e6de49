"""Chat templates: the text that transformers renders, and a mask that covers what the assistant
says and no more."""

from __future__ import annotations

from pathlib import Path

import pytest
import transformers
from hypothesis import given, settings
from hypothesis import strategies as st

from lit_llm.data.chat.chat_format import ChatFormat
from lit_llm.errors import UserError
from lit_llm.models.tokenizer import CHATML_TEMPLATE, Tokenizer

# Another layout in every way: bos, headers, no newline after a turn, a default system message.
LLAMA_STYLE = (
    "{{ bos_token }}{% if messages[0]['role'] != 'system' %}<|im_start|>system<|im_end|>{% endif %}"
    "{% for message in messages %}[{{ message['role'] }}] {{ message['content'] | trim "
    "}}<|im_end|>{% endfor %}"
    "{% if add_generation_prompt %}[assistant] {% endif %}"
)
MARKED = (
    "{% for message in messages %}{% if message['role'] == 'assistant' %}<|im_start|>assistant\n"
    "{% generation %}{{ message['content'] }}<|im_end|>{% endgeneration %}\n"
    "{% else %}<|im_start|>{{ message['role'] }}\n{{ message['content'] }}<|im_end|>\n{% endif "
    "%}{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
TEMPLATES = [CHATML_TEMPLATE, LLAMA_STYLE, MARKED]


@pytest.fixture(scope="session")
def tokenizer(text_folder: Path) -> Tokenizer:
    return Tokenizer.train(
        [file.read_text(errors="ignore") for file in sorted(text_folder.iterdir())[:10]], 600
    )


words = st.text(
    st.characters(codec="utf-8", exclude_characters="\ufdd0\ufdd1\ufdd2"), max_size=30
) | st.sampled_from(
    [
        "",
        "<|im_end|>",
        "a <|im_start|>assistant\nb",
        "\n\nlines\n",
        "naïve 日本語 👩‍👩‍👧",
        "{{ not_a_template }}",
    ]
)
conversations = st.tuples(
    st.none() | words, st.lists(st.tuples(words, words), min_size=1, max_size=4), st.none() | words
)


def messages_of(
    drawn: tuple[str | None, list[tuple[str, str]], str | None],
) -> list[dict[str, str]]:
    system, pairs, last = drawn
    messages = [] if system is None else [{"role": "system", "content": system}]
    for question, answer in pairs:
        messages += [
            {"role": "user", "content": question},
            {"role": "assistant", "content": answer},
        ]
    return messages + ([] if last is None else [{"role": "user", "content": last}])


@pytest.mark.parametrize("template", TEMPLATES)
@settings(max_examples=60, deadline=None)
@given(drawn=conversations)
def test_the_mask_covers_what_the_assistant_says(
    tokenizer: Tokenizer, template: str, drawn: tuple
) -> None:
    chat, messages = ChatFormat(tokenizer, template), messages_of(drawn)
    paths, number, left_out = chat.encode_conversation(messages)
    ids, assistant_mask = chat.encode(messages)
    assert len(ids) == len(assistant_mask)
    answers = [m["content"].strip() if template is LLAMA_STYLE else m["content"]
               for m in messages if m["role"] == "assistant"]  # fmt: skip
    runs, run = [], []
    for token, speaks in zip([*ids, 0], [*assistant_mask, False], strict=True):
        if speaks:
            run.append(token)
        elif run:
            runs, run = [*runs, run], []
    # One run an answer: its words and the token that ends the turn, nothing else. An earlier answer
    # has a path of its own where a token of the whole text reaches over its beginning.
    said = [tokenizer.decode(run[:-1]) for run in runs]
    assert said[-1] == answers[-1] and number == len(answers) == len(said) + len(paths) - 1
    assert left_out == 0
    rest = iter(answers)
    assert all(text in rest for text in said)
    assert all(run[-1] == tokenizer.control_tokens["<|im_end|>"] for run in runs)
    # No words become control tokens: there are as many as the template itself writes.
    whole = chat.render(messages)
    assert whole.startswith(tokenizer.decode(ids))
    if tokenizer.decode(ids) == whole:
        empty = chat.render([{**m, "content": ""} for m in messages])
        written = len(chat.jinja.control.findall(empty))
        assert written == sum(tokenizer.is_control(token) for token in ids)


@settings(max_examples=40, deadline=None)
@given(drawn=conversations)
@pytest.mark.parametrize("template", TEMPLATES)
def test_the_text_is_transformers_text(tokenizer: Tokenizer, template: str, drawn: tuple) -> None:
    theirs = transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer.backend, bos_token="<|endoftext|>"
    )
    messages = messages_of(drawn)
    for prompt in (False, True):
        rendered = theirs.apply_chat_template(
            messages, chat_template=template, tokenize=False, add_generation_prompt=prompt
        )
        assert ChatFormat(tokenizer, template).render(messages, prompt) == rendered


def test_generation_marks_agree_with_transformers(tokenizer: Tokenizer) -> None:
    theirs = transformers.PreTrainedTokenizerFast(tokenizer_object=tokenizer.backend)
    messages = messages_of(("Be brief.", [("What is x?", "A name."), ("And y?", "Another.")], None))
    theirs_encoded = theirs.apply_chat_template(
        messages, chat_template=MARKED, return_assistant_tokens_mask=True, return_dict=True
    )
    ids, assistant_mask = ChatFormat(tokenizer, MARKED).encode(messages)
    assert ids == theirs_encoded["input_ids"]
    assert [int(s) for s in assistant_mask] == theirs_encoded["assistant_masks"]


@settings(max_examples=30, deadline=None)
@given(drawn=conversations)
@pytest.mark.parametrize("template", TEMPLATES[:2])
def test_a_prompt_is_how_training_begins(tokenizer: Tokenizer, template: str, drawn: tuple) -> None:
    chat, messages = ChatFormat(tokenizer, template), messages_of((drawn[0], drawn[1], None))
    ids, assistant_mask = chat.encode(messages)
    prompt = chat.prompt_ids(messages[:-1])
    assert ids[: len(prompt)] == prompt
    assert assistant_mask[len(prompt)] and not assistant_mask[len(prompt) - 1]


def test_other_names_of_roles(tokenizer: Tokenizer) -> None:
    chat = ChatFormat(tokenizer)
    others = [{"role": "human", "content": "q"}, {"role": "ai", "content": "a"}]
    messages = [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]
    assert chat.encode(others) == chat.encode(messages)


def test_what_ends_an_answer(tokenizer: Tokenizer) -> None:
    end, text_end = tokenizer.control_tokens["<|im_end|>"], tokenizer.eos_id
    assert ChatFormat(tokenizer).stop_ids == [text_end, end]
    plain = "{% for m in messages %}{{ m['role'] }}: {{ m['content'] }}\n{% endfor %}"
    plain += "{% if add_generation_prompt %}assistant: {% endif %}"
    assert ChatFormat(tokenizer, plain).stop_ids == [text_end]


@pytest.mark.parametrize(
    ("messages", "said"),
    [
        ([], "not empty"),
        ("hello", "must be a list"),
        ([{"content": "x"}], "message 1 must be an object with 'role'"),
        ([{"role": "user"}], "message 1 has no 'content'"),
        (
            [{"role": "narrator", "content": "x"}],
            "role 'narrator'; roles are system, user, assistant",
        ),
        ([{"role": "user", "content": ["x"]}], "content of type list"),
        (
            [{"role": "user", "content": "x"}, {"role": "tool", "content": "y"}],
            "message 2 is a tool's: it can only follow the assistant's",
        ),
        (
            [
                {"role": "user", "content": "x"},
                {"role": "assistant", "content": "y"},
                {"role": "tool", "content": "z"},
            ],
            "message 3 is a tool's answer, but message 2 calls no tool",
        ),
        (
            [{"role": "user", "content": "x"}, {"role": "system", "content": "y"}],
            "message 2 is a system message",
        ),
    ],
)
def test_what_is_no_conversation(tokenizer: Tokenizer, messages: object, said: str) -> None:
    with pytest.raises(UserError, match=said):
        ChatFormat(tokenizer).encode(messages)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("template", "said"),
    [
        ("{% for m in %}", "not valid Jinja: line 1"),
        (
            "{{ raise_exception('no system role here') }}",
            "refuses the messages: no system role here",
        ),
        ("{{ messages[0]['tool_calls'][0] }}", "the chat template"),
        ("{{ 1 / 0 }}", "fails .ZeroDivisionError"),
        (
            "{% for m in messages %}{% if not loop.last %}earlier{% else %}{{ m['content'] }}{% "
            "endif %}{% endfor %}",
            "put {% generation %}",
        ),
    ],
)
def test_templates_that_do_not_work(tokenizer: Tokenizer, template: str, said: str) -> None:
    with pytest.raises(UserError, match=said):
        ChatFormat(tokenizer, template).encode(messages_of((None, [("a", "b"), ("c", "d")], None)))


def test_no_template(tokenizer: Tokenizer) -> None:
    bare = Tokenizer(tokenizer.backend, eos_token="<|endoftext|>")
    with pytest.raises(UserError, match="no chat template"):
        ChatFormat(bare)
