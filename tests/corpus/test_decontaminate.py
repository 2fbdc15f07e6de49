"""Planted evaluation texts are found, what merely resembles them is not; compared with sets of
n-grams."""

from __future__ import annotations

import json
import random
from pathlib import Path

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from truth.planted import ngrams, sentence

from lit_llm.corpus.block import documents, funnel
from lit_llm.corpus.dedup.decontaminate import Decontaminate, evaluation_texts
from lit_llm.errors import UserError

REASON = "decontaminate: shares words with an evaluation text"


def test_planted_questions_are_found() -> None:
    draw = random.Random(0)
    questions = {
        "task": [" ".join(sentence(draw, 40)) for _ in range(20)],
        "short": ["Which of these eight words is the last?"],
    }
    clean = [" ".join(sentence(draw, 300)) for _ in range(50)]
    part = (
        questions["task"][7].upper().replace(" ", "  \n").split("\n")[5:18]
    )  # 13 words in a row, written otherwise
    held = [
        " ".join([*clean[0].split()[:90], *part, "end"]),
        f"{clean[1]} which of THESE eight words is the last {clean[2]}",
    ]
    table = documents([*clean, *held])
    decontaminate = Decontaminate.against(questions)
    cleaned = decontaminate(table)
    assert cleaned["contaminated_by"].to_pylist() == [None] * 50 + ["task", "short"]
    assert funnel(cleaned) == {REASON: 2}
    twelve = " ".join(part[:12])
    assert decontaminate.contaminated([twelve, "which of these eight words is last", held[0]]) == [
        None,
        None,
        "task",
    ]


def test_a_short_answer_in_a_script_without_spaces_drops_nothing() -> None:
    answer = "中华人民共和国国务院"  # ten letters, five words
    question = "下列哪一项是中华人民共和国最高国家行政机关的正式名称"
    thai = "ประเทศไทยมีเมืองหลวงชื่อกรุงเทพมหานคร"
    decontaminate = Decontaminate.against({"task": [answer, question, thai, "国务院 is one"]})
    page = f"昨天 {answer}发布了一项新的规定。"
    names = [
        "มหาวิทยาลัยธรรมศาสตร์", "ธนาคารแห่งประเทศไทย", "ព្រះរាជាណាចក្រកម្ពុជា",
        "ပြည်ထောင်စုသမ္မတမြန်မာနိုင်ငံတော်",
        "University of Tokyo 東京大学大学院",
    ]  # fmt: skip
    with_names = Decontaminate.against({"task": [*names, question]})
    assert with_names.contaminated([f"{name} {name}" for name in names]) == [None] * len(names)
    held = [f"问 {question} 答", f"ที่นี่ {thai} ครับ"]
    assert decontaminate.contaminated([page, *held]) == [None, "task", "task"]
    with pytest.raises(UserError, match="no evaluation text has 8 words"):
        Decontaminate.against({"task": [answer]})


@settings(deadline=None, max_examples=100)
@given(
    evaluations=st.lists(st.lists(st.sampled_from("abé"), max_size=9), min_size=1, max_size=4),
    given=st.lists(st.lists(st.sampled_from("ABE"), max_size=12), max_size=6),
    ngram=st.integers(3, 6),
)
def test_as_sets_of_ngrams(
    evaluations: list[list[str]], given: list[list[str]], ngram: int
) -> None:
    written, texts = (
        [" ".join(words) for words in evaluations],
        [", ".join(words) for words in given],
    )
    if all(len(words) < 3 for words in evaluations):
        with pytest.raises(UserError, match="no evaluation text has 3 words"):
            Decontaminate.against({"task": written}, ngram, shortest=3)
        return
    listed = [
        (min(ngram, len(words)), text)
        for words, text in zip(evaluations, written, strict=True)
        if len(words) >= 3
    ]
    expected = [
        "task"
        if any(ngrams(text, n) & {g for g in ngrams(other, n) if len(g) == n} for n, text in listed)
        else None
        for other in texts
    ]
    assert (
        Decontaminate.against({"task": written}, ngram, shortest=3).contaminated(texts) == expected
    )


def test_texts_come_from_jsonl(tmp_path: Path) -> None:
    rows = [
        {"question": "q one", "choices": ["a", {"text": "b"}], "label": 3},
        {"question": "q two"},
    ]
    file = tmp_path / "quiz.jsonl"
    file.write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    assert evaluation_texts([file]) == {"quiz": ["q one", "a", "b", "q two"]}
    assert evaluation_texts([file], ["question"]) == {"quiz": ["q one", "q two"]}
    with pytest.raises(UserError, match=r"quiz\.jsonl: no row has text in 'answer'"):
        evaluation_texts([file], ["answer"])
    file.write_bytes(b'{"question": "\xff"}\n')
    with pytest.raises(UserError, match=r"quiz\.jsonl:1: not UTF-8"):
        evaluation_texts([file])


def test_dropped_documents_stay_and_no_documents_are_fine() -> None:
    decontaminate = Decontaminate.against({"task": ["a b c d e f g h"]})
    table = documents(["a b c d e f g h"])
    dropped = table.set_column(
        table.schema.get_field_index("dropped"), "dropped", pa.array(["rule: bad"])
    )
    assert decontaminate(dropped)["dropped"].to_pylist() == ["rule: bad"]
    assert decontaminate.contaminated([]) == []


def test_impossible_lengths_are_refused() -> None:
    with pytest.raises(UserError, match="1 <= shortest <= ngram <= 63"):
        Decontaminate.against({"task": ["a"]}, ngram=5, shortest=8)
