"""What the base says and scores, measured once before training and kept beside the run."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from lit_llm.errors import UserError
from lit_llm.evaluate.forgetting.divergence import Likeliest
from lit_llm.evaluate.forgetting.task_items import Scores
from lit_llm.io.atomic import replacing


@dataclass
class Base:
    """Measurements of the base.

    Attributes:
        settings: settings of the check that decide what is measured.
        answers: token ids of the answer to each question.
        texts: the same as text.
        likeliest: the base's distributions at the places of the answers.
        scores: scores by item of the questions and of each task.
    """

    settings: dict[str, Any]
    answers: list[list[int]]
    texts: list[str]
    likeliest: list[Likeliest]
    scores: Scores

    def write(self, file: Path) -> None:
        """Write the measurements, so that a resumed run has them."""
        file.parent.mkdir(parents=True, exist_ok=True)
        with replacing(file) as part:
            torch.save(asdict(self), part)

    @classmethod
    def read(cls, file: Path, settings: dict[str, Any]) -> Base | None:
        """Read what `write` wrote; None if there is no such file.

        Raises:
            UserError: it cannot be read, or was measured with other settings.
        """
        if not file.is_file():
            return None
        try:
            base = cls(**torch.load(file, weights_only=True))
        except Exception as error:  # torch.load raises many kinds
            raise UserError(f"{file}: cannot be read ({error}); start a new run") from None
        for name, value in settings.items():
            before = base.settings.get(name)
            if before != value:
                then = "other ones" if name == "questions" else before
                raise UserError(
                    f"ForgettingCheck: the base was measured with {name}={then}; set it back, or "
                    "start a new run"
                )
        return base
