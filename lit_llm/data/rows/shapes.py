"""Row formats of common instruction datasets: the conversation, its tools and its split.

Keys of the row format are used. Keys that hold a part of a conversation but are not used are
refused by name. Further columns (id, source, score, ...) are ignored. A null or empty value counts
as absent.
"""

from __future__ import annotations

import json
from contextlib import suppress
from typing import Any

from lit_llm.data.chat.messages import OTHER_LEARN_KEYS, REASONING, read_weight
from lit_llm.data.chat.template import Message
from lit_llm.data.rows.policy import Format
from lit_llm.errors import UserError

_PAIRS = (("prompt", "completion"), ("prompt", "response"), ("question", "answer"),
          ("instruction", "output"), ("instruction", "response"), ("prompt", "answer"),
          ("question", "response"), ("query", "response"), ("query", "answer"),
          ("input", "output"))  # fmt: skip
_PAIRS_OF = {
    "prompt_completion": tuple(pair for pair in _PAIRS if pair[0] == "prompt"),
    "question_answer": tuple(pair for pair in _PAIRS if pair[0] in ("question", "query", "input")),
    "alpaca": tuple(pair for pair in _PAIRS if pair[0] == "instruction"),
}
_ASKED = ("prompt", "question", "query", "instruction", "input", "inputs", "context", "choices")
_ANSWERED = ("completion", "response", "answer", "output")
_SYSTEM = ("system", "system_prompt", "system_message")
_OTHER_PARTS = ("history", *REASONING, "documents", "images", "image", "audio", "audios", "video",
            "videos", "tool_calls", "tool_call", "function_call", "thought", "thoughts", "refusal",
            "parts", "segments")  # fmt: skip
# ShareGPT's names of the roles. The roles of `messages` are accepted too.
_FROM = {"human": "user", "function_call": "assistant", "observation": "tool",
         **dict.fromkeys(("gpt", "chatgpt", "bot", "model", "bing", "bard"),
                         "assistant")}  # fmt: skip
# Keys that exclude texts from learning if they have a value.
_HIDING = ("train_detail", "train_details", "mask", "masked", "loss_mask")
SPLITS = {"train": "train", "training": "train",
           "dev": "validation", "val": "validation", "valid": "validation",
           "validation": "validation", "eval": "validation", "evaluation": "validation",
           "test": "validation"}  # fmt: skip


def to_messages(row: dict[str, Any], format: Format = "auto") -> list[Message]:
    """Read the conversation in a row of a common format, found by its keys or named by ``format``.

    - {"messages": [{"role", "content", ...}]}, with the message keys of transformers and OpenAI
    - {"conversations": [{"from": "human" | "gpt" | "system" | "function_call" | "observation",
      "value"}]}; other names of the assistant (chatgpt, bot, model, bing, bard) are accepted too
    - either list as JSON text
    - {"prompt", "completion", "response" or "answer"}: texts, or lists of messages, of which the
      completion's are learnt
    - {"question" or "query", "answer" or "response"}; {"input", "output"}
    - {"instruction", "input" (optional), "output" or "response"}

    In each of them, ``system``, ``system_prompt`` or ``system_message`` may hold the system
    message. Beside a question and its answer, ``history`` may hold earlier turns, [[question,
    answer], ...] or messages, and ``reasoning_content`` the thoughts of the answer.

    Raises:
        UserError: none of these formats; a key that holds a part of the conversation and is not
            used; two formats in one row; a row of preferences.
    """
    row = {key: value for key, value in row.items() if value is not None}
    check_learnt(row)
    _check_no_preference(row)
    messages, used = _find(row, format)
    if (system := system_of(row)) is not None:
        messages = with_system(messages, system)
    if isinstance(messages, list):
        check_unused({key: row[key] for key in row if row[key] and key not in used}, used, messages)
    return messages


