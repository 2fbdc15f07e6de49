"""Templates of the kinds that models ship: transformers' prompts, answers behind them, nothing left
out in silence."""

from __future__ import annotations

import json
import pickle
from functools import cache
from typing import Any

import pytest
import transformers
from chat_templates import CONVERSATIONS, OWN, TOKENIZERS, byte_level, check_template
from hypothesis import given, settings
from hypothesis import strategies as st

from lit_llm.data.chat.chat_format import ChatFormat
from lit_llm.errors import UserError
from lit_llm.models.tokenizer import Tokenizer

CONTROL = ["<s>", "</s>", "<|im_start|>", "<|im_end|>", "<|user|>", "<|assistant|>", "<|system|>",
           "<|end|>", "<|endoftext|>", "<|return|>", "<\uff5cUser\uff5c>",
           "<\uff5cAssistant\uff5c>"]  # fmt: skip
TALK = CONVERSATIONS["two turns"][0]
# What `check` says of CONVERSATIONS, in their order; "-" is a refusal, "=" one that transformers'
# template makes too.
EXPECTED = {
    "chatml": "ok | ok | ok | ok | ok | - | ok | - | - | = | -",
    "gemma_like": "ok | ok | ok | = | ok | - | ok | - | - | - | -",
    "glm_like": "ok | ok | ok | ok | ok | - | ok | ok | ok | ok | -",
    "gptoss_like": "ok | ok | ok | ok | ok | - | ok | ok | ok | ok | -",
    "llama2_like": "ok | ok | ok | ok | ok | - | ok | - | - | = | -",
    "mistral_like": "ok | ok | ok | ok | ok | - | ok | ok | ok | ok | -",
    "parts_like": "ok | ok | ok | ok | ok | - | ok | - | - | - | -",
    "phi3_like": "ok | ok | ok | ok | ok | - | ok | - | - | = | -",
    "qwen3_like": "ok | ok | ok | ok | ok | ok | ok | ok | ok | ok | ok",
    "r1_like": "ok | ok | ok | ok | ok | ok | ok | - | - | ok alone | -",
}


def chat_of(template: str, kind: str = "byte-level") -> ChatFormat:
    tokenizer = Tokenizer(TOKENIZERS[kind](CONTROL), bos_token="<s>", eos_token="</s>")
    source = (
        (OWN / f"{template}.jinja").read_text()
        if (OWN / f"{template}.jinja").is_file()
        else template
    )
    return ChatFormat(tokenizer, source)


def learnt(chat: ChatFormat, messages: list, **arguments: Any) -> list[str]:
    """The text of each run of learnt tokens."""
    ids, assistant_mask = chat.encode(messages, **arguments)
    runs: list[list[int]] = [[]]
    for token, speaks in zip(ids, assistant_mask, strict=True):
        if speaks:
            runs[-1].append(token)
        elif runs[-1]:
            runs.append([])
    return [chat.tokenizer.decode(run) for run in runs if run]


@pytest.mark.parametrize("template", EXPECTED)
def test_prompts_and_answers_of_every_kind(template: str) -> None:
    said = check_template((OWN / f"{template}.jinja").read_text(encoding="utf-8"))
    short = {"refused": "-", "refused there": "="}
    heads = [text.partition(":")[0] for text in said.values()]
    assert " | ".join(short.get(head, head) for head in heads) == EXPECTED[template], said
    assert {file.stem for file in OWN.iterdir()} == set(EXPECTED)


@pytest.mark.parametrize("scheme", ["first", "always"])
def test_a_sentencepiece_like_tokenizer_gets_no_space_mark_per_piece(scheme: str) -> None:
    spec = json.loads(TOKENIZERS["sentencepiece-like"](CONTROL).to_str())
    spec["pre_tokenizer"]["prepend_scheme"] = scheme
    backend = type(byte_level([])).from_str(json.dumps(spec))
    for template in ("chatml", "phi3_like", "llama2_like"):
        source = (OWN / f"{template}.jinja").read_text()
        theirs = transformers.PreTrainedTokenizerFast(
            tokenizer_object=backend, bos_token="<s>", eos_token="</s>", chat_template=source
        )
        chat = ChatFormat(Tokenizer(backend, bos_token="<s>", eos_token="</s>"), source)
        for end in (1, 3):
            prompt = chat.prompt_ids(TALK[:end])
            expected = theirs.apply_chat_template(TALK[:end], add_generation_prompt=True)
            assert prompt == expected["input_ids"]
        ids, assistant_mask = chat.encode(TALK)
        assert ids == theirs.apply_chat_template(TALK)["input_ids"]
        assert (
            ids[: len(prompt)] == prompt
            and assistant_mask[len(prompt)]
            and not assistant_mask[len(prompt) - 1]
        )


