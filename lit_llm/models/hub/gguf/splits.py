"""How byte-level tokenizers split text before merging.

A GGUF file has no split pattern, only a name in tokenizer.ggml.pre. The table holds those names of
llama.cpp (``src/llama-vocab.cpp``, release 0.5.0) whose split a tokenizer.json can express.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from lit_llm.errors import UserError
from lit_llm.models.tokenizer import SPLIT_PATTERN

if TYPE_CHECKING:
    import tokenizers

# ("Split", pattern), ("Digits", True) or ("ByteLevel", whether by GPT-2's pattern)
Step = tuple[str, Any]

_GPT2_PATTERN = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
# GPT-4's pattern as in tiktoken: it gives the same pieces of every text as Llama 3's.
_GPT4_PATTERN = (
    r"'(?i:[sdmt]|ll|ve|re)|[^\r\n\p{L}\p{N}]?+\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]++[\r\n]*"
    r"|\s*[\r\n]|\s+(?!\S)|\s+"
)
_BYTES: Step = ("ByteLevel", False)
_GPT2: tuple[Step, ...] = (("ByteLevel", True),)
_DIGITS: tuple[Step, ...] = (("Digits", True), ("ByteLevel", True))
_LLAMA3: tuple[Step, ...] = (("Split", SPLIT_PATTERN), _BYTES)
_QWEN2: tuple[Step, ...] = (("Split", SPLIT_PATTERN.replace(r"\p{N}{1,3}", r"\p{N}")), _BYTES)
# llama.cpp's split for a file that names none; hardly any model was trained with it.
_DEFAULT: tuple[Step, ...] = (
    ("Split", r"[\p{P}\$\+<=>\^~\|]+"), ("Split", _GPT2_PATTERN), ("Split", r"\p{N}+"),
    ("Split", "[0-9][0-9][0-9]"), _BYTES,
)  # fmt: skip
_SAME: dict[tuple[Step, ...], tuple[Step, ...]] = {
    (("Split", _GPT2_PATTERN), _BYTES): _GPT2,
    (("Split", r"\p{N}"), *_GPT2): _DIGITS,
    (("Split", _GPT4_PATTERN), _BYTES): _LLAMA3,
}


@dataclass(frozen=True)
class Split:
    """One way to split text, and what llama.cpp or the published tokenizer does besides."""

    names: tuple[str, ...]
    """Values of tokenizer.ggml.pre; the first one is written."""
    steps: tuple[Step, ...]
    ignore_merges: bool = False
    """Whether a piece that is itself a token becomes that token without merges."""
    nfc: bool = False
    """Whether the published tokenizer composes characters first. llama.cpp never does."""
    adds_bos: bool = False
    """llama.cpp's default for a file without tokenizer.ggml.add_bos_token."""


_SPLITS = (
    Split(("gpt-2",), _GPT2),
    Split(("olmo",), _GPT2, nfc=True),
    Split(("smollm", "refact", "starcoder"), _DIGITS),
    Split(("command-r",), _DIGITS, nfc=True),
    Split(("llama-bpe", "llama3", "llama-v3", "falcon3"), _LLAMA3, ignore_merges=True,
          adds_bos=True),
    Split(("dbrx", "smaug-bpe"), _LLAMA3),
    Split(("qwen2", "stablelm2"), _QWEN2, nfc=True),
    Split(("deepseek-r1-qwen",), _QWEN2),
    Split(("default",), _DEFAULT),
)  # fmt: skip
NAMES = tuple(name for split in _SPLITS for name in split.names)


def split_named(name: object) -> Split | None:
    """Return the split with the name ``name`` in tokenizer.ggml.pre, or None."""
    return next((split for split in _SPLITS if name in split.names), None)


def split_of(spec: dict[str, Any], nfc: bool) -> Split:
    """Return the split of a byte-level tokenizer.json.

    ``nfc`` says whether the tokenizer composes characters first.

    Raises:
        UserError: GGUF has no name for the split.
    """
    steps = [_step(step) for step in flat(spec.get("pre_tokenizer"), "pretokenizers")]
    asked = _SAME.get(tuple(steps), tuple(steps))
    whole = bool(spec["model"].get("ignore_merges"))
    fitting = [s for s in _SPLITS if s.steps == asked and s.ignore_merges == whole]
    if not fitting:
        kinds = " + ".join(kind for kind, _ in steps) or "not at all"
        raise UserError(
            f"GGUF has no name for how this tokenizer splits text ({kinds}, "
            f"ignore_merges={whole}); there are names for the splits of GPT-2, of digits before "
            "GPT-2's, of Llama 3 with ignore_merges, of GPT-4, of Qwen 2"
        )
    return min(fitting, key=lambda split: split.nfc != nfc)


def flat(component: dict[str, Any] | None, inner: str) -> list[dict[str, Any]]:
    """Return the steps of a normalizer, pre-tokenizer or decoder of a tokenizer.json as a list."""
    if component is None:
        return []
    if component.get("type") != "Sequence":
        return [component]
    return [step for part in component[inner] for step in flat(part, inner)]


def _step(step: dict[str, Any]) -> Step:
    kind = step["type"]
    if kind == "ByteLevel" and not step.get("add_prefix_space"):
        return kind, step.get("use_regex", True)
    if kind == "Digits":
        return kind, step.get("individual_digits", False)
    if kind == "Split" and step["behavior"] == "Isolated" and not step.get("invert"):
        return kind, step["pattern"].get("Regex")
    others = ", ".join(f"{key}={value!r}" for key, value in step.items() if key != "type")
    return f"{kind}({others})", None


def pre_tokenizer_of(split: Split) -> tokenizers.pre_tokenizers.PreTokenizer:
    """Return the pre-tokenizer of ``split``."""
    from tokenizers import Regex, pre_tokenizers

    def build(kind: str, value: Any) -> tokenizers.pre_tokenizers.PreTokenizer:
        if kind == "Split":
            return pre_tokenizers.Split(Regex(value), behavior="isolated")
        if kind == "Digits":
            return pre_tokenizers.Digits(individual_digits=value)
        return pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=value)

    return pre_tokenizers.Sequence([build(*step) for step in split.steps])
