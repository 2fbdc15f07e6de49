"""Generation in lm-eval tasks ends, and takes settings, as lm-eval's ``hf`` backend does."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from lm_eval.api.instance import Instance
from lm_eval.models.huggingface import HFLM

from lit_llm import Tokenizer, Transformer, UserError
from lit_llm.evaluate.decode import Decoding
from lit_llm.evaluate.harness import HarnessLM
from lit_llm.evaluate.run import load_tasks, metric_rows, run_task
from lit_llm.models.generation.sampling import Sampling

TASK = """
task: capital
dataset_path: json
dataset_kwargs:
  data_files:
    test: {data}
  cache_dir: {cache}
test_split: test
output_type: generate_until
doc_to_text: question
doc_to_target: answer
generation_kwargs: {{until: ["###"], do_sample: false, num_beams: 1, top_p: 0, max_gen_toks: 24}}
metric_list: [{{metric: exact_match}}]
"""
TEXT = "<|eot|> user asked the assistant for the capital Paris and 12345\n" * 8


@pytest.fixture(scope="module")
def spoken(
    scripted_model: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, str]:
    """A model that answers, ends its turn with a token that is no eos, and talks on; its answer."""
    tokenizer = Tokenizer.train([TEXT], 300)
    newline, turn_end = tokenizer.encode("\n")[-1], tokenizer.control_tokens["<|im_start|>"]
    answer = tokenizer.encode("Paris")
    assert len(set(answer)) == len(answer) > 1
    follows = dict(zip([newline, *answer], [*answer, turn_end], strict=True))
    folder = scripted_model(tmp_path_factory.mktemp("spoken") / "model", tokenizer, follows)
    (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": [0, turn_end]}))
    return folder, "Paris"


def pair(folder: Path) -> tuple[HarnessLM, HFLM]:
    ours = HarnessLM(Transformer.from_pretrained(folder).eval(), Tokenizer.from_pretrained(folder))
    return ours, HFLM(pretrained=str(folder), device="cpu", batch_size=2)


def test_a_chat_score_equals_the_hf_backends(spoken: tuple[Path, str], tmp_path: Path) -> None:
    folder, answer = spoken
    rows = [{"question": f"{i}?", "answer": answer} for i in range(3)]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    file = tmp_path / "capital.yaml"
    file.write_text(TASK.format(data=tmp_path / "rows.jsonl", cache=tmp_path / "arrow"))
    for lm in pair(folder):
        task = load_tasks(["capital"], [file])["capital"]
        (row,) = metric_rows(run_task(lm, task, apply_chat_template=True))
        assert (row["metric"], row["value"]) == ("exact_match", 1.0)


def test_a_chat_prompt_is_answered_up_to_the_templates_own_end(spoken: tuple[Path, str]) -> None:
    """Raw text has no turns, so there it goes on as with ``hf``."""
    folder, answer = spoken
    tokenizer = Tokenizer.from_pretrained(folder)
    tokenizer.generation_config = {}
    tokenizer.chat_template = (tokenizer.chat_template or "").replace("<|im_end|>", "<|im_start|>")
    model = Transformer.from_pretrained(folder).eval()
    model.generation_config = {}
    lm = HarnessLM(model, tokenizer)
    how = {"until": ["###"], "max_gen_toks": 8}
    assert lm.generate_until([request("hello\n", how)])[0].startswith(answer)
    assert lm.generate_until([request("hello\n", how)]) != [answer]
    prompt = lm.apply_chat_template([{"role": "user", "content": "hello"}])
    assert lm.generate_until([request(prompt, how)]) == [answer]


def request(context: str, how: dict[str, Any]) -> Instance:
    return Instance("generate_until", {}, (context, dict(how)), 0)  # type: ignore[arg-type]


NEUTRAL = [
    {"num_beams": 1, "top_p": 0, "top_k": 0, "temperature": 0},
    {"do_sample": False, "top_p": 0.0, "min_p": 0.3, "typical_p": 0.5, "epsilon_cutoff": 0.1},
    {"num_beams": 1, "early_stopping": True, "length_penalty": 0.5},
    {"no_repeat_ngram_size": 0, "repetition_penalty": 1.0, "min_new_tokens": 0, "top_p": None},
    {"bad_words_ids": None, "suppress_tokens": None, "num_return_sequences": 1},
]


def test_settings_without_effect_are_taken_as_hf_takes_them(
    model: Transformer, tokenizer: Tokenizer, hf: HFLM
) -> None:
    contexts, base = ["def f(", "import os\n"], {"until": ["\n\n"], "max_gen_toks": 8}
    plain = HarnessLM(model, tokenizer).generate_until([request(c, base) for c in contexts])
    asked = [request(context, base | how) for how in NEUTRAL for context in contexts]
    assert HarnessLM(model, tokenizer).generate_until(asked) == plain * len(NEUTRAL)
    assert hf.generate_until(asked, disable_tqdm=True) == plain * len(NEUTRAL)
    assert Decoding.from_request({"use_cache": True}, 8) == Decoding.from_request({}, 8)


@pytest.mark.parametrize(
    ("how", "said"),
    [
        ({"num_beams": 10}, "generation_kwargs: num_beams=10 is not supported"),
        ({"no_repeat_ngram_size": 2, "seed": 3}, "no_repeat_ngram_size=2, seed=3 is not supported"),
        ({"do_sample": True, "typical_p": 0.5}, "typical_p=0.5 is not supported"),
        ({"suppress_tokens": [5]}, r"suppress_tokens=\[5\] is not supported"),
        ({"do_sample": True, "top_p": 1.5}, "top_p=1.5: must be"),
    ],
)
def test_settings_that_would_change_the_text_are_refused(how: dict[str, Any], said: str) -> None:
    with pytest.raises(UserError, match=said):
        Decoding.from_request(how, 8)


def test_what_a_request_leaves_open_the_model_decides_as_in_transformers(
    exported: Path, tmp_path: Path
) -> None:
    shutil.copytree(exported, tmp_path / "model")
    fields = {"eos_token_id": 0, "repetition_penalty": 1.8, "top_k": 20, "top_p": 0.8, "own": 1}
    (tmp_path / "model" / "generation_config.json").write_text(json.dumps(fields))
    ours, theirs = pair(tmp_path / "model")
    asked = [request(c, {"until": ["\n\n"], "max_gen_toks": 16}) for c in ("def f(", "import os\n")]
    answers = ours.generate_until(asked)
    assert answers == theirs.generate_until(asked, disable_tqdm=True)
    plain = [request(c.args[0], {**c.args[1], "repetition_penalty": 1.0}) for c in asked]
    assert ours.generate_until(plain) != answers
    sampled = {"do_sample": True, "temperature": 0.5, "top_p": 0.9}
    assert Decoding.from_request(sampled, 8, fields).sampling == Sampling(1.8, 0.5, 20, 0.9)
    assert Decoding.from_request(sampled, 8).sampling == Sampling(1.0, 0.5, 50, 0.9)
    assert Decoding.from_request(sampled | {"top_k": 0}, 8).sampling.top_k is None
    assert Decoding.from_request(sampled | {"top_p": 0}, 8).sampling == Sampling(1.0, 0.5, 1)
    with pytest.raises(UserError, match=r"generation_config\.json: no_repeat_ngram_size=3 is not"):
        Decoding.from_request({}, 8, {"no_repeat_ngram_size": 3})


def test_a_text_without_context_begins_as_with_hf(exported: Path, tmp_path: Path) -> None:
    """The settings name an eos and no bos: then lm-eval begins with the eos, whatever config.json
    says."""
    folder = shutil.copytree(exported, tmp_path / "model")
    spec = json.loads((folder / "tokenizer.json").read_text()) | {"post_processor": None}
    (folder / "tokenizer.json").write_text(json.dumps(spec))
    settings = {"eos_token": "<|im_end|>", "pad_token": "<|pad|>", "add_bos_token": False}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    ours, theirs = pair(folder)
    assert ours.prefix_token_id == theirs.prefix_token_id
    asked = [
        Instance("loglikelihood", {}, arguments, 0)  # type: ignore[arg-type]
        for arguments in (("", "Hello world"), ("import", " os"))
    ]
    scores, expected = ours.loglikelihood(asked), theirs.loglikelihood(asked, disable_tqdm=True)
    for (mine, greedy), (other, other_greedy) in zip(scores, expected, strict=True):
        assert mine == pytest.approx(other, abs=1e-4) and greedy == other_greedy
