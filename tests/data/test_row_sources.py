"""Files, weights and caps of sources, evaluation items that are left out, and the cache's key."""

from __future__ import annotations

import csv
import gzip
import json
import os
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from test_instructions import PAIR, chat, lines_of, module, write

from lit_llm import InstructionDataModule, UserError
from lit_llm.data.rows import hub_dataset
from lit_llm.data.rows.mixing import contributions, repeated, spread
from lit_llm.data.rows.row_files import read_rows

HELD = {"prompt": "held out", "completion": "a", "split": "validation"}


def rows_of(pattern: Path | str) -> list[Any]:
    return [str(row) if isinstance(row, UserError) else row for _, row in read_rows(str(pattern))]


def test_csv_and_tsv(tmp_path: Path) -> None:
    file = tmp_path / "a.csv"
    with file.open("w", newline="", encoding="utf-8-sig") as stream:
        writer = csv.writer(stream)
        writer.writerows([["prompt", "completion", "messages"], ["q, 1", 'a\n"b"', ""],
                          ["", "", json.dumps(PAIR)], ["too", "few"]])  # fmt: skip
    assert rows_of(file) == [
        {"prompt": "q, 1", "completion": 'a\n"b"'},
        {"messages": json.dumps(PAIR)},
        "2 values in a row, and the first line names 3 columns",
    ]
    # The place is the line that ends the row, which an editor finds.
    assert [place for place, _ in read_rows(str(file))] == [f"{file}:{n}" for n in (3, 4, 5)]
    (tmp_path / "a.tsv").write_bytes(b"prompt\tcompletion\nq\t\xff\nq\ta\n")
    assert rows_of(tmp_path / "a.tsv") == [
        "not UTF-8; mend the line or take it out", {"prompt": "q", "completion": "a"}
    ]  # fmt: skip
    (tmp_path / "b.csv").write_text('prompt,completion\n"q"x,a\nq,a\n')
    bad, good = rows_of(tmp_path / "b.csv")
    assert bad.startswith("not valid CSV") and good == {"prompt": "q", "completion": "a"}
    (tmp_path / "c.csv").write_text("")
    with pytest.raises(UserError, match="no columns"):
        rows_of(tmp_path / "c.csv")
    (tmp_path / "d.csv").write_text("prompt,prompt\n")
    with pytest.raises(UserError, match="2 columns are named 'prompt'"):
        rows_of(tmp_path / "d.csv")
    for text in ("prompt,réponse\nq,a\n".encode("latin-1"), "prompt,a\n".encode("utf-16")):
        (tmp_path / "d.csv").write_bytes(text)
        with pytest.raises(UserError, match=r"d\.csv: the first line is not UTF-8; save the file"):
            rows_of(tmp_path / "d.csv")
    (tmp_path / "e.txt").write_text("x")
    with pytest.raises(UserError, match=r"read from \.jsonl, \.json, \.csv"):
        rows_of(tmp_path / "e.txt")


def test_a_row_over_several_lines(tmp_path: Path) -> None:
    """As editors and ``json.dump(..., indent=2)`` write a row, or an object with all rows."""
    for value in (HELD, {"data": [HELD]}):
        (tmp_path / "a.json").write_text(json.dumps(value, indent=2))
        assert rows_of(tmp_path / "a.json")[0] == (
            "an object over several lines; write one row a line, or an array of all rows"
        )