def test_a_token_over_the_border_leaves_the_prompt_as_a_server_sends_it() -> None:
    """The whole text has a token " yes"; the prompt alone ends with its space."""
    plain = "{% for m in messages %}{{ m.role + ': ' + m.content + '</s>' }}{% endfor %}"
    plain += "{% if add_generation_prompt %}assistant: {% endif %}"
    for kind in TOKENIZERS:
        chat = chat_of(plain, kind)
        one = [
            {"role": "user", "content": "Is it?"},
            {"role": "assistant", "content": "the answer"},
        ]
        prompt = chat.prompt_ids(one[:1])
        ids, assistant_mask = chat.encode(one)
        assert ids[: len(prompt)] == prompt and assistant_mask == [
            i >= len(prompt) for i in range(len(ids))
        ]
        assert chat.tokenizer.decode(ids) == chat.render(one)
        assert learnt(chat, one) == ["the answer</s>"]
        # Behind a later question a server sends the first answer with the other cut: the answer is
        # learnt in a path of its own.
        over = chat.encoder.ids(chat.marked(one))[: len(prompt)] != prompt
        paths, answers, left_out = chat.encode_conversation([*one, *one])
        again = chat.prompt_ids([*one, *one[:1]])
        assert paths[0].ids[: len(again)].tolist() == again
        assert (len(paths), answers, left_out) == (1 + int(over), 2, 0)
        if over:
            assert paths[1].ids.tolist() == ids and paths[1].learnt.tolist() == assistant_mask
        assert over == (kind == "byte-level")


def test_which_token_ends_the_turn() -> None:
    phi, gpt = chat_of("phi3_like"), chat_of(
        "{% for m in messages %}{{ '<|' + m.role + '|>' + m.content }}"
        "{{ '<|return|>' if loop.last and m.role == 'assistant' else '<|end|>' }}"
        "{% endfor %}{% if add_generation_prompt %}<|assistant|>{% endif %}"
    )  # fmt: skip
    assert learnt(phi, TALK) == ["Four, of course.<|end|>", "Six.\n\nIs that all?<|end|>"]
    # Never <|end|>: that is how history looks
    assert learnt(gpt, TALK) == ["Six.\n\nIs that all?<|return|>"]
    glm = chat_of("glm_like")
    assert learnt(glm, TALK) == ["Four, of course.<|user|>", "Six.\n\nIs that all?<|user|>"]
    for chat, ends in ((phi, ["<|end|>"]), (gpt, ["<|return|>"]), (glm, ["<|user|>"])):
        assert chat.stop_ids[1:2] == [chat.tokenizer.control_tokens[end] for end in ends]


def test_thoughts_behind_a_prompt_that_opens_them() -> None:
    chat = chat_of("r1_like")
    asked = {"role": "user", "content": "2+2?"}
    expected = ["Add two.\n</think>\n\n4</s>"]
    beside = {"role": "assistant", "content": "4", "reasoning_content": "Add two."}
    within = {"role": "assistant", "content": "<think>\nAdd two.\n</think>\n\n4"}
    assert learnt(chat, [asked, beside]) == learnt(chat, [asked, within]) == expected
    assert learnt(chat, [asked, {"role": "assistant", "content": "<b>4"}]) == [
        "\n</think>\n\n<b>4</s>"
    ]
    assert chat.tokenizer.decode(chat.prompt_ids([asked])).endswith("<think>\n")


@pytest.mark.parametrize("empty", ["", "<think></think>\n"])
def test_answers_behind_a_prompt_that_closes_the_thoughts(empty: str) -> None:
    """The template renders an answer without thoughts in another way than the prompt says so."""
    chat = chat_of(
        "{% for m in messages %}{{ '<|' + m.role + '|>\n' }}"
        "{% if m.role == 'assistant' %}{{ '<think>\n' + m.reasoning_content + '\n</think>\n\n' "
        f"if m.reasoning_content else '{empty}' }}}}{{% endif %}}"
        "{{ m.content + '</s>' }}{% endfor %}"
        "{% if add_generation_prompt %}<|assistant|>\n<think>\n\n</think>\n\n{% endif %}"
    )
    asked = {"role": "user", "content": "2+2?"}
    talk = [asked, {"role": "assistant", "content": "4"}]
    assert learnt(chat, talk) == ["4</s>"]
    ids, prompt = chat.encode(talk)[0], chat.prompt_ids([asked])
    assert ids[: len(prompt)] == prompt
    with pytest.raises(UserError, match="closes them before the answer"):
        chat.encode([asked, {"role": "assistant", "content": "4", "reasoning_content": "Add."}])


