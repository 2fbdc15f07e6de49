"""The data card in words: its page, its README.md; what is said of rules, licences and splits."""

from __future__ import annotations

import hashlib
import json
import re
import shutil
from html import unescape
from html.parser import HTMLParser
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import yaml

from lit_llm.corpus.build import build
from lit_llm.corpus.card.page import write_page
from lit_llm.corpus.card.readme import front_matter, write_readme
from lit_llm.corpus.card.rules import rules
from lit_llm.corpus.card.words import (
    known_languages,
    license_shares,
    license_verdict,
    missing_languages,
    remarks,
)
from lit_llm.corpus.commands.remove import Request, remove
from lit_llm.corpus.config import CorpusConfig, OptOut
from lit_llm.corpus.filters.language import IdentifyLanguage
from lit_llm.corpus.filters.licensing import LicenseFilter
from lit_llm.corpus.filters.quality import (
    C4Quality,
    FineWebQuality,
    GopherQuality,
    GopherRepetition,
)
from lit_llm.corpus.output.folder import Corpus
from lit_llm.corpus.reading.sources import Source

REPEATED = "the same line again and again\n" * 20
OVERRIDE = "moc.elpmaxe\u202etxt"
ROWS = [json.loads(line) for line in (Path(__file__).parent / "udhr.jsonl").open(encoding="utf-8")]
ENGLISH, GERMAN, CHINESE = (
    [row["text"] for row in ROWS if row["language"] == language] for language in ("en", "de", "zh")
)


