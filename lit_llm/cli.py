"""The ``lit_llm`` command: a table of verbs and their functions.

A verb's module is imported when the verb runs, so ``--help`` stays fast.
"""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable
from importlib import import_module

import lit_llm
from lit_llm.errors import PeerLost, Preempted, UserError, told_of_a_path
from lit_llm.io.streams import prepare_streams, start_again_in_utf8, unread


def _trainer_verb(verb: str) -> Callable[[list[str]], None]:
    def run(args: list[str]) -> None:
        from lit_llm.fit.command import run_trainer

        run_trainer(verb, args)

    return run


def _function(module: str, name: str, *needed: str) -> Callable[[list[str]], None]:
    """The function ``name`` of a module; the modules ``needed`` register what it uses."""

    def run(args: list[str]) -> None:
        for other in needed:
            import_module(other)
        getattr(import_module(module), name)(args)

    return run


VERBS: dict[str, tuple[Callable[[list[str]], None], str]] = {
    "fit": (_trainer_verb("fit"), "train: pretraining, continued pretraining, finetuning"),
    "validate": (_trainer_verb("validate"), "validation loss and bits per byte of a checkpoint"),
    "test": (_trainer_verb("test"), "the same under test_ names"),
    "predict": (_trainer_verb("predict"), "continue or answer the prompts of a file"),
    "corpus": (
        _function("lit_llm.corpus.commands.corpus", "corpus_main"),
        "raw text to cleaned, documented shards",
    ),
    "tokenizer": (
        _function("lit_llm.corpus.commands.tokenizer", "tokenizer_main"),
        "train one; how well it compresses",
    ),
    "launch": (
        _function("lit_llm.terminal.launch", "launch_main"),
        "a job file that requeues and resumes a fit",
    ),
    "plan": (
        _function("lit_llm.plan.command", "plan_main"),
        "days, dollars and gigabytes of a run before it starts",
    ),
    "evaluate": (
        _function("lit_llm.evaluate.command", "evaluate_main"),
        "lm-eval tasks on a checkpoint",
    ),
    "compare": (
        _function("lit_llm.evaluate.compare.command", "compare_main"),
        "which evaluation is better, by how much, how sure that is",
    ),
    "chat": (_function("lit_llm.terminal.chat", "chat_main"), "talk to a model in the terminal"),
    "generate": (_function("lit_llm.terminal.completion", "generate_main"), "continue prompts"),
    "serve": (
        _function("lit_llm.serve.command", "serve_main"),
        "answer OpenAI's API; keys, limits and records",
    ),
    "import": (
        _function("lit_llm.terminal.convert", "import_main"),
        "GGUF file to Hugging Face directory",
    ),
    "export": (
        _function("lit_llm.terminal.convert", "export_main"),
        "checkpoint to Hugging Face or GGUF",
    ),
    "merge": (
        _function("lit_llm.terminal.merge", "merge_main"),
        "adapters and their base to one Hugging Face directory",
    ),
    "inspect": (
        _function("lit_llm.terminal.inspect", "inspect_main", "lit_llm.evaluate.items"),
        "what a checkpoint is, without loading it; what a finetuning config learns",
    ),
    "report": (_function("lit_llm.report.command", "main"), "write a run folder's report.html"),
}

_TRAINERS = ("fit", "validate", "test", "predict")  # verbs that may run as several processes


def usage() -> str:
    """What ``lit_llm --help`` prints."""
    verbs = "\n".join(f"  {name:10} {text}" for name, (_, text) in VERBS.items())
    return (
        f"lit_llm {lit_llm.__version__}: train your own ChatGPT\n\n"
        f"usage: lit_llm VERB --config FILE [--key value ...]\n\n{verbs}\n\n"
        "lit_llm VERB --help lists the keys; --print_config prints the whole configuration.\n"
        "lit_llm version prints the version. Hyphens serve for underscores: --data.seq-len is "
        "--data.seq_len.\n"
        "A preset's name serves as FILE: lit_llm fit --config pretrain/quickstart"
    )


def main(argv: list[str] | None = None) -> int:
    """Run a verb and return the exit status.

    The status is 0 for success, 2 for a user's mistake (reported in one line), 130 for Ctrl-C, 75
    for a training run that SIGTERM ended, 1 for a process that lost another process of its run, and
    141 (the shell's number for SIGPIPE) if nobody reads the output any more.

    Raises:
        SystemExit: with the status 1, if a gate of ``compare`` failed.
    """
    if argv is None:
        start_again_in_utf8()
        argv = sys.argv[1:]
    prepare_streams()
    try:
        status = _run(argv)
        sys.stdout.flush()
        return status
    except BrokenPipeError:
        unread()
        return 128 + signal.SIGPIPE
    except OSError as error:
        if (said := told_of_a_path(error)) is None:
            raise
        print(f"lit_llm {argv[0] if argv else ''}: {said}", file=sys.stderr)
        unread()
        return 2


def _has_folder() -> bool:
    try:
        os.getcwd()
    except FileNotFoundError:
        return False
    return True


def _run(argv: list[str]) -> int:
    if not argv or argv[0] in ("-h", "--help", "help"):
        print(usage())
        return 0
    if argv[0] in ("--version", "-V", "version"):
        print(lit_llm.__version__)
        return 0
    from lit_llm.fit import launchers  # not for --help
    from lit_llm.io.cache import ensure_home
    from lit_llm.settings.arguments import with_underscores

    verb, args = argv[0], argv[1:]
    try:
        if not _has_folder():
            raise UserError("the current folder is gone: change to one that exists")
        if verb not in VERBS:
            raise UserError(f"no verb {verb!r}; verbs: {', '.join(VERBS)}")
        if verb in _TRAINERS:
            for arg in args:
                _check_letters(arg)
        ensure_home()
        if verb in _TRAINERS:
            launchers.drop_unreadable()
        else:
            launchers.run_alone()
        VERBS[verb][0](with_underscores(args))
    except UserError as error:
        print(f"lit_llm {verb}: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print(f"lit_llm {verb}: stopped", file=sys.stderr)
        return 130
    except Preempted as stopped:
        print(f"lit_llm {verb}: {stopped}", file=sys.stderr)
        return Preempted.status
    except PeerLost as lost:
        print(f"lit_llm {verb}: {lost}", file=sys.stderr)
        return 1
    except RuntimeError as error:
        # torchmetrics, which lightning imports, imports a torchvision that is installed.
        if "operator torchvision::" not in str(error):
            raise
        print(
            f"lit_llm {verb}: the installed torchvision is built for another torch ({error}); "
            "nothing here needs it: pip uninstall torchvision",
            file=sys.stderr,
        )
        return 2
    return 0


def _check_letters(arg: str) -> None:
    """Raise UserError for bytes that are not UTF-8: the run's files could not hold them."""
    if any("\ud800" <= letter <= "\udfff" for letter in arg):
        raise UserError(f"{arg!r}: not UTF-8; give it, and name files, in UTF-8")


if __name__ == "__main__":
    sys.exit(main())
