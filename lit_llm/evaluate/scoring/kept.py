"""Finished parts of an evaluation, kept in files while it runs: a killed one goes on from them.

A part is found by a digest of all that its result depends on beside the model, so a change of a
task, template or example finds nothing. What depends on the model is in the fingerprint.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np

from lit_llm.errors import UserError
from lit_llm.evaluate.scoring.sharing import ranks

_NAME = "unfinished-{rank}.jsonl"


class KeptParts:
    """Results of finished parts, a JSON line each; each rank writes a file of its own.

    Args:
        folder: of the files; created if it does not exist.
        fingerprint: of the weights and whatever else changes results. Files of another one are
            not read, and the first result replaces them.

    Raises:
        UserError: the folder cannot be created or read.
    """

    def __init__(self, folder: Path, fingerprint: str):
        self._fingerprint = fingerprint
        self._mine = folder / _NAME.format(rank=ranks()[0])
        self._begun = False  # whether this rank's file has the fingerprint
        self._found: dict[str, Any] = {}
        self.taken = 0
        """Results that were found in the files and asked for."""
        try:
            folder.mkdir(parents=True, exist_ok=True)
            for file in sorted(folder.glob(_NAME.format(rank="*"))):
                self._read(file)
        except OSError as error:
            raise UserError(f"{folder}: cannot be used ({error.strerror})") from None

    def _read(self, file: Path) -> None:
        lines = file.read_text(encoding="utf-8", errors="replace").splitlines()
        for number, line in enumerate(lines):
            try:
                key, value = json.loads(line)
            except ValueError:
                continue  # an empty line, or one that a killed process did not finish
            if number == 0 and [key, value] != ["fingerprint", self._fingerprint]:
                return
            self._begun |= file == self._mine
            self._found[key] = value

    def get(self, key: str) -> Any:
        """The kept result under ``key``, or None."""
        self.taken += key in self._found
        return self._found.get(key)

    def put(self, key: str, value: Any) -> None:
        """Keep a result, which must be plain JSON."""
        text = json.dumps([key, value]) + "\n"
        if not self._begun:
            text = json.dumps(["fingerprint", self._fingerprint]) + "\n" + text
        with open(self._mine, "a" if self._begun else "w", encoding="utf-8") as file:
            # An empty line ends one that was cut.
            file.write("\n" + text if self._begun else text)
        self._begun = True

    def remove(self) -> None:
        """Delete the files of all ranks: the evaluation is complete."""
        if ranks()[0] == 0:
            for file in self._mine.parent.glob(_NAME.format(rank="*")):
                file.unlink()
        self._begun, self._found = False, {}


def digest(*values: Any) -> str:
    """A key of arrays, and of values whose ``repr`` tells all about them."""
    found = hashlib.blake2b(digest_size=16)
    for value in values:
        data = value.tobytes() if isinstance(value, np.ndarray) else repr(value).encode()
        found.update(len(data).to_bytes(8, "little") + data)
    return found.hexdigest()