class Texts(HTMLParser):
    """Every element with its attributes, and the text within each kind of element."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.inside: dict[str, list[str]] = {}
        self._open: list[str] = []
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        self.inside.setdefault(tag, []).append("")
        if tag not in ("meta", "link", "br"):
            self._open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        while self._open and self._open.pop() != tag:
            pass

    def handle_data(self, data: str) -> None:
        for tag in set(self._open):
            self.inside[tag][-1] += data


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Corpus:
    """English, German and Chinese articles, a damaged line, a copy, a text that repeats itself."""
    folder = tmp_path_factory.mktemp("card")
    rows = [
        {"id": f"en{i}", "text": text, "license": "MIT", "url": f"https://{OVERRIDE}/{i}"}
        for i, text in enumerate(ENGLISH)
    ]
    rows += [
        {"id": f"de{i}", "text": text, "license": "GPL-3.0-only"} for i, text in enumerate(GERMAN)
    ]
    rows += [{"id": f"zh{i}", "text": text, "license": "MIT"} for i, text in enumerate(CHINESE)]
    rows += [{"id": "zz copy", "text": ENGLISH[3]}]
    rows += [{"id": "again", "text": REPEATED}]
    lines = [json.dumps(row, ensure_ascii=False) for row in rows]
    (folder / "web.jsonl").write_text("\n".join([*lines, "{broken"]) + "\n", encoding="utf-8")
    config = CorpusConfig(
        sources=[Source("web", (str(folder / "web.jsonl"),), domain=OVERRIDE)],
        validation_fraction=0.2, gopher_quality=None, vocab_size=300,
    )  # fmt: skip
    return build(config, folder / "named | corpus", progress=False)


@pytest.fixture
def page(built: Corpus) -> str:
    return (built.path / "datacard.html").read_text(encoding="utf-8")


def test_the_page_has_landmarks_named_columns_and_bars(page: str) -> None:
    found = Texts(page)
    tags = [tag for tag, _ in found.tags]
    assert (
        tags.count("main") == tags.count("header") == tags.count("footer") == tags.count("h1") == 1
    )
    assert "" not in [text.strip() for text in found.inside["th"]]
    assert "by from" not in page and "meter" not in tags
    widths = [attrs["style"] for tag, attrs in found.tags if tag == "i"]
    assert len(widths) > 10 and all(re.fullmatch(r"width:[\d.]+%", style or "") for style in widths)
    for tag, attrs in found.tags:
        if tag == "pre" or "scroll" in (attrs.get("class") or ""):
            assert attrs["tabindex"] == "0"


def test_settings_are_yaml_and_not_pythons_values(page: str) -> None:
    settings = unescape(page[page.index('<section id="settings"') :])
    assert "  threshold: 0.6\n" in settings and "keep_unknown: true" in settings
    assert not re.search(r"\bNone\b|\bTrue\b|\bFalse\b|\{'|\['", unescape(page))


def test_names_from_outside_are_isolated_and_their_controls_shown(built: Corpus, page: str) -> None:
    assert "\u202e" not in page and "<bdi>moc.elpmaxe[U+202E]txt</bdi>" in page
    assert "\u202e" not in (built.path / "README.md").read_text(encoding="utf-8")
    target = built.path.parent / "hostile.html"
    write_page(built.datacard, target, "a\u2067b\u200fc")
    assert "<h1><bdi>a[U+2067]b[U+200F]c</bdi></h1>" in target.read_text(encoding="utf-8")


def test_the_card_has_a_name_and_a_sentence(built: Corpus, page: str) -> None:
    card = built.datacard
    assert "<h1><bdi>named | corpus</bdi></h1>" in page
    languages = sorted(card["languages"], key=lambda name: -card["languages"][name]["tokens"])
    named = f"{', '.join(languages[:-1])} and {languages[-1]}"
    said = f"{card['documents']} documents with {card['tokens']:,} tokens in {named}, from web."
    assert f"<bdi>{said}</bdi>" in page


def test_splits_have_languages_and_a_missing_one_is_told(
    built: Corpus, page: str, capsys: pytest.CaptureFixture[str]
) -> None:
    table = pq.read_table(built.path / "documents").to_pylist()
    for split, languages in built.datacard["split_languages"].items():
        for name, part in languages.items():
            mine = [row for row in table if row["split"] == split and row["language"] == name]
            assert part["documents"] == len(mine)
            assert part["tokens"] == sum(row["tokens"] for row in mine)
    assert re.search(r"(?:en|de|zh) [\d.]+%, (?:en|de|zh) [\d.]+%", page)

    card = json.loads(json.dumps(built.datacard))
    card["split_languages"]["validation"].pop("zh", None)
    share = missing_languages(card)["zh"]
    train = card["split_languages"]["train"]
    assert share == train["zh"]["tokens"] / sum(part["tokens"] for part in train.values())
    assert any("no text in zh, which makes" in said for said in remarks(card))
    del card["split_languages"]
    assert missing_languages(card) == {}


def test_a_build_tells_that_validation_lacks_a_language(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def held_out(name: str) -> bool:
        return int.from_bytes(hashlib.sha256(name.encode()).digest()[:6], "big") / 2**48 < 0.2

    rows = [{"id": f"e{i}", "text": text} for i, text in enumerate(ENGLISH)]
    names = (name for i in range(99) if not held_out(name := f"z{i}"))
    rows += [{"id": name, "text": text} for name, text in zip(names, CHINESE, strict=False)]
    (tmp_path / "a.jsonl").write_text("\n".join(json.dumps(row) for row in rows) + "\n")
    build(
        CorpusConfig([Source("a", (str(tmp_path / "a.jsonl"),))], validation_fraction=0.2,
            vocab_size=300),
        tmp_path / "corpus", progress=True,
    )  # fmt: skip
    assert "The validation split has no text in zh, which makes" in capsys.readouterr().err


def test_the_funnel_counts_tokens(built: Corpus, page: str) -> None:
    card = built.datacard
    assert set(card["dropped_bytes"]) == set(card["dropped"])
    (name,) = [reason for reason in card["dropped"] if reason.startswith("gopher_repetition")]
    assert abs(card["dropped_bytes"][name] - len(REPEATED)) <= 1
    assert card["dropped_bytes"]["exact_dedup: duplicate"] == len(ENGLISH[3].encode())
    about = card["dropped_bytes"][name] / card["bytes_per_token"]
    assert f'<td class="n">\u2212{about:,.0f}</td>' in page


def test_damaged_files_are_named(built: Corpus, page: str) -> None:
    damaged = built.datacard["damaged"]
    assert damaged["documents"] == 1
    ((path, name, why),) = damaged["named"]
    assert path.endswith("web.jsonl") and name.startswith("web.jsonl#") and why == "not valid JSON"
    assert f"<bdi>{path}</bdi>" in page
    assert path not in (built.path / "README.md").read_text(encoding="utf-8")


FILTERS = (GopherRepetition(), GopherQuality(), FineWebQuality(), C4Quality())


def test_every_rule_of_the_filters_has_a_sentence_and_a_setting() -> None:
    config = CorpusConfig(
        gopher_repetition=FILTERS[0], gopher_quality=FILTERS[1], fineweb=FILTERS[2], c4=FILTERS[3],
        language=IdentifyLanguage(("de", "en"), 0.65), license=LicenseFilter(), opt_out=OptOut(),
    )  # fmt: skip
    dropped = {block.name: dict.fromkeys(block.rules, 1) for block in FILTERS}
    dropped["identify_language"] = {"fr": 2, "score": 1}
    dropped["license"] = {"unknown": 1, "GPL-3.0-only": 3}
    dropped["near_dedup"] = {"duplicate": 4}
    funnel = [{"stage": stage, "reasons": reasons} for stage, reasons in dropped.items()]
    card = {"settings": json.loads(json.dumps(config.content(), default=repr)), "funnel": funnel}
    found = rules(card)
    assert sum(rule.documents for rule in found) == sum(sum(d.values()) for d in dropped.values())
    for rule in found:
        assert "_" not in rule.sentence and "{}" not in rule.sentence and rule.bytes is None
        empty = rule.sentence in (
            "Empty.",
        )  # a document without words is dropped whatever the limits
        assert empty or rule.setting, rule
    said = {rule.sentence: rule for rule in found}
    assert said["It has fewer than 50 words."].setting == "gopher_quality.min_doc_words: 50"
    assert said["More than 30% of its lines repeat an earlier line."].documents == 1
    assert said["Less than 65% of it is in its main language."].documents == 1
    assert said["Its language is not among those to keep: de, en."].which == "fr (2)"
    assert said["Its licence is not among those allowed: permissive."].which == "GPL-3.0-only (3)"
    assert (
        said["At least 60% of its runs of words are in another document."].setting
        == "dedup.threshold: 0.6"
    )
    assert said["Runs of 5 words that were there before make more than 15% of it."].documents == 1


def test_a_rule_that_is_off_is_not_listed() -> None:
    config = CorpusConfig(gopher_quality=GopherQuality(min_doc_words=None, min_stop_words=None))
    card = {
        "settings": json.loads(json.dumps(config.content(), default=repr)),
        "funnel": [{"stage": "gopher_quality", "reasons": {}}, {"stage": "license", "reasons": {}}],
    }
    said = [rule.sentence for rule in rules(card)]
    assert not any("fewer than" in s and "words" in s and "stop" in s for s in said)
    assert "Its licence is not known." not in said and "It has more than 100,000 words." in said


def test_limits_by_language_do_not_break_the_page() -> None:
    card = {
        "settings": {"gopher_repetition": {"dup_line_frac": {"en": 0.3, "zh": 0.4}}},
        "funnel": [{"stage": "gopher_repetition", "reasons": {"dup_line_frac": 2, "new rule": 1}}],
    }
    first, last = rules(card)
    assert first.sentence == "More than the language's limit of its lines repeat an earlier line."
    assert last.sentence == "New rule." and last.documents == 1


@pytest.mark.parametrize(
    ("licenses", "shares", "said"),
    [
        ({"MIT": 60, "GPL-3.0-only": 40}, {"permissive": 0.6, "copyleft": 0.4},
            "40% of the tokens are under copyleft"),
        ({"MIT OR GPL-3.0-only": 1}, {"permissive": 1.0}, "You may use and pass on all of it"),
        ({"MIT AND CC-BY-NC-4.0": 1}, {"noncommercial": 1.0}, "A product that is sold should not"),
        ({"unknown": 5}, {"unknown": 1.0}, "No licence is known for any of the text"),
        ({"MIT": 9_999_999, "unknown": 1}, {"permissive": 0.9999999, "unknown": 1e-7},
            "0.01% of the tokens are with"),
        ({}, {}, "There is no text"),
    ],
)  # fmt: skip
def test_licences_in_words(licenses: dict, shares: dict, said: str) -> None:
    card = {"licenses": {name: {"tokens": tokens} for name, tokens in licenses.items()}}
    assert license_shares(card) == pytest.approx(shares)
    assert said in license_verdict(card)


def test_a_table_of_the_readme_holds_whatever_a_name_has(built: Corpus, tmp_path: Path) -> None:
    count = {"documents": 1, "bytes": 3, "tokens": 1}
    card = {**built.datacard, "domains": {"a|b\n`c` <img src=x>": count}}
    write_readme(card, tmp_path / "README.md")
    text = (tmp_path / "README.md").read_text(encoding="utf-8")
    assert "| a\\|b \\`c\\` \\<img src=x\\> | 1 | 100% |" in text


def test_the_readme_is_a_dataset_card(built: Corpus) -> None:
    text = (built.path / "README.md").read_text(encoding="utf-8")
    _, front, body = text.split("---\n", 2)
    meta = yaml.safe_load(front)
    assert meta["pretty_name"] == "web" and meta["language"] == list(
        known_languages(built.datacard["languages"])
    )
    assert meta["license"] == "other" and meta["size_categories"] == ["n<1K"]
    assert meta["configs"] == [{"config_name": "default", "data_files": "documents/*.parquet"}]
    assert "# web\n" in body
    for line in body.split("\n"):
        if line.startswith("|"):
            cells = re.split(r"(?<!\\)\|", line)
            assert len(cells) >= 4 and cells[0] == cells[-1] == "", line
    for said in (
        "| train | web |",
        "At least 60% of its runs of words",
        "load\\_dataset",
        "GPL-3.0-only",
    ):
        assert said in body or said.replace("\\", "") in body, said
    assert built.datacard["created"][:10] not in text


@pytest.mark.parametrize(
    ("licenses", "hub"),
    [(["MIT"], "mit"), (["CC-BY-SA-4.0"], "cc-by-sa-4.0"), (["MIT", "Apache-2.0"], "other"),
     (["unknown"], "unknown"), (["MIT", "unknown"], "other"), (["MIT OR Apache-2.0"], "other"),
     (["ODC-By-1.0"], "odc-by")],
)  # fmt: skip
def test_the_hubs_licence(built: Corpus, licenses: list[str], hub: str) -> None:
    card = {**built.datacard, "licenses": {name: {"tokens": 1} for name in licenses}}
    assert front_matter(card)["license"] == hub


def test_the_hub_knows_languages_without_their_scripts(built: Corpus) -> None:
    count = {"tokens": 1}
    card = {
        **built.datacard,
        "languages": {"zh-Hant": count, "zh": count, "und": count, "A\nb": count},
    }
    assert front_matter(card)["language"] == ["zh"]


def test_schema_and_load_lines_hold(built: Corpus, page: str) -> None:
    columns = pq.read_schema(next((built.path / "documents").iterdir())).names
    for name in columns:
        assert f"<code>{name}</code>" in page
    assert "pq.read_table(&#34;named___corpus/documents&#34;" in page


def test_a_card_of_the_version_before_makes_a_page(built: Corpus, tmp_path: Path) -> None:
    card = json.loads(json.dumps(built.datacard))
    for key in ("dropped_bytes", "damaged", "split_languages"):
        del card[key]
    write_page(card, tmp_path / "old.html", "old")
    write_readme(card, tmp_path / "README.md")
    html = (tmp_path / "old.html").read_text(encoding="utf-8")
    assert "<h1><bdi>old</bdi></h1>" in html and "not known" in html


def test_removal_counts_its_bytes(built: Corpus, tmp_path: Path) -> None:
    folder = tmp_path / "corpus"
    shutil.copytree(built.path, folder)
    assert remove(folder, Request(frozenset({"en5"}))) == 1
    card = Corpus.load(folder).datacard
    assert card["dropped_bytes"]["removed: by request"] == built.datacard["bytes"] - card["bytes"]
    page = (folder / "datacard.html").read_text(encoding="utf-8")
    assert "<h1><bdi>corpus</bdi></h1>" in page and (folder / "README.md").is_file()
    languages = card["split_languages"]
    total = sum(part["documents"] for names in languages.values() for part in names.values())
    assert total == card["documents"]
