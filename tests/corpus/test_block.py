"""Blocks leave dropped rows alone and keep the order, whatever came before them."""

from __future__ import annotations

from dataclasses import dataclass

import pyarrow as pa
import pyarrow.compute as pc
from hypothesis import given, settings
from hypothesis import strategies as st

from lit_llm.corpus.block import Block, Filter, documents, funnel, texts


@dataclass(frozen=True)
class Short(Filter):
    name = "short"
    least: int = 3

    def judge(self, text: pa.LargeStringArray) -> pa.StringArray:
        return pc.if_else(
            pc.less(pc.utf8_length(text), self.least), "too short", pa.scalar(None, pa.string())
        )


@dataclass(frozen=True)
class Shout(Block):
    name = "shout"

    def apply(self, table: pa.Table) -> pa.Table:
        upper = pc.utf8_upper(table["text"])
        table = table.set_column(table.schema.get_field_index("text"), "text", upper)
        return table.append_column("length", pc.utf8_length(upper).cast(pa.int64()))


@settings(deadline=None)
@given(st.lists(st.text(alphabet="ab é", max_size=5), max_size=12))
def test_rows_stay_in_order_and_dropped_ones_untouched(given: list[str]) -> None:
    table = Shout()(Short()(documents(given, source=[str(i % 2) for i in range(len(given))])))
    assert table["id"].to_pylist() == [str(i) for i in range(len(given))]
    for row, text in zip(table.to_pylist(), given, strict=True):
        if len(text) < 3:
            assert (row["text"], row["dropped"], row["length"]) == (text, "short: too short", None)
        else:
            assert (row["text"], row["dropped"], row["length"]) == (
                text.upper(),
                None,
                len(text.upper()),
            )
    dropped = sum(len(text) < 3 for text in given)
    assert funnel(table) == ({"short: too short": dropped} if dropped else {})


def test_a_list_of_strings_will_do() -> None:
    assert Short(least=2).reasons(["a", "ab", None]) == ["too short", None, "too short"]
    sliced = pa.chunked_array([pa.array(["a", None]), pa.array(["b"])]).slice(1)
    assert texts(sliced).to_pylist() == ["", "b"]
