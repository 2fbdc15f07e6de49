"""What extraction must not lose of a page: a set of pages with the text that a reader sees, and its
recall."""

from __future__ import annotations

from pathlib import Path

import pytest
from reading import rows

from lit_llm.corpus.kernels.page_work import measure
from lit_llm.corpus.reading.formulae import with_formulae
from lit_llm.corpus.reading.html_text import extract, main_text

AROUND = [
    "<p>{}</p>",
    "<!DOCTYPE html><html><body><div><div><div><main><article><p>{lead}</p>{}</article></main>"
    "</div></div></div>",
    '<div id="page"><nav><a href="/">Home</a></nav><div '
    'class="text"><p>{lead}</p><section>{}</section></div></div>',
]
LEAD = (
    "What stands before is long enough that links in it are no menu, as on any page of text. " * 3
)
# A page, and what its text must hold, white space aside.
LOST = [
    ("学<a>道</a>之人", "学道之人"),
    ("It costs <b>€</b> 5", "It costs € 5"),
    ("It costs <b>&euro;</b> 5", "It costs € 5"),
    ("It costs <b> &#8364;\n</b> 5", "It costs € 5"),
    ("It costs <b>&#x20AC</b> 5", "It costs € 5"),
    ("don<!-- react -->\u2019<!-- react -->t", "don\u2019t"),
    ("<ruby>漢<rp>(</rp><rt>かん</rt><rp>)</rp>字<rp>(</rp><rt>じ</rt><rp>)</rp></ruby>",
     "漢(かん)字(じ)"),
    ("<i>ก</i><i>한</i><i>अ</i><i>→</i><i>ﷺ</i>", "ก한अ→ﷺ"),
    ("x <sup>①</sup> y", "x ① y"),
    ("<table><tr><td>是<td>否</table>", "是 否"),
    ("<ul><li>一</li><li>二</li><li>three and more words</li></ul>", "• 一 • 二 • three and more "
                                                                   "words"),
    ("On <time datetime='2020-05-03'>3 May 2020</time> it rained.", "On 3 May 2020 it rained."),
    ("It rained <em>on <time>3 May</time></em>.", "It rained on 3 May."),
    ("From <time>9:00</time>-<time>17:00</time> daily", "From 9:00-17:00 daily"),
    ("<table><tr><th><time>1914</time><td>War begins</table>", "1914 War begins"),
    ("<dl><dt><time>1914</time></dt><dd>War begins</dd></dl>", "1914 War begins"),
    ("<h2><time>1914</time></h2>", "1914"),
    ("<figure><table><tr><td>a<td>b</table><figcaption>Table "
     "1</figcaption></figure>", "a b Table 1"),
    ("<figure><figcaption>Listing</figcaption><pre>x = 1\n  y</pre></figure>", "Listing x = 1 y"),
    ("<figure><blockquote><p>To "
     "be</p></blockquote><figcaption>Will</figcaption></figure>", "To be Will"),
    ("<figure><div><ol><li>one</li></ol></div></figure>", "one"),
    ("<figure><figure><code>f(x)</code></figure></figure>", "f(x)"),
    ('<table class="l" role="presentation"><tr><td>laid out</table>', "laid out"),
    ('the <a rel="tag" href="/x">word</a> itself', "the word itself"),
    ("the <a rel=tag href=/x>word</a> itself", "the word itself"),
    ("the <a rel='tag' href=/x>word</a> itself", "the word itself"),
    ("It rained on <Time>3 May</Time>.", "It rained on 3 May."),
    ("<details open><summary>Why so?</summary>Because.</details>", "Why so? Because."),
    ("<fieldset><legend class='a'>Part one</legend>It begins.</fieldset>", "Part one It begins."),
    ('says <span itemprop="author">Ann Lee</span> today', "says Ann Lee today"),
    ('at <a itemprop="url" href="/x">this place</a> too', "at this place too"),
    ("so <math><mi>x</mi><mo>=</mo><mfrac><mn>1</mn><mn>2</mn></mfrac></math>!",
        r"so $x=\frac{1}{2}$!"),
    ("<math display='block'><msup><mi>e</mi><mi>x</mi></msup></math>", "$$e^{x}$$"),
    ("<math><mi>\u03b1</mi></math>", "$\u03b1$"),
    (
        "a <math alttext='\\alpha'><semantics><mi>\u03b1</mi><annotation "
        "encoding='application/x-tex'>\\alpha"
        "</annotation></semantics></math> b",
        r"a $\alpha$ b",
    ),
    (
        '<span class="m"><span style="display: none;"><math alttext="{\\displaystyle '
        'E=mc^{2}}"><mi>E</mi>'
        "</math></span><img alt='no'></span> holds",
        "$E=mc^{2}$ holds",
    ),
    ('so <script type="math/tex">a<b</script> holds', "so $a<b$ holds"),
    ('<script type="math/tex; mode=display">\n\\sum a\n</script>', r"$$\sum a$$"),
    ("<script type='math/mml'><math><mi>x</mi></math></script>", "$x$"),
    ("by <SCRIPT TYPE=math/asciimath>a^2</SCRIPT>", "by a^2"),
    ("is <img src='x.png' class='latex' alt='$x^2 &lt; 3$'> so", "is $x^2 < 3$ so"),
]  # fmt: skip