@pytest.mark.parametrize("name", ["a.jsonl", "a.json", "a.csv", "a.parquet", "a.jsonl.gz"])
def test_a_clone_without_its_large_files(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_text(
        "version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 12345\n"
    )
    with pytest.raises(UserError, match=r"a pointer of Git LFS, .* fetch it with git lfs"):
        rows_of(tmp_path / name)


def test_compressed_files(tmp_path: Path) -> None:
    zstandard = pytest.importorskip("zstandard")
    text = json.dumps(HELD).encode() + b"\n"
    (tmp_path / "a.jsonl.gz").write_bytes(gzip.compress(text))
    (tmp_path / "a.json.zst").write_bytes(zstandard.compress(b"[" + text + b"]"))
    (tmp_path / "a.csv.gz").write_bytes(gzip.compress(b"prompt,completion\nq,a\n"))
    assert rows_of(tmp_path / "a.jsonl.gz") == rows_of(tmp_path / "a.json.zst") == [HELD]
    assert rows_of(tmp_path / "a.csv.gz") == [{"prompt": "q", "completion": "a"}]


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A dataset of the hub, as the hub's client leaves it on disk."""
    folder = tmp_path / "snapshot"
    for name in ("data/train-00000-of-00002.jsonl", "data/train-00001-of-00002.jsonl",
                 "data/test_sft-00000-of-00001.jsonl", ".cache/x.jsonl",
                 "dataset_infos.json"):  # fmt: skip
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(json.dumps({**HELD, "prompt": name}) + "\n")
    (folder / "README.md").write_text("x")
    asked: list[Any] = []

    def snapshot_download(name: str, **given: Any) -> str:
        asked.append((name, given["repo_type"]))
        if name != "owner/name":
            raise OSError("Repository Not Found")
        return str(folder)

    monkeypatch.setattr("huggingface_hub.snapshot_download", snapshot_download)
    hub_dataset.hub_files.cache_clear()
    yield folder
    hub_dataset.hub_files.cache_clear()
    assert set(asked) <= {("owner/name", "dataset"), ("no/one", "dataset")}


def test_a_dataset_of_the_hub(hub: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level("INFO"):
        named = [row["prompt"] for row in rows_of("hf://owner/name")]
    assert named == [f"data/train-0000{n}-of-00002.jsonl" for n in range(2)]
    assert "split train is read; there are also test_sft" in caplog.text
    assert len(rows_of("hf://owner/name:train")) == 2
    assert len(rows_of("hf://owner/name:test_sft")) == 1
    for source, said in (("hf://owner/name:dev", "no split 'dev'; its splits are .*train"),
                         ("hf://no/one", "cannot be fetched .Repository Not Found"),
                         ("hf://name", "give hf://owner/name")):  # fmt: skip
        with pytest.raises(UserError, match=said):
            rows_of(source)
    for file in hub.glob("data/*"):
        file.unlink()
    hub_dataset.hub_files.cache_clear()
    with pytest.raises(UserError, match="no data file"):
        rows_of("hf://owner/name")
    (hub / "all.jsonl").write_text(json.dumps(HELD) + "\n")
    hub_dataset.hub_files.cache_clear()
    assert rows_of("hf://owner/name") == [HELD]


def test_a_run_on_a_dataset_of_the_hub(hub: Path, tmp_path: Path, tokenizer_folder: Path) -> None:
    rows = "".join(json.dumps(chat(n)) + "\n" for n in range(20))
    (hub / "data/train-00000-of-00002.jsonl").write_text(rows)
    (hub / "data/train-00001-of-00002.jsonl").write_text("")
    data = module(tmp_path, tokenizer_folder, "hf://owner/name")
    assert len(lines_of(data)) == 20


@given(
    sizes=st.lists(st.integers(0, 50), min_size=1, max_size=5),
    weights=st.lists(st.floats(0.1, 10), min_size=5, max_size=5),
    temperature=st.none() | st.floats(0.5, 20),
)
def test_what_sources_contribute(sizes: list, weights: list, temperature: float | None) -> None:
    counts = {f"s{n}": size for n, size in enumerate(sizes)}
    weight = dict(zip(counts, weights, strict=False))
    if not any(sizes):
        with pytest.raises(UserError, match="no source has an example"):
            contributions(counts, weight, "proportional")
        return
    mixing = "proportional" if temperature is None else {"temperature": temperature}
    found = contributions(counts, weight, mixing)  # type: ignore[arg-type]
    assert abs(sum(found.values()) - sum(sizes)) <= len(sizes)
    power = 0 if temperature is None else 1 / temperature
    total = sum(weight[s] * counts[s] ** power for s in counts if counts[s])
    for name, size in counts.items():
        share = weight[name] * size**power / total * sum(sizes) if size else 0
        assert abs(found[name] - share) <= 0.5 or (found[name] == 1 and 0 < share < 0.5)
    assert contributions(counts, weight, "concat") == {
        name: max(1, round(size * weight[name])) if size else 0 for name, size in counts.items()
    }


@given(st.lists(st.booleans(), min_size=1, max_size=20), st.integers(0, 90))
def test_repetitions_differ_by_one_at_most(once: list[bool], count: int) -> None:
    items = list(range(len(once)))
    found = Counter(repeated(items, once, count))
    assert all(found[item] == 1 for item in items if once[item])
    free = [found[item] for item in items if not once[item]]
    if free:
        assert sum(free) == count and max(free) - min(free) <= 1
    if count == len(free):  # nothing to do: the order stays
        assert repeated(items, once, count) == items
    assert len(set(spread(items, len(items) // 2))) == len(items) // 2


def test_weights_caps_and_mixing_in_a_run(tmp_path: Path, tokenizer_folder: Path) -> None:
    few = write(tmp_path / "few.jsonl", [chat(i) for i in range(10)])
    many = write(tmp_path / "many.jsonl", [chat(i) for i in range(100, 190)])
    held = write(tmp_path / "held.jsonl", [HELD])

    def counts(sources: Any, **given: Any) -> dict[str, int]:
        given = {"validation": held} | given
        data = module(tmp_path, tokenizer_folder, sources, **given)
        found = Counter(
            "few" if int(line["question"].split()[1]) < 100 else "many"
            for line in lines_of(data) if line["split"] == "train"
        )  # fmt: skip
        card = json.loads(data.datacard_file.read_text())
        assert [card["sources"][s]["in_an_epoch"] for s in (few, many)] == [*found.values()]
        assert data.order is not None and sum(map(len, data.order.rows)) == found.total()
        return dict(found)

    assert counts([few, many]) == {"few": 10, "many": 90}
    assert counts({few: 3, many: 1.5}) == {"few": 30, "many": 135}
    assert counts({few: 1, many: 3}, mixing="proportional") == {"few": 25, "many": 75}
    assert counts([few, many], mixing={"temperature": 1}) == {"few": 10, "many": 90}
    assert counts([few, many], mixing={"temperature": 2}) == {"few": 25, "many": 75}
    assert counts([few, many], source_caps=20) == {"few": 10, "many": 20}
    assert counts([few, many], source_caps={many: 5}) == {"few": 10, "many": 5}
    # Examples for validation stand there once, whatever the weight.
    data = module(tmp_path, tokenizer_folder, {few: 4, many: 1})
    lines = lines_of(data)
    validation = [line["id"] for line in lines if line["split"] == "validation"]
    assert validation and len(set(validation)) == len(validation)
    assert not set(validation) & {line["id"] for line in lines if line["split"] == "train"}


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"sources": {"a": -1}}, r"data\.sources: the weight of a is -1"),
        ({"validation": {"a": 2}}, r"data\.validation: the weight of a is 2; .* stand once"),
        ({"mixing": {"temperature": 0}}, r"data\.mixing=.* from 0.1 to 100"),
        ({"mixing": {"temp": 1.0}}, r"data\.mixing="),
        ({"mixing": "equal"}, r"data\.mixing must be"),
        ({"source_caps": 0}, r"data\.source_caps=0: must be from 1"),
        ({"source_caps": {"a": 0}, "sources": "a"}, r"data\.source_caps=.* at least one"),
        ({"source_caps": {"b": 1}, "sources": "a"}, r"data\.source_caps: b is not one of"),
        ({"decontaminate": "nowhere.jsonl"}, r"data\.decontaminate: nowhere\.jsonl is not a file"),
    ],
)
def test_settings_that_cannot_be(given: dict, said: str) -> None:
    with pytest.raises(UserError, match=said):
        InstructionDataModule(**given)


def test_a_file_of_two_patterns(tmp_path: Path, tokenizer_folder: Path) -> None:
    """Its examples would count twice, and twice in the validation split."""
    write(tmp_path / "a.jsonl", [chat(i) for i in range(9)])
    same = f"{tmp_path}/../{tmp_path.name}/a.jsonl"
    for sources in ([same, f"{tmp_path}/*.jsonl"], {f"{tmp_path}/*.jsonl": 2, same: 1}):
        with pytest.raises(UserError, match=r"data\.sources: .*a\.jsonl belongs to .* and to"):
            module(tmp_path, tokenizer_folder, sources)


@pytest.mark.parametrize(("own", "other"), [("test", "train"), ("train", "validation")])
def test_rows_that_all_name_the_other_split(
    tmp_path: Path, tokenizer_folder: Path, own: str, other: str
) -> None:
    file = write(tmp_path / "a.jsonl", [{**chat(i), "split": own} for i in range(9)])
    said = f"no example for {other}.*the column 'split' of all of them names the other one"
    with pytest.raises(UserError, match=said):
        module(tmp_path, tokenizer_folder, file)


def test_validation_examples_that_are_trained_on(
    tmp_path: Path, tokenizer_folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """A validation file that repeats rows of the training file."""
    file = write(tmp_path / "a.jsonl", [chat(i) for i in range(9)])
    other = write(tmp_path / "b.jsonl", [chat(i) for i in range(7, 12)])
    with caplog.at_level("INFO"):
        module(tmp_path, tokenizer_folder, file)
        assert "training examples too" not in caplog.text
        module(tmp_path, tokenizer_folder, file, validation=other)
    assert "2 of 5 validation examples are training examples too" in caplog.text


def test_evaluation_items_are_left_out(
    tmp_path: Path, tokenizer_folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    item = "the quick brown fox jumps over the lazy dog and runs through tall green grass"
    answer = "alpha beta gamma delta epsilon zeta eta theta iota kappa lambda mu nu xi omicron"
    rows = [
        *(chat(i) for i in range(9)),
        {"prompt": f"So: {item.upper()}, why?", "completion": "a", "id": "asked"},
        {"prompt": "list", "completion": f"{answer} pi", "id": "answered"},
        {"prompt": " ".join(item.split()[:12]), "completion": "a", "id": "twelve words"},
        {"prompt": item, "completion": "a", "id": "held", "split": "validation"},
    ]
    items = write(tmp_path / "exam.jsonl", [{"question": item, "choices": ["x", answer]}])
    file = write(tmp_path / "a.jsonl", rows)
    with caplog.at_level("INFO"):
        data = module(tmp_path, tokenizer_folder, file, decontaminate=[items], seq_len=256)
    card = json.loads(data.datacard_file.read_text())
    assert card["contaminated"] == {"exam": 2}
    assert "2 examples share 13 words in a row with exam" in caplog.text
    ids = {line["id"] for line in lines_of(data)}
    assert ids >= {"twelve words", "held"} and not ids & {"asked", "answered"}
    # The items are a part of the cache's key.
    first = data.datacard_file
    write(tmp_path / "exam.jsonl", [{"question": "x " * 20}])
    again = module(tmp_path, tokenizer_folder, file, decontaminate=[items], seq_len=256)
    assert again.datacard_file != first
    assert json.loads(again.datacard_file.read_text())["contaminated"] == {}


def test_items_of_a_registered_task_are_left_out(
    tmp_path: Path, tokenizer_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from lit_llm.data.rows import contamination

    words = [f"word{n}" for n in range(15)]
    monkeypatch.setattr(contamination, "_task_texts", [lambda name: [name, " ".join(words)]])
    asked = {"prompt": " ".join(["so", *words[1:14], "?"]), "completion": "a", "id": "asked"}
    file = write(tmp_path / "a.jsonl", [*(chat(i) for i in range(9)), asked])
    data = module(tmp_path, tokenizer_folder, file, decontaminate="exam", seq_len=512)
    assert json.loads(data.datacard_file.read_text())["contaminated"] == {"exam": 1}
    assert "asked" not in {line["id"] for line in lines_of(data)}


@pytest.mark.slow
def test_items_of_a_task_are_left_out(tmp_path: Path, tokenizer_folder: Path) -> None:
    import lit_llm.evaluate.items as items

    texts = items.task_texts("stdlib_choice")
    sentence = next(text for text in texts if len(text.split()) > 14)
    asked = {"prompt": f"Say: {sentence}", "completion": "a", "id": "asked"}
    file = write(tmp_path / "a.jsonl", [*(chat(i) for i in range(9)), asked])
    data = module(tmp_path, tokenizer_folder, file, decontaminate="stdlib_choice", seq_len=512)
    card = json.loads(data.datacard_file.read_text())
    assert card["contaminated"] == {"stdlib_choice": 1}
    assert "asked" not in {line["id"] for line in lines_of(data)}


def test_tasks_are_known_where_evaluation_is_imported(monkeypatch: pytest.MonkeyPatch) -> None:
    from lit_llm.data.rows import contamination

    monkeypatch.setattr(contamination, "_task_texts", [])
    with pytest.raises(UserError, match=r"after import lit_llm\.evaluate\.items"):
        InstructionDataModule(decontaminate=["stdlib_choice"])


def test_every_policy_and_the_content_make_the_cache_anew(
    tmp_path: Path, tokenizer_folder: Path
) -> None:
    file = tmp_path / "a.jsonl"
    write(file, [chat(i) for i in range(20)])
    template = tmp_path / "t.jinja"
    data = InstructionDataModule(tokenizer=str(tokenizer_folder))
    template.write_text(str(data.tokenizer.chat_template))

    def folder(**given: Any) -> Path:
        return module(tmp_path, tokenizer_folder, str(file), **given).datacard_file.parent

    first = folder()
    assert folder() == first and folder(chat_template=str(template)) == first
    policies: list[dict[str, Any]] = [
        {"format": "messages"}, {"train_on": "last"}, {"reasoning": "mask"},
        {"split_reasoning": "off"}, {"too_long": "drop"}, {"mixing": "proportional"},
        {"source_caps": 5}, {"columns": {"messages": "messages"}},
    ]  # fmt: skip
    made = [folder(**policy) for policy in policies]
    assert len({first, *made}) == 1 + len(policies)
    # Same size and time, other content: a stamp alone would find the old examples.
    stat = file.stat()
    file.write_text(file.read_text().replace("answer", "Answer"))
    os.utime(file, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    assert (file.stat().st_size, file.stat().st_mtime_ns) == (stat.st_size, stat.st_mtime_ns)
    assert folder() != first
    template.write_text(template.read_text().replace("<|im_end|>", "<|im_end|> "))
    assert folder(chat_template=str(template)) not in (first, folder())