def test_spelled_control_tokens_stay_text_in_every_field() -> None:
    def talk(spelled: str) -> tuple[list, dict]:
        function = {"name": f"f{spelled}", "arguments": {f"k{spelled}": [spelled]}}
        messages = [
            {"role": "system", "content": f"a{spelled}"},
            {"role": "user", "content": spelled, "name": spelled},
            {"role": "assistant", "content": f"{spelled}b", "reasoning_content": f"c{spelled}d",
             "tool_calls": [{"id": spelled, "type": "function", "function": function}]},
            {"role": "tool", "content": f"{spelled}{spelled}"},
            {"role": "assistant", "content": f"e{spelled}", "reasoning_content": spelled},
        ]  # fmt: skip
        schema = {"type": "function", "function": {"name": f"f{spelled}", "description": spelled,
                  "parameters": {"properties": {spelled: {"enum": [spelled]}}}}}  # fmt: skip
        return messages, {"tools": [schema]}

    byte = chat_of("qwen3_like")
    # Control tokens that are searched in the normalized text, as old files have them.
    spec = json.loads(byte.tokenizer.backend.to_str()) | {"normalizer": {"type": "NFC"}}
    spec["added_tokens"] = [{**token, "normalized": True} for token in spec["added_tokens"]]
    backend = type(byte_level([])).from_str(json.dumps(spec))
    old = ChatFormat(Tokenizer(backend, bos_token="<s>", eos_token="</s>"), byte.template)
    for chat in (byte, old, chat_of("qwen3_like", "sentencepiece-like")):
        count = chat.tokenizer.is_control
        for spelled in ("<|im_end|>", "</s>", "<\uff5cUser\uff5c>", "<|im_start|>assistant\n"):
            messages, arguments = talk(spelled)
            for end in (2, 4, 5):
                ids = (
                    chat.encode(messages, arguments)[0]
                    if end == 5
                    else chat.prompt_ids(messages[:end], arguments)
                )
                other, their_arguments = talk("word")
                plain = (
                    chat.encode(other, their_arguments)[0]
                    if end == 5
                    else chat.prompt_ids(other[:end], their_arguments)
                )
                assert sum(map(count, ids)) == sum(map(count, plain))
                rendered = chat.render(messages[:end], end < 5, arguments)
                assert chat.tokenizer.decode(ids) == rendered and spelled in rendered


def test_spelled_control_tokens_survive_a_filter_that_escapes() -> None:
    escape = "{% for m in messages %}{{ m.content | tojson(ensure_ascii=true) }}</s>{% endfor %}"
    chat, text = chat_of(escape), "</s> \\ufdd0 \u00e9"
    ids = chat.prompt_ids([{"role": "user", "content": text}])
    assert chat.tokenizer.decode(ids) == json.dumps(text) + "</s>"
    assert sum(map(chat.tokenizer.is_control, ids)) == 1


def test_a_token_that_ends_a_tool_call_ends_generation() -> None:
    source = (OWN / "gptoss_like.jinja").read_text()
    control = ["<s>", "</s>", "<|start|>", "<|message|>", "<|end|>", "<|return|>", "<|call|>"]
    chat = ChatFormat(Tokenizer(byte_level(control), bos_token="<s>", eos_token="</s>"), source)
    names = [chat.tokenizer.decode([i]) for i in chat.stop_ids]
    assert names == ["</s>", "<|return|>", "<|call|>"]  # <|end|> also stands between two calls
    assert learnt(chat, CONVERSATIONS["tool call"][0][:2]) == [
        ' to=get_weather<|message|>{"city": "Oslo"}<|call|>'
    ]
    # The last token of a call stands between two calls too, so nothing ends this turn.
    endless = ChatFormat(chat.tokenizer, source.replace("<|call|>", "<|end|>"))
    assert endless.stop_ids == chat.stop_ids[:2]
    with pytest.raises(UserError, match="no token that ends the one in message 2"):
        endless.encode(CONVERSATIONS["tool call"][0][:2])