def seen(text: str) -> str:
    return " ".join(text.split())


def test_recall_of_a_set_of_pages() -> None:
    cases = [(around.format(page, lead=LEAD), text) for page, text in LOST for around in AROUND]
    missing = [(text, main_text(page)) for page, text in cases if text not in seen(main_text(page))]
    assert not missing, f"recall {1 - len(missing) / len(cases):.2f}"


@pytest.mark.parametrize(
    ("page", "text"),
    [
        ("<p>Title<a class=headerlink>¶</a></p>", "Title"),
        ("<p>go <i>\ue001</i><i>&#xe001;</i>on", "go on"),
        ("<p>a<td>\u3000</td>b", "a\u3000b"),
        ("<h1>News</h1><div>By Ann</div><div><time>3 May</time></div><p>It "
         "rained.", "News By Ann It rained."),
        ("<figure><a href=x><img alt=q></a><figcaption>A cat</figcaption></figure><p>x", "x"),
        ("<figure><svg><text>q</text></svg></figure><p>x", "x"),
        ("<p>x\ufdd0y", "xy"),
        ("<p>&lt;math&gt; and <code>&lt;time&gt;</code>", "<math> and <time>"),
        ("<!-- <math><mi>x</mi></math> --><script>'<math>x</math>'</script><p>y", "y"),
        ("<p>x <math>", "x"),
        ("<p>x <script type='math/tex'>a", "x"),
        ("<p>x <math></math> <img class=latex> <img class=other alt=q> y", "x y"),
    ],
)  # fmt: skip
def test_what_is_no_text_stays_out(page: str, text: str) -> None:
    assert seen(main_text(page)) == seen(text)