def check_learnt(row: dict[str, Any]) -> None:
    """Raise UserError for a key of the row that says, or may say, not to learn it."""
    for key in ("train", "label", "training", *OTHER_LEARN_KEYS):
        if key not in row:
            continue
        value = row[key]
        if isinstance(value, list):
            _check_is_a_row(row)
        if key == "label":  # 0 is a class label; false marks a bad answer in KTO data
            learnt = value is not False
        elif key == "loss":  # a number is a measured loss
            learnt = value is not False and value != 0
        elif key in _HIDING:
            learnt = not value
        else:
            learnt = value == 1
        if not learnt:
            raise UserError(
                f"the row has {key!r} {str(value)[:40]!r}, which may say not to learn it; "
                "'train' is used in a message, and 'weight' in a row and in a message. Take the "
                "row out if it is not to be learnt, else the column"
            )


def _check_no_preference(row: dict[str, Any]) -> None:
    """Raise UserError for a row that compares answers: to learn all of them would be wrong."""
    for keys in (("chosen", "rejected"), ("responses", "scores")):
        if set(keys) <= set(row):
            hint = "; data.columns={completion: chosen} learns the chosen answers of texts"
            raise UserError(
                f"a preference row ({' and '.join(map(repr, keys))}), which is for preference "
                f"tuning; its keys are {', '.join(map(str, row))}"
                f"{hint if 'chosen' in keys else ''}"
            )


def template_arguments(row: dict[str, Any]) -> dict[str, Any]:
    """Arguments of the chat template besides the messages: ``tools`` and ``chat_template_kwargs``.

    Tools are a list of JSON schemas, or JSON text of one. ``functions`` is OpenAI's older name and
    form.

    Raises:
        UserError: a value of another type.
    """
    found: dict[str, Any] = {}
    if kwargs := parsed("chat_template_kwargs", row.get("chat_template_kwargs")):
        if not isinstance(kwargs, dict):
            raise UserError("'chat_template_kwargs' must be an object")
        found |= {key: value for key, value in kwargs.items() if value is not None}
    tools, functions = (parsed(key, row.get(key)) for key in ("tools", "functions"))
    if tools and functions:
        raise UserError("the row has both 'tools' and 'functions'")
    given = tools or functions
    if not given:
        return found
    if not isinstance(given, list):
        raise UserError("'tools' must be a list of JSON schemas, or JSON text of one")
    schemas = [parsed("tools", tool) for tool in given]
    for number, schema in enumerate(schemas, 1):
        name = schema.get("function", schema).get("name") if isinstance(schema, dict) else None
        if not isinstance(name, str):
            raise UserError(f"tool {number} must be a JSON schema that has a 'name'")
    if functions:
        schemas = [{"type": "function", "function": schema} for schema in schemas]
    return found | {"tools": schemas}


def split_of(row: dict[str, Any]) -> str | None:
    """The split in the row's ``split``: train or validation; None without a value.

    dev, val, valid, eval and test count as validation, so such rows are never trained on.

    Raises:
        UserError: another value.
    """
    split = row.get("split")
    if split is None or split == "":
        return None
    known = SPLITS.get(split.lower().partition("_")[0]) if isinstance(split, str) else None
    if known is None:
        raise UserError(
            f"the row has the split {str(split)[:40]!r}; known are {', '.join(SPLITS)}. Rename "
            "the column if it means something else"
        )
    return known


def weight_of(row: dict[str, Any]) -> float:
    """The row's ``weight`` in the loss, 1 without one; of a CSV file it is a text.

    Raises:
        UserError: the value is no weight.
    """
    given = row.get("weight")
    if given is None or given == "":
        return 1.0
    if isinstance(given, str):
        with suppress(ValueError):
            given = float(given)
    return read_weight(given, "the row", "; rename the column if it means something else")


