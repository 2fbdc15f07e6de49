"""Descriptions of the columns of a corpus, and code snippets that load it, for the data card."""

from __future__ import annotations

import pyarrow as pa

from lit_llm.corpus.output.encode import DOCUMENTS

_MEANINGS = {
    "id": "Names the document within the corpus.",
    "text": "The text as it was kept.",
    "source": "Name of the source.",
    "path": "File that it came from.",
    "offset": "Where it begins in that file: a byte, or a row.",
    "url": "Address of its page, if there was one.",
    "license": "Licence as an SPDX expression; null: not known.",
    "language": "Language as a BCP 47 tag.",
    "domain": "Domain tag of its source.",
    "pii": "Personal data that was replaced, counted by kind.",
    "changed_by": "Steps that changed the text.",
    "scores": "Share of the text in its language, and bytes a token.",
    "sha256": "Checksum of the text.",
    "bytes": "Bytes of UTF-8.",
    "tokens": "Tokens, with the separator before it.",
    "split": "train or validation.",
}
SCHEMA = tuple(
    (
        field.name,
        "struct" if pa.types.is_struct(field.type) else str(field.type),
        _MEANINGS[field.name],
    )
    for field in DOCUMENTS
)
"""Name, type and meaning of each column of documents/*.parquet."""


def load_lines(name: str) -> list[tuple[str, str]]:
    """(title, code) of each snippet, for the corpus folder ``name``."""
    folder = "".join(c if c.isalnum() or c in "-_." else "_" for c in name)
    return [
        (
            "Text, with Hugging Face datasets",
            "from datasets import load_dataset\n\n"
            f'documents = load_dataset("parquet", data_files="{folder}/documents/*.parquet", '
            f'split="train")\n'
            'training = documents.filter(lambda row: row["split"] == "train")',
        ),
        (
            "Text, with pyarrow",
            "import pyarrow.parquet as pq\n\n"
            f'table = pq.read_table("{folder}/documents", filters=[("split", "=", "train")])',
        ),
        ("Train on it", f"lit_llm fit --config pretrain/base-135m --data.corpus {folder}"),
        ("A document's way", f"lit_llm corpus explain {folder} ID"),
    ]
