"""Convert text to token ids and back: a byte-level BPE trained here, or any tokenizer.json.

Two decisions shape this file:

- Raw text never produces control tokens. A document that spells ``<|im_end|>`` is encoded as those
  ten characters, unless the caller says ``allow_special=True`` (chat templates do).
- The split pattern is exactly Llama 3's, because serving engines and GGUF files store the name of a
  pattern instead of the pattern itself.
"""

from __future__ import annotations

import functools
import hashlib
import itertools
import json
import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from lit_llm.errors import UserError
from lit_llm.models.hub import generation_config as generation
from lit_llm.models.hub.formats import read_tokenizer, write_tokenizer
from lit_llm.models.hub.locate import locate

if TYPE_CHECKING:
    import tokenizers

END_OF_TEXT = "<|endoftext|>"
PAD = "<|pad|>"
IM_START = "<|im_start|>"
IM_END = "<|im_end|>"
SPECIAL_TOKENS = [END_OF_TEXT, PAD, IM_START, IM_END]

# Llama 3's pattern ("llama-bpe" in GGUF). Measured on the standard library with vocabulary 4096:
# 3.53 bytes per token. A pattern that joins indentation with the newline before it gives 3.70, but
# no engine outside this package splits text that way.
SPLIT_PATTERN = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)

