"""Conversations from files to batches: every row shape, every mistake with its line, packed as
unpacked."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import lit_llm
from lit_llm import InstructionDataModule, Tokenizer, Transformer, TransformerConfig, UserError
from lit_llm.data.blocks import IGNORE
from lit_llm.data.conversations import Conversations, load_conversations
from lit_llm.data.instructions import PackedRows, to_messages
from lit_llm.data.rows.docstrings import docstring_rows, held_out, stdlib_modules

PAIR = [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]


def write(file: Path, rows: list) -> str:
    file.write_text(
        "".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows)
    )
    return str(file)


def chat(number: int, words: int = 3) -> dict:
    return {"messages": [{"role": "user", "content": f"question {number} " + "x " * (number % 5)},
                         {"role": "assistant",
                          "content": f"answer {number} " + "word " * words}]}  # fmt: skip


def module(
    tmp_path: Path, tokenizer_folder: Path, sources: object, **kwargs
) -> InstructionDataModule:
    defaults: dict[str, object] = {"seq_len": 64, "micro_batch_size": 2}
    if "validation" not in kwargs:
        defaults["validation_fraction"] = 0.2
    made = InstructionDataModule(sources, tokenizer=str(tokenizer_folder),
                                 cache_dir=str(tmp_path / "cache"),
                                 **{**defaults, **kwargs})  # type: ignore[arg-type]  # fmt: skip
    made.prepare_data()
    made.setup("fit")
    return made


@pytest.mark.parametrize(
    "row",
    [
        {"messages": PAIR},
        {"conversations": [{"from": "human", "value": "q"}, {"from": "gpt", "value": "a"}]},
        {"prompt": "q", "completion": "a"},
        {"prompt": "q", "response": "a"},
        {"question": "q", "answer": "a"},
        {"instruction": "q", "input": "", "output": "a"},
    ],
)
def test_rows_of_the_usual_shapes(row: dict) -> None:
    assert to_messages(row) == PAIR
    assert (
        to_messages({"instruction": "q", "input": "with", "output": "a"})[0]["content"]
        == "q\n\nwith"
    )


@pytest.mark.parametrize(
    ("row", "said"),
    [
        ('{"messages": ', "not valid JSON"),
        ('["messages"]', "not a JSON object"),
        ({"texts": "x"}, "no conversation in the row.*its keys are texts"),
        ({"messages": [{"content": "x"}]}, "message 1 must be an object with 'role'"),
        ({"messages": [PAIR[0], {"role": "tool", "content": "x"}]}, "message 2 is a tool's"),
        ({"messages": [PAIR[0]]}, "no supervised token"),
        (
            {"messages": [{"role": "user", "content": "x " * 500}, PAIR[1]]},
            "the prompt alone takes .* data.seq_len=64",
        ),
        ({"conversations": [{"from": "human"}]}, "'conversations' must be a list"),
    ],
)
def test_a_bad_row_names_file_and_line(
    tmp_path: Path, tokenizer_folder: Path, row: object, said: str
) -> None:
    file = write(tmp_path / "a.jsonl", [chat(1), "", row, chat(2)])
    with pytest.raises(UserError, match=rf"a\.jsonl:3: .*{said}"):
        module(tmp_path, tokenizer_folder, file, too_long="cut")
    assert not list(tmp_path.glob("cache/instructions/*/datacard.json"))


def test_a_template_that_raises_names_the_row(tmp_path: Path, tokenizer_folder: Path) -> None:
    template = tmp_path / "template.jinja"
    template.write_text("{% if messages[0]['content'] == 'bad' %}{{ raise_exception('not this') "
                        "}}{% endif %}x"
                        "{% for m in messages %}{{ m['content'] }}<|im_end|>{% endfor "
                        "%}")  # fmt: skip
    bad = {"messages": [{"role": "user", "content": "bad"}, PAIR[1]]}
    file = write(tmp_path / "a.jsonl", [chat(1), bad])
    with pytest.raises(
        UserError, match=r"a\.jsonl:2: the chat template refuses the messages: not this"
    ):
        module(tmp_path, tokenizer_folder, file, chat_template=str(template))
    with pytest.raises(UserError, match=r"data\.chat_template: nowhere"):
        module(tmp_path, tokenizer_folder, file, chat_template="nowhere")


def test_bad_rows_can_be_skipped_and_are_counted(tmp_path: Path, tokenizer_folder: Path) -> None:
    file = write(tmp_path / "a.jsonl", [*(chat(i) for i in range(40)), {"messages": [PAIR[0]]}])
    card = json.loads(
        module(tmp_path, tokenizer_folder, file, bad_rows="skip").datacard_file.read_text()
    )
    assert card["dropped"] == {"no supervised token: the assistant says nothing": 1}
    assert card["splits"]["train"]["examples"] + card["splits"]["validation"]["examples"] == 40


@settings(max_examples=15, deadline=None)
@given(
    sizes=st.lists(st.integers(0, 60), min_size=12, max_size=40),
    seq_len=st.sampled_from([32, 64]),
    accumulation=st.sampled_from([1, 3]),
    packing=st.booleans(),
)
def test_every_supervised_token_is_a_label_once(
    tmp_path_factory: pytest.TempPathFactory,
    tokenizer_folder: Path,
    sizes: list[int],
    seq_len: int,
    accumulation: int,
    packing: bool,
) -> None:
    folder = tmp_path_factory.mktemp("data")
    file = write(folder / "a.jsonl", [chat(i, words) for i, words in enumerate(sizes)])
    held = write(folder / "b.jsonl", [chat(99)])
    data = module(folder, tokenizer_folder, file, validation=held, seq_len=seq_len, packing=packing,
                  too_long="cut", global_batch_tokens=2 * seq_len * accumulation)  # fmt: skip
    tokenizer = Tokenizer.from_pretrained(tokenizer_folder)
    expected = []
    for i, words in enumerate(sizes):
        ids, assistant_mask = data.chat.encode(chat(i, words)["messages"])
        expected.append(
            [
                t
                for t, s in zip(ids[1 : seq_len + 1], assistant_mask[1 : seq_len + 1], strict=True)
                if s
            ]
        )
    batches = list(data.train_dataloader())
    assert len(batches) == data.steps * accumulation
    found = []
    for batch in batches:
        for labels, documents in zip(batch["labels"], batch["document_ids"], strict=True):
            assert (labels[documents < 0] == IGNORE).all()
            found += [
                labels[(documents == d) & (labels != IGNORE)].tolist()
                for d in documents.unique()
                if d >= 0
            ]
    assert sorted(found) == sorted(expected)
    for step in range(data.steps):
        own = batches[step * accumulation : (step + 1) * accumulation]
        assert sum(int((b["labels"] != IGNORE).sum()) for b in own) == own[0]["step_tokens"]
    assert tokenizer.vocab_size > 0


@pytest.mark.parametrize(
    ("settings", "rows_of_a_step", "said"),
    [
        (
            {"global_batch_tokens": 8 * 64, "min_steps": 50},
            2,
            "not 512: of 112 rows that makes 56",
        ),
        ({"global_batch_tokens": 8 * 64}, 8, "data.epochs=7 makes 50"),
        ({"micro_batch_size": 4}, 2, "not 256"),
        ({"micro_batch_size": 4, "min_steps": 0}, 4, "data.epochs=4 makes 50"),
        ({"micro_batch_size": 4, "min_steps": 20}, 4, "data.epochs=4 makes 50"),
    ],
)
def test_a_small_set_makes_at_least_fifty_steps_or_it_is_said(
    tmp_path: Path,
    tokenizer_folder: Path,
    caplog: pytest.LogCaptureFixture,
    recwarn: pytest.WarningsRecorder,
    settings: dict,
    rows_of_a_step: int,
    said: str,
) -> None:
    file = write(tmp_path / "a.jsonl", [chat(i) for i in range(60)])
    held = write(tmp_path / "b.jsonl", [chat(99)])
    with caplog.at_level("INFO"):
        data = module(
            tmp_path, tokenizer_folder, file, validation=held, packing=False,
            epochs=112 / 60, **settings,
        )  # fmt: skip
    assert data.rows_per_step == rows_of_a_step
    assert data.steps == -(-112 // rows_of_a_step)
    heard = [record.getMessage() for record in caplog.records] + [str(w.message) for w in recwarn]
    assert any(said in line for line in heard), heard
    judged = f"{data.steps} optimizer steps over 112 examples: data.epochs=1.86667 passes over 60"
    assert any(judged in line for line in heard), heard
    batches = list(data.train_dataloader())
    assert sum(len(batch["input_ids"]) for batch in batches) == data.steps * rows_of_a_step


def test_rehearsal_stays_with_sources_of_ones_own(tmp_path: Path, tokenizer_folder: Path) -> None:
    held = write(tmp_path / "b.jsonl", [chat(99)])

    def questions(sources: object, **kwargs: object) -> list[str]:
        data = module(tmp_path, tokenizer_folder, sources, validation=held, seq_len=256, **kwargs)
        lines = (data.datacard_file.parent / "manifest.jsonl").read_text().splitlines()
        rows = [json.loads(line) for line in lines]
        return [row["id"] for row in rows if row["split"] == "train"]

    file = write(tmp_path / "a.jsonl", [chat(i) for i in range(60)])
    some = questions(file, rehearsal=0.25)
    assert len(some) == 80 and len({id for id in some if id.startswith("general-")}) == 20
    many = questions(file, rehearsal=0.75)
    assert len(many) == 240
    assert {many.count(f"general-{n}") for n in range(1, 81)} == {2, 3}
    assert len(questions(file)) == len(questions(file, rehearsal=0.0)) == 60
    assert len(questions({file: 1, "general": 1}, rehearsal=0.5)) == 140
    with pytest.raises(UserError, match=r"data\.rehearsal=1: must be from 0"):
        InstructionDataModule(file, rehearsal=1.0)


def test_the_preset_rehearses_whatever_the_sources(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    import yaml

    from lit_llm.cli import main

    with pytest.raises(SystemExit):
        main(["fit", "--config", "finetune/quickstart", "--data.sources", "mine.jsonl",
              "--print_config"])  # fmt: skip
    data = yaml.safe_load(capsys.readouterr().out)["data"]["init_args"]
    assert data["sources"] == "mine.jsonl" and data["min_steps"] == 50
    # As many of the 4,259 docstrings' examples as 80 questions, forty times each.
    assert round(data["rehearsal"] / (1 - data["rehearsal"]) * 4259 / 100) == 32


def test_packed_equals_unpacked(tmp_path: Path, tokenizer_folder: Path) -> None:
    """The same examples give the same losses and gradients whether they share rows or not."""
    file = write(tmp_path / "a.jsonl", [chat(i, i % 13) for i in range(30)])
    torch.manual_seed(0)
    model = Transformer(
        TransformerConfig(
            vocab_size=512, hidden_size=32, num_layers=2, num_heads=2, max_seq_len=256
        )
    )
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    results = []
    for packing in (True, False):
        data = module(tmp_path, tokenizer_folder, file, packing=packing, seq_len=256)
        model.zero_grad()
        total = 0.0
        rows = 0
        for batch in data.train_dataloader():
            loss = model.token_losses(
                batch["input_ids"], batch["labels"], batch["document_ids"]
            ).sum()
            loss.backward()
            total += loss.item()
            rows += len(batch["input_ids"])
        results.append((total, {n: p.grad.clone() for n, p in model.named_parameters()}, rows))
    (packed, gradients, few), (single, expected, many) = results
    assert few < many / 2
    assert packed == pytest.approx(single, rel=1e-5)
    for name, gradient in gradients.items():
        torch.testing.assert_close(gradient, expected[name], rtol=1e-3, atol=1e-4)


def test_one_question_is_in_one_split(tmp_path: Path, tokenizer_folder: Path) -> None:
    rows = [{"prompt": f"question {i // 3}", "completion": f"answer {i}"} for i in range(120)]
    data = module(tmp_path, tokenizer_folder, write(tmp_path / "a.jsonl", rows))
    lines = [json.loads(line) for line in (data.datacard_file.parent / "manifest.jsonl").open()]
    splits: dict[str, set[str]] = {}
    for line in lines:
        splits.setdefault(line["question"], set()).add(line["split"])
    assert all(len(found) == 1 for found in splits.values())
    assert {line["split"] for line in lines} == {"train", "validation"}


def test_encoded_once_and_found_again(tmp_path: Path, tokenizer_folder: Path) -> None:
    file = write(tmp_path / "a.jsonl", [chat(i) for i in range(20)])
    first = module(tmp_path, tokenizer_folder, file).datacard_file
    stamp = first.stat().st_mtime_ns
    assert module(tmp_path, tokenizer_folder, file).datacard_file.stat().st_mtime_ns == stamp
    assert module(tmp_path, tokenizer_folder, file, seq_len=128).datacard_file != first

    class Upper(InstructionDataModule):
        def format_example(self, row: dict) -> list[dict[str, str]]:
            return [
                {**message, "content": message["content"].upper()} for message in row["messages"]
            ]

    other = Upper(file, tokenizer=str(tokenizer_folder), cache_dir=str(tmp_path / "cache"),
                  seq_len=64, validation_fraction=0.2)  # fmt: skip
    other.prepare_data()
    assert other.datacard_file != first
    ids = np.load(other.datacard_file.parent / "train.input_ids.npy")
    assert "QUESTION" in other.tokenizer.decode(ids)


def test_docstrings_make_questions_and_no_module_straddles() -> None:
    rows = list(docstring_rows())
    assert len(rows) > 3000
    assert len({row["id"] for row in rows}) > 0.98 * len(rows)
    split = {row["module"]: row["split"] for row in rows}
    assert all(split[row["module"]] == row["split"] for row in rows)
    assert {held_out(name) for name, _ in stdlib_modules()} == {True, False}
    share = sum(row["split"] == "validation" for row in rows) / len(rows)
    assert 0.02 < share < 0.4
    dumps = next(row for row in rows if row["id"] == "json.dumps")
    assert "`json.dumps`" in dumps["messages"][0]["content"]
    assert dumps["messages"][1]["content"].startswith(
        "`dumps(obj, *, skipkeys=False"
    ) and "JSON" in str(dumps)


def test_sources_can_be_repeated_and_rehearsal_is_never_validation(
    tmp_path: Path, tokenizer_folder: Path
) -> None:
    file = write(tmp_path / "a.jsonl", [chat(i) for i in range(40)])
    data = module(tmp_path, tokenizer_folder, {file: 1, "general": 3}, seq_len=256)
    lines = [json.loads(line) for line in (data.datacard_file.parent / "manifest.jsonl").open()]
    general = [line for line in lines if str(line["id"]).startswith("general")]
    assert len(general) == 3 * 80 and {line["split"] for line in general} == {"train"}
    assert len(lines) - len(general) == 40
    questions = Path(lit_llm.__file__).parent / "evaluate/forgetting/questions.jsonl"
    asked = {json.loads(line)["prompt"] for line in questions.open()}
    # What is rehearsed is not what is checked
    assert not asked & {line["question"] for line in general}


LAST = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{% if loop.last and m.role == 'assistant' "
    "%}<think>\n\n</think>"
    "\n\n{% endif %}{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def lines_of(data: InstructionDataModule) -> list[dict]:
    return [json.loads(line) for line in (data.datacard_file.parent / "manifest.jsonl").open()]


@pytest.mark.parametrize(
    ("row", "said"),
    [
        ({"prompt": "Hi \ud83d", "completion": "a"}, r"message 1.content holds the lone surrogate "
                                                     r"\\ud83d"),
        ({"prompt": "q", "completion": "a", "split": ["train"]}, "the split "),
        ({"prompt": "q", "completion": "a", "split": "holdout"}, "the split 'holdout'"),
        ({"messages": [{"role": ["user"], "content": "x"}]}, "message 1 must be an object"),
        ({"messages": PAIR, "tools": [{"name": "f"}]}, "leaves out the tools"),
        ({"messages": [PAIR[0], {**PAIR[1], "reasoning_content": "r"}]}, "leaves out the "
                                                                         "'reasoning_content'"),
        ({"messages": PAIR, "chat_template_kwargs": {"effort": 1}}, "does not take the argument "
                                                                    "'effort'"),
        ('{"prompt": "q", "completion": ', "not valid JSON"),
        ("[1]", "not a JSON object"),
    ],
)  # fmt: skip
def test_a_bad_row_of_any_kind_is_named_or_counted(
    tmp_path: Path, tokenizer_folder: Path, row: object, said: str
) -> None:
    file = write(tmp_path / "a.jsonl", [*(chat(i) for i in range(9)), row])
    with pytest.raises(UserError, match=rf"a\.jsonl:10: .*{said}"):
        module(tmp_path, tokenizer_folder, file)
    card = json.loads(
        module(tmp_path, tokenizer_folder, file, bad_rows="skip").datacard_file.read_text()
    )
    assert (
        sum(card["dropped"].values()) == 1
        and sum(s["examples"] for s in card["splits"].values()) == 9
    )


def test_whatever_format_example_raises_is_a_bad_row(
    tmp_path: Path, tokenizer_folder: Path
) -> None:
    class Mine(InstructionDataModule):
        def format_example(self, row: dict) -> list[dict[str, str]]:
            return [{"role": "user", "content": row["q"]}, PAIR[1]]

    rows = [{"q": f"question {i}"} for i in range(9)]
    file = write(tmp_path / "a.jsonl", [*rows, {"p": 1}])
    given = {
        "tokenizer": str(tokenizer_folder),
        "cache_dir": str(tmp_path / "cache"),
        "seq_len": 64,
    }
    with pytest.raises(UserError, match=r"a\.jsonl:10: KeyError: 'q'"):
        Mine(file, **given).prepare_data()
    skipping = Mine(file, bad_rows="skip", **given)
    skipping.prepare_data()
    assert json.loads(skipping.datacard_file.read_text())["dropped"] == {"KeyError: 'q'": 1}


def test_what_leaves_a_file_as_bytes_is_a_bad_row_too(
    tmp_path: Path, tokenizer_folder: Path
) -> None:
    file = tmp_path / "a.jsonl"
    write(file, [chat(i) for i in range(9)])
    file.write_bytes(file.read_bytes() + b'{"prompt": "\xff", "completion": "a"}\n')
    with pytest.raises(UserError, match=r"a\.jsonl:10: not UTF-8"):
        module(tmp_path, tokenizer_folder, str(file))
    card = json.loads(
        module(tmp_path, tokenizer_folder, str(file), bad_rows="skip").datacard_file.read_text()
    )
    assert card["dropped"] == {"not UTF-8; mend the line or take it out": 1}


def test_a_row_s_split_is_kept_whatever_it_is_called(
    tmp_path: Path, tokenizer_folder: Path
) -> None:
    names = ["train", "dev", "val", "valid", "validation", "test", "test_sft", "train_sft"]
    rows = [{**chat(i), "id": i, "split": names[i % 8]} for i in range(40)]
    file = write(tmp_path / "a.jsonl", rows)
    data = module(tmp_path, tokenizer_folder, file)
    splits = {line["id"]: line["split"] for line in lines_of(data)}
    assert splits == {i: "train" if i % 8 in (0, 7) else "validation" for i in range(40)}
    # With validation data of its own, the file's held-out rows are not trained on either.
    other = write(tmp_path / "b.jsonl", [{**chat(99), "split": "train"}, chat(98)])
    data = module(tmp_path, tokenizer_folder, file, validation=other)
    card = json.loads(data.datacard_file.read_text())
    assert [card["splits"][split]["examples"] for split in ("train", "validation")] == [10, 1]
    assert card["rows_of_the_other_split"] == 31


def test_few_rows(tmp_path: Path, tokenizer_folder: Path) -> None:
    """A twentieth of three rows is one of them; one row cannot be both trained and validated on."""
    few = write(tmp_path / "a.jsonl", [{**chat(i), "id": "\ud83d"} for i in range(3)])
    data = module(tmp_path, tokenizer_folder, few, validation_fraction=0.01)
    assert sorted(line["split"] for line in lines_of(data)) == ["train", "train", "validation"]
    one = write(tmp_path / "b.jsonl", [chat(1)])
    with pytest.raises(
        UserError,
        match=r"no example for train in .*; 1 rows can be used; .* two different",
    ):
        module(tmp_path, tokenizer_folder, one)
    bad = write(tmp_path / "c.jsonl", [{"messages": [PAIR[0]]}])
    with pytest.raises(UserError, match="1 are bad, 1 of them because: no supervised token"):
        module(tmp_path, tokenizer_folder, bad, bad_rows="skip")
    marked = write(tmp_path / "d.jsonl", [{**chat(i), "split": "train"} for i in range(3)])
    with pytest.raises(UserError, match=r"data\.sources: no example for validation; 3 rows"):
        module(tmp_path, tokenizer_folder, marked)


def test_answers_in_rewritten_conversations_form_trees(
    tmp_path: Path, tokenizer_folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """The template renders the last answer otherwise than the same answer in the history."""
    template = tmp_path / "t.jinja"
    template.write_text(LAST)
    rows = [{"messages": [*chat(i)["messages"], *chat(i + 50)["messages"]]} for i in range(8)]
    file = write(tmp_path / "a.jsonl", rows)

    def made(**settings: object) -> tuple[InstructionDataModule, Conversations]:
        data = module(tmp_path, tokenizer_folder, file, chat_template=str(template), **settings)
        return data, load_conversations(data.datacard_file.parent, "train")

    with caplog.at_level("INFO"):
        data, shared = made(seq_len=256)
    card = json.loads(data.datacard_file.read_text())["splits"]["train"]
    assert card["answers"] == 2 * card["examples"] == 2 * len(shared) and shared.branches
    assert card["answers_left_out"] == 0
    assert "tokens hold what" in caplog.text
    apart = made(seq_len=256, share_prefixes=False)[1]
    assert len(apart) == 2 * len(shared) and not apart.branches
    assert card["tokens_apart"] == len(apart.input_ids) + len(apart)
    assert len(shared.input_ids) < len(apart.input_ids)
    # The same labels in the same contexts; the last answer begins with what the prompt opens.
    for name in ("input_ids", "labels"):
        of_shared, of_apart = (
            np.sort(getattr(one, name)[one.labels != IGNORE]) for one in (shared, apart)
        )
        assert np.array_equal(of_shared, of_apart)
    learnt = data.tokenizer.decode(shared.labels[shared.labels != IGNORE])
    assert learnt.count("</think>") == 2 * card["examples"]
    # A row that is too short for the whole tree makes two of it.
    longest = int(apart.lengths.max())
    _, cut = made(seq_len=longest)
    assert len(cut) > len(shared) and cut.lengths.max() <= longest
    assert (cut.labels != IGNORE).sum() == (shared.labels != IGNORE).sum()
    rows_of = PackedRows(shared, [[0, 1], [2]], 256, pad_id=0)
    sample = rows_of[0]
    size = len(shared[0])
    assert np.array_equal(sample["until"][:size], shared[0].until)
    assert sample["until"][size] > size and sample["position"][size] == 0
    padding = sample["document_ids"] < 0
    assert np.array_equal(sample["until"][padding], np.arange(256)[padding] + 1)
    assert "until" not in PackedRows(apart, [[0]], 256, pad_id=0)[0]


def test_nulls_of_a_parquet_struct_column_are_no_fields(
    tmp_path: Path, tokenizer_folder: Path
) -> None:
    pyarrow = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")

    def called(arguments: dict) -> list:
        calls = [{"type": "function", "function": {"name": "f", "arguments": arguments}}]
        return [PAIR[0], {"role": "assistant", "content": None, "tool_calls": calls},
                {"role": "tool", "content": "o", "tool_call_id": "1"}, PAIR[1]]  # fmt: skip

    template = tmp_path / "t.jinja"
    template.write_text(
        "{% for m in messages %}<|im_start|>{{ m.role }}\n{% if 'tool_calls' in m %}{{ "
        "m.tool_calls | tojson }}"
        "{% else %}{{ m.content }}{% endif %}{% if 'tool_call_id' in m and m.role != 'tool' "
        "%}no{% endif %}<|im_end|>\n"
        "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
    )
    rows = [{"messages": called({"a": 1}), "split": "train"},
            {"messages": called({"b": {"c": "x"}}), "split": "train"},
            {"messages": PAIR, "split": "validation"}]  # fmt: skip
    parquet.write_table(pyarrow.Table.from_pylist(rows), tmp_path / "a.parquet")
    data = module(
        tmp_path,
        tokenizer_folder,
        str(tmp_path / "a.parquet"),
        chat_template=str(template),
        seq_len=256,
    )
    text = "".join(
        data.tokenizer.decode(np.load(data.datacard_file.parent / f"{split}.input_ids.npy"))
        for split in ("train", "validation")
    )
    assert '"arguments": {"a": 1}' in text and '"arguments": {"b": {"c": "x"}}' in text
    assert "null" not in text and "None" not in text and "no<|im_end|>" not in text