def test_formulae_behind_very_many_stay_as_they_are(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lit_llm.corpus.reading.formulae._MOST", 2)
    assert with_formulae("<math><mi>x</mi></math>" * 3) == (
        "<span>$x$</span>" * 2 + "<math><mi>x</mi></math>"
    )


def test_mathml_as_tex() -> None:
    def tex(inner: str) -> str:
        return with_formulae(f"<math>{inner}</math>").removeprefix("<span>").removesuffix("</span>")

    assert tex("<msubsup><mi>x</mi><mn>1</mn><mn>2</mn></msubsup>") == "$x_{1}^{2}$"
    assert tex("<mi>sin</mi><mi>x</mi><mo>\u2061</mo><mi>foo</mi>") == "$\\sin x\\mathrm{foo}$"
    assert (
        tex("<msqrt><mi>x</mi></msqrt><mroot><mi>x</mi><mn>3</mn></mroot>")
        == "$\\sqrt{x}\\sqrt[3]{x}$"
    )
    assert tex(
        "<mtable><mtr><mtd><mi>a</mi></mtd><mtd><mi>b</mi></mtd></mtr></mtable>"
    ) == "$a & b$".replace("&", "&amp;")
    assert (
        tex("<mfenced><mi>a</mi><mi>b</mi></mfenced><mtext>if so</mtext>")
        == "$(a, b)\\text{if so}$"
    )
    assert tex("<mfrac><mi>a</mi></mfrac><mphantom>q</mphantom><mspace></mspace>") == "$a$"
    assert tex("<mrow>" * 300 + "<mi>x</mi>" + "</mrow>" * 300) == "$x$"
    assert tex("") == ""
    page = (
        '<span class="MJX_Assistive_MathML"><math><mi>x</mi></math></span><script '
        'type="math/tex">x</script>'
    )
    assert seen(main_text(page)) == "$x$"


BOMBS = {
    "page too complex: more than 1,000,000 elements": [
        "".join(f"<p><b a={i}>x" for i in range(1900)),
        "<table><tr><td>" + "".join(f"<font color={i}><p>" for i in range(1900)),
        "<svg><title>" + "".join(f"<p><b a={i}>x" for i in range(1900)) + "</title>",
        "<select><style></select>" + "".join(f"<p><i a={i}>x" for i in range(1900)) + "</style>",
        "<p>x" * 1_000_001,
    ],
    "page too complex: more than 2,048 open formatting elements": [
        "".join(f"<b a={i}>" for i in range(2049))
    ],
    "page too complex: more than 1,000,000,000 pairs of attributes": [
        "<p " + " ".join(f"a{i}" for i in range(60_000)) + ">x",
        "<p " + "a=1 " * 60_000,
        "".join(f"<body a{i}=1>x" for i in range(32_000)),
    ],
    "page too complex: more than 1,000,000,000 bytes times their depth": [
        "<div>" * 400 + "x" * 3_000_000
    ],
    "page too complex: more than 10,000,000 list levels": ["<ul><li>x" * 10_000,
        "<ul></ul>" * 50_001],
}  # fmt: skip


@pytest.mark.parametrize(
    ("page", "reason"),
    [(page, reason) for reason, pages in BOMBS.items() for page in pages],
    ids=lambda value: value[:20],
)
def test_pages_that_never_end_are_dropped_before_they_are_parsed(
    page: str, reason: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delattr("resiliparse.parse.html.HTMLTree")
    assert extract(page) == ("", reason)


@pytest.mark.parametrize(
    ("page", "text"),
    [
        ("<select>" + "<option>x</option>" * 32_000 + "</select><p>after", "after"),
        ("<font size=2><p>x" * 5000, None),  # three alike are kept open
        ("".join(f"<a name={i}><p>x" for i in range(5000)), None),  # one link is
        ("<table>" + "".join(f"<tr><td><font color={i}>x" for i in range(5000)), None),
        ("<p>" + "".join(f"<b a={i}>x</b>" for i in range(5000)), None),
        ("<script>" + "'<b a=1><p>'" * 99 + "</script><p>x", "x"),
        ("<!--" + "<b>" * 5000 + "--><p>x<!-->y<!--->z", "xyz"),
        ("<p title='" + "<b a=1><p>" * 999 + "'>x", "x"),
        ("<script>" * 5000, ""),
        ("<div>" * 100_000 + "deep", "deep"),
        ("<figure><time>x</time></figure>" * 2500, None),
        *(("<figure>" * n + "deep<img alt=q><figcaption>too", "deep\ntoo") for n in (1500, 20_000)),
        ("<div>x</x></y>" * 300, None),
        ("<figure>" * 400 + "x" * 9000, None),
        ("</ <p>x</>", "x"),
    ],
    ids=lambda value: repr(value)[:20],
)
def test_pages_of_much_work_that_is_bounded_are_read(page: str, text: str | None) -> None:
    found, reason = extract(page)
    assert reason == ("no main text" if text == "" else None)
    assert (
        found == text
        if text is not None
        else found.count("x") == page.count("x") - page.count("</x")
    )


@pytest.mark.parametrize(
    ("page", "depth"),
    [
        ("<span><div></span>" * 50, 100),  # an end tag behind a block says nothing
        ("<div><marquee></div>" * 50, 100),
        ("<div><table><tr><td></div>" * 50, 100),
        ("<div><span></div>" * 50, 2),
        ("<table><td><div></table>" * 50, 2),
        ("<ul><li>a<p>b<li>c<p><div></div></ul>" * 50, 4),
        ("<dl><dt>a<dd>b<p>c<dt>d</dl>" * 50, 4),
        ("<p><font size=2>x" * 50, 2),
        ("<code class=x>y" * 50, 50),
        ("<p><b>x<p></b>y" * 50, 2),
        ("<math><td>" * 50, 100),
        ("<rt>" * 50, 50),
    ],
)
def test_depth_is_that_of_the_parser_at_least(page: str, depth: int) -> None:
    from resiliparse.parse.html import HTMLTree

    tree, real = HTMLTree.parse(page), 0
    while tree.document.query_selector("body" + " > *" * (real + 1)) is not None:
        real += 1
    assert real / 5 <= measure(page).depth <= depth


def test_a_dropped_page_is_counted_with_its_reason(tmp_path: Path) -> None:
    (tmp_path / "a.html").write_text("".join(f"<p><b a={i}>x" for i in range(1900)))
    (row,) = rows(str(tmp_path))
    assert row["dropped"] == "read: page too complex: more than 1,000,000 elements"


def test_tags_without_end_are_searched_once_for_robots() -> None:
    from lit_llm.corpus.reading import html_text as module

    page = "<script " * 100_000 + "robots"
    assert module.robots(page) is None
    assert module._HIDDEN.match("<script " * 9 + "a='" + "x" * 2000 + "'>") is None