def group_of(row: dict[str, Any]) -> str | None:
    """The row's ``group``, as a text; rows of one group are never in both splits.

    Raises:
        UserError: the value is neither a text nor a number.
    """
    group = row.get("group")
    if group is None or group == "":
        return None
    if not isinstance(group, str | int | float):
        raise UserError(f"the row has the group {str(group)[:40]!r}; it is a text or a number")
    return str(group)


def _find(row: dict[str, Any], format: Format) -> tuple[list[Message], set[str]]:
    """Find the conversation; returns (messages, keys of the row that were used)."""
    pairs = _PAIRS if format == "auto" else _PAIRS_OF.get(format, ())
    pair = next((pair for pair in pairs if set(pair) <= set(row)), None)
    whole = [
        key
        for key in ("messages", "conversations")
        if format in ("auto", key) and (row.get(key) or (key in row and not pair))
    ]
    if len(whole) == 2:
        raise UserError("the row has both 'messages' and 'conversations'; name one as data.format")
    if whole:
        turns = parsed(whole[0], row[whole[0]])
        return turns if whole == ["messages"] else sharegpt(turns), set(whole)
    if pair:
        return _pair(row, *pair)
    _check_is_a_row(row)
    keys = ", ".join(map(str, row)) or "none"
    if format != "auto":
        wanted = " or ".join(" with ".join(map(repr, pair)) for pair in pairs) or repr(format)
        raise UserError(
            f"data.format={format}: the row has no {wanted}, its keys are {keys}; data.columns "
            "renames keys"
        )
    raise UserError(
        "no conversation in the row: 'messages' (or 'conversations', 'prompt' and 'completion', "
        f"'question' and 'answer', 'instruction' and 'output') is looked for, its keys are {keys}; "
        "data.columns renames keys, data.format=text learns 'text' as it is"
    )


def _check_is_a_row(row: dict[str, Any]) -> None:
    """Raise UserError for a file's outermost object, whose values are lists of rows."""
    lists = [
        key
        for key, value in row.items()
        if isinstance(value, list)
        and value
        and all(isinstance(item, dict) for item in value)
        and not {"role", "from"} & set(value[0])  # a conversation
    ]
    if lists and len(lists) == len(row):
        raise UserError(
            f"an object with rows in {', '.join(map(repr, lists))}, not a row; write the rows as a "
            'list or one a line, with "split": "train" or "validation" in each if you want to '
            "choose the split"
        )


def _pair(row: dict[str, Any], asked: str, answered: str) -> tuple[list[Message], set[str]]:
    used = {asked, answered, "history"}
    question, answer = row[asked], row[answered]
    extra = next((key for key in ("input", "inputs", "context") if row.get(key)), None)
    if asked == "instruction" and extra is not None:
        if not isinstance(question, str) or not isinstance(row[extra], str):
            raise UserError(f"'instruction' and {extra!r} must be texts")
        used.add(extra)
        question = "\n\n".join(part for part in (question, row[extra]) if part.strip())
    before, after = turns_of("user", question), turns_of("assistant", answer)
    thoughts = next((key for key in REASONING if row.get(key)), None)
    if thoughts is not None and isinstance(answer, str):
        used.add(thoughts)
        after = [{**after[0], thoughts: row[thoughts]}]
    if isinstance(question, list):  # answers inside a prompt are context and not learnt
        before = [
            _not_learnt(message) if _is_assistants(message) else message for message in before
        ]
    return history_of(row.get("history") or []) + before + after, used


def _not_learnt(message: Message) -> Message:
    return {key: value for key, value in message.items() if key != "training"} | {"train": False}


def _is_assistants(message: Any) -> bool:
    return isinstance(message, dict) and message.get("role") == "assistant"


def turns_of(role: str, content: Any) -> list[Message]:
    """A message of ``role`` with this text; a list of messages stays as it is."""
    return content if isinstance(content, list) else [{"role": role, "content": content}]


