"""Rows of added tokens: where they begin, what they compute, and tokenizers with more tokens."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
import torch.nn.functional as F
import transformers
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken, decoders, models, pre_tokenizers
from tokenizers import Tokenizer as Backend

from lit_llm import LoRAConfig, Tokenizer, Transformer, TransformerConfig, UserError
from lit_llm.models.added_tokens import check_extends, check_tokens, with_tokens
from lit_llm.models.hub.adapters import Adapters, load_adapter, save_adapter
from lit_llm.models.kernels.objective import Objective
from lit_llm.models.lora import (
    apply_lora,
    merge_adapter,
    merge_lora,
    merged_weights,
    unmerge_adapter,
    without_updates,
)
from lit_llm.models.token_rows import add_token_rows, cut_vocabulary, row_layers
from lit_llm.training.optimization import build_optimizer

SHAPE: dict[str, Any] = {
    "hidden_size": 32, "intermediate_size": 48, "num_layers": 2, "num_heads": 2, "max_seq_len": 32,
}  # fmt: skip


def random_model(vocab_size: int, tied: bool, **fields: Any) -> Transformer:
    torch.manual_seed(0)
    config = TransformerConfig(**SHAPE, vocab_size=vocab_size, tie_embeddings=tied, **fields)
    model = Transformer(config)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    return model


def adapted(vocab_size: int, tied: bool, ids: list[int], **fields: Any) -> Transformer:
    """A model with rows of random values at ``ids``, and with random updates."""
    model = random_model(vocab_size, tied, **fields)
    add_token_rows(model, ids)
    apply_lora(model, LoRAConfig(rank=2), ids)
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            torch.nn.init.normal_(parameter, std=0.3 if "rows" in name else 0.1)
    return model.eval()


@settings(max_examples=40, deadline=None)
@given(
    known=st.integers(1, 40), padding=st.integers(0, 6), new=st.integers(1, 6), tied=st.booleans()
)
def test_new_rows_begin_as_the_mean_of_the_old_ones(
    known: int, padding: int, new: int, tied: bool
) -> None:
    model = random_model(known + padding, tied)
    before = {name: getattr(model, name).weight.detach().clone() for name in ("embed", "head")}
    logits = model(torch.arange(known)[None][:, :32])[..., :known]
    add_token_rows(model, range(known, known + new))
    size = max(known + padding, known + new)  # padded rows are used first
    assert model.config.vocab_size == model.embed.num_embeddings == model.head.out_features == size
    for name, old in before.items():
        weight = getattr(model, name).weight
        assert torch.equal(weight[:known], old[:known])
        mean = old[:known].mean(0).expand(new, -1)
        torch.testing.assert_close(weight[known : known + new], mean)
        assert torch.equal(weight[known + new : known + padding], old[known + new :])
    assert (model.head.weight is model.embed.weight) == tied
    again = model(torch.arange(known)[None][:, :32])[..., :known]
    torch.testing.assert_close(again, logits)
    cut_vocabulary(model, known)
    assert model(torch.arange(known)[None][:, :32]).shape[-1] == known
    assert (model.head.weight is model.embed.weight) == tied


@settings(max_examples=25, deadline=None)
@given(
    ids=st.lists(st.integers(0, 23), min_size=1, max_size=5, unique=True),
    tied=st.booleans(),
    objective=st.sampled_from([None, Objective("dft"), Objective(anchor=0.5)]),
    seed=st.integers(0, 9),
)
def test_losses_and_gradients_are_those_of_the_merged_weights(
    ids: list[int], tied: bool, objective: Objective | None, seed: int
) -> None:
    model = adapted(24, tied, [20, 21, 22, 23])
    merge_lora(model)
    apply_lora(model, LoRAConfig(rank=2), ids)  # rows at any places, in any order
    for layer in row_layers(model):
        torch.nn.init.normal_(layer.added_rows, std=0.3)
    draw = torch.Generator().manual_seed(seed)
    tokens, labels = (torch.randint(0, 24, (2, 9), generator=draw) for _ in "ab")
    labels[:, 0] = -100
    x = model.hidden_states(tokens)
    head = model.lm_head
    head.objective = objective
    theirs = (x.detach().flatten(0, 1) * 0.9, model.head.weight.detach())
    head.reference = theirs
    ours = head.loss(x, labels)
    trained = [p for n, p in model.named_parameters() if p.requires_grad]
    grads = torch.autograd.grad(ours, trained)
    logits = model(tokens).flatten(0, 1)
    if objective is None:
        expected = F.cross_entropy(logits, labels.flatten(), reduction="sum")
    else:
        expected = objective.losses(logits, labels.flatten(), F.linear(*theirs)).sum()
    torch.testing.assert_close(ours, expected)
    for grad, wanted in zip(grads, torch.autograd.grad(expected, trained), strict=True):
        torch.testing.assert_close(grad, wanted, rtol=1e-4, atol=1e-5)
    with torch.no_grad():
        merge_lora(model)
        torch.testing.assert_close(model(tokens).flatten(0, 1), logits)


@pytest.mark.parametrize("tied", [False, True])
def test_merging_and_back(tied: bool) -> None:
    ids = torch.arange(28)[None]
    model = adapted(26, tied, [25, 26, 27])
    start = model.embed.weight.detach().clone()
    with torch.no_grad():
        trained, merged = model(ids), dict(merged_weights(model))
        with without_updates(model):
            plain = model(ids)
        assert not torch.allclose(plain, trained, atol=1e-2)
        merge_adapter(model)
        torch.testing.assert_close(model(ids), trained, rtol=1e-5, atol=1e-5)
        unmerge_adapter(model)
        torch.testing.assert_close(model(ids), trained, rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(model.embed.weight, start)
        merge_lora(model)
        torch.testing.assert_close(model(ids), trained, rtol=1e-5, atol=1e-5)
    assert type(model.embed) is torch.nn.Embedding and type(model.head) is torch.nn.Linear
    assert (model.head.weight is model.embed.weight) == tied
    assert model.state_dict().keys() == merged.keys()
    for name, value in model.state_dict().items():
        torch.testing.assert_close(value, merged[name], rtol=0, atol=0)


def test_rows_train_in_float32_and_without_decay() -> None:
    model = random_model(20, tied=False).to(torch.bfloat16)
    add_token_rows(model, [18, 19])
    apply_lora(model, LoRAConfig(rank=2), [18, 19])
    rows = {id(layer.added_rows) for layer in row_layers(model)}
    groups = build_optimizer(model, "adamw", 1e-3, 0.1).param_groups
    decay = {id(p): group["weight_decay"] for group in groups for p in group["params"]}
    assert len(rows) == 2 and {decay[row] for row in rows} == {0.0}
    assert all(layer.added_rows.dtype == torch.float32 for layer in row_layers(model))
    assert 0.1 in decay.values()
    whole = random_model(20, tied=False)
    apply_lora(whole, LoRAConfig(rank=2, train_modules=("embed",)), [18, 19])
    assert row_layers(whole) == [whole.head]  # the embedding trains as a whole


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("grown", [False, True])
def test_adapters_with_rows_are_exchanged_with_peft(
    tmp_path: Path, tied: bool, grown: bool
) -> None:
    tokens = torch.arange(30)[None]
    size, ids = (27, [27, 28, 29]) if grown else (30, [27, 28, 29])
    random_model(size, tied).save_pretrained(tmp_path / "base")
    ours = adapted(size, tied, ids)
    save_adapter(ours, tmp_path / "ours", base=str(tmp_path / "base"))
    theirs = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "base")
    theirs.resize_token_embeddings(30)
    loaded = peft.PeftModel.from_pretrained(theirs, tmp_path / "ours").eval()
    again = Transformer.from_pretrained(tmp_path / "base").eval()
    bank = Adapters(again)
    bank.add("ours", tmp_path / "ours")
    with torch.no_grad():
        expected, plain = ours(tokens), again(tokens[:, :size])
        torch.testing.assert_close(loaded(tokens).logits, expected, rtol=1e-4, atol=1e-4)
        bank.use("ours")
        torch.testing.assert_close(again(tokens), expected, rtol=1e-5, atol=1e-5)
        bank.use(None)
        assert torch.equal(again(tokens[:, :size]), plain)

    # PEFT trains and saves; with more rows than its base it saves both matrices whole as well.
    theirs = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "base")
    theirs.resize_token_embeddings(30)
    where: Any = ids if tied else {"embed_tokens": ids, "lm_head": ids}
    config = peft.LoraConfig(
        task_type="CAUSAL_LM", r=2, target_modules=["q_proj"], trainable_token_indices=where
    )
    trained = peft.get_peft_model(theirs, config).eval()
    for name, parameter in trained.named_parameters():
        if "lora_" in name or "tokens_delta" in name:
            torch.nn.init.normal_(parameter, std=0.2)
    trained.save_pretrained(tmp_path / "theirs")
    model = Transformer.from_pretrained(tmp_path / "base").eval()
    load_adapter(model, tmp_path / "theirs")
    save_adapter(model, tmp_path / "back", base=str(tmp_path / "base"))
    back = Transformer.from_pretrained(tmp_path / "base").eval()
    load_adapter(back, tmp_path / "back")
    with torch.no_grad():
        expected = trained(tokens).logits
        torch.testing.assert_close(model(tokens), expected, rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(back(tokens), expected, rtol=1e-4, atol=1e-4)
    config_of = json.loads((tmp_path / "back" / "adapter_config.json").read_text())
    assert set(config_of["trainable_token_indices"]) == {"embed_tokens"} | (
        set() if tied else {"lm_head"}
    )


def test_rows_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    save_adapter(adapted(20, True, [20, 21, 22]), tmp_path)
    file = tmp_path / "adapter_config.json"
    content = json.loads(file.read_text())
    for changed, said in (
        ({}, "it has a row for token 22, the model has 19 rows"),
        ({"trainable_token_indices": None}, "has rows, and adapter_config.json says"),
        ({"trainable_token_indices": {"embed_tokens": [1, 2]}}, r"has rows \(3, 32\)"),
        ({"trainable_token_indices": ["a"]}, "must be token ids"),
        ({"trainable_token_indices": [1, 1, 2]}, "must be token ids"),
    ):
        file.write_text(json.dumps({**content, **changed}))
        with pytest.raises(UserError, match=said):
            load_adapter(random_model(20 if changed else 19, True), tmp_path)


def byte_level(*more: str) -> Tokenizer:
    """A tokenizer of the 256 bytes and some control tokens."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    backend = Backend(models.BPE({character: i for i, character in enumerate(alphabet)}, []))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    backend.add_special_tokens([AddedToken(token, special=True) for token in ("<s>", *more)])
    return Tokenizer(backend, bos_token="<s>", eos_token="<s>")


