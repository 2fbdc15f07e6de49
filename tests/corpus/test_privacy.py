"""Redaction: recall and precision on a set made apart from the patterns, counts, idempotence."""

from __future__ import annotations

import json
import random
import re
import sys
from collections import Counter
from collections.abc import Callable
from types import FrameType
from typing import Any

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from truth.pii_cases import FILE, core, generate, read_cases
from truth.pii_countries import (
    ARABIC,
    FULL_WIDTH,
    HYPHENS,
    NO_KEYS,
    PHONES,
    SCIENCE,
    SPACES,
    labelled,
    service_keys,
    shaped,
)

from lit_llm.corpus.block import documents
from lit_llm.corpus.privacy.personal_data import KINDS, RedactPII, national_ids, recognizers
from lit_llm.corpus.privacy.recognizers import luhn
from lit_llm.errors import UserError

CASES = read_cases()


def test_recall_and_precision_on_the_check_set(record_property: pytest.RecordProperty) -> None:
    block = RedactPII()
    hit, missed, wrong = Counter[str](), Counter[str](), Counter[str]()
    for case in CASES:
        want = {core(case.text, *span) for span in case.spans}
        got = {core(case.text, *span) for span in block.find(case.text)}
        hit.update(kind for *_, kind in want & got)
        missed.update(kind for *_, kind in want - got)
        wrong.update(kind for *_, kind in got - want)
    for kind in KINDS:
        recall, precision = (
            hit[kind] / (hit[kind] + missed[kind]),
            hit[kind] / (hit[kind] + wrong[kind]),
        )
        record_property(
            kind, f"recall {recall:.3f} precision {precision:.3f} of {hit[kind] + missed[kind]}"
        )
        assert recall >= 0.95 and precision >= 0.9, (kind, recall, precision)
    assert len(CASES) >= 1480 and sum(case.kind == "none" for case in CASES) >= 550
    assert sum(len(case.spans) for case in CASES) >= 900
    assert hit.total() / (hit.total() + missed.total()) >= 0.98
    assert hit.total() / (hit.total() + wrong.total()) >= 0.95


def test_the_check_set_is_what_its_generator_makes() -> None:
    rows = [json.loads(line) for line in FILE.read_text(encoding="utf-8").splitlines()]
    assert rows == generate()


def test_counts_and_placeholders() -> None:
    texts = [
        "Mail a.b@corp.org or c@d.net, tel. 030 1234567",
        "nothing here",
        "DE89 3704 0044 0532 0130 00",
    ]
    table = RedactPII()(documents(texts))
    assert table["text"].to_pylist() == [
        "Mail <EMAIL> or <EMAIL>, tel. <PHONE>",
        "nothing here",
        "<IBAN>",
    ]
    assert table["pii"].type == pa.struct([(kind, pa.int32()) for kind in KINDS])
    assert [{k: n for k, n in row.items() if n} for row in table["pii"].to_pylist()] == [
        {"email": 2, "phone": 1}, {}, {"iban": 1},
    ]  # fmt: skip
    phones = RedactPII(kinds=("phone",), placeholder="[{kind}]")
    assert phones.texts(texts[:1]) == ["Mail a.b@corp.org or c@d.net, tel. [PHONE]"]
    again = RedactPII()(table)
    assert again["text"] == table["text"] and again.column_names == table.column_names


def test_a_number_is_found_behind_one_that_went_before() -> None:
    assert RedactPII().texts(["Tel. 030 1234567 oder 030 7654321."])[0].count("<PHONE>") >= 1
    text = "é tel. +49 30 901820, +49 30 901821 & x@y.org"
    found = RedactPII().find(text)
    assert [text[start:end] for start, end, _ in found] == [
        "+49 30 901820",
        "+49 30 901821",
        "x@y.org",
    ]


def test_sliced_and_chunked_columns() -> None:
    texts = [case.text for case in CASES[::9]]
    table = RedactPII()(documents(texts))
    chunked = pa.chunked_array([pa.array(["x", *texts[:7]]), pa.array(texts[7:])]).slice(1)
    assert RedactPII()(documents(chunked))["text"].to_pylist() == table["text"].to_pylist()
    assert (
        RedactPII()(documents(texts).slice(5, 20))["text"].to_pylist()
        == table["text"].to_pylist()[5:25]
    )
    assert len(RedactPII()(documents([]))) == 0