def history_of(history: Any) -> list[Message]:
    """The messages of ``history``. Raise UserError for another form."""
    if not isinstance(history, list):
        raise UserError("'history' must be a list of [question, answer] or of messages")
    messages: list[Message] = []
    for turn in history:
        if isinstance(turn, dict):
            messages.append(turn)
        elif isinstance(turn, list | tuple) and len(turn) == 2:
            messages += turns_of("user", turn[0]) + turns_of("assistant", turn[1])
        else:
            raise UserError("'history' must be a list of [question, answer] or of messages")
    return messages


def sharegpt(turns: Any) -> list[Message]:
    """The messages of a list of {from, value}; {role, content} stay. Raise UserError for others."""
    if not isinstance(turns, list) or not all(isinstance(turn, dict) for turn in turns):
        raise UserError("'conversations' must be a list of {from, value}")
    if all({"role", "content"} <= set(turn) for turn in turns):
        return turns
    messages = []
    for turn in turns:
        if not {"from", "value"} <= set(turn) or not isinstance(turn["from"], str):
            raise UserError("'conversations' must be a list of {from, value}")
        other = {key: value for key, value in turn.items() if key not in ("from", "value")}
        message = {"role": _FROM.get(turn["from"], turn["from"]), "content": turn["value"], **other}
        if turn["from"] == "function_call":
            calls = parsed("value", turn["value"])
            calls = calls if isinstance(calls, list) else [calls]
            message |= {
                "content": None,
                "tool_calls": [{"type": "function", "function": call} for call in calls],
            }
        messages.append(message)
    return messages


def system_of(row: dict[str, Any]) -> str | None:
    """The row's system message, or None. Raise UserError for two that differ."""
    found = {key: row[key] for key in _SYSTEM if row.get(key, "") != ""}
    for key, text in found.items():
        if not isinstance(text, str):
            raise UserError(f"{key!r} must be a text")
    if len(set(found.values())) > 1:
        raise UserError(f"the row has both {' and '.join(map(repr, found))}, and they differ")
    return next(iter(found.values()), None)


def with_system(messages: Any, system: str) -> list[Message]:
    """Put the row's system text in front of the messages, unless it is there already."""
    if not isinstance(messages, list) or not messages or not isinstance(messages[0], dict):
        return messages  # a later check of the conversation reports what is wrong
    if messages[0].get("role") != "system":
        return [{"role": "system", "content": system}, *messages]
    if messages[0].get("content") != system:
        raise UserError("the row has 'system' and another system message in the conversation")
    return messages


def check_unused(unused: dict[str, Any], used: set[str], messages: list[Any]) -> None:
    """Raise UserError for a key that holds a part of the conversation which no message contains."""
    told = [message for message in messages if isinstance(message, dict)]
    keys = [*_ASKED, *_OTHER_PARTS]
    answered = told and _is_assistants(told[-1]) and used & {"messages", "conversations"}
    if not answered:  # beside a whole conversation, an answer column is a reference for evaluations
        keys += _ANSWERED
    for key in keys:
        if key in unused and not _is_contained(unused[key], told):
            raise UserError(
                f"the row has {key!r}, a part of the conversation that its other keys do not use; "
                "take the column out, or override format_example"
            )


def _is_contained(value: Any, messages: list[Message]) -> bool:
    if isinstance(value, list):
        return all(part in messages or _is_contained(part, messages) for part in value)
    texts = [text for message in messages for text in message.values() if isinstance(text, str)]
    return isinstance(value, str) and any(value in text for text in texts)


def parsed(key: str, value: Any, texts: bool = False) -> Any:
    """Parse ``value`` as JSON if it is a text, else return it.

    With ``texts``, a text that is not a list or object in JSON stays a text.
    """
    if not isinstance(value, str):
        return value
    if texts and not value.lstrip().startswith("[{"):
        return value
    try:
        return json.loads(value) if value.strip() else None
    except (ValueError, RecursionError):
        if texts:
            return value
        raise UserError(f"{key!r} is a text that is not JSON") from None
