"""chat and generate with several adapters: each answers as its merged model does."""

from __future__ import annotations

import io
import json
import sys
from pathlib import Path

import pytest
import torch

from lit_llm.errors import UserError
from lit_llm.models.hub.adapter_base import AdapterBase
from lit_llm.models.hub.adapter_choice import BASE, AdapterChoice
from lit_llm.models.hub.adapters import save_adapter
from lit_llm.models.hub.checkpoint import load_model
from lit_llm.models.hub.digest import digest
from lit_llm.models.lora import apply_lora, lora_layers
from lit_llm.models.lora_config import LoRAConfig
from lit_llm.terminal.chat import chat_main
from lit_llm.terminal.completion import generate_main
from lit_llm.terminal.options import read_adapters

SHORT = ["--max_new_tokens", "8", "--temperature", "0"]
CONFIGS = {"law": LoRAConfig(rank=2), "poems": LoRAConfig(rank=5, dora=True, dropout=0.5),
           "words": LoRAConfig(rank=3, targets=("o_proj",), train_modules=("embed",))}  # fmt: skip


@pytest.fixture(scope="module")
def adapters(chat_model: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Adapters with their own chat templates, as a run writes them."""
    parent = tmp_path_factory.mktemp("runs")
    for number, (name, config) in enumerate(CONFIGS.items()):
        model, tokenizer = load_model(chat_model)
        base = digest(model.state_dict().items())
        apply_lora(model, config)
        torch.manual_seed(number)
        for layer in lora_layers(model):
            torch.nn.init.normal_(layer.lora_b, std=0.2)
        if config.train_modules:
            model.embed.weight.data += 0.05 * torch.randn_like(model.embed.weight)
        folder = parent / name / "adapter"
        save_adapter(model, folder, base=str(chat_model))
        tokenizer.chat_template = str(tokenizer.chat_template).replace("assistant", f"a {name}")
        tokenizer.save_pretrained(folder)
        AdapterBase(str(chat_model), base, "float32").write(folder)
    return {name: parent / name / "adapter" for name in CONFIGS}


def given(adapters: dict[str, Path]) -> list[str]:
    return [word for folder in adapters.values() for word in ("--adapter", str(folder))]


def test_each_has_the_logits_of_its_merged_model(
    chat_model: Path, adapters: dict[str, Path]
) -> None:
    choice = AdapterChoice(chat_model, adapters, "cpu")
    assert choice.names == (BASE, *adapters) and choice.used == "law"
    ids = torch.arange(1, 30)[None]
    seen = []
    for name in ("words", "poems", BASE, "law", "words", BASE, "poems"):
        choice.use(name)
        merged, tokenizer = load_model(chat_model, adapters.get(name))
        with torch.no_grad():
            seen.append(choice.model(ids))
            torch.testing.assert_close(seen[-1], merged(ids), atol=1e-3, rtol=0)
        assert choice.tokenizer.chat_template == tokenizer.chat_template
    assert all((one - seen[2]).abs().max() > 0.05 for one in (seen[0], seen[1], seen[3]))
    with pytest.raises(UserError, match="no adapter named 'lawyer'; known are law, poems, words"):
        choice.use("lawyer")
    assert choice.used == "poems"


def test_switching_in_a_chat(
    chat_model: Path, adapters: dict[str, Path], monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    def chat(text: str, *args: str) -> tuple[str, str]:
        monkeypatch.setattr(sys, "stdin", io.StringIO(text))
        chat_main([str(chat_model), *SHORT, *args])
        shown = capsys.readouterr()
        return shown.out, shown.err

    alone = {name: chat("hello\n", "--adapter", str(folder))[0]
             for name, folder in adapters.items()}  # fmt: skip
    alone[BASE] = chat("hello\n")[0]
    order = ["law", "poems", BASE, "words", "law"]
    lines = "\n/reset\n".join(f"/adapter {name}\nhello" for name in order) + "\n/adapter\n"
    out, err = chat(lines, *given(adapters))
    assert out == "".join(alone[name] for name in order)
    assert err.splitlines()[-1] == "adapters: base, law (in use), poems, words"
    # The turns stay: a second question follows the first adapter's answer.
    with_history = chat("hello\n/adapter base\nhello\n", *given(adapters))[0]
    assert with_history.startswith(alone["law"]) and with_history != alone["law"] + alone[BASE]
    with pytest.raises(UserError, match="1 of the messages"):
        chat("/adapter lawyer\n", *given(adapters))
    assert "no adapter named 'lawyer'" in capsys.readouterr().err
    with pytest.raises(UserError, match="1 of the messages"):
        chat("/adapter law\n")
    assert "start with --adapter NAME=DIR" in capsys.readouterr().err


def test_generate_answers_with_each(
    chat_model: Path, adapters: dict[str, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    ask = [str(chat_model), *SHORT, "--prompt", "hello", "--chat"]

    def rows(*args: str) -> list[dict]:
        generate_main([*ask, *args, "--json"])
        return [json.loads(line) for line in capsys.readouterr().out.splitlines()]

    found = rows(*given(adapters))
    assert [row.pop("adapter") for row in found] == [BASE, *adapters]
    assert found == rows() + [row for folder in adapters.values()
                              for row in rows("--adapter", str(folder))]  # fmt: skip
    generate_main([*ask, "--adapter", f"one={adapters['law']}"])
    shown = capsys.readouterr().out
    assert shown == f"[base]\n{found[0]['text']}\n[one]\n{found[1]['text']}\n"


def test_another_base_is_refused(
    chat_model: Path, adapters: dict[str, Path], tmp_path: Path
) -> None:
    model, tokenizer = load_model(chat_model)
    for parameter in model.parameters():
        parameter.data += 0.01
    model.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    for options in ([str(adapters["law"])], [f"a={adapters['law']}", str(adapters["poems"])]):
        words = [word for option in options for word in ("--adapter", option)]
        with pytest.raises(UserError, match="adapter: was trained on another base than this model"):
            generate_main([str(tmp_path), *words, "--prompt", "hello"])


def test_names_on_the_command_line(tmp_path: Path) -> None:
    odd = tmp_path / "a=b"
    odd.mkdir()
    assert read_adapters([]) == (None, {})
    assert read_adapters(["x/law"]) == ("x/law", {})
    assert read_adapters([str(odd)]) == (str(odd), {})
    assert read_adapters(["law=x"]) == (None, {"law": "x"})
    assert read_adapters(["runs/one/adapter", "x/two", "three=y"]) == (
        None, {"one": "runs/one/adapter", "two": "x/two", "three": "y"},
    )  # fmt: skip
    with pytest.raises(UserError, match="the name 'law' is x/law already; write NAME=y/law"):
        read_adapters(["x/law", "y/law"])
    with pytest.raises(UserError, match="the name 'base' stands for no adapter"):
        read_adapters(["base=x"])