@pytest.mark.parametrize("country", PHONES)
def test_phones_as_countries_write_and_typesetters_set_them(country: str) -> None:
    draw = random.Random(country)
    for form in PHONES[country].split("|"):
        label, value = labelled(draw, form)
        set_with = [value.replace(" ", space) for space in SPACES]
        set_with += [value.replace("-", hyphen) for hyphen in (*HYPHENS, "\u2212")]
        for written in dict.fromkeys([value, *set_with]):
            (redacted,) = RedactPII().texts([f"{label}{written}, 7"])
            assert re.fullmatch(re.escape(label) + r"\(?<PHONE>, 7", redacted), (written, redacted)


@pytest.mark.parametrize("space", SPACES)
def test_cards_and_accounts_as_typesetters_set_them(space: str) -> None:
    texts = [
        f"4111{space}1111{space}1111{space}1111.",
        f"DE89{space}3704{space}0044{space}0532{space}0130{space}00",
    ]
    assert RedactPII().texts(texts) == ["<CARD>.", "<IBAN>"]


def test_full_width_characters_are_found_and_only_they_are_replaced() -> None:
    numbers = "DE89370400440532013000 4111111111111111".translate(FULL_WIDTH)
    text = f"銀行 {numbers}、以上２０２４年。"
    assert RedactPII().texts([text]) == ["銀行 <IBAN> <CARD>、以上２０２４年。"]
    assert [text[a:b].isascii() for a, b, _ in RedactPII().find(text)] == [False, False]


KEYS = [(name, *pair) for name, pairs in service_keys(random.Random(1)).items() for pair in pairs]


@pytest.mark.parametrize(("service", "template", "key"), KEYS, ids=[key[0] for key in KEYS])
def test_keys_of_services(service: str, template: str, key: str) -> None:
    (redacted,) = RedactPII().texts([template.format(key)])
    assert redacted.removesuffix("=") == template.format("<SECRET>").removesuffix("=")


def test_keys_that_amazon_prints_as_examples_stay() -> None:
    text = '"SecretAccessKey": "wJalrXUtnFEMI/K7MDENG/bPxRfiCY' + 'EXAMPLEKEY"'
    assert RedactPII().texts([text]) == [text]


@pytest.mark.parametrize("seed", range(3))
def test_numbers_of_science_and_names_like_keys_stay(seed: int) -> None:
    draw = random.Random(seed)
    lines = [shaped(draw, line) for line in SCIENCE] + NO_KEYS
    assert RedactPII().texts(lines) == lines


PIECES = st.one_of(
    st.sampled_from([case.text for case in CASES]),
    st.text(st.characters(codec="utf-8"), max_size=12),
    st.text("0123456789 .-()+/:", max_size=40),
    st.text("ab@._-<>%\0é用", max_size=30),
    st.sampled_from(
        [
            "tel. ",
            "IBAN ",
            "v",
            "SSN ",
            "://",
            "<EMAIL>",
            "-----BEGIN PRIVATE KEY-----\n",
            "eyJ",
            "sk-",
            "\u00a0",
            "\u2011",
            "\u2212",
            "0123456789".translate(FULL_WIDTH),
            "010".translate(ARABIC),
        ]
    ),
)


@settings(deadline=None, max_examples=300)
@given(st.lists(PIECES, max_size=6).map("".join))
def test_redacting_twice_changes_nothing_and_what_is_between_stays(text: str) -> None:
    block = RedactPII()
    (once,) = block.texts([text])
    assert block.texts([once]) == [once]
    spans, at, built = block.find(text), 0, ""
    for start, end, kind in spans:
        assert at <= start < end
        built += text[at:start] + f"<{kind.upper()}>"
        at = end
    assert built + text[at:] == once


@pytest.mark.parametrize(
    "huge",
    [
        "a" * 10**6,
        "1" * 10**6,
        "1 " * 10**6,
        "a@" * 10**5,
        "1.1." * 10**5,
        "+1 " * 10**5,
        "ab12 " * 10**5,
        "a" * 10**5 + "@b.png ",
    ],
    ids=lambda huge: huge[:5],
)
def test_huge_lines_take_linear_time(huge: str) -> None:
    assert RedactPII().texts([huge]) == [huge]


