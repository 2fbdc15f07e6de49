"""Forms of personal data, and the look-alikes that must stay: tables, coordinates, units, postal
codes."""

from __future__ import annotations

import random

import pytest

from lit_llm.corpus.privacy.personal_data import RedactPII, national_ids

_HEX, _MIXED = "1234567890abcdef", "abcDEF123456ghiJKL789mnoPQRstu0"
# Parts are joined here, so that no scanner takes the tests for a leak.
HIDDEN = {
    "+52 1 55 1234 5678": "<PHONE>",
    "+52 55 1234 5678": "<PHONE>",
    "+1.4806242505": "<PHONE>",  # as registrars of domains write it
    "212-555-1234": "<PHONE>",
    "4111.1111.1111.1111": "<CARD>",
    "4111 1111 1111 1111 5500 0055 5555 5559": "<CARD> <CARD>",
    "4111 1111 1111 1111 123": "<CARD> 123",
    "2341 2341 2346": "<NATIONAL_ID>",
    "jane.doe AT uni-bonn DOT de": "<EMAIL>",
    "SK" + _HEX * 2: "<SECRET>",
    "EAACEdEose" + "0cBA" + _MIXED: "<SECRET>",
    "sk_test_" + _MIXED[:24]: "<SECRET>",
    "xoxc-" + "1234567890-1234567890-" + _MIXED: "<SECRET>",
    "sk.eyJ" + _MIXED + "." + _MIXED: "<SECRET>",
    "dp.pt." + _MIXED + _MIXED[:10]: "<SECRET>",
    "https://discord.com/api/webhooks/123456789012345678/" + _MIXED * 2: (
        "https://discord.com/api/webhooks/<SECRET>"
    ),
    "СНИЛС 112-233-445 95": "СНИЛС <NATIONAL_ID>",
    "ИНН 500100732259": "ИНН <NATIONAL_ID>",
    "RUT 12.345.678-5": "RUT <NATIONAL_ID>",
    "NHS number 943 476 5919": "NHS number <NATIONAL_ID>",
    "CNP 1800101221144": "CNP <NATIONAL_ID>",
    "EGN 7523169263": "EGN <NATIONAL_ID>",
    "OIB 33392005961": "OIB <NATIONAL_ID>",
    "TFN 123 456 782": "TFN <NATIONAL_ID>",
    "マイナンバー 1234 5678 9018": "マイナンバー <NATIONAL_ID>",
    "NRIC S1234567D": "NRIC <NATIONAL_ID>",
    "身分證 A123456789": "身分證 <NATIONAL_ID>",
    "HKID A123456(3)": "HKID <NATIONAL_ID>)",
    "PAN ABCPE1234F": "PAN <NATIONAL_ID>",
}
KEPT = [
    "+49.329791 +109.607572",
    "+43.343188",
    "200-300-4000 mAh",
    "800-900-1000 MHz",
    "410-420-4300 nm",
    "300-400-5000 km",
    "CEP 01310-100",
    "2017 1996 2017",
    "5007 2466 6051 6600 3800 3081 5117",
    "6831 2514 2254 5274 9655 7118 3622 8233",
    "Meet me AT home",
    "MSK 1234",
]


@pytest.mark.parametrize("value", HIDDEN)
def test_what_is_somebodys_goes(value: str) -> None:
    assert RedactPII().texts([f"see {value} here"]) == [f"see {HIDDEN[value]} here"]


@pytest.mark.parametrize("value", KEPT)
def test_what_is_nobodys_stays(value: str) -> None:
    assert RedactPII().texts([f"see {value} here"]) == [f"see {value} here"]


def test_rows_of_a_table_stay() -> None:
    draw = random.Random(4)
    rows = [" ".join(str(draw.randint(1000, 9999)) for _ in range(7)) for _ in range(500)]
    assert RedactPII().texts(rows) == rows


@pytest.mark.parametrize(
    ("check", "value"),
    [
        (national_ids.ru_snils, "112-233-445 95"),
        (national_ids.ru_inn, "500100732259"),
        (national_ids.cl_rut, "12.345.678-5"),
        (national_ids.cl_rut, "10.000.013-K"),
        (national_ids.uk_nhs, "943 476 5919"),
        (national_ids.ro_cnp, "1800101221144"),
        (national_ids.bg_egn, "7523169263"),
        (national_ids.hr_oib, "33392005961"),
        (national_ids.au_tfn, "123456782"),
        (national_ids.jp_my_number, "123456789018"),
        (national_ids.sg_nric, "S1234567D"),
        (national_ids.tw_id, "A123456789"),
        (national_ids.hk_id, "A123456(3)"),
    ],
)
def test_check_digits(check, value: str) -> None:  # type: ignore[no-untyped-def]
    assert check(value)
    last = max(i for i, c in enumerate(value) if c.isdigit())
    for other in {"0", "1", "2", "3", "4", "5", "6", "7", "8", "9"} - {value[last]}:
        assert not check(value[:last] + other + value[last + 1 :])
