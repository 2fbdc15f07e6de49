"""The reference of preference losses: its log-probabilities, computed once and kept on disk."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lightning.pytorch.utilities.rank_zero import rank_zero_info
from torch import Tensor

from lit_llm.data.base import data_rank_and_size
from lit_llm.data.preferences import PreferenceDataModule
from lit_llm.errors import UserError
from lit_llm.io.atomic import published
from lit_llm.models.hub.adapter_base import AdapterBase
from lit_llm.models.hub.digest import exact_digest
from lit_llm.models.lora import is_lora, without_updates
from lit_llm.models.token_rows import add_token_rows
from lit_llm.models.tokenizer import Tokenizer
from lit_llm.models.transformer import Transformer
from lit_llm.training.finetuning.adapted import AdaptedModule
from lit_llm.training.preferences.answers import answer_logps, measuring

START, BASE = "start", "base"


class References:
    """Log-probabilities of the reference for all examples of a data module.

    They are computed when the first batch needs them, by all processes together, and kept in
    ``data.cache_dir``. The file's name depends on all bytes of the reference's weights, on the
    token ids of the examples (and with them on the chat template) and on the precision.

    Args:
        module: the module that trains.
        data: its examples.
        path: directory or file of the reference; None: the model that training starts from.
    """

    def __init__(self, module: AdaptedModule, data: PreferenceDataModule, path: str | None):
        self._module, self._data, self._path = module, data, path
        self._of_answers: Tensor | None = None
        self._of_mismatched: Tensor | None = None

    def of_answers(self, example_ids: Tensor) -> Tensor:
        """Log-probabilities of these examples' answers, float32 (A,)."""
        if self._of_answers is None:
            with self._reference() as (model, digest):
                self._of_answers = self._found(
                    "answers", digest, self._data.content, lambda: self._all_answers(model)
                )
        return self._of_answers[example_ids].flatten()

    def of_mismatched(self, example_ids: Tensor) -> Tensor:
        """Log-probabilities of these mismatched answers, float32 (A,)."""
        if self._of_mismatched is None:
            with self._reference() as (model, digest):
                order = self._data.resume_invariants() | {"steps": self._data.steps}
                self._of_mismatched = self._found(
                    "mismatched", digest, order, lambda: self._all_mismatched(model)
                )
        return self._of_mismatched[example_ids]

    @contextmanager
    def _reference(self) -> Iterator[tuple[Transformer, str | None]]:
        """The reference, ready to measure, and the digest of its weights."""
        module = self._module
        own = module.network
        assert isinstance(own, Transformer)
        if self._path is None and module.lora is not None and not module.lora.train_modules:
            with measuring(own), without_updates(own):
                sharded = module.device_mesh is not None  # no process has all weights
                yield own, None if sharded else exact_digest(_of_base(own))
            return
        path = self._path or str(module.hparams["init_from"])
        if module.device_mesh is not None:
            raise UserError(
                f"model.reference={module.hparams['reference']}: a copy of all weights is not "
                "sharded; train with model.lora and model.reference=start, or with "
                "trainer.strategy=ddp"
            )
        model = Transformer.from_pretrained(path, own.embed.weight.dtype)
        if self._path is None:
            add_token_rows(model, module.added_tokens.values())
        model.backends = own.backends
        model.to(module.device)
        with measuring(model):
            yield model, exact_digest(model.state_dict().items())

    def _found(
        self, kind: str, digest: str | None, of: Any, compute: Callable[[], Tensor]
    ) -> Tensor:
        """The values from the file if there is one, else computed and written."""
        trainer = self._module.trainer
        key = json.dumps([kind, digest, of, str(trainer.precision)], sort_keys=True)
        name = hashlib.sha256(key.encode()).hexdigest()[:16]
        file = self._data.cache_dir / "reference" / f"{name}.npy"
        there = digest is not None and file.is_file()
        if trainer.strategy.broadcast(there):
            rank_zero_info(f"reference: {kind} from {file}")
            return torch.from_numpy(np.load(file)).to(self._module.device)
        rank_zero_info(f"reference: computing the log-probabilities of its {kind}, once")
        values = compute()
        if digest is not None and trainer.is_global_zero:
            file.parent.mkdir(parents=True, exist_ok=True)
            with published(file) as part, part.open("wb") as stream:
                np.save(stream, values.cpu().numpy())
        return values

    def _all_answers(self, model: Transformer) -> Tensor:
        data = self._data
        answers = 1 if data.unpaired else 2
        table = torch.zeros(data.num_examples, answers, device=self._module.device)
        for split in ("train", "validation"):
            for batch in self._on_device(data.pass_over(split)):
                logps, _ = answer_logps(model, batch)
                table[batch["example_ids"]] = logps.view(-1, answers)
        return self._summed(table)

    def _all_mismatched(self, model: Transformer) -> Tensor:
        data = self._data
        table = torch.zeros(data.num_mismatched, device=self._module.device)
        for step in range(data.steps):
            for batch in self._on_device(data.mismatched_batches(step)):
                table[batch["example_ids"]] = answer_logps(model, batch)[0]
        return self._summed(table)

    def _on_device(self, batches: Iterable[dict[str, Any]]) -> Iterator[dict[str, Any]]:
        for batch in batches:
            yield self._module.trainer.strategy.batch_to_device(batch, self._module.device)

    def _summed(self, table: Tensor) -> Tensor:
        """Each process has computed some of the values; the others are 0."""
        trainer = self._module.trainer
        # Tensor-parallel processes compute the same values.
        times = trainer.world_size // data_rank_and_size(trainer.strategy)[1]
        return trainer.strategy.reduce(table, reduce_op="sum") / times  # type: ignore[operator]


def _of_base(model: Transformer) -> Iterator[tuple[str, Tensor]]:
    return (item for item in model.state_dict().items() if not is_lora(item[0]))


def reference_path(reference: str, init_from: str) -> str | None:
    """Path of the reference; None for "start".

    Raises:
        UserError: "base", and ``init_from`` does not say what it was finetuned from; or the
            reference has another tokenizer than ``init_from``.
    """
    if reference == START:
        return None
    path = reference if reference != BASE else _base_of(init_from)
    own, other = (Tokenizer.from_pretrained(one).fingerprint() for one in (init_from, path))
    if own != other:
        raise UserError(
            f"model.reference={reference}: has another tokenizer than model.init_from, so its "
            "log-probabilities are those of other tokens; give a model with the same one"
        )
    return path


def _base_of(init_from: str) -> str:
    run = Path(init_from)
    for folder in (run / "adapter", run.parent / "adapter"):
        if (base := AdapterBase.read(folder)) is not None:
            return base.init_from
    raise UserError(
        f"model.reference=base: {init_from} is not a run with an adapter/, which would say what "
        "its base is; give the base's path"
    )
