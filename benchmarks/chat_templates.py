"""Chat templates of other people's models: does ours send, and train on, what transformers sends?

    pip install --no-deps --target trl trl==1.16.0  # its folder of 41 templates is all that is used
    python benchmarks/chat_templates.py --templates trl/trl/chat_templates  # half a minute
    python benchmarks/chat_templates.py --dry-run  # our own small ones, in tests/data/templates

For every template and eleven conversations: the prompt before each answer has the text and the ids
of transformers' ``apply_chat_template(..., add_generation_prompt=True)``; in training every answer
has this prompt as its context, its words and the token that ends the turn are learnt, no path is
without a learnt token, and answers that cannot be learnt are counted as left out. Where
transformers' template refuses a conversation, ours must too. A conversation is refused by name if
the template would leave out a part of it without a word (thoughts or tool calls that it does not
know); a refusal counts as a failure unless that part is missing from transformers' text too.

Thinking is turned off with the template's own switch. A template without one gets none, and
conversations of text alone are checked of templates that take images too.

Two tokenizers are used: a byte-level one, and a SentencePiece-like one that puts a space mark
before a text. Both get the control tokens that the template spells.

Beside it stands what TRL's ``assistant_only_loss`` has without its patched copy of a template: the
mask of transformers' ``return_assistant_tokens_mask``, which needs ``{% generation %}`` marks.
"""

from __future__ import annotations

import argparse
import copy
import itertools
import json
import re
from pathlib import Path
from typing import Any

import jinja2
import transformers
from record import write_result
from tokenizers import Regex, decoders, models, pre_tokenizers, trainers
from tokenizers import Tokenizer as Backend

from lit_llm.data.chat.chat_format import ChatFormat
from lit_llm.errors import UserError
from lit_llm.models.tokenizer import SPLIT_PATTERN, Tokenizer

OWN = Path(__file__).parents[1] / "tests/data/templates"
# Control tokens as templates spell them. <think> and <tool_call> are words of the answer in
# published tokenizers.
_CONTROL = re.compile(
    r"<\|[\w.]+\|?>|<\w+\|>|<[\uff5c|][^<>]{1,40}[\uff5c|]>|<(?:start|end)_of_(?:turn|utterance)>|"
    r"\[/?(?:INST|TOOL_CALLS|"
    r"AVAILABLE_TOOLS|TOOL_RESULTS|SYSTEM_PROMPT)\]|</?s>"
)
_TOOLS = [
    {
        "type": "function",
        "function": {
            "name": "get_weather",
            "description": "The weather of a city.",
            "parameters": {
                "type": "object",
                "properties": {"city": {"type": "string", "description": "Its name."}},
                "required": ["city"],
            },
        },
    }
]


def _call(city: str, number: int) -> dict[str, Any]:
    function = {"name": "get_weather", "arguments": {"city": city}}
    return {"id": f"call0000{number}", "type": "function", "function": function}


def _user(text: str) -> dict[str, Any]:
    return {"role": "user", "content": text}


def _assistant(text: str | None, **more: Any) -> dict[str, Any]:
    return {"role": "assistant", "content": text, **more}


def _tool(text: str, number: int) -> dict[str, Any]:
    return {
        "role": "tool",
        "content": text,
        "tool_call_id": f"call0000{number}",
        "name": "get_weather",
    }


_ONE = [_user("What is 2+2?"), _assistant("Four, of course.")]
_WEATHER = [_user("Is it raining in Oslo?"), _assistant(None, tool_calls=[_call("Oslo", 1)]),
            _tool("rain", 1), _assistant("Yes, it rains."), _user("Thanks."),
            _assistant("You are welcome.")]  # fmt: skip
