"""``lit_llm chat CKPT``: talk to a model in the terminal, or through a pipe (a turn per line)."""

from __future__ import annotations

import sys
from collections.abc import Generator, Iterator
from contextlib import closing, suppress
from typing import TYPE_CHECKING

from lit_llm.errors import UserError
from lit_llm.io.streams import is_terminal
from lit_llm.settings.arguments import Parser
from lit_llm.terminal.options import add_options, read_adapters, read_sampling, shell_text

if TYPE_CHECKING:
    from lit_llm.models.hub.adapter_choice import AdapterChoice
    from lit_llm.terminal.conversation import Conversation

HELP = """\
/reset         forget the conversation
/adapter NAME  answer with this adapter from here on; base: with none; without NAME: list them
/exit          leave (so does Ctrl-D)
/help          this list
Ctrl-C stops an answer; what is written of it stays in the conversation."""


def chat_main(args: list[str]) -> None:
    """Parse ``args`` and answer messages until the input ends.

    Raises:
        UserError: a mistake in the arguments, a checkpoint that cannot chat, or, at the end of
            piped input, messages that got no answer.
    """
    parser = Parser(
        prog="lit_llm chat", description="Talk to a model. Piped input is taken a line a turn."
    )
    add_options(parser, max_new_tokens=512, temperature=0.7, top_p=0.95)
    parser.add_argument(
        "--system",
        type=shell_text,
        metavar="TEXT",
        help="system message: how the assistant should behave",
    )
    options = parser.parse_args(args)

    from lit_llm.models.hub.checkpoint import open_model
    from lit_llm.terminal.conversation import Conversation

    sampling = read_sampling(options)
    folded, named = read_adapters(options.adapter)
    choice = None
    if named:
        from lit_llm.models.hub.adapter_choice import AdapterChoice

        choice = AdapterChoice(options.ckpt, named, options.device)
        model, tokenizer = choice.model, choice.tokenizer
    else:
        model, tokenizer = open_model(options.ckpt, folded, options.device)
    conversation = Conversation(
        model,
        tokenizer,
        system=options.system,
        stop=options.stop,
        max_new_tokens=options.max_new_tokens,
        sampling=sampling,
        seed=options.seed,
    )
    if is_terminal(sys.stdin):
        weights = sum(p.numel() for p in model.parameters())
        _note(
            f"{options.ckpt}: {weights / 1e6:,.1f}M parameters on {model.embed.weight.device}; "
            f"/help lists commands"
        )
        if choice is not None:
            _note(_listed(choice))
    failed = _talk(conversation, choice)
    if failed and not sys.stdin.isatty():  # at a terminal the user has seen the error
        raise UserError(f"{failed} of the messages got no answer")


def _listed(choice: AdapterChoice) -> str:
    names = (f"{name} (in use)" if name == choice.used else name for name in choice.names)
    return f"adapters: {', '.join(names)}"


def _switch(conversation: Conversation, choice: AdapterChoice | None, name: str) -> int:
    """Do ``/adapter NAME``; return 1 if it could not be done."""
    try:
        if choice is None:
            raise UserError("nothing to switch between: start with --adapter NAME=DIR")
        if name:
            choice.use(name)
            conversation.take(choice.tokenizer)
        _note(_listed(choice))
    except UserError as error:
        _note(str(error))
        return 1
    return 0


def _talk(conversation: Conversation, choice: AdapterChoice | None) -> int:
    """Answer the user's lines; return how many could not be answered."""
    told, failed = False, 0
    for line in _lines():
        if line == "/exit":
            break
        if line == "/reset":
            conversation.reset()
            told = False
            _note("the conversation is forgotten")
        elif line == "/adapter" or line.startswith("/adapter "):
            failed += _switch(conversation, choice, line.removeprefix("/adapter").strip())
        elif line == "/help":
            _note(HELP)
        elif line:
            try:
                pieces = conversation.ask(line)
            except UserError as error:
                _note(str(error))
                failed += 1
                continue
            if conversation.dropped and not told:
                told = True
                _note("the context is full: the oldest turns are left out from here on")
            _write(pieces)
    return failed


def _write(answer: Generator[str, None, None]) -> None:
    """Print the answer as it is generated; Ctrl-C ends it."""
    try:
        with closing(answer):
            for piece in answer:
                print(piece, end="", flush=True)
    except KeyboardInterrupt:
        print(end=" ...")
    print(flush=True)


def _lines() -> Iterator[str]:
    """The user's lines, stripped, from a prompt at a terminal or from a pipe."""
    if not is_terminal(sys.stdin):
        for line in sys.stdin:
            yield line.removeprefix("\ufeff").strip()  # some files begin with a byte order mark
        return
    with suppress(ImportError):
        import readline  # noqa: F401 -- gives input() history and editing, where it exists
    while True:
        try:
            yield input("> ").strip()
        except KeyboardInterrupt:
            print()  # Ctrl-C discards the line, as in a shell
        except EOFError:
            print()
            return


def _note(text: str) -> None:
    """Print a message of the program on stderr, dim, to separate it from the answers."""
    dim = is_terminal(sys.stderr)
    print(f"\033[2m{text}\033[0m" if dim else text, file=sys.stderr, flush=True)
