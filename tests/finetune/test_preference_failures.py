"""Failures of preference tuning that users of other tools reported, each a test by its symptom.

`test_each_test_fails_without_its_guard` shows that the tests can fail.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch

from lit_llm import DPOModule, LoRAConfig, PreferenceDataModule, RewardModule, Transformer
from lit_llm.data.trees import answers_of
from lit_llm.models.lora import lora_layers
from lit_llm.training.preferences.answers import answer_logps, wins
from tests.finetune.mutation import Mutation, check_fails

Data = Callable[..., PreferenceDataModule]
LORA = LoRAConfig(rank=4)


@pytest.fixture(scope="module")
def base(random_base: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("base")
    return random_base(folder, 0.2, hidden_size=32, num_layers=2, num_heads=2, max_seq_len=128)


@pytest.fixture
def data(base: Path, tmp_path: Path) -> Data:
    def make(**settings: Any) -> PreferenceDataModule:
        rows = [{"prompt": f"Is {i}?", "chosen": "yes " * (1 + i % 5), "rejected": "no"}
                for i in range(20)]  # fmt: skip
        file = tmp_path / "rows.jsonl"
        file.write_text("".join(json.dumps(row) + "\n" for row in rows))
        defaults = {"seq_len": 128, "micro_batch_size": 1, "global_batch_tokens": 4 * 128,
                    "min_steps": 0, "validation_fraction": 0.2}  # fmt: skip
        return PreferenceDataModule(
            str(file), tokenizer=str(base), cache_dir=str(tmp_path / "cache"),
            **{**defaults, **settings},
        )  # fmt: skip

    return make


def batches(of: PreferenceDataModule) -> list[dict[str, Any]]:
    of.prepare_data()
    of.setup("fit")
    return list(of.train_dataloader())


def fit(folder: Path, module: L.LightningModule, source: Any, **settings: Any) -> L.Trainer:
    trainer = L.Trainer(
        accelerator="cpu", devices=1, logger=False, enable_checkpointing=False,
        enable_progress_bar=False, enable_model_summary=False, num_sanity_val_steps=0,
        default_root_dir=folder, log_every_n_steps=1, **settings,
    )  # fmt: skip
    trainer.fit(module, source)
    return trainer


def test_a_second_end_stands_behind_every_answer(data: Data) -> None:
    source = data()
    for tree in source.examples("train"):
        for answer in answers_of(tree)[1]:
            ends = [token for token in answer.ids.tolist() if token in source.stop_ids]
            assert len(ends) == 1 and answer.ids[-1] == ends[0]


def test_the_first_tokens_of_the_chosen_answer_are_lost(data: Data) -> None:
    source = data()
    for tree in source.examples("train"):
        _, (chosen, rejected) = answers_of(tree)
        for answer, word in ((chosen, "yes"), (rejected, "no")):
            assert source.tokenizer.decode(answer.ids[answer.learnt].tolist()).startswith(word)


def test_the_rejected_answer_sees_the_chosen_one(data: Data, base: Path) -> None:
    source, model = data(), Transformer.from_pretrained(base).eval()
    batch = batches(source)[0]
    prompt, answers = answers_of(source.examples("train")[int(batch["example_ids"][0])])
    with torch.no_grad():
        found = answer_logps(model, batch)[0][1]
        ids = torch.tensor([*prompt.tolist(), *answers[1].ids.tolist()])
        log_p = model(ids[None])[0, :-1].log_softmax(-1).gather(1, ids[1:, None])
    torch.testing.assert_close(found, log_p[len(prompt) - 1 :].sum(), rtol=1e-5, atol=1e-5)


def test_the_reference_is_the_adapter_in_training(data: Data, base: Path, tmp_path: Path) -> None:
    """A resumed run computes its reference with trained updates in the model."""
    module = DPOModule(str(base), lora=LORA, learning_rate=1e-9, validate_first=False)
    module.configure_model()
    for layer in lora_layers(module.network):
        torch.nn.init.normal_(layer.lora_b, std=0.3)
    module._checked = True  # as behind step 0
    trainer = fit(tmp_path, module, data(), max_steps=1)
    assert abs(float(trainer.callback_metrics["chosen_log_ratio"])) > 1e-3


def test_the_reference_of_another_start_is_taken_from_the_cache(
    data: Data, base: Path, tmp_path: Path
) -> None:
    for change in (0.0, 1e-6):
        model, start = Transformer.from_pretrained(base), tmp_path / f"start{change}"
        with torch.no_grad():
            model.norm.weight[0] *= 1 + change
        model.save_pretrained(start)
        for name in ("tokenizer.json", "tokenizer_config.json"):
            (start / name).write_bytes((base / name).read_bytes())
        fit(tmp_path, DPOModule(str(start), validate_first=False), data(), max_steps=1)
    assert len(list((tmp_path / "cache" / "reference").glob("*.npy"))) == 2


def test_the_head_of_a_reward_model_is_drawn_without_a_seed(
    data: Data, base: Path, tmp_path: Path
) -> None:
    module = RewardModule(str(base), center=0.0, learning_rate=1e-3)
    trainer = fit(tmp_path, module, data(), max_steps=1)
    assert float(trainer.callback_metrics["train_loss"]) == pytest.approx(math.log(2), abs=1e-6)


def test_the_kl_of_kto_is_that_of_a_micro_batch(data: Data, base: Path, tmp_path: Path) -> None:
    found = []
    for micro in (1, 4):
        L.seed_everything(1, verbose=False)
        module = DPOModule(str(base), loss="kto", learning_rate=3e-2, warmup=0.0,
                           validate_first=False, patience=None)  # fmt: skip
        source = data(unpaired=True, micro_batch_size=micro, eval_batch_size=1, epochs=3.0)
        first = batches(source)[0]
        trainer = fit(tmp_path, module, source, max_steps=6)
        found.append(float(trainer.callback_metrics["kl"]))
        estimated = [module._estimate_kl(source.mismatched_batches(step)) for step in range(3)]
        assert max(map(float, estimated)) > 1e-3
        values = []
        for batch in source.mismatched_batches(0):
            references = module._references
            assert references is not None
            logps = answer_logps(module.network, batch)[0].detach()
            values += (logps - references.of_mismatched(batch["example_ids"])).tolist()
        assert len(values) == len(source._mismatched.steps[0])
        expected = max(sum(values) / len(values), 0.0)
        module.training_step(first, 0)
        assert module._kl is not None
        assert float(module._kl) == pytest.approx(expected, rel=1e-4, abs=1e-5)
    assert found[0] == pytest.approx(found[1], rel=1e-3, abs=1e-4)


def test_ties_are_counted_as_wins() -> None:
    chosen, rejected = torch.tensor([1.0, 0.0, 2.0]), torch.tensor([0.0, 0.0, 3.0])
    assert float(wins(chosen, rejected)) == 1.5


def test_pairs_of_a_short_micro_batch_weigh_more(data: Data) -> None:
    source = data()
    for step, batch in enumerate(batches(source)):
        number = step // source.accumulation
        rows = source.order.rows[number * source.rows_per_step :][: source.rows_per_step]
        assert batch["step_tokens"] == sum(map(len, rows))


# Test -> (file, the line that guards it, what stands there instead).
MUTATIONS: dict[str, Mutation] = {
    "test_a_second_end_stands_behind_every_answer": (
        "data/preference_examples.py",
        "return path.cut(int(np.flatnonzero(path.learnt).max()) + 1)",
        "path = path.cut(int(np.flatnonzero(path.learnt).max()) + 1); "
        "return TokenPath(np.append(path.ids, path.ids[-1]), np.append(path.learnt, True))",
    ),
    "test_the_first_tokens_of_the_chosen_answer_are_lost": (
        "data/preference_examples.py", "begin = min(begins)", "begin = min(begins) + 1",
    ),
    "test_the_rejected_answer_sees_the_chosen_one": (
        "data/trees.py", "until.append(np.full(size, end, np.int32))",
        "until.append(np.full(size, total, np.int32))",
    ),
    "test_the_reference_is_the_adapter_in_training": (
        "training/preferences/reference.py", "with measuring(own), without_updates(own):",
        "with measuring(own):",
    ),
    "test_the_reference_of_another_start_is_taken_from_the_cache": (
        "training/preferences/reference.py", "import exact_digest", "import digest as exact_digest",
    ),
    "test_the_head_of_a_reward_model_is_drawn_without_a_seed": (
        "models/scorer.py", "nn.init.zeros_(model.head.weight)", "pass",
    ),
    "test_the_kl_of_kto_is_that_of_a_micro_batch": (
        "training/preferences/dpo.py", 'self._estimate_kl(batch["mismatched"])',
        'self._estimate_kl(batch["mismatched"][:1])',
    ),
    "test_ties_are_counted_as_wins": (
        "training/preferences/answers.py", "return (1 + torch.sign(chosen - rejected)).sum() / 2",
        "return (chosen >= rejected).float().sum()",
    ),
    "test_pairs_of_a_short_micro_batch_weigh_more": (
        "data/preferences.py", "return np.ones(len(examples), np.int64)",
        "return examples.weight_sums",
    ),
}  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("name", MUTATIONS)
def test_each_test_fails_without_its_guard(name: str, tmp_path: Path) -> None:
    check_fails(name, Path(__file__), MUTATIONS[name], tmp_path)