CONVERSATIONS: dict[str, tuple[list[dict[str, Any]], list[dict[str, Any]] | None]] = {
    "one turn": (_ONE, None),
    "two turns": ([*_ONE, _user("And 3+3?"), _assistant("Six.\n\nIs that all?")], None),
    "many turns": ([*_ONE, _user("And 3+3?"), _assistant("Six."), _user("And 4+4?"),
                    _assistant("Eight."), _user("5+5?"), _assistant("Ten.")], None),
    "system": ([{"role": "system", "content": "Be brief."}, *_ONE, _user("Sure?"),
                _assistant("Sure.")], None),
    "last turn the user's": ([*_ONE, _user("And 3+3?")], None),
    "reasoning": ([_user("2+2?"), _assistant("4", reasoning_content="Add two and "
                                                                    "two."), _user("3+3?"),
                   _assistant("6", reasoning_content="Add three and three.")], None),
    "thinking off": ([*_ONE, _user("And 3+3?"), _assistant("Six.")], None),
    "tool call": (_WEATHER, _TOOLS),
    "parallel tool calls": ([_user("Oslo or Rome?"),
                             _assistant(None, tool_calls=[_call("Oslo", 1), _call("Rome", 2)]),
                             _tool("rain", 1), _tool("sun", 2), _assistant("Rome.")], _TOOLS),
    "tool call, no schema": (_WEATHER, None),
    "reasoning between tool calls": (
        [_user("Oslo or Rome?"),
         _assistant(None, reasoning_content="First Oslo.", tool_calls=[_call("Oslo", 1)]),
         _tool("rain", 1),
         _assistant(None, reasoning_content="Now Rome.", tool_calls=[_call("Rome", 2)]),
         _tool("sun", 2), _assistant("Rome.", reasoning_content="Sun is better.")], _TOOLS),
}  # fmt: skip
_TEXT = Path(__file__).read_text(encoding="utf-8")