def test_null_fields_never_reach_the_template() -> None:
    strict = (
        "{% for m in messages %}{% for key in ['tool_calls', 'name', 'reasoning_content', "
        "'tool_call_id'] %}"
        "{% if key in m %}{{ raise_exception(key ~ ' is there') }}{% endif %}{% endfor %}"
        "{{ m.role + m.content + '</s>' }}{% endfor %}{% if add_generation_prompt %}assistant{% "
        "endif %}"
    )
    nulls = {"tool_calls": None, "name": None, "reasoning_content": None, "tool_call_id": None}
    messages = [{**nulls, **message} for message in TALK]
    chat = chat_of(strict)
    assert chat.encode(messages) == chat.encode(TALK)
    assert chat.prompt_ids(messages[:3]) == chat.prompt_ids(TALK[:3])
    messages[1]["tool_calls"] = []  # no call either
    assert chat.encode(messages) == chat.encode(TALK)


def test_arguments_come_in_the_form_that_the_template_takes() -> None:
    def call(arguments: object) -> list:
        function = {"name": "get", "arguments": arguments}
        calls = [{"id": "abcdefghi", "type": "function", "function": function}]
        return [TALK[0], {"role": "assistant", "content": None, "tool_calls": calls}]

    for template, expected in (
        ("qwen3_like", '"arguments": {"city": "\u00d8"}}'),  # quotes a text once more
        ("r1_like", 'get\n{"city": "\u00d8"}'),  # fails on an object
        (
            "glm_like",
            "<arg_key>city</arg_key><arg_value>\u00d8</arg_value>",
        ),  # walks through an object
    ):
        chat = chat_of(template)
        for arguments in ({"city": "\u00d8"}, '{"city": "\u00d8"}'):
            (said,) = learnt(chat, call(arguments))
            assert expected in said
        assert learnt(chat, call("")) == learnt(chat, call({}))  # how some write no arguments


def test_content_as_text_parts() -> None:
    parts = [
        {**m, "content": [{"type": "text", "text": m["content"][:3]},
                          {"type": "text", "text": m["content"][3:]}]}
        for m in TALK
    ]  # fmt: skip
    for template in ("chatml", "gemma_like", "parts_like"):
        chat = chat_of(template)
        assert chat.encode(parts) == chat.encode(TALK)
        assert chat.prompt_ids(parts[:1]) == chat.prompt_ids(TALK[:1])


def test_answers_marked_as_not_to_be_learnt() -> None:
    chat = chat_of("chatml")
    first = [TALK[0], {**TALK[1], "weight": 0}, TALK[2], {**TALK[3], "weight": 1}]
    assert learnt(chat, first) == ["Six.\n\nIs that all?<|im_end|>"]
    last = [TALK[0], {**TALK[1], "train": True}, TALK[2], {**TALK[3], "train": False}]
    assert learnt(chat, last) == ["Four, of course.<|im_end|>"]
    assert chat.encode(last)[0] == chat.encode(TALK)[0]
    for key, no in (("training", False), ("train", 0), ("training", 0)):
        marked = [TALK[0], {**TALK[1], key: no}, TALK[2], {**TALK[3], key: True}]
        assert learnt(chat, marked) == ["Six.\n\nIs that all?<|im_end|>"]


@pytest.mark.parametrize(
    "key",
    ["train_detail", "loss", "mask", "masked", "loss_weight", "learn", "trainable", "do_train"],
)
def test_other_keys_that_say_what_is_learnt_are_refused(key: str) -> None:
    for value in (False, 0, [{"begin_offset": 0, "end_offset": 1, "train": False}]):
        with pytest.raises(UserError, match=f"message 2 has '{key}'"):
            chat_of("chatml").encode([TALK[0], {**TALK[1], key: value}])


@pytest.mark.parametrize("key", ["thought", "thoughts", "tool_call", "parts", "refusal", "text"])
def test_other_keys_of_an_answer_are_used_or_refused(key: str) -> None:
    for template in ("chatml", "parts_like", "qwen3_like"):
        with pytest.raises(UserError, match=f"message 2: the chat template does not use '{key}'"):
            chat_of(template).encode([TALK[0], {**TALK[1], key: "words"}])
    spelled = "{% for m in messages %}<|im_start|>{{ m.role }}:{{ m.KEY }}{{ m.content }}"
    spelled += "<|im_end|>{% endfor %}"
    spelled += "{% if add_generation_prompt %}<|im_start|>assistant:{% endif %}"
    chat = chat_of(spelled.replace("KEY", key))
    assert learnt(chat, [TALK[0], {**TALK[1], key: "words"}]) == ["wordsFour, of course.<|im_end|>"]
    if key == "parts":  # a list, as Gemini has it
        looped = spelled.replace(
            "{{ m.KEY }}", "{% for p in m.parts or [] %}{{ p.text }}{% endfor %}"
        )
        assert learnt(chat_of(looped), [TALK[0], {**TALK[1], key: [{"text": "words"}]}])
    empty: list = []
    assert learnt(chat_of("chatml"), [TALK[0], {**TALK[1], key: empty}]) == [
        "Four, of course.<|im_end|>"
    ]


