"""nanochat's tokenizer: a pickle of a tiktoken encoding, which is read without running its code."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

from lit_llm.errors import UserError
from lit_llm.models.tokenizer import Tokenizer, begin_with, byte_alphabet

_BOS, _END = "<|bos|>", "<|assistant_end|>"
# nanochat/tokenizer.py, render_conversation: a first system message is put before the first
# question.
_TEMPLATE = (
    "{{- '<|bos|>' -}}{%- set start = 0 -%}{%- set system = '' -%}"
    "{%- if messages[0]['role'] == 'system' -%}"
    "{%- set start = 1 -%}{%- set system = messages[0]['content'] + '\n\n' -%}{%- endif -%}"
    "{%- for message in messages[start:] -%}{%- if message['role'] == 'user' -%}"
    "{{- '<|user_start|>' + (system if loop.first else '') + message['content'] -}}"
    "{{- '<|user_end|>' -}}"
    "{%- else -%}{{- '<|assistant_start|>' + message['content'] + '<|assistant_end|>' -}}"
    "{%- endif -%}{%- endfor -%}"
    "{%- if add_generation_prompt -%}{{- '<|assistant_start|>' -}}{%- endif -%}"
)


class _Encoding:
    """What the pickle says about a ``tiktoken.Encoding``."""

    def __init__(self) -> None:
        self.state: dict[str, Any] = {}

    def __setstate__(self, state: Any) -> None:
        self.state = state


class _Reader(pickle.Unpickler):
    """Reads a pickle that holds one encoding; it runs no code of the file."""

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) == ("tiktoken.core", "Encoding"):
            return _Encoding
        raise pickle.UnpicklingError(f"it holds {module}.{name}")


def read_tokenizer(path: Path) -> Tokenizer:
    """Return the tokenizer of the checkpoint at ``path``.

    nanochat keeps it as ``tokenizer/tokenizer.pkl`` beside the folder ``base_checkpoints``; it may
    also lie beside the checkpoint.

    Raises:
        UserError: it is missing or broken.
    """
    beside = path.parent / "tokenizer.pkl"
    places = [beside, *(folder / "tokenizer/tokenizer.pkl" for folder in path.absolute().parents)]
    found = next((place for place in places[:4] if place.is_file()), None)
    if found is None:
        raise UserError(
            f"{path}: no tokenizer; copy nanochat's tokenizer/tokenizer.pkl to {beside}"
        )
    try:
        with open(found, "rb") as file:
            state = _Reader(file).load().state
        return _tokenizer_of(state["pat_str"], state["mergeable_ranks"], state["special_tokens"])
    except (OSError, pickle.UnpicklingError, EOFError, AttributeError, KeyError, TypeError,
            ValueError) as error:  # fmt: skip
        raise UserError(f"{found}: not the tokenizer of a nanochat model ({error})") from None


def _tokenizer_of(pattern: str, ranks: dict[bytes, int], special: dict[str, int]) -> Tokenizer:
    from tokenizers import AddedToken, Regex, decoders, models, pre_tokenizers
    from tokenizers import Tokenizer as Backend

    letters = {byte[0]: letter for letter, byte in byte_alphabet().items()}
    texts = {token: "".join(letters[byte] for byte in token) for token in ranks}
    merges = [
        (texts[token[:cut]], texts[token[cut:]])
        for token in sorted(ranks, key=ranks.__getitem__)
        for cut in sorted(
            (cut for cut in range(1, len(token)) if token[:cut] in ranks and token[cut:] in ranks),
            key=lambda cut: (ranks[token[:cut]], ranks[token[cut:]]),
        )
    ]
    vocabulary = {texts[token]: rank for token, rank in ranks.items()}
    # tiktoken takes a piece that is a token without merging.
    backend = Backend(models.BPE(vocab=vocabulary, merges=merges, ignore_merges=True))
    split = pre_tokenizers.Split(Regex(pattern), behavior="isolated")
    as_bytes = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    backend.pre_tokenizer = pre_tokenizers.Sequence([split, as_bytes])
    backend.decoder = decoders.ByteLevel()
    names = sorted(special, key=special.__getitem__)
    backend.add_special_tokens([AddedToken(name, special=True, normalized=False) for name in names])
    if any(backend.token_to_id(name) != special[name] for name in names):
        raise ValueError("the ids of its special tokens do not follow the others")
    begin_with(backend, _BOS)
    tokenizer = Tokenizer(
        backend, bos_token=_BOS, eos_token=_BOS, pad_token=_BOS, chat_template=_TEMPLATE
    )
    tokenizer.add_stop_ids([special[_END]])
    return tokenizer