def byte_level(control: list[str]) -> Backend:
    """A small byte-level BPE."""
    backend = Backend(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(SPLIT_PATTERN), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    backend.decoder = decoders.ByteLevel()
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    trainer = trainers.BpeTrainer(
        vocab_size=700, special_tokens=control, initial_alphabet=alphabet, show_progress=False
    )
    backend.train_from_iterator([_TEXT], trainer)
    return backend


def sentencepiece_like(control: list[str]) -> Backend:
    """A small BPE with space marks and bytes for what it does not know, as in Llama 2."""
    backend = Backend(models.BPE(byte_fallback=True, unk_token="<unk>", fuse_unk=True))
    backend.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first", split=False)
    backend.decoder = decoders.Sequence(
        [
            decoders.Replace("\u2581", " "),
            decoders.ByteFallback(),
            decoders.Fuse(),
            decoders.Strip(" ", 1, 0),
        ]
    )
    special = ["<unk>", *control, *(f"<0x{byte:02X}>" for byte in range(256))]
    trainer = trainers.BpeTrainer(vocab_size=700, special_tokens=special, show_progress=False)
    backend.train_from_iterator(_TEXT.splitlines(), trainer)
    spec = json.loads(backend.to_str())  # bytes are no control tokens
    spec["added_tokens"] = [t for t in spec["added_tokens"] if not t["content"].startswith("<0x")]
    return Backend.from_str(json.dumps(spec))


TOKENIZERS = {"byte-level": byte_level, "sentencepiece-like": sentencepiece_like}


def arguments_of(name: str, source: str) -> dict[str, Any]:
    """The template's arguments for this conversation."""
    tools = CONVERSATIONS[name][1]
    arguments: dict[str, Any] = {} if tools is None else {"tools": tools}
    if name == "thinking off" and "enable_thinking" in source:
        arguments["enable_thinking"] = False
    return arguments


def their_prompt(
    theirs: Any, messages: list[dict[str, Any]], arguments: dict[str, Any], expected: str
) -> tuple[str, list[int]]:
    """(text, ids) of transformers' prompt.

    A template decides in which form content and arguments must come, and its user gives them so:
    the form that gives the expected text is taken, else the first that the template does not
    refuse.
    """
    found, refusal = [], None
    for as_text, as_parts in itertools.product((False, True), repeat=2):
        given = copy.deepcopy(messages)
        for message in given:
            for call in message.get("tool_calls", []) if as_text else []:
                call["function"]["arguments"] = json.dumps(call["function"]["arguments"])
            if as_parts and message["content"] is not None:
                message["content"] = [{"type": "text", "text": message["content"]}]
        how = {**arguments, "add_generation_prompt": True}
        try:
            text = theirs.apply_chat_template(given, tokenize=False, **how)
        except Exception as error:  # templates raise what they like
            refusal = refusal or error
            continue
        ids = theirs.apply_chat_template(given, **how)["input_ids"]
        found.append((text, ids))
        if text == expected:
            return text, ids
    if not found:
        raise Refused(str(refusal))
    return found[0]


class Refused(Exception):
    """transformers' template raises."""


def check(
    chat: ChatFormat, theirs: Any, messages: list[dict[str, Any]], arguments: dict[str, Any]
) -> str:
    """ "ok", "ok N/M" (answers learnt), "ok alone" (transformers refuses), "refused: why", "refused
    there: why" (by both), or "FAILED: why".
    """
    prompts, known = {}, True
    ends = [i for i, message in enumerate(messages) if message["role"] == "assistant"]
    for end in [*ends, *([] if messages[-1]["role"] == "assistant" else [len(messages)])]:
        try:
            ours: list[int] | None = chat.prompt_ids(messages[:end], arguments)
            text = chat.render(messages[:end], True, arguments)
        except UserError as error:
            ours, text, refusal = None, "", error
        try:
            their_text, prompts[end] = their_prompt(theirs, messages[:end], arguments, text)
        except Refused as error:
            if ours is None:
                return f"refused there: {error}"
            their_text, prompts[end], known = text, ours, False
        if ours is None:
            return _refusal(refusal, theirs, messages, arguments)
        if text != their_text:
            return f"FAILED: another text of the prompt before message {end + 1}"
        if ours != prompts[end]:
            return f"FAILED: other ids of the prompt before message {end + 1}"
    try:
        coded = chat.encode_conversation(messages, arguments)
        targets = chat.targets(messages, arguments)
    except UserError as error:
        return _refusal(error, theirs, messages, arguments)
    if len(targets) != coded.answers - coded.left_out:
        return "FAILED: an answer is neither learnt nor counted as left out"
    paths = [(path.ids.tolist(), path.learnt.tolist()) for path in coded.paths]
    if not all(any(learnt) for _, learnt in paths):
        return "FAILED: a path has no learnt token"
    for target in targets:
        number, begin = target.turn + 1, len(target.context)
        whole = target.context + target.answer
        if target.context != prompts[target.turn]:
            return f"FAILED: the context of message {number} is not transformers' prompt"
        if not any(
            ids[: len(whole)] == whole and all(learnt[begin : len(whole)]) for ids, learnt in paths
        ):
            return f"FAILED: no path learns message {number} behind its context"
        if target.answer[-1] not in chat.stop_ids:
            return f"FAILED: no token that ends message {number} is learnt"
    learnt = f" {len(targets)}/{coded.answers}" if coded.left_out else ""
    return f"ok{learnt}" if known else f"ok{learnt} alone"


def _refusal(
    error: UserError, theirs: Any, messages: list[dict[str, Any]], arguments: dict[str, Any]
) -> str:
    """ "refused: why" if transformers' text of some answer lacks a part, else "FAILED: why"."""
    for end in range(1, len(messages) + 1):
        last = messages[end - 1]
        try:
            prompt = their_prompt(theirs, messages[: end - 1], arguments, "")[0] if end > 1 else ""
            text = their_prompt(theirs, messages[:end], arguments, "")[0]
        except Refused:  # it refuses a part of the conversation, and so do we
            return f"refused: {error}"
        thoughts = last.get("reasoning_content", "")
        closed = bool(thoughts) and prompt.rstrip().endswith("</think>")
        calls = [call["function"]["name"] for call in last.get("tool_calls", [])]
        schemas = [tool["function"]["description"] for tool in arguments.get("tools", [])]
        words = [last["content"] or "", thoughts, *calls, *schemas]
        if closed or not all(word in text for word in words):
            return f"refused: {error}"
    return f"FAILED: refused though transformers leaves nothing out: {error}"


def masked_by_trl(theirs: Any) -> bool:
    """Whether the template as it is gives a mask that is not empty.

    TRL's SFTTrainer makes this call for ``assistant_only_loss``.
    """
    how = {"return_dict": True, "return_assistant_tokens_mask": True}
    for messages in (_ONE, [{**m, "content": [{"type": "text", "text": m["content"]}]}
                            for m in _ONE]):  # fmt: skip
        try:
            return any(theirs.apply_chat_template(messages, **how)["assistant_masks"])
        except jinja2.TemplateError:  # the template takes content in the other form
            continue
    return False


def their_tokenizer(backend: Backend, source: str) -> Any:
    """transformers' tokenizer with this template."""
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=backend, bos_token="<s>", eos_token="</s>", chat_template=source
    )