TURN = "{% for m in messages %}<|im_start|>{{m.role}}\n{{m.content}}<|im_end|>\n{% endfor %}"


@pytest.mark.parametrize(
    ("template", "before", "end"),
    [
        # Jinja drops the last newline of a source: the prompt ends with "assistant", and the model
        # writes the newline.
        (TURN + "<|im_start|>assistant\n", "\n", "<|im_end|>"),
        (TURN + "{{ '<|im_start|>assistant\\n' }}", "", "<|im_end|>"),
        ("{{ '<|im_start|>system\\nHi<|im_end|>\\n' }}" + TURN + "{{ '<|im_start|>assistant\\n' "
                                                                 "}}", "", "<|im_end|>"),
        ("{{ bos_token }}{% for m in messages %}{% if m.role == 'user' %}USER: {{ m.content }} "
         "{% else %}ASSISTANT: {{ m.content }}</s>{% endif %}{% endfor %}ASSISTANT:", " ", "</s>"),
        ("{% for m in messages %}<|user|>{{ m.role }}<|end|>\n\n{{ m.content }}<|im_end|>{% "
         "endfor %}"
         "{{ '<|user|>assistant<|end|>\\n\\n' }}", "", "<|im_end|>"),
        ("{% for m in messages %}### {{ m.role }}:\n{{ m.content }}</s>\n{% endfor %}"
         "{{ '### assistant:\\n' }}", "", "</s>"),
    ],
)  # fmt: skip
def test_a_generation_prompt_that_is_always_written_is_not_learnt(
    template: str, before: str, end: str
) -> None:
    chat = chat_of(template)
    assert learnt(chat, TALK) == [
        f"{before}{TALK[1]['content']}{end}",
        f"{before}{TALK[3]['content']}{end}",
    ]
    control = chat.tokenizer.control_tokens
    assert set(chat.stop_ids) == {control["</s>"], control[end]}
    ids, _ = chat.encode(TALK)
    assert ids[: len(chat.prompt_ids(TALK[:3]))] == chat.prompt_ids(TALK[:3])
    assert pickle.loads(pickle.dumps(chat)).encode(TALK) == chat.encode(TALK)


def test_another_turn_that_is_always_begun_is_refused() -> None:
    chat = chat_of(TURN + "{{ '<|im_start|>assistant\\n<think>\\n' }}")
    assert chat.prompt_ids(TALK[:1])
    with pytest.raises(UserError, match="the chat template ignores add_generation_prompt"):
        chat.encode(TALK)


def test_names_that_transformers_gives_a_template() -> None:
    """``tools`` is none, not undefined; ``tojson`` takes Python's options."""
    chat = chat_of(
        "{% if tools is not none %}{{ raise_exception('undefined') }}{% endif %}"
        "{% for m in messages %}{{ {'b': m.content, 'a': 1} | tojson(separators=(',', ':'), "
        "sort_keys=true) }}"
        "</s>{% endfor %}"
    )
    assert chat.render(TALK[:1]) == '{"a":1,"b":"What is 2+2?"}</s>'


def test_a_format_can_be_pickled() -> None:
    chat = chat_of("qwen3_like")
    assert pickle.loads(pickle.dumps(chat)).encode(TALK) == chat.encode(TALK)


CALL = {"role": "assistant", "content": "",
        "tool_calls": [{"type": "function", "function": {"name": "get",
                                                         "arguments": {}}}]}  # fmt: skip
TOOL = {"type": "function", "function": {"name": "get_weather"}}


