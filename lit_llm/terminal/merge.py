"""``lit_llm merge``: adapters and their base become one Hugging Face directory.

Also the line between a base and what was finetuned from it: weights between both often keep more
of what the base knew for little loss of what was learnt (WiSE-FT, arXiv:2109.01903).
"""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lit_llm.errors import UserError
from lit_llm.io.streams import say
from lit_llm.settings.arguments import Parser
from lit_llm.settings.ranges import Number, Range
from lit_llm.terminal.convert import DTYPES, free_directory, torch_dtype, write_directory

if TYPE_CHECKING:
    import torch

    from lit_llm.models.hub.merge import Part
    from lit_llm.models.tokenizer import Tokenizer
    from lit_llm.models.transformer import Transformer

WITH_BASE = Range(0, 1)
"""The finetuned model's share of ``--with_base``."""
_SAMPLE_ROWS = 16


def merge_main(args: list[str]) -> None:
    """Parse ``args``, write the directory and print what the merge cost.

    Raises:
        UserError: a mistake in the arguments; adapters of different bases; another base than that
            of the training; a target that is not empty or not writable.
    """
    options = _parser().parse_args(args)
    out = free_directory(options.out)
    sources = [_source(text) for text in options.src]
    whole = [folder for folder, _ in sources if not (folder / "adapter_config.json").is_file()]
    if not whole:
        return _merge_adapters(sources, options, out)
    if len(sources) > 1 or options.with_base is None or sources[0][1] != 1:
        raise UserError(
            f"{whole[0]}: was trained without an adapter: give this run alone, and --with_base W "
            "for weights between its base (0) and its final model (1)"
        )
    if options.onto != "trained":
        raise UserError(f"--onto: {whole[0]} was trained without an adapter; leave it out")
    _merge_with_base(whole[0], options, out)


def _parser() -> Parser:
    parser = Parser(
        prog="lit_llm merge",
        description="Add the updates of adapters to their base, and write the sum as a Hugging "
        "Face directory. Prints how far it is from the adapter on a sample of general questions.",
    )
    parser.add_argument(
        "src", metavar="RUN_OR_ADAPTER[:W]", nargs="+",
        help="run folder or PEFT directory; with a weight W of its updates, default 1",
    )  # fmt: skip
    parser.add_argument(
        "out", metavar="OUT", type=Path, help="directory to write; must not exist or be empty"
    )
    parser.add_argument(
        "--onto", choices=["trained", "original"], default="trained",
        help="after training on a quantised base: add to the weights that were trained against "
        "(dequantised; the adapter's own answers), or to those of before",
    )  # fmt: skip
    parser.add_argument(
        "--with_base", type=Number(float, WITH_BASE), metavar="W",
        help="weights on the line between the base (0) and what was finetuned (1)",
    )  # fmt: skip
    parser.add_argument("--base", metavar="PATH", help="the base, if it is no longer where it was")
    parser.add_argument("--dtype", choices=DTYPES, help="of the weights; default: the training's")
    return parser


def _source(text: str) -> tuple[Path, float]:
    """Split PATH:W into the folder that is merged and the weight of its updates."""
    path, _, last = text.rpartition(":")
    weight = 1.0
    if path and not Path(text).expanduser().exists():
        with suppress(ValueError):
            text, weight = path, float(last)
    folder = Path(text).expanduser()
    if not folder.exists():
        raise UserError(f"{text}: no such folder; give a run folder or a PEFT directory")
    if folder.suffix == ".ckpt":
        raise UserError(
            f"{folder}: a training checkpoint has the updates alone: lit_llm export {folder} OUT "
            "--format hf writes it with its base"
        )
    if not abs(weight) < float("inf"):
        raise UserError(f"{text}: the weight must be a number, not {weight}")
    adapter = folder / "adapter"
    if (adapter / "adapter_config.json").is_file():
        return adapter, weight
    if not any((folder / file).is_file() for file in ("adapter_config.json", "final/config.json")):
        raise UserError(f"{folder}: holds no adapter and no final/; the run is not finished")
    return folder, weight