CHATML_TEMPLATE = (
    "{% for message in messages %}"
    "{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)

_PIECE_CHARACTERS = 1_000_000
# Maximum number of characters of a word in training. Each merge goes through all of every word that
# contains it, and DNA or text without spaces has words of any length. Between two punctuation marks
# of Chinese there are some 20 letters.
_LONGEST_WORD = 256
_SIGNS = re.compile(r"(?:[^\w\s]|_)+")
# Text to compare two encoders with. White space, digits, case, marks, scripts, emoji and spelled
# control tokens are where encoders differ.
_PROBE = (
    "It's 1234567 o'clock,  DON'T  \t\n\n   stop\r\n\u00a0x=1;\u3000//+=-- na\u00efve cafe\u0301 "
    "\u5317\u4eac\u3002"
    "\u0928\u092e\u0938\u094d\u0924\u0947 \u0645\u0631\u062d\u0628\u0627 \u00df\u0130\u017f "
    "\U0001f469\u200d\U0001f467 "
    "\u2028\u0085 \u00bd\u2167 _a1_ <|im_end|><|endoftext|></s><s>[CLS] \0 \ufffd  "
)
_BYTE_TOKEN = re.compile(r"<0x([0-9A-Fa-f]{2})>")
_CONTROL = re.compile(r"<[|\uff5c].*[|\uff5c]>")
_LINE_START = re.compile(r"\n(?=\S)")


class Tokenizer:
    """A ``tokenizers.Tokenizer`` together with its control tokens and the bytes of its tokens.

    Attributes:
        backend: the ``tokenizers.Tokenizer``.
        bos_id, eos_id, pad_id: ids of the control tokens; None if the tokenizer has no such token.
        special_names: {"bos_token": its text or None, "eos_token": ..., "pad_token": ...}, then the
            further names in the files, such as "unk_token" or a model's own "image_token".
        control_tokens: text -> id of every control token.
        chat_template: Jinja source of the default template, or None.
        named_templates: the model's further chat templates, such as "tool_use": name -> source.
        generation_config: fields of the model's generation_config.json, saved with the tokenizer.
    """

    def __init__(
        self,
        backend: tokenizers.Tokenizer,
        *,
        bos_token: str | None = None,
        eos_token: str | None = None,
        pad_token: str | None = None,
        further_names: dict[str, str] | None = None,
        chat_template: str | None = None,
        named_templates: dict[str, str] | None = None,
        generation_config: dict[str, Any] | None = None,
    ) -> None:
        backend.no_truncation()
        backend.no_padding()
        self.backend = backend
        three = {"bos_token": bos_token, "eos_token": eos_token, "pad_token": pad_token}
        self.special_names: dict[str, str | None] = {**three, **(further_names or {})}
        self.chat_template = chat_template
        self.named_templates = dict(named_templates or {})
        self.generation_config = dict(generation_config or {})
        self.bos_id, self.eos_id, self.pad_id = (
            None if name is None else backend.token_to_id(name) for name in three.values()
        )
        self._raw = self._without_control_tokens()

    def _without_control_tokens(self) -> tokenizers.Tokenizer:
        """Return the same tokenizer for raw text: it reads control tokens as plain characters.

        Some published files mark ``<|im_end|>`` and the like as not special. Text could then end a
        turn. Every token that is spelled ``<|...|>`` (DeepSeek writes U+FF5C for the bars) or that
        has a special name therefore counts as a control token here.
        """
        from tokenizers import Tokenizer as Backend

        spec = json.loads(self.backend.to_str())
        names = set(self.special_names.values())
        self.control_tokens: dict[str, int] = {}
        for token in spec.get("added_tokens", []):
            token["special"] |= (
                token["content"] in names or _CONTROL.fullmatch(token["content"]) is not None
            )
            if token["special"]:
                self.control_tokens[token["content"]] = token["id"]
        self._control_ids = set(self.control_tokens.values())
        raw = Backend.from_str(json.dumps(spec))
        raw.encode_special_tokens = True
        return raw

    def __getstate__(self) -> dict[str, Any]:
        return {key: value for key, value in self.__dict__.items() if key not in ("_raw", "_fast")}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        # A pickled backend loses encode_special_tokens.
        self._raw = self._without_control_tokens()

    @classmethod
    def train(cls, texts: Iterable[str], vocab_size: int, or_fewer: bool = False) -> Tokenizer:
        """Train a byte-level BPE. The same texts in the same order give the same tokenizer.

        Args:
            texts: training documents, read once. Words above 256 characters (letters or signs
                without a break between them) are cut, since the time for a word grows with the
                square of its length.
            vocab_size: number of ids, including the 256 bytes and the four control tokens.
            or_fewer: accept fewer ids if the texts do not support ``vocab_size``.

        Raises:
            UserError: the texts hold too few different repeated pairs for ``vocab_size``.
        """
        from tokenizers import Regex, decoders, models, pre_tokenizers, trainers
        from tokenizers import Tokenizer as Backend

        smallest = 256 + len(SPECIAL_TOKENS)
        if vocab_size < smallest:
            raise UserError(
                f"vocab_size: {vocab_size} is too small, bytes and control tokens take {smallest}"
            )
        # ignore_merges: a piece that is itself a token becomes that token without merges. Engines
        # do the same for this pattern.
        backend = Backend(models.BPE(ignore_merges=True))
        words = pre_tokenizers.Split(Regex(SPLIT_PATTERN), behavior="isolated")
        as_bytes = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
        backend.pre_tokenizer = pre_tokenizers.Sequence([words, as_bytes])
        backend.decoder = decoders.ByteLevel()
        trainer = trainers.BpeTrainer(
            vocab_size=vocab_size,
            min_frequency=2,  # a pair seen only once is noise of the sample
            special_tokens=SPECIAL_TOKENS,
            initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
            show_progress=False,
        )
        pieces = (piece for text in texts for piece in _pieces(text))
        cut = (part for piece in pieces for part in _with_short_words(piece, words))
        backend.train_from_iterator(cut, trainer)
        # In training, this token precedes every document, so prompts must begin with it in every
        # program.
        begin_with(backend, END_OF_TEXT)
        found = backend.get_vocab_size()
        if found < vocab_size and not or_fewer:
            raise UserError(
                f"vocab_size: the text supports no more than {found} tokens, {vocab_size} were "
                f"asked for; set it to {found} or less, or add text"
            )
        return cls(
            backend,
            bos_token=END_OF_TEXT,
            eos_token=END_OF_TEXT,
            pad_token=PAD,
            chat_template=CHATML_TEMPLATE,
        )

    @classmethod
    def from_pretrained(cls, path: str | Path) -> Tokenizer:
        """Load a tokenizer.json, a folder that holds one, or the tokenizer of a GGUF file.

        Control tokens and the chat template come from the files beside it (tokenizer_config.json,
        special_tokens_map.json, config.json, chat_template.jinja). Without these files, a special
        token with a usual name (``<|endoftext|>``, ``</s>``, ...) is taken. A control token or
        template that is not found is None. Tokens that only the other files contain are added with
        the ids that transformers gives them (`add_special_tokens`).

        Raises:
            UserError: the file does not exist or is not a tokenizer.
        """
        return read_tokenizer(locate(path))

    def save_pretrained(self, folder: str | Path, model_max_length: int | None = None) -> None:
        """Write tokenizer.json and tokenizer_config.json.

        ``transformers.AutoTokenizer`` loads these files with the same ids. If ``generation_config``
        is not empty, generation_config.json is written too. An existing generation_config.json,
        which belongs to a model, keeps its fields and gets the ids of `stop_ids` that it lacks.

        Args:
            folder: created if necessary.
            model_max_length: context length in tokens to write; left out if None.
        """
        write_tokenizer(self, Path(folder), model_max_length)

    @functools.cached_property
    def vocab_size(self) -> int:
        """One more than the largest id (published vocabularies may have holes)."""
        return table_size(self.backend)

    @property
    def unk_id(self) -> int | None:
        """The token for text outside the vocabulary; None if there is none (byte-level)."""
        model = json.loads(self._raw.to_str())["model"]
        if model.get("unk_id") is not None:  # Unigram
            return model["unk_id"]
        return None if model.get("unk_token") is None else self._raw.token_to_id(model["unk_token"])

    @property
    def stop_ids(self) -> list[int]:
        """All ids that end a text: the eos id, then those of ``generation_config`` in its order."""
        ids = [self.eos_id, *generation.eos_ids(self.generation_config)]
        return list(dict.fromkeys(i for i in ids if i is not None and i >= 0))

    def add_stop_ids(self, ids: Iterable[int]) -> None:
        """Let ``ids`` end a text too, here and in the files that `save_pretrained` writes."""
        self.generation_config = generation.with_eos_ids(
            self.generation_config, [*self.stop_ids, *ids]
        )

    @functools.cached_property
    def document_start(self) -> list[int]:
        """The ids before a plain text in transformers' ``tokenizer(text).input_ids``.

        Only the post-processor of tokenizer.json decides. A named bos token does not: Qwen names
        one and adds none. ``add_bos_token`` in tokenizer_config.json does not either, because
        transformers 5 ignores it if there is a tokenizer.json.
        """
        encoding = self.backend.encode("a", add_special_tokens=True)
        added = itertools.takewhile(
            lambda pair: pair[1], zip(encoding.ids, encoding.special_tokens_mask, strict=True)
        )
        return [token_id for token_id, _ in added]

    @functools.cached_property
    def byte_tokens(self) -> frozenset[int]:
        """Ids of ``<0x00>`` to ``<0xFF>`` if the decoder joins runs of them to text, else empty."""
        spec = json.loads(self.backend.to_str())
        if '"ByteFallback"' not in json.dumps(spec.get("decoder")):
            return frozenset()
        vocabulary = self.backend.get_vocab(with_added_tokens=True)
        return frozenset(i for token, i in vocabulary.items() if _BYTE_TOKEN.fullmatch(token))

    def has_token(self, token_id: int) -> bool:
        """Whether any token has this id. A model's vocabulary may be larger and may have holes."""
        return self.backend.id_to_token(token_id) is not None

    def is_control(self, token_id: int) -> bool:
        """Whether the id belongs to a control token."""
        return token_id in self._control_ids

    def encode(self, text: str, allow_special: bool = False) -> list[int]:
        """Return the token ids of ``text``; nothing is added before or after them.

        With ``allow_special``, control tokens spelled in ``text`` become their ids. Use it only for
        text that this program has built.
        """
        backend = self.backend if allow_special else self._raw
        return backend.encode(text, add_special_tokens=False).ids

    def encode_batch(self, texts: list[str]) -> list[np.ndarray]:
        """Return the int32 token ids of raw documents, using all cores; see `encode_ragged`."""
        ids, offsets = self.encode_ragged(texts)
        return [ids[begin:end] for begin, end in itertools.pairwise(offsets)]

    def encode_ragged(self, texts: list[str]) -> tuple[np.ndarray, np.ndarray]:
        """Return the int32 token ids of all raw documents in one array, and int64 offsets.

        Document i has ids[o[i]:o[i+1]].

        gigatoken encodes if it is installed and knows the kind of tokenizer: it is 60 times as fast
        as the `tokenizers` library (benchmarks/encode.py). Otherwise the library encodes, and a
        text above a million characters is encoded in pieces cut at line starts, so that memory
        stays small. A line start is a boundary of lit_llm's split pattern, so the ids equal those
        of the whole text. Another tokenizer may merge slightly differently there.
        """
        if self._fast is not None:
            rows = self._fast.encode_batch(texts).layout
            return np.asarray(rows.content.data).astype(np.int32), np.asarray(rows.offsets).astype(
                np.int64
            )
        pieces = [list(_pieces(text)) for text in texts]
        flat = self._raw.encode_batch_fast(
            [piece for parts in pieces for piece in parts], add_special_tokens=False
        )
        encoded = [np.array(encoding.ids, dtype=np.int32) for encoding in flat]
        ends = np.cumsum([0, *map(len, encoded)])
        return np.concatenate([np.zeros(0, np.int32), *encoded]), ends[
            np.cumsum([0, *map(len, pieces)])
        ]

    @functools.cached_property
    def _fast(self) -> Any:
        """gigatoken's tokenizer with the same ids for raw text, or None.

        gigatoken refuses patterns and models that it does not know, but not everything that it
        would encode differently. Therefore the ids of a probe text must agree. gigatoken would read
        control tokens out of raw text, so the control tokens are removed from its file.
        """
        try:
            import gigatoken

            spec = json.loads(self._raw.to_str())
            spec["post_processor"] = None  # nothing is added around raw text
            spec["added_tokens"] = [
                t for t in spec.get("added_tokens", []) if t["content"] not in self.control_tokens
            ]
            fast = gigatoken.Tokenizer.from_json(json.dumps(spec))
            rows = fast.encode_batch([_PROBE]).layout
        except Exception:  # not installed, or refused: gigatoken raises a bare Exception
            return None
        same = np.array_equal(
            rows.content.data, self._raw.encode(_PROBE, add_special_tokens=False).ids
        )
        return fast if same else None

    def decode(self, ids: Iterable[int], skip_special_tokens: bool = False) -> str:
        """Return the text of ``ids``; with a tokenizer of `train` exactly the encoded text."""
        return self.backend.decode([int(i) for i in ids], skip_special_tokens=skip_special_tokens)

    def vocabulary(self) -> list[bytes]:
        """Return the UTF-8 bytes of each id; empty for control tokens and unused ids.

        The bytes are exact for byte-level vocabularies, whose tokens may hold parts of characters.
        In sentencepiece-like vocabularies the word mark gives a space and ``<0x0A>`` gives that
        byte. WordPiece's ``##`` gives nothing.
        """
        spec = json.loads(self._raw.to_str())
        byte_level = '"ByteLevel"' in json.dumps([spec.get("pre_tokenizer"), spec.get("decoder")])
        added = {token["id"]: token for token in spec.get("added_tokens", [])}
        alphabet = byte_alphabet() if byte_level else {}
        found = [b""] * self.vocab_size
        for token, index in self._raw.get_vocab(with_added_tokens=True).items():
            if index in added:
                found[index] = b"" if added[index]["special"] else token.encode()
            elif byte_level:
                found[index] = b"".join(
                    alphabet.get(character) or character.encode() for character in token
                )
            elif match := _BYTE_TOKEN.fullmatch(token):
                found[index] = bytes.fromhex(match[1])
            else:
                found[index] = token.removeprefix("##").replace("\u2581", " ").encode()
        return found

    def token_bytes(self) -> np.ndarray:
        """Return the number of UTF-8 bytes of each token: int32 (vocab_size,).

        The number is 0 for control tokens and unused ids. For byte-level vocabularies without a
        normalizer the sum over an encoding is ``len(text.encode())``. For others the sum can differ
        by what the normalizer drops and by a leading space; see `vocabulary`.
        """
        return np.array([len(token) for token in self.vocabulary()], dtype=np.int32)

    def fingerprint(self) -> str:
        """sha256 (hex) of the tokenizer.json with sorted keys: equal if `encode` gives equal ids.

        The post-processor is left out, because `encode` adds nothing before or after a text.
        """
        spec = json.loads(self.backend.to_str()) | {"post_processor": None}
        canonical = json.dumps(spec, sort_keys=True)
        return hashlib.sha256(canonical.encode()).hexdigest()


def begin_with(backend: tokenizers.Tokenizer, token: str) -> None:
    """Make ``backend`` put ``token`` before every text that is encoded with special tokens."""
    from tokenizers import processors

    backend.post_processor = processors.TemplateProcessing(
        single=[token, "$A"],
        pair=[token, "$A", "$B"],
        special_tokens=[(token, backend.token_to_id(token))],
    )


def _pieces(text: str) -> Iterator[str]:
    """Cut ``text`` into pieces of at least a million characters.

    Each piece ends before a line that starts with a non-space.
    """
    begin = 0
    while len(text) - begin > _PIECE_CHARACTERS and (
        match := _LINE_START.search(text, begin + _PIECE_CHARACTERS)
    ):
        yield text[begin : match.end()]
        begin = match.end()
    yield text[begin:] if begin else text


def _with_short_words(text: str, words: Any) -> Iterator[str]:
    """Yield ``text`` for training, in parts, so that no word exceeds `_LONGEST_WORD`.

    ``words`` is the pre-tokenizer that defines the words.
    """
    # A word above the limit fills at least one stretch of half the limit completely. Without such a
    # stretch the slow pre-tokenizer is not needed.
    half = _LONGEST_WORD // 2
    stretches = (text[at : at + half] for at in range(0, len(text) - half + 1, half))
    if not any(s.isalpha() or s.isspace() or _SIGNS.fullmatch(s) for s in stretches):
        yield text
        return
    begin = 0
    for _, (start, end) in words.pre_tokenize_str(text):
        if end - start > _LONGEST_WORD:
            yield text[begin:start]
            yield from (
                text[at : min(at + _LONGEST_WORD, end)] for at in range(start, end, _LONGEST_WORD)
            )
            begin = end
    yield text[begin:]


def byte_alphabet() -> dict[str, bytes]:
    """Map each character of a byte-level vocabulary to its byte (GPT-2's encoder.py).

    Printable Latin-1 characters represent themselves. The remaining characters, in order, represent
    the remaining bytes, in order.
    """
    from tokenizers import pre_tokenizers

    characters = sorted(pre_tokenizers.ByteLevel.alphabet())
    own = {ord(character) for character in characters if ord(character) < 256}
    others = iter(byte for byte in range(256) if byte not in own)
    return {
        character: bytes([ord(character) if ord(character) in own else next(others)])
        for character in characters
    }


def table_size(backend: tokenizers.Tokenizer) -> int:
    """One more than the largest id: the number of rows of an embedding of all tokens."""
    return max(backend.get_vocab(with_added_tokens=True).values()) + 1