def lines_run(work: Callable[[], object]) -> int:
    """Lines of Python that ``work`` takes: the same on every machine."""
    count = 0

    def trace(frame: FrameType, event: str, argument: object) -> Any:
        nonlocal count
        count += event == "line"
        return trace

    before = sys.gettrace()
    sys.settrace(trace)
    try:
        work()
    finally:
        sys.settrace(before)
    return count


@pytest.mark.parametrize(
    "line",
    [
        "a{i}@corp{i}.org ",
        "8.{a}.{b}.9 ",
        "Tel. 030 1{i:06d}, a{i}@corp{i}.org, 8.{a}.{b}.9; ",  # of several kinds in one text
        "1.{c}.{d}.3 ",  # each is an address because the one before it is
        "8.{a}.{b}.9-",  # because the one behind it is
    ],
)
def test_dense_text_takes_linear_work(line: str) -> None:
    def text(count: int) -> str:
        lines = [
            line.format(i=i, a=i % 250, b=i * 7 % 250, c=i % 30, d=i * 7 % 30) for i in range(count)
        ]
        return "8.8.8.200 " + "".join(lines)

    block = RedactPII()
    block.find(text(1))
    few, many = (lines_run(lambda n=n: block.find(text(n))) for n in (40, 160))
    assert many < 5 * few
    assert len(block.find(text(160))) >= 150


def test_check_digits_refuse_what_is_one_off() -> None:
    """Published examples: the issuers' own documents."""
    examples = {
        national_ids.de_tax_id: "86095742719",
        national_ids.es_dni: "12345678Z",
        national_ids.it_codice_fiscale: "RSSMRA85T10A562S",
        national_ids.br_cpf: "111.444.777-35",
        national_ids.pl_pesel: "44051401359",
        national_ids.se_personnummer: "811228-9874",
        national_ids.fi_hetu: "131052-308T",
        national_ids.cn_resident_id: "11010519491231002X",
        national_ids.nl_bsn: "111222333",
        national_ids.ch_ahv: "756.9217.0769.85",
        national_ids.be_national: "85.07.30-033.28",
        national_ids.fr_nir: "255081416802538",
        national_ids.ca_sin: "046 454 286",
        national_ids.mx_curp: "HEGG560427MVZRRL04",
        national_ids.in_aadhaar: "2341 2341 2346",
        national_ids.tr_kimlik: "10000000146",
        national_ids.pt_nif: "123 456 789",
        recognizers.za_id: "8001015009087",
        national_ids.cz_rodne_cislo: "736028/5163",
    }
    for check, value in examples.items():
        assert check(value), check.__name__
        digit = max(i for i, c in enumerate(value) if c.isdigit())
        assert not check(value[:digit] + str((int(value[digit]) + 1) % 10) + value[digit + 1 :]), (
            check.__name__
        )
    assert luhn("79927398713") and not luhn("79927398710")


def test_a_number_with_a_date_of_birth_is_no_old_card() -> None:
    """Visa had cards of 13 digits, which Luhn's digit ends as South African identity numbers."""
    assert RedactPII().texts(["4606039161088, 4222222222222"]) == ["<NATIONAL_ID>, <CARD>"]


def test_numbers_of_arithmetic_are_nobodys() -> None:
    """Each was taken for a number to call or to pay with, in CPython's tests of decimal."""
    text = (
        "1e+2147483649, 3.05550054E+954242508, rescale +35236450.6 -2, +932 -281253953 = "
        "#2238000000000000"
    )
    assert RedactPII().texts([text]) == [text]


def test_secrets_and_forms_to_fill_in() -> None:
    cut = (
        "-----BEGIN RSA PRIVATE "
        "KEY-----\nMIIBOgIBAAJBAKj34GkxFhD90vcNLYLInFEX6Ppy1tPf9Cnzj4p4WGeKLs1Pt8Qu"
    )
    assert RedactPII().texts([cut]) == ["<SECRET>"]
    form = "ghp_" + "x" * 36 + " postgres://user:password@host/db https://u:${PW}@h.org"
    assert "<SECRET>" not in RedactPII().texts([form])[0]


def test_mistakes_name_the_setting() -> None:
    with pytest.raises(UserError, match=re.escape("redact_pii.kinds: unknown kind 'mail'")):
        RedactPII(kinds=("mail",))
    with pytest.raises(UserError, match=re.escape("redact_pii.placeholder")):
        RedactPII(placeholder="x@y.org")