def _merge_adapters(sources: list[tuple[Path, float]], options: Any, out: Path) -> None:
    from lit_llm.models.hub.adapters import Adapters
    from lit_llm.models.hub.merge import Part, add_updates, base_of, load_base, vocabulary_with
    from lit_llm.models.kernels.cpu_threads import limit_threads
    from lit_llm.models.quantize import restore_weights
    from lit_llm.models.tokenizer import Tokenizer

    limit_threads()
    share = 1.0 if options.with_base is None else options.with_base
    parts = [Part(folder, weight * share) for folder, weight in sources]
    base = base_of(parts, options.base, original=options.onto == "original")
    dtype = torch_dtype(options.dtype)
    model = load_base(base, dtype, original=False)
    tokenizer = _tokenizer_of(
        parts, Tokenizer.from_pretrained(base.init_from), vocabulary_with(model, parts)
    )
    rows = _sample(tokenizer)
    as_trained = len(parts) == 1 and parts[0].weight == 1
    if as_trained:
        adapters = Adapters(model)
        adapters.add("it", parts[0].folder)
        adapters.use("it")
        before = _log_probabilities(model, rows)
        adapters.use(None)
    if options.onto == "original" and base.quantize is not None:
        model = load_base(base, dtype, original=True)
    restore_weights(model)
    if as_trained:
        add_updates(model, parts)
        what = "the adapter"
    else:
        before = _sum_in_float32(model, parts, rows)
        what = "the sum in float32"
    write_directory(model, tokenizer, out)
    _say_distance(what, before, _log_probabilities(model, rows))


def _tokenizer_of(parts: list[Part], base: Tokenizer, vocab_size: int) -> Tokenizer:
    """Return the tokenizer of the adapters, which must have the same tokens."""
    from lit_llm.models.hub.checkpoint import tokenizer_of_adapter

    first, *others = [tokenizer_of_adapter(part.folder, base, vocab_size) for part in parts]
    for part, other in zip(parts[1:], others, strict=True):
        if other.backend.get_vocab() != first.backend.get_vocab():
            raise UserError(
                f"{part.folder}: has other added tokens than {parts[0].folder} (data.add_tokens); "
                "their rows cannot be added"
            )
    return first


def _sum_in_float32(
    model: Transformer, parts: list[Part], rows: list[list[int]]
) -> list[torch.Tensor]:
    """Add the updates to the model, in place, and return what it says before it is rounded."""
    from lit_llm.models.hub.merge import add_updates

    dtype = model.embed.weight.dtype
    add_updates(model.float(), parts)
    before = _log_probabilities(model, rows)
    model.to(dtype)
    return before


def _merge_with_base(run: Path, options: Any, out: Path) -> None:
    from lit_llm.models.hub.checkpoint import load_model
    from lit_llm.models.hub.merge import move_towards
    from lit_llm.models.transformer import Transformer

    model, tokenizer = load_model(run, dtype=torch_dtype(options.dtype))
    base = Transformer.from_pretrained(options.base or _base_of_run(run), model.embed.weight.dtype)
    rows = _sample(tokenizer)
    before = _log_probabilities(model, rows)
    move_towards(model, base, options.with_base)
    write_directory(model, tokenizer, out)
    _say_distance("the finetuned", before, _log_probabilities(model, rows))


def _base_of_run(run: Path) -> str:
    from lit_llm.settings.yaml_file import read_yaml

    file = run / "config.yaml"
    try:
        module = read_yaml(file)["model"]
        base = module.get("init_args", module).get("init_from")
    except (OSError, KeyError, AttributeError, TypeError):
        base = None
    if not base:
        raise UserError(f"{file}: names no model.init_from; give the base with --base")
    return str(base)


def _sample(tokenizer: Tokenizer) -> list[list[int]]:
    """Return the tokens of general questions and answers, as a chat if the tokenizer has one."""
    from lit_llm.data.chat.chat_format import ChatFormat
    from lit_llm.data.conversations import GENERAL, read_rows

    rows = [row["messages"] for _, row in read_rows(GENERAL) if isinstance(row, dict)]
    found = []
    for question, answer in rows[:: max(1, len(rows) // _SAMPLE_ROWS)][:_SAMPLE_ROWS]:
        try:
            ids = ChatFormat(tokenizer).prompt_ids([question])
        except UserError:  # no chat template
            ids = [*tokenizer.document_start, *tokenizer.encode(question["content"] + "\n")]
        found.append([*ids, *tokenizer.encode(answer["content"])])
    return found


def _log_probabilities(model: Transformer, rows: list[list[int]]) -> list[torch.Tensor]:
    """Return the log-probabilities of each row's next tokens: float32 (tokens, vocabulary)."""
    import torch

    with torch.no_grad():
        return [model(torch.tensor([ids]))[0].float().log_softmax(-1) for ids in rows]


def _say_distance(what: str, before: list[torch.Tensor], after: list[torch.Tensor]) -> None:
    """Print the mean Kullback-Leibler divergence of a token, in nats."""
    tokens = sum(len(row) for row in before)
    total = sum(float((p.exp() * (p - q)).sum()) for p, q in zip(before, after, strict=True))
    say(
        f"KL per token from {what} to the merged model: {max(0.0, total / tokens):.2g} nats "
        f"({tokens} tokens of general questions)"
    )