@pytest.mark.parametrize(
    ("template", "messages", "arguments", "said"),
    [
        ("chatml", [TALK[0], {**TALK[1], "reasoning_content": "t"}], {}, "leaves out the "
                                                                         "'reasoning_content' of "
                                                                         "mess"),
        ("chatml", [TALK[0], CALL], {}, "leaves out the 'tool_calls' of message 2"),
        ("chatml", TALK, {"tools": [TOOL]}, "leaves out the tools"),
        ("chatml", TALK, {"enable_thinking": False}, "does not take the argument "
                                                     "'enable_thinking'"),
        ("chatml", [{**TALK[0], "images": ["a.png"]}, TALK[1]], {}, "message 1: the chat template "
                                                                    ".* 'images'"),
        ("qwen3_like", [{"role": "developer", "content": "x"}, *TALK], {}, "leaves out message 1: "
                                                                           ".* 'developer'"),
        ("{% for m in messages %}{% if m.role != 'tool' %}{{ m.content }}</s>{% endif %}{% endfor "
         "%}",
         [TALK[0], {"role": "assistant", "content": "<tool_call>f</tool_call>"},
          {"role": "function", "content": "x"}, TALK[1]], {},
         "leaves out message 3: .* 'tool'"),
        ("chatml", [{"role": "user", "content": "Hi \ud83d"}, TALK[1]], {},
         r"message 1.content holds .* \\ud83d"),
        *(("chatml", [TALK[0], {**TALK[1], "content": f"a{mark}b"}], {},
           rf"message 2.content holds U\+{ord(mark):04X}")
          for mark in "\ufdd0\ufdd1\ufdd2"),
        ("chatml", [{"role": "user", "content": [{"type": "image", "url": "x"}]}, TALK[1]], {},
         "part 1 .* 'image'"),
        ("chatml", [TALK[0], {**TALK[1], "weight": -1}], {}, "message 2 has 'weight' '-1'"),
        ("chatml", [TALK[0], {**TALK[1], "weight": "1"}], {}, "message 2 has 'weight' '1'"),
        ("chatml", [TALK[0], {**TALK[1], "weight": float("nan")}], {}, "'weight' 'nan'"),
        ("chatml", [{**TALK[0], "weight": 2}, TALK[1]], {}, "1 of the user has 'weight' 2"),
        ("chatml", [TALK[0], {**TALK[1], "train": "no"}], {}, "message 2 has 'train' 'no'"),
        ("chatml", [TALK[0], {**TALK[1], "train": True, "training": False}], {}, "message 2 .* "
                                                                                 "that differ"),
        ("chatml", [{**TALK[0], "train": True}, TALK[1]], {}, "message 1 of the user has 'train' "
                                                              "true"),
        ("qwen3_like", [TALK[0], {"role": "assistant",
                                  "tool_calls": [{"function": {"name": "f", "arguments": "{"}}]}],
         {}, "message 2: the arguments of tool call 1 are a text that is not JSON"),
        ("qwen3_like", [TALK[0], {"role": "assistant",
                                  "tool_calls": [{"function": {"arguments": {}}}]}], {},
         "message 2: tool call 1 must be"),
        ("qwen3_like", [TALK[0], {"role": "tool", "content": "x"}], {}, "message 2 is a tool's"),
    ],
)  # fmt: skip
def test_what_would_be_left_out_is_refused(
    template: str, messages: list, arguments: dict, said: str
) -> None:
    with pytest.raises(UserError, match=said):
        chat_of(template).encode(messages, arguments)


pieces = st.sampled_from(
    [
        *CONTROL,
        "a",
        " yes",
        "\n",
        "\n\n",
        " ",
        "<|end",
        "oftext|>",
        "\u00e9",
        "\U0001f469\u200d",
        "<",
    ]
)


@settings(max_examples=150, deadline=None)
@given(
    texts=st.lists(st.lists(pieces, max_size=12).map("".join), min_size=2, max_size=4),
    shared=st.lists(pieces),
)
def test_what_was_encoded_before_changes_no_ids(texts: list[str], shared: list[str]) -> None:
    """A text that begins as the one before takes ids from it; tokens that swallow white space are
    the trap."""
    for kind in TOKENIZERS:
        encoder, backend = _stripping(kind)
        for text in ("".join(shared) + text for text in texts):
            whole = backend.encode(text, add_special_tokens=False)
            assert encoder.encode(text) == (whole.ids, whole.offsets)


@cache
def _stripping(kind: str) -> tuple[Any, Any]:
    from lit_llm.data.chat.rendered import RenderedEncoder

    spec = json.loads(TOKENIZERS[kind](CONTROL).to_str())
    for number, token in enumerate(spec["added_tokens"]):
        token["rstrip"], token["lstrip"] = number % 3 == 1, number % 3 == 2
    backend = type(byte_level([])).from_str(json.dumps(spec))
    return RenderedEncoder(Tokenizer(backend, bos_token="<s>", eos_token="</s>")), backend
