from __future__ import annotations

from dataclasses import dataclass

from lit_llm.corpus.sources import Source, SourceFile, list_files
from lit_llm.corpus.store import digest


@dataclass(frozen=True)
class Part:
    files: tuple[SourceFile, ...]
    source: Source
    key: str
    size: int


def list_parts(sources: list[Source], target_bytes: int) -> list[Part]:
    parts = []
    for source in sources:
        batch, size = [], 0

        def flush():
            nonlocal batch, size
            if batch:
                key = digest(
                    source.name,
                    source.text_field,
                    [[f.source, f.id, f.path.stat().st_size, f.path.stat().st_mtime_ns] for f in batch],
                )
                parts.append(Part(tuple(batch), source, key, size))
            batch, size = [], 0

        for file in list_files({source.name: source.paths}):
            batch.append(file)
            size += file.path.stat().st_size
            if size >= target_bytes:
                flush()
        flush()
    return parts
