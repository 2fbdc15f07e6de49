"""A base gets its chat template from a file: what the run writes renders and stops by it."""

from __future__ import annotations

import io
import itertools
import json
import re
import shlex
import shutil
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import transformers
import yaml

from lit_llm import InstructionDataModule, Tokenizer, Transformer, UserError
from lit_llm.cli import main
from lit_llm.models.hub.checkpoint import load_model
from lit_llm.models.hub.gguf.read import read_tokenizer
from lit_llm.models.tokenizer import CHATML_TEMPLATE

TEXT = "<|eot|> user asked the assistant: what is a café in 北京? Paris 12345\n" * 8
ANSWER = "Paris"
TOO_LONG = "0" * 400  # for the base's context


@pytest.fixture(scope="module")
def base(scripted_model: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """It has no template and one eos; after a newline it says `ANSWER`, ``<|im_end|>`` and more."""
    tokenizer = Tokenizer.train([TEXT], 300)
    tokenizer.chat_template = None
    newline, turn_end = tokenizer.encode("\n")[-1], tokenizer.control_tokens["<|im_end|>"]
    says = [newline, *tokenizer.encode(ANSWER), turn_end]
    assert len(set(says)) == len(says) > 3
    follows = dict(itertools.pairwise(says))
    folder = scripted_model(tmp_path_factory.mktemp("base") / "model", tokenizer, follows)
    fields = {"eos_token_id": 0, "bos_token_id": 0, "temperature": 0.6, "do_sample": True}
    (folder / "generation_config.json").write_text(json.dumps(fields))
    return folder


@pytest.fixture(scope="module")
def run(
    base: Path, cache_dir: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, list[str]]:
    """The folder of a run with ``data.chat_template``, and the commands that it names at its
    end."""
    folder = tmp_path_factory.mktemp("run")
    (folder / "chatml.jinja").write_text(CHATML_TEMPLATE)
    row = {"prompt": "what is a café?", "completion": ANSWER}
    lines = [json.dumps({**row, "prompt": f"{row['prompt']} {i}"}) for i in range(40)]
    (folder / "rows.jsonl").write_text("\n".join(lines))
    (folder / "prompts.txt").write_text("what is 北京?\n")
    config = {
        "model": {
            "class_path": "lit_llm.SFTModule",
            "init_args": {"init_from": str(base), "lora": {"rank": 2}, "learning_rate": 1e-5},
        },
        "data": {
            "class_path": "lit_llm.InstructionDataModule",
            "init_args": {
                "sources": str(folder / "rows.jsonl"), "seq_len": 64, "micro_batch_size": 8,
                "chat_template": str(folder / "chatml.jinja"),
            },
        },
        "samples": {
            "prompts": ["what is a café?", TOO_LONG], "max_new_tokens": 12,
            "sampling": {"temperature": 0.0},
        },
        "trainer": {"accelerator": "cpu", "max_steps": 2},
    }  # fmt: skip
    (folder / "mine.yaml").write_text(yaml.safe_dump(config))
    out, sys.stdout = sys.stdout, io.StringIO()
    try:
        arguments = ["--config", str(folder / "mine.yaml")]
        assert main(["fit", *arguments, "--trainer.default_root_dir", str(folder / "run")]) == 0
        said = sys.stdout.getvalue()
    finally:
        sys.stdout = out
    commands = re.findall(r"^  lit_llm (.*)$", said, re.MULTILINE)
    return folder / "run", [c.replace("FILE", str(folder / "prompts.txt")) for c in commands]


def test_the_commands_that_a_fit_names_next_work(
    run: tuple[Path, list[str]], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    folder, commands = run
    assert [command.split()[0] for command in commands] == ["chat", "generate"]
    monkeypatch.setattr(sys, "stdin", io.StringIO("what is a café?\n"))
    assert main([*shlex.split(commands[0]), "--temperature", "0"]) == 0
    assert capsys.readouterr().out == ANSWER + "\n"
    assert main(shlex.split(commands[1])) == 0
    assert capsys.readouterr().out == ANSWER + "\n"
    assert main([*predict(folder), str(folder.parent / "prompts.txt")]) == 0
    (row,) = (folder / "predictions.jsonl").read_text().splitlines()
    assert json.loads(row)["text"] == ANSWER


def predict(folder: Path) -> list[str]:
    """A call for the prompts of a file, whose name is to follow."""
    checkpoint = str(max((folder / "checkpoints").glob("step-*.ckpt")))
    config = ["--config", str(folder / "config.yaml"), "--ckpt_path", checkpoint]
    return ["predict", *config, "--data.prompts"]


@pytest.mark.parametrize("part", ["final", "tokenizer", "adapter"])
def test_template_and_ends_lie_in_every_folder_of_the_run(
    run: tuple[Path, list[str]], part: str
) -> None:
    folder = run[0] / part
    assert transformers.AutoTokenizer.from_pretrained(folder).chat_template == CHATML_TEMPLATE
    fields = json.loads((folder / "generation_config.json").read_text())
    turn_end = Tokenizer.from_pretrained(folder).control_tokens["<|im_end|>"]
    assert fields["eos_token_id"] == [0, turn_end]
    assert (fields["temperature"], fields["do_sample"]) == (0.6, True)


def test_transformers_stops_at_the_end_of_the_turn(run: tuple[Path, list[str]]) -> None:
    tokenizer = transformers.AutoTokenizer.from_pretrained(run[0] / "final")
    model = transformers.AutoModelForCausalLM.from_pretrained(run[0] / "final")
    prompt = tokenizer.apply_chat_template(
        [{"role": "user", "content": "what is a café?"}], add_generation_prompt=True,
        return_dict=False,
    )  # fmt: skip
    whole = model.generate(torch.tensor([prompt]), max_new_tokens=12, do_sample=False)
    assert tokenizer.decode(whole[0, len(prompt) :]) == ANSWER + "<|im_end|>"


def test_samples_stop_there_too(run: tuple[Path, list[str]]) -> None:
    rows = [json.loads(line) for line in (run[0] / "samples.jsonl").read_text().splitlines()]
    assert {row["text"] for row in rows} == {ANSWER}
    assert {row["prompt"] for row in rows} == {"what is a café?\n"}


def test_one_long_prompt_costs_the_others_nothing(
    run: tuple[Path, list[str]], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder, prompts = run[0], tmp_path / "prompts.txt"
    prompts.write_text("what is 北京?\n" + "0" * 170 + "\n")  # 64 new tokens do not fit behind it
    assert main([*predict(folder), str(prompts)]) == 0
    rows = [json.loads(r) for r in (folder / "predictions.jsonl").read_text().splitlines()]
    assert [row["text"] for row in rows] == [ANSWER] * 2
    prompts.write_text(f"what is 北京?\n{TOO_LONG}\n")
    capsys.readouterr()
    assert main([*predict(folder), str(prompts)]) == 2
    assert "the prompt '0000" in capsys.readouterr().err


def test_a_checkpoint_an_adapter_and_a_gguf_file_keep_them(
    run: tuple[Path, list[str]], base: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = run[0]
    checkpoint = max((folder / "checkpoints").glob("step-*.ckpt"))
    ask = ["--chat", "--prompt", "what is a café?", "--max_new_tokens", "12"]
    for model in ([str(checkpoint)], [str(base), "--adapter", str(folder / "adapter")]):
        assert main(["generate", *model, *ask]) == 0
        assert capsys.readouterr().out == ANSWER + "\n"
    assert main(["export", str(checkpoint), str(tmp_path / "hf"), "--format", "hf"]) == 0
    fields = json.loads((tmp_path / "hf" / "generation_config.json").read_text())
    final = json.loads((folder / "final" / "generation_config.json").read_text())
    assert fields == final | {"pad_token_id": 1}
    assert main(["export", str(folder), str(tmp_path / "m.gguf"), "--format", "gguf"]) == 0
    assert read_tokenizer(tmp_path / "m.gguf").chat_template == CHATML_TEMPLATE


def test_an_adapters_tokenizer_that_does_not_fit_is_told(
    run: tuple[Path, list[str]], base: Path, tmp_path: Path
) -> None:
    adapter = shutil.copytree(run[0] / "adapter", tmp_path / "adapter")
    spec = json.loads((adapter / "tokenizer.json").read_text())
    added = {**spec["added_tokens"][0], "id": 5000, "content": "<new>"}
    spec["added_tokens"].append(added)
    (adapter / "tokenizer.json").write_text(json.dumps(spec))
    with pytest.warns(UserWarning, match="the model's tokenizer is used"):
        _, tokenizer = load_model(base, adapter)
    assert tokenizer.vocab_size == Transformer.from_pretrained(base).config.vocab_size


SPEAKERS = "{% for m in messages %}{{ m['role'] }}: {{ m['content'] }}\n{% endfor %}"
OUTSIDE = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{% if m['role'] == 'assistant' %}"
    "{% generation %}{{ m['content'] }}{% endgeneration %}{% else %}{{ m['content'] }}{% endif %}"
    "<|im_end|>\n{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


@pytest.mark.parametrize(
    ("template", "warned"),
    [
        (CHATML_TEMPLATE, False),
        (SPEAKERS + "{% if add_generation_prompt %}assistant: {% endif %}", True),
        # No token of this tokenizer: the one that begins the next turn ends the answer.
        (CHATML_TEMPLATE.replace("im_end", "eot"), False),
        (OUTSIDE, True),  # not learnt
        (OUTSIDE.replace("{% endgeneration %}", "<|im_end|>{% endgeneration %}"), False),
    ],
)
def test_a_template_from_which_nobody_learns_to_stop_is_told_before_training(
    base: Path, tmp_path: Path, template: str, warned: bool, recwarn: pytest.WarningsRecorder
) -> None:
    (tmp_path / "t.jinja").write_text(template)
    rows = [json.dumps({"prompt": f"{i}?", "completion": "yes"}) for i in range(20)]
    (tmp_path / "rows.jsonl").write_text("\n".join(rows))
    data = InstructionDataModule(
        str(tmp_path / "rows.jsonl"), tokenizer=str(base), chat_template=str(tmp_path / "t.jinja"),
        seq_len=64, validation_fraction=0.2, cache_dir=str(tmp_path / "cache"),
    )  # fmt: skip
    data.prepare_data()
    data.setup("fit")
    said = [str(w.message) for w in recwarn if "will not learn to stop" in str(w.message)]
    assert len(said) == warned
    if warned:
        assert "tokens that end a text: <|endoftext|>" in said[0]


def test_a_named_template_is_chosen_by_its_name(base: Path, tmp_path: Path) -> None:
    tokenizer = Tokenizer.from_pretrained(base)
    tokenizer.named_templates = {"chatml": CHATML_TEMPLATE, "tool_use": "{{ tools }}"}
    tokenizer.save_pretrained(tmp_path)
    data = InstructionDataModule(tokenizer=str(tmp_path), chat_template="chatml")
    assert data.tokenizer.chat_template == CHATML_TEMPLATE and not data.tokenizer.named_templates
    data = InstructionDataModule(tokenizer=str(tmp_path), chat_template="chatmi")
    with pytest.raises(UserError, match=r"data\.chat_template: chatmi is not readable"):
        data.stop_ids  # noqa: B018
