"""``lit_llm generate CKPT --prompt TEXT``: continue prompts, or answer them with ``--chat``."""

from __future__ import annotations

from argparse import Namespace
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lit_llm.errors import UserError, settings_called
from lit_llm.io.streams import json_text
from lit_llm.settings.arguments import Parser
from lit_llm.terminal.options import add_options, read_adapters, read_sampling, shell_text

if TYPE_CHECKING:
    from lit_llm.models.generation.sampling import Sampling
    from lit_llm.models.tokenizer import Tokenizer
    from lit_llm.models.transformer import Transformer

BATCH = 16  # prompts per batch, whose keys and values are in memory together


def generate_main(args: list[str]) -> None:
    """Parse ``args`` and print the continuations.

    Raises:
        UserError: a mistake in the arguments or the prompts, or a checkpoint that does not load.
    """
    parser = Parser(
        prog="lit_llm generate", description="Continue prompts, or answer them with --chat."
    )
    add_options(parser, max_new_tokens=128, temperature=0.0, top_p=1.0)
    parser.add_argument(
        "--prompt",
        type=shell_text,
        action="append",
        default=[],
        metavar="TEXT",
        help="may be given several times",
    )
    parser.add_argument(
        "--file",
        type=Path,
        help="more prompts: a text file with one a line, or JSONL with 'prompt'",
    )
    parser.add_argument("--chat", action="store_true", help="send each prompt as a user's message")
    parser.add_argument(
        "--json",
        action="store_true",
        help="a JSON object a prompt: prompt, text, tokens, finish; adapter, if there are several",
    )
    options = parser.parse_args(args)
    from lit_llm.data.chat.messages import check_characters

    prompts = list(options.prompt)
    check_characters(prompts, "--prompt")
    if options.file is not None:
        from lit_llm.data.files import read_prompts

        with settings_called({"data.prompts": "--file"}):
            prompts += read_prompts(options.file.expanduser())
    if not prompts:
        raise UserError("nothing to continue: give --prompt TEXT or --file FILE")

    from lit_llm.models.hub.checkpoint import open_model

    sampling = read_sampling(options)
    folded, named = read_adapters(options.adapter)
    if not named:
        _continue(*open_model(options.ckpt, folded, options.device), prompts, sampling, options)
        return
    from lit_llm.models.hub.adapter_choice import AdapterChoice

    choice = AdapterChoice(options.ckpt, named, options.device)
    for name in choice.names:
        choice.use(name)
        _continue(choice.model, choice.tokenizer, prompts, sampling, options, name)


def _continue(
    model: Transformer,
    tokenizer: Tokenizer,
    prompts: list[str],
    sampling: Sampling,
    options: Namespace,
    name: str | None = None,
) -> None:
    """Print the continuations of all prompts, with the ``name`` of the adapter if it has one."""
    if options.chat:
        from lit_llm.data.chat.chat_format import ChatFormat

        chat = ChatFormat(tokenizer)
        encoded = [chat.prompt_ids([{"role": "user", "content": prompt}]) for prompt in prompts]
        stop_ids = chat.stop_ids
    else:
        encoded = [tokenizer.document_start + tokenizer.encode(prompt) for prompt in prompts]
        stop_ids = tokenizer.stop_ids
    size = model.config.max_seq_len
    for prompt, ids in zip(prompts, encoded, strict=True):
        if not ids:
            raise UserError("a prompt is empty, and this model has no token that begins a text")
        if len(ids) >= size:
            raise UserError(
                f"the prompt {prompt[:30]!r} takes {len(ids)} tokens; the model's context has "
                f"{size}"
            )
    how = {"sampling": sampling, "seed": options.seed, "stop_ids": stop_ids}
    if name is not None and not options.json:
        print(f"[{name}]")
    if len(prompts) == 1 and not options.json:
        length = min(options.max_new_tokens, size - len(encoded[0]))
        print(end="" if options.chat else prompts[0], flush=True)
        _print_stream(model, tokenizer, encoded[0], length, options.stop, how)
        return
    for begin in range(0, len(prompts), BATCH):
        part = slice(begin, begin + BATCH)
        rows = _answers(model, tokenizer, encoded[part], options.max_new_tokens, options.stop, how)
        for prompt, row in zip(prompts[part], rows, strict=True):
            if options.json:
                own = {} if name is None else {"adapter": name}
                print(json_text({**own, "prompt": prompt, **row}), flush=True)
            else:
                print(
                    f"> {prompt}\n{row['text']}\n" if options.chat else f"{prompt}{row['text']}\n",
                    flush=True,
                )


def _print_stream(
    model: Transformer,
    tokenizer: Tokenizer,
    prompt: list[int],
    length: int,
    stop: list[str],
    how: dict[str, Any],
) -> None:
    from lit_llm.models.generation.generate import stream
    from lit_llm.models.generation.text_stream import TextStream

    text = TextStream(tokenizer, stop)
    with closing(stream(model, prompt, length, **how)) as tokens:
        for token in tokens:
            print(text.push(token), end="", flush=True)
            if text.stopped:
                break
    print(text.flush(), flush=True)


def _answers(
    model: Transformer,
    tokenizer: Tokenizer,
    prompts: list[list[int]],
    max_new_tokens: int,
    stop: list[str],
    how: dict[str, Any],
) -> list[dict[str, Any]]:
    """Generate {"text", "tokens", "finish": "stop" or "length"} for each prompt."""
    from lit_llm.models.generation.generate import generate, room_for
    from lit_llm.models.generation.text_stream import TextStream

    lengths = room_for(model, prompts, max_new_tokens)
    rows = []
    for ids, length in zip(generate(model, prompts, lengths, **how), lengths, strict=True):
        text = TextStream(tokenizer, stop)
        pieces = []
        for token in ids:
            pieces.append(text.push(token))
            if text.stopped:
                break
        used = len(pieces)
        pieces.append(text.flush())
        ended = text.stopped or len(ids) < length
        rows.append(
            {"text": "".join(pieces), "tokens": used, "finish": "stop" if ended else "length"}
        )
    return rows
