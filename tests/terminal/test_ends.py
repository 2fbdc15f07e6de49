"""Answers end at every id of generation_config.json, as in transformers; import and export keep
it."""

from __future__ import annotations

import io
import json
import shutil
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import transformers

from lit_llm.errors import UserError
from lit_llm.models.generation.generate import generate
from lit_llm.models.generation.sampling import GREEDY
from lit_llm.models.hub.checkpoint import load_model
from lit_llm.models.tokenizer import Tokenizer
from lit_llm.models.transformer import Transformer
from lit_llm.terminal.chat import chat_main
from lit_llm.terminal.completion import generate_main
from lit_llm.terminal.convert import export_main, import_main

PROMPT = "what is 北京"
TEXT = "user asked the assistant: what is a café in 北京? 🙂 system said hello\n" * 8
FIELDS = {"temperature": 0.6, "do_sample": True, "chat_format": "chatml", "max_new_tokens": 99}


def ids_of(folder: Path, text: str) -> list[int]:
    return transformers.AutoTokenizer.from_pretrained(folder)(text).input_ids


def theirs(folder: Path, prompt: list[int], length: int = 20) -> list[int]:
    """transformers' greedy answer under the folder's generation_config.json, without its end."""
    model = transformers.AutoModelForCausalLM.from_pretrained(folder)
    whole = model.generate(
        torch.tensor([prompt]), max_new_tokens=length, do_sample=False, pad_token_id=1
    )
    answer = whole[0, len(prompt) :].tolist()
    ends = model.generation_config.eos_token_id
    return answer[:-1] if answer[-1] in (ends if isinstance(ends, list) else [ends]) else answer


def with_ends(model: Path, folder: Path, prompt: list[int]) -> tuple[Path, int]:
    """A copy of ``model`` with a second end, a token of its answer to ``prompt``; and that
    token."""
    shutil.copytree(model, folder)
    end = generate(load_model(model)[0], [prompt], 6, GREEDY)[0][-1]
    (folder / "generation_config.json").write_text(json.dumps({**FIELDS, "eos_token_id": [0, end]}))
    return folder, end


@pytest.fixture(scope="module")
def talker(scripted_model: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    tokenizer = Tokenizer.train([TEXT], 300)
    return scripted_model(tmp_path_factory.mktemp("talker") / "model", tokenizer, {})


@pytest.fixture(scope="module")
def ended(talker: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, int]:
    return with_ends(talker, tmp_path_factory.mktemp("ended") / "model", ids_of(talker, PROMPT))


def answered(capsys: pytest.CaptureFixture[str], folder: Path, *args: str) -> str:
    capsys.readouterr()
    generate_main([str(folder), "--prompt", PROMPT, "--max_new_tokens", "20", "--json", *args])
    return json.loads(capsys.readouterr().out)["text"]


def test_generation_stops_where_transformers_stops(
    ended: tuple[Path, int], capsys: pytest.CaptureFixture[str]
) -> None:
    folder, end = ended
    expected = theirs(folder, ids_of(folder, PROMPT))
    assert end not in expected and len(expected) == 5
    tokenizer = Tokenizer.from_pretrained(folder)
    assert answered(capsys, folder) == tokenizer.decode(expected)
    assert tokenizer.stop_ids == [0, end]


def test_every_field_survives_import_and_export(ended: tuple[Path, int], tmp_path: Path) -> None:
    folder, end = ended
    import_main([str(folder), str(tmp_path / "imported")])
    export_main([str(tmp_path / "imported"), str(tmp_path / "exported"), "--format", "hf"])
    for copy in ("imported", "exported"):
        written = json.loads((tmp_path / copy / "generation_config.json").read_text())
        ids = {"bos_token_id": 0, "pad_token_id": 1}
        assert written == {**ids, **FIELDS, "eos_token_id": [0, end]}
        config = json.loads((tmp_path / copy / "config.json").read_text())
        assert config["eos_token_id"] == [0, end]  # for programs that read nothing else
    prompt = ids_of(folder, PROMPT)
    assert theirs(tmp_path / "exported", prompt) == theirs(folder, prompt)
    # The model alone, and the tokenizer alone, carry it too.
    Transformer.from_pretrained(folder).save_pretrained(tmp_path / "model")
    Tokenizer.from_pretrained(folder).save_pretrained(tmp_path / "tokenizer")
    for part in ("model", "tokenizer"):
        written = json.loads((tmp_path / part / "generation_config.json").read_text())
        assert written["eos_token_id"] == [0, end] and written["chat_format"] == "chatml"


def test_ids_of_config_json_count_where_no_other_file_names_any(
    ended: tuple[Path, int], tmp_path: Path
) -> None:
    folder, end = ended
    shutil.copytree(folder, tmp_path / "old")
    (tmp_path / "old" / "generation_config.json").unlink()
    config = json.loads((folder / "config.json").read_text())
    (tmp_path / "old" / "config.json").write_text(json.dumps({**config, "eos_token_id": [end, 0]}))
    import_main([str(tmp_path / "old"), str(tmp_path / "new")])
    prompt = ids_of(folder, PROMPT)
    assert theirs(tmp_path / "new", prompt) == theirs(tmp_path / "old", prompt)
    assert end not in theirs(tmp_path / "new", prompt)
    assert Tokenizer.from_pretrained(tmp_path / "new").stop_ids == [0, end]
    config = json.loads((tmp_path / "new" / "config.json").read_text())
    assert config["eos_token_id"] == [end, 0]


def test_a_conversation_stops_at_any_of_them(
    talker: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    prompt = transformers.AutoTokenizer.from_pretrained(talker).apply_chat_template(
        [{"role": "user", "content": PROMPT}], add_generation_prompt=True, return_dict=False
    )
    folder, _ = with_ends(talker, tmp_path / "model", prompt)
    expected = Tokenizer.from_pretrained(folder).decode(theirs(folder, prompt))
    assert answered(capsys, folder, "--chat") == expected
    monkeypatch.setattr(sys, "stdin", io.StringIO(PROMPT + "\n"))
    chat_main([str(folder), "--max_new_tokens", "20", "--temperature", "0"])
    assert capsys.readouterr().out == expected + "\n"


@pytest.mark.parametrize(
    ("file", "content"),
    [
        ("generation_config.json", {"eos_token_id": "</s>"}),
        ("generation_config.json", {"eos_token_id": [1, None]}),
        ("generation_config.json", [1]),
        ("config.json", {"eos_token_id": {"id": 2}}),
    ],
)
def test_an_end_that_is_no_id_is_named(
    talker: Path, tmp_path: Path, file: str, content: object
) -> None:
    shutil.copytree(talker, tmp_path / "model")
    (tmp_path / "model" / "generation_config.json").unlink()
    (tmp_path / "model" / file).write_text(json.dumps(content))
    with pytest.raises(UserError, match=rf"{file}: (eos_token_id is|holds a list)"):
        Tokenizer.from_pretrained(tmp_path / "model")


def test_a_long_prompt_does_not_shorten_the_answers_beside_it(
    talker: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def rows(*prompts: str) -> list[dict[str, object]]:
        capsys.readouterr()
        arguments = [f"--prompt={prompt}" for prompt in prompts]
        generate_main([str(talker), "--json", "--max_new_tokens", "5000", *arguments])
        return [json.loads(line) for line in capsys.readouterr().out.splitlines()]

    short, long = "the café", "zz" * 85
    alone = rows(short) + rows(long)
    assert alone[0]["tokens"] > 3 * alone[1]["tokens"] > 0
    assert rows(short, long) == alone and rows(long, short) == alone[::-1]
