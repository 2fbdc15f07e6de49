"""Answers that were cut in and after their reasoning."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from lm_eval.api.instance import Instance
from lm_eval.models.utils import postprocess_generated_text

from lit_llm import Tokenizer, Transformer, UserError
from lit_llm.evaluate.command import evaluate_main
from lit_llm.evaluate.harness import HarnessLM
from lit_llm.evaluate.reasoning import AnswerStart, Reasoning

TEXT = "hmm 12345 Paris is it. <|eot|> abcdefgh\n" * 8
TEMPLATE = (
    "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}"
    "{% if add_generation_prompt %}>{% if enable_thinking is defined and not enable_thinking %}"
    "<think></think>{% endif %}{% endif %}"
)


@pytest.fixture(scope="module")
def thinker(
    scripted_model: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, str]:
    """A model that always says the same; the folder, and what it says after ">"."""
    trained = Tokenizer.train([TEXT], 280)
    trained.backend.add_tokens(["<think>", "</think>"])
    tokenizer = Tokenizer(trained.backend, **trained.special_names, chat_template=TEMPLATE)
    said = "<think>h.3</think> Pari"
    chain = [*tokenizer.encode(">"), *tokenizer.encode(said)]
    assert len(set(chain)) == len(chain)
    follows = dict(zip(chain, [*chain[1:], tokenizer.eos_id], strict=True))
    folder = scripted_model(tmp_path_factory.mktemp("thinker") / "model", tokenizer, follows)
    return folder, said


def harness(folder: Path, **how: Any) -> HarnessLM:
    model = Transformer.from_pretrained(folder).eval()
    return HarnessLM(model, Tokenizer.from_pretrained(folder), **how)


def answers(lm: HarnessLM, prompt: str, **how: Any) -> list[str]:
    settings = {"until": ["."], "max_gen_toks": 40} | how
    request = Instance("generate_until", {}, (prompt, settings), 0, ("a task", 0, 1))
    return lm.generate_until([request])


def test_stop_strings_inside_reasoning_are_ignored(thinker: tuple[Path, str]) -> None:
    folder, said = thinker
    lm = harness(folder, reasoning=Reasoning())
    assert answers(lm, ">") == ["Pari"]
    assert lm.endings == {"a task": {"asked": 1}}
    # Without the markers the stop string ends the reasoning, and lm-eval scores its beginning.
    assert answers(harness(folder), ">") == [said.partition(".")[0]]
    assert postprocess_generated_text(said, ["."], "</think>") == "Pari"


def test_what_is_cut_in_its_reasoning_is_unanswered(thinker: tuple[Path, str]) -> None:
    folder, said = thinker
    cut = said.partition("</think>")[0]
    tokens = len(Tokenizer.from_pretrained(folder).encode(cut)) - 1
    for how in (Reasoning(reasoning_tokens=tokens), Reasoning()):
        lm = harness(folder, reasoning=how)
        most = 40 if how.reasoning_tokens else tokens // 2
        assert answers(lm, ">", max_gen_toks=most) == [""]
        assert lm.endings == {"a task": {"asked": 1, "unanswered": 1}}
    # lm-eval takes the reasoning for the answer.
    assert postprocess_generated_text(cut, ["Pari"], "</think>") == cut


def test_what_is_cut_after_its_reasoning_is_cut(thinker: tuple[Path, str]) -> None:
    lm = harness(thinker[0], reasoning=Reasoning(answer_tokens=2))
    (answer,) = answers(lm, ">")
    assert "Pari".startswith(answer) and 0 < len(answer) < 4
    assert lm.endings == {"a task": {"asked": 1, "cut": 1}}
    assert answers(harness(thinker[0], reasoning=Reasoning()), ">", until=["P"]) == [""]


def test_an_answer_without_reasoning(thinker: tuple[Path, str]) -> None:
    """It counts as an answer, and a prompt may already have opened or ended the reasoning."""
    tokenizer = Tokenizer.from_pretrained(thinker[0])

    def begin(prompt: str, answer: str) -> tuple[int | None, str]:
        ids = tokenizer.encode(answer)
        start = AnswerStart(tokenizer, Reasoning("<think>", "</think>"), prompt)
        for count in range(1, len(ids) + 1):
            start.look(ids[:count])
        if start.begin is None:
            return None, ""
        return start.begin, start.rest + tokenizer.decode(ids[start.begin :])

    assert begin("Q:", "Paris") == (0, "Paris")
    assert begin("Q: <think></think>\n", "Paris") == (0, "Paris")
    assert begin("Q: <think>\n", "hmm</think>Paris")[1] == "Paris"
    assert begin("Q:", " <think>hmm</think>Paris")[1] == "Paris"
    assert begin("Q: <think>", "hmm</thin") == begin("Q:", "<thi") == (None, "")


@pytest.fixture
def task(tmp_path: Path, thinker: tuple[Path, str]) -> Callable[[str, str], list[str]]:
    def write(kind: str, more: str) -> list[str]:
        (tmp_path / "data.jsonl").write_text('{"question": "Capital?", "answer": "Pari"}\n' * 3)
        (tmp_path / "capital.yaml").write_text(
            "task: capital\ndataset_path: json\ndataset_kwargs:\n  data_files: {test: "
            f"{tmp_path}/data.jsonl}}\n  cache_dir: {tmp_path}/arrow\ntest_split: test\n"
            f"output_type: {kind}\ndoc_to_text: question\ndoc_to_target: answer\n{more}\n"
        )
        return [str(thinker[0]), "--tasks", "capital", "--include", str(tmp_path), "--json", "-",
                "--device", "cpu", "--apply_chat_template"]  # fmt: skip

    return write


GENERATE = (
    "generation_kwargs: {until: ['.'], max_gen_toks: 40}\nmetric_list: [{metric: exact_match}]"
)


def test_the_command_finds_the_templates_markers(
    task: Callable[[str, str], list[str]], capsys: pytest.CaptureFixture
) -> None:
    given = task("generate_until", GENERATE)
    for more, wanted in (([], 1.0), (["--reasoning_tokens", "1"], 0.0)):
        evaluate_main([*given, *more])
        content = json.loads(capsys.readouterr().out)
        found = {row["metric"]: row["value"] for row in content["metrics"]}
        assert found == {"exact_match": wanted, "unanswered": 1 - wanted, "cut": 0, "empty": 0}
        assert content["answers"]["capital"]["asked"] == 3


def test_choices_behind_reasoning_are_refused(
    task: Callable[[str, str], list[str]], capsys: pytest.CaptureFixture
) -> None:
    given = task("loglikelihood", "metric_list: [{metric: acc}]")
    with pytest.raises(UserError, match="turn reasoning off"):
        evaluate_main(given)
    evaluate_main([*given, "--chat_template_kwargs", '{"enable_thinking": false}'])
    assert len(json.loads(capsys.readouterr().out)["metrics"]) == 1


def test_a_system_message(
    task: Callable[[str, str], list[str]], capsys: pytest.CaptureFixture, tmp_path: Path
) -> None:
    given = task("generate_until", GENERATE)
    evaluate_main([*given, "--system", "Be brief.", "--log_samples"])
    (sample, *_) = json.loads(capsys.readouterr().out)["samples"]["capital"]
    assert sample["arguments"][0][0].startswith("system: Be brief.\nuser: Capital?")


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--chat_template_kwargs", "[1]"], "must be a JSON object"),
        (["--chat_template_kwargs", "{"], "must be a JSON object"),
        (["--answer_tokens", "3"], "need reasoning"),
        (["--system", "Be brief."], "--system needs --apply_chat_template"),
        (["--chat_template_kwargs", "{}"], "--chat_template_kwargs needs --apply_chat_template"),
    ],
)
def test_mistakes(exported: Path, cache_dir: Path, more: list[str], message: str) -> None:
    with pytest.raises(UserError, match=message):
        evaluate_main([str(exported), "--tasks", "stdlib_complete", "--device", "cpu", *more])
