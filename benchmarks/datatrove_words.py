"""Our words for datatrove: imported in its environment, by what measures it with the splitter that
we ship."""

from __future__ import annotations

import unicodedata

from datatrove.utils.text import split_into_parts
from datatrove.utils.word_tokenizers import WordTokenizer
from spacy.pipeline.sentencizer import Sentencizer

from lit_llm.corpus.kernels.words import words

_ENDS = set(Sentencizer.default_punct_chars)


class OurWords(WordTokenizer):
    """Our words, and sentences of them by the rule of spaCy's sentencizer, which datatrove uses."""

    def word_tokenize(self, text: str) -> list[str]:
        return words(text)

    def span_tokenize(self, text: str) -> list[tuple[int, int]]:
        sentences, ended = 1, False
        for word in words(text):
            if word in _ENDS:
                ended = True
            elif ended and not all(unicodedata.category(character)[0] == "P" for character in word):
                sentences, ended = sentences + 1, False
        return [(0, len(text))] * sentences  # they are only counted

    def sent_tokenize(self, text: str) -> list[str]:
        raise NotImplementedError("not used by the filters")


def use(load: object) -> None:
    """Have datatrove's filters cut words with what ``load(language)`` gives."""
    import datatrove.utils.word_tokenizers as tokenizers

    tokenizers.load_word_tokenizer = load
    split_into_parts.cache_clear()
