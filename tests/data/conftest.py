"""What several tests of this folder use."""

from __future__ import annotations

from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def tokenizer_folder(corpus: Path) -> Path:
    """A small byte-level tokenizer with the ChatML template."""
    return corpus / "tokenizer"