def test_tokens_in_brackets_are_control_tokens_and_words_are_found_in_text(tmp_path: Path) -> None:
    base = byte_level()
    made, added = with_tokens(base, ["<tool>", "[INST]", "aspirin", "<s>", "a"])
    assert added == {"<tool>": 257, "[INST]": 258, "aspirin": 259}  # <s> and a are there already
    assert base.vocab_size == 257 and made.vocab_size == 260
    assert made.encode("an aspirin") == [*base.encode("an "), 259]
    assert 257 not in made.encode("a <tool>") and 257 in made.encode("a <tool>", True)
    made.save_pretrained(tmp_path)
    again = Tokenizer.from_pretrained(tmp_path)
    assert again.fingerprint() == made.fingerprint()
    assert again.control_tokens == made.control_tokens and made.is_control(258)
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path)
    assert theirs("an aspirin<tool>").input_ids == made.encode("an aspirin<tool>", True)
    assert with_tokens(made, ["<tool>"]) == (made, {})
    check_extends(made, base, tmp_path)
    with pytest.raises(UserError, match="id 257 is '<tool>' in the model's and '<other>'"):
        check_extends(byte_level("<other>"), made, tmp_path)


def test_an_ordinary_token_that_a_template_needs_becomes_a_control_token() -> None:
    base = byte_level()
    base.backend.add_tokens([AddedToken("<turn>", special=False)])
    made, added = with_tokens(base, [], control=["<turn>"])
    assert added == {} and made.control_tokens["<turn>"] == 257


@pytest.mark.parametrize("tokens", [[""], [" \t"], ["<a>", "<b>", "<a>"]])
def test_tokens_that_cannot_be_added(tokens: list[str]) -> None:
    said = "is no token" if len(tokens) == 1 else "'<a>' is there twice"
    with pytest.raises(UserError, match=f"data.add_tokens: .*{said}"):
        check_tokens(tokens)


def test_ids_with_holes_are_refused() -> None:
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {character: i for i, character in enumerate(alphabet[:-1])} | {alphabet[-1]: 256}
    backend = Backend(models.BPE(vocabulary, []))
    with pytest.raises(UserError, match="ids have holes, and '<a>' would get the id 256"):
        with_tokens(Tokenizer(backend), ["<a>"])