def check_template(source: str) -> dict[str, str]:
    """What `check` says of every conversation; with the tokenizer's kind where the second says
    something else."""
    control = sorted(set(_CONTROL.findall(source)) | {"<s>", "</s>"})
    said: dict[str, str] = {}
    for kind, make in TOKENIZERS.items():
        backend = make(control)
        theirs = their_tokenizer(backend, source)
        tokenizer = Tokenizer(backend, bos_token="<s>", eos_token="</s>", chat_template=source)
        chat = ChatFormat(tokenizer)
        for name, (messages, _) in CONVERSATIONS.items():
            found = check(chat, theirs, messages, arguments_of(name, source))
            if found.startswith("FAILED") or name not in said:
                said[name] = f"{found} ({kind})" if found.startswith("FAILED") else found
    return said


def main() -> None:
    """Check, print and record."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--templates", type=Path, help="a folder of .jinja files")
    parser.add_argument("--dry-run", action="store_true", help="our own templates; nothing is kept")
    args = parser.parse_args()
    folder = OWN if args.dry_run else args.templates
    if folder is None:
        parser.error("give --templates DIR or --dry-run")
    transformers.logging.set_verbosity_error()  # it warns of every template without marks
    # Variants that TRL made for its own training stand beside the originals.
    files = [file for file in sorted(folder.glob("*.jinja")) if "_training" not in file.stem]
    sources = {file.stem: file.read_text(encoding="utf-8") for file in files}
    result = {name: check_template(source) for name, source in sources.items()}
    print(f"{'template':24}", *(f"{name[:13]:14}" for name in CONVERSATIONS))
    for name, said in result.items():
        print(f"{name:24}", *(f"{text.partition(':')[0]:14}" for text in said.values()))
    for name, said in result.items():
        for conversation, text in said.items():
            if ":" in text:
                print(f"{name}, {conversation}: {text}")
    failed = [
        name for name, said in result.items() if any(t.startswith("FAILED") for t in said.values())
    ]
    images = [name for name, source in sources.items() if "image" in source]
    backend = byte_level(["<s>", "</s>"])
    trl = [name for name, source in sources.items()
           if masked_by_trl(their_tokenizer(backend, source))]  # fmt: skip
    copies = [name for name in sources if (folder / f"{name}_training.jinja").is_file()]
    print(f"text alone is checked of {len(images)} templates for images: {', '.join(images)}")
    print(
        f"{len(files) - len(failed)} of {len(files)} templates pass; failed: "
        f"{', '.join(failed) or 'none'}"
    )
    print(
        f"TRL masks {len(trl)} of {len(files)} without a patched copy ({', '.join(trl) or 'none'});"
        f" it has patched copies of {len(copies)}"
    )
    if not args.dry_run:
        print(
            "wrote",
            write_result(
                "chat_templates",
                {
                    "templates": result,
                    "passed": len(files) - len(failed),
                    "of": len(files),
                    "for images, checked with text": images,
                    "masked by TRL without a patched copy": trl,
                    "patched copies in TRL": len(copies),
                },
            ),
        )
    if failed:
        raise SystemExit(1)


if __name__ == "__main__":
    main()
