"""Every family against transformers: logits, round trip, cached decoding, defaults; and
docs/families.md."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest
import torch
import transformers
from tokenizers import Tokenizer as Backend
from tokenizers import models, pre_tokenizers
from transformers import AutoConfig, AutoModelForCausalLM

from lit_llm.errors import UserError
from lit_llm.models.attention import KVCache
from lit_llm.models.config import TransformerConfig
from lit_llm.models.generation.generate import generate
from lit_llm.models.generation.sampling import GREEDY
from lit_llm.models.hub import families
from lit_llm.models.hub.config_json import config_from_hf, config_to_hf, family_of
from lit_llm.models.hub.families import FAMILIES, Family
from lit_llm.models.hub.gguf.names import gguf_arch_of
from lit_llm.models.hub.gguf.write import write_gguf
from lit_llm.models.tokenizer import Tokenizer
from lit_llm.models.transformer import Transformer
from tests.models import llama_cpp
from tests.models.llama_cpp import LlamaCpp

TOLERANCE = 1e-4  # largest difference of a logit, float32
TABLE = Path(__file__).parents[2] / "docs" / "families.md"
INTRODUCTION = """# Families

Written by `make families`: the largest difference of a float32 logit from transformers' on \
tiny random models, plain
and with left padding ({versions}). The same tests hold every tensor bit-equal over
transformers -> ours -> transformers, and cached decoding equal to the full forward pass.

The last column is the same difference for the model as a GGUF file of float32 in llama.cpp
({llama_cpp}), or the fields for which `lit_llm export --format gguf`
refuses the model. From 1e-03 on it is llama.cpp's GELU, which comes from a table of float16 values.

| model | `model_type` | plain | padded | llama.cpp |
|---|---|---|---|---|
"""
_SHAPE = {"vocab_size": 97, "hidden_size": 48, "intermediate_size": 80, "num_hidden_layers": 4,
          "num_attention_heads": 4, "max_position_embeddings": 64}  # fmt: skip
_GQA = {**_SHAPE, "num_key_value_heads": 2}
_LLAMA3 = {"rope_type": "llama3", "factor": 4.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
           "original_max_position_embeddings": 16, "rope_theta": 100.0}  # fmt: skip
_YARN = {
    "rope_type": "yarn",
    "factor": 4.0,
    "original_max_position_embeddings": 16,
    "rope_theta": 100.0,
}
_GEMMA = {**_GQA, "head_dim": 16, "query_pre_attn_scalar": 20, "sliding_window": 7}
CONFIGS: dict[str, tuple[str, dict]] = {
    "Llama 2": ("llama", _SHAPE),
    "Llama 3, grouped queries": ("llama", {**_GQA, "head_dim": 16, "rope_theta": 500000.0}),
    "Llama 3.1, llama3 scaling": ("llama", {**_GQA, "rope_parameters": _LLAMA3}),
    "Llama, linear scaling": (
        "llama",
        {**_GQA, "rope_parameters": {"rope_type": "linear", "factor": 3.0, "rope_theta": 50.0}}
    ),
    "Llama, dynamic NTK, beyond its context": (
        "llama",
        {**_GQA, "max_position_embeddings": 24,
         "rope_parameters": {"rope_type": "dynamic", "factor": 2.0, "rope_theta": 50.0}}
    ),
    "Llama, yarn": ("llama",
                    {**_GQA, "rope_parameters": {**_YARN, "beta_fast": 8.0, "beta_slow": 2.0}}),
    "Llama, one key head, biases, tied, odd vocabulary": ("llama", {
        **_SHAPE, "num_key_value_heads": 1, "attention_bias": True, "mlp_bias": True,
        "tie_word_embeddings": True
    }),
    "SmolLM2": ("llama", {**_GQA, "tie_word_embeddings": True, "rope_theta": 100000.0}),
    "Mistral, window": ("mistral", {**_GQA, "sliding_window": 7, "head_dim": 20}),
    "Mistral, no window": ("mistral", {**_GQA, "sliding_window": None}),
    "Mixtral": ("mixtral", {**_GQA, "num_local_experts": 5, "num_experts_per_tok": 2}),
    "Mixtral, window": ("mixtral",
                        {**_GQA, "num_local_experts": 4, "num_experts_per_tok": 3,
                         "sliding_window": 9}),
    "Qwen2.5": ("qwen2", {**_GQA, "tie_word_embeddings": True}),
    "Qwen2, window in some layers": (
        "qwen2", {**_GQA, "use_sliding_window": True, "sliding_window": 8, "max_window_layers": 2}
    ),
    "Qwen3": ("qwen3", {**_GQA, "head_dim": 16}),
    "Qwen3, yarn": ("qwen3", {**_GQA, "head_dim": 16, "rope_parameters": _YARN}),
    "Qwen3, window in some layers": (
        "qwen3",
        {**_GQA, "head_dim": 8, "use_sliding_window": True, "sliding_window": 8,
         "max_window_layers": 1}
    ),
    "Qwen3-MoE": ("qwen3_moe", {**_GQA, "head_dim": 16, "num_experts": 6, "num_experts_per_tok": 3,
                                "moe_intermediate_size": 24, "norm_topk_prob": True}),
    "Qwen3-MoE, some layers dense": (
        "qwen3_moe",
        {**_GQA, "head_dim": 16, "num_experts": 6, "num_experts_per_tok": 2,
         "moe_intermediate_size": 24, "decoder_sparse_step": 2, "mlp_only_layers": [3]}
    ),
    "Gemma 2": ("gemma2",
                {**_GEMMA, "attn_logit_softcapping": 5.0, "final_logit_softcapping": 3.0}),
    "Gemma 3": ("gemma3_text",
                {**_GEMMA, "layer_types": ["sliding_attention"] * 3 + ["full_attention"]}),
    "Gemma 3, scaled": ("gemma3_text", {**_GEMMA, "sliding_window_pattern": 2, "rope_parameters": {
        "full_attention": {"rope_type": "linear", "factor": 8.0, "rope_theta": 1000.0},
        "sliding_attention": {"rope_type": "default", "rope_theta": 50.0}}}),
    "Gemma 2, scale and windows as published": ("gemma2", {**_GEMMA, "query_pre_attn_scalar": 16}),
    "Gemma 3, scale and windows as published": (
        "gemma3_text", {**_GEMMA, "query_pre_attn_scalar": 16, "num_hidden_layers": 7}
    ),
    "Phi-3": ("phi3", {**_GQA, "pad_token_id": 0}),
    "Phi-3, window": ("phi3", {**_SHAPE, "sliding_window": 11, "pad_token_id": 0}),
    "Phi-4-mini, part of a head turned": (
        "phi3",
        {**_GQA, "partial_rotary_factor": 0.5, "pad_token_id": 0, "tie_word_embeddings": True}
    ),
    "GPT-2": ("gpt2",
              {"vocab_size": 97, "n_embd": 48, "n_layer": 3, "n_head": 4, "n_positions": 64}),
    "GPT-NeoX (Pythia)": ("gpt_neox", {**_SHAPE, "rotary_pct": 0.5}),
    "GPT-NeoX, sequential, no biases": (
        "gpt_neox",
        {**_SHAPE, "use_parallel_residual": False, "rotary_pct": 1.0, "attention_bias": False,
         "tie_word_embeddings": True}
    ),
    "OLMo 2": ("olmo2", {**_GQA, "pad_token_id": 0}),
    "SmolLM3": ("smollm3", {**_GQA, "pad_token_id": 0}),
    "SmolLM3, every other layer turned": (
        "smollm3", {**_GQA, "pad_token_id": 0, "no_rope_layer_interval": 2}
    ),
    "SmolLM3, window where nothing turns": (
        "smollm3",
        {**_GQA, "pad_token_id": 0, "no_rope_layers": [1, 0, 1, 0], "use_sliding_window": True,
         "sliding_window": 6}
    ),
    "StableLM 2 1.6B": ("stablelm", {**_GQA, "use_qkv_bias": True, "partial_rotary_factor": 0.5}),
    "StableLM 2 12B": ("stablelm", {**_GQA, "use_parallel_residual": True, "qk_layernorm": True,
                                    "partial_rotary_factor": 0.5}),
    "Granite": ("granite",
                {**_GQA, "embedding_multiplier": 12.0, "logits_scaling": 8.0,
                 "residual_multiplier": 0.22, "attention_multiplier": 0.0625}),
    "Command-R": ("cohere", {**_GQA, "logit_scale": 0.25, "pad_token_id": 0}),
    "Command-R+, normalised heads": ("cohere", {**_GQA, "use_qk_norm": True, "pad_token_id": 0}),
    "nanochat": ("nanochat", {**_GQA, "final_logit_softcapping": 5.0}),
}  # fmt: skip


class Table(NamedTuple):
    """Rows of docs/families.md, and llama.cpp where they are written."""

    rows: list[str]
    engine: LlamaCpp | None


@pytest.fixture(scope="module")
def table() -> Iterator[Table]:
    """docs/families.md is written at the end when ``make families`` asks for it, by a run that has
    llama.cpp."""
    if not os.environ.get("WRITE_FAMILIES"):
        yield Table([], None)
        return
    assert llama_cpp.missing() is None, llama_cpp.missing()
    made = Table([], LlamaCpp())
    yield made
    made.engine.close()
    versions = f"transformers {transformers.__version__}, torch {torch.__version__.split('+')[0]}"
    introduction = INTRODUCTION.format(versions=versions, llama_cpp=llama_cpp.version())
    TABLE.write_text(introduction + "\n".join(made.rows) + "\n", encoding="utf-8")


def random_pair(name: str, folder: Path, change: dict | None = None):
    """A random transformers model of the row ``name`` with fields changed, and ours read from its
    directory."""
    model_type, fields = CONFIGS[name]
    torch.manual_seed(0)
    config = AutoConfig.for_model(
        model_type, **{"eos_token_id": 1, "bos_token_id": 0, **fields, **(change or {})}
    )
    theirs = AutoModelForCausalLM.from_config(config, attn_implementation="eager").eval()
    for (
        parameter,
        p,
    ) in theirs.named_parameters():  # away from 0 and 1, or dropping them would not show
        if "bias" in parameter or "norm" in parameter or "ln_" in parameter:
            torch.nn.init.normal_(p, 0.0 if "bias" in parameter else 1.0, 0.2)
        else:
            torch.nn.init.normal_(p, 0.0, 0.15)
    theirs.save_pretrained(folder)
    return theirs, Transformer.from_pretrained(folder).eval()


@pytest.fixture(params=CONFIGS, scope="module")
def pair(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory):
    """A random transformers model, ours read from its directory, and the row's name."""
    return *random_pair(request.param, tmp_path_factory.mktemp("model")), request.param


@torch.no_grad()
def test_logits_equal_transformers(pair, table: Table, tmp_path: Path) -> None:
    theirs, ours, name = pair
    ids = torch.randint(0, 97, (3, 40), generator=torch.Generator().manual_seed(1))
    padding = torch.ones(3, 40, dtype=torch.long)
    padding[0, :9] = padding[2, :1] = 0
    positions = (padding.cumsum(-1) - 1).clamp(min=0)
    expected, got = theirs(ids).logits, ours(ids)
    plain = (got - expected).abs().max().item()
    expected = theirs(ids, attention_mask=padding, position_ids=positions).logits
    padded = (ours(ids, padding_mask=padding.bool()) - expected)[padding.bool()].abs().max().item()
    assert expected.std() > 0.05, "logits too small for the tolerance to mean anything"
    assert max(plain, padded) <= TOLERANCE
    if table.engine is not None:
        column = in_llama_cpp(table.engine, ours, theirs(ids).logits, ids, tmp_path / "m.gguf")
        table.rows.append(
            f"| {name} | `{CONFIGS[name][0]}` | {plain:.0e} | {padded:.0e} | {column} |"
        )


def in_llama_cpp(
    engine: LlamaCpp, model: Transformer, expected: torch.Tensor, ids: torch.Tensor, file: Path
) -> str:
    """The largest difference of a logit in llama.cpp, or the fields for which `write_gguf` refuses
    the model."""
    backend = Backend(models.BPE({"a": 0, "b": 1, "ab": 2}, [("a", "b")]))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.add_special_tokens(["<end>"])
    try:
        write_gguf(model, Tokenizer(backend, eos_token="<end>"), file, "f32")
    except UserError as refused:
        found = re.search("expresses this model: (?:.* cannot express )?(.*?); ", str(refused))
        assert found, refused
        return f"refused: {found[1]}"
    answer = engine(file, rows=ids.tolist())
    assert "error" not in answer, answer["error"]
    return f"{(torch.tensor(answer['logits']) - expected).abs().max():.0e}"


@torch.no_grad()
def test_round_trip_is_bit_equal(pair, tmp_path: Path) -> None:
    theirs, ours, _ = pair
    ours.save_pretrained(tmp_path)
    again = AutoModelForCausalLM.from_pretrained(tmp_path, attn_implementation="eager")
    assert type(again) is type(theirs)
    expected, got = theirs.state_dict(), again.state_dict()
    assert expected.keys() == got.keys()
    assert all(torch.equal(expected[name], got[name]) for name in expected)
    ids = torch.randint(0, 97, (2, 40))
    assert torch.equal(again(ids).logits, theirs(ids).logits)
    once_more = Transformer.from_pretrained(tmp_path)
    assert once_more.config == ours.config
    assert all(
        torch.equal(a, b) for a, b in zip(once_more.parameters(), ours.parameters(), strict=True)
    )


@torch.no_grad()
def test_cached_decoding_equals_full_forward(pair) -> None:
    _, ours, _ = pair
    # Dynamic scaling is defined by the full length beyond the context, and its config's is 24
    length = 24
    ids = torch.randint(0, 97, (2, length), generator=torch.Generator().manual_seed(2))
    real = torch.ones(2, length, dtype=torch.bool)
    real[0, :5] = False
    for padding in (None, real):
        cache = KVCache(ours.config, 2, length, ids.device, torch.float32)
        parts = []
        for a, b in ((0, 10), (10, 11), (11, 17), *((i, i + 1) for i in range(17, length))):
            parts.append(
                ours(
                    ids[:, a:b],
                    cache=cache,
                    padding_mask=None if padding is None else padding[:, :b],
                )
            )
        expected = ours(ids, padding_mask=padding)
        keep = real if padding is not None else torch.ones_like(real)
        torch.testing.assert_close(
            torch.cat(parts, 1)[keep], expected[keep], atol=TOLERANCE, rtol=0
        )


def test_greedy_answers_do_not_depend_on_company(pair) -> None:
    _, ours, name = pair
    if "dynamic" in name:
        pytest.skip("its frequencies go by the longest of the batch, as transformers' do")
    prompts = [[5, 6, 7, 8, 9, 10, 11], [3], [40, 41, 42]]
    together = generate(ours, prompts, 12, GREEDY)
    assert together == [generate(ours, [prompt], 12, GREEDY)[0] for prompt in prompts]


@pytest.mark.parametrize("name", FAMILIES)
def test_what_a_config_leaves_out_is_what_transformers_takes(name: str) -> None:
    full = AutoConfig.for_model(name).to_dict()
    assert config_from_hf({"model_type": name}, "here") == config_from_hf(full, "here")


@pytest.mark.parametrize("name", CONFIGS)
def test_configs_of_transformers_4_mean_the_same(name: str) -> None:
    """rope_theta and rope_scaling at the top, as in the files on the hub."""
    model_type, fields = CONFIGS[name]
    new = AutoConfig.for_model(model_type, **fields).to_dict()
    old = {key: value for key, value in new.items() if key != "rope_parameters"}
    if (rope := new.get("rope_parameters")) is not None:
        local, rope = rope.get("sliding_attention"), dict(rope.get("full_attention", rope))
        theta_key, fraction_key = FAMILIES[model_type].rope_keys
        old[theta_key] = rope.pop("rope_theta")
        if "partial_rotary_factor" in rope:
            old[fraction_key] = rope.pop("partial_rotary_factor")
        if local is not None:
            old["rope_local_base_freq"] = local["rope_theta"]
        if rope["rope_type"] != "default":
            old["rope_scaling"] = {"type": rope.pop("rope_type"), **rope}
    assert config_from_hf(old, "here") == config_from_hf(new, "here")


def test_a_new_dense_family_is_one_row(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """StarCoder2 in a dozen lines and no forward code."""
    biases = {"attention_bias": True, "attention_output_bias": True, "mlp_bias": True}
    row = Family(
        "Starcoder2ForCausalLM",
        {"tie_word_embeddings": True, "sliding_window": None},
        {"norm": "layernorm", "mlp": "gelu", **biases},
        {"norm_eps": "norm_epsilon", "sliding_window": "sliding_window"},
        tensors={"layers.{i}.mlp.up_proj": "model.layers.{i}.mlp.c_fc",
                 "layers.{i}.mlp.down_proj": "model.layers.{i}.mlp.c_proj"},
    )  # fmt: skip
    monkeypatch.setitem(families.FAMILIES, "starcoder2", row)
    torch.manual_seed(0)
    theirs = AutoModelForCausalLM.from_config(
        AutoConfig.for_model("starcoder2", **_GQA, sliding_window=5)
    ).eval()
    theirs.save_pretrained(tmp_path / "theirs")
    ours = Transformer.from_pretrained(tmp_path / "theirs").eval()
    ids = torch.randint(0, 97, (2, 20))
    with torch.no_grad():
        torch.testing.assert_close(ours(ids), theirs(ids).logits, atol=TOLERANCE, rtol=0)
    ours.save_pretrained(tmp_path / "ours")
    again = AutoModelForCausalLM.from_pretrained(tmp_path / "ours")
    assert all(
        torch.equal(a, b) for a, b in zip(again.parameters(), theirs.parameters(), strict=True)
    )


@pytest.mark.parametrize(
    ("model_type", "fields", "message"),
    [
        ("mamba", {}, "model_type 'mamba' is not known; known are llama"),
        ("gpt2", {"scale_attn_by_inverse_layer_idx": True}, "scale_attn_by_inverse_layer_idx=True "
                                                            "is not supported"),
        ("gemma2", {"use_bidirectional_attention": True}, "use_bidirectional_attention=True is "
                                                          "not supported"),
        ("llama", {"hidden_act": "tanh"}, "activation 'tanh' is not known"),
        ("llama", {"rope_scaling": {"type": "longrope", "long_factor": [1.0]}}, "one of linear, "
                                                                                "dynamic"),
        ("llama", {"rope_scaling": {"type": "yarn", "factor": 2.0, "beta": 1}}, "type yarn has no "
                                                                                "beta"),
        ("llama", {"rope_scaling": {"type": "linear"}}, "rope_scaling of type linear needs factor"),
        ("llama", {"quantization_config": {"bits": 4}}, "quantization_config=.* is not supported"),
        ("llama", {"hidden_size": "wide"}, r"here: transformer.hidden_size must be a whole number"),
        ("stablelm", {"num_hidden_layers": None}, "here: None layers"),
        ("qwen3_moe", {"decoder_sparse_step": 0}, "here: a value is missing or of the wrong kind"),
        ("gemma2", {"query_pre_attn_scalar": 0}, "here: a value is missing or of the wrong kind"),
    ],
)  # fmt: skip
def test_what_we_do_not_compute_is_refused(model_type: str, fields: dict, message: str) -> None:
    with pytest.raises(UserError, match=message):
        config_from_hf({"model_type": model_type, **fields}, "here")


def test_a_family_is_kept_where_another_would_do_too() -> None:
    config = config_from_hf({"model_type": "mistral", "sliding_window": None}, "here")
    assert family_of(config) == "mistral"
    assert family_of(TransformerConfig.from_dict({**config.to_dict(), "family": None})) == "llama"
    changed = TransformerConfig.from_dict({**config.to_dict(), "qk_norm": "before_rope"})
    assert family_of(changed) == "qwen3"
    assert config_to_hf(changed, torch.float32)["model_type"] == "qwen3"


def test_base_models_and_pickles_load(tmp_path: Path) -> None:
    """The hub's gpt2 has no "transformer." before its names; older directories hold a pickle of
    tensors."""
    torch.manual_seed(0)
    full = AutoModelForCausalLM.from_config(
        AutoConfig.for_model(*CONFIGS["GPT-2"][:1], **CONFIGS["GPT-2"][1])
    )
    full.transformer.save_pretrained(tmp_path / "base")
    config = json.loads((tmp_path / "base" / "config.json").read_text())
    ids = torch.randint(0, 97, (1, 8))
    with torch.no_grad():
        expected = full.eval()(ids).logits
        based = Transformer.from_pretrained(tmp_path / "base").eval()
        torch.testing.assert_close(based(ids), expected, atol=1e-4, rtol=0)
        pickled = tmp_path / "pickled"
        pickled.mkdir()
        (pickled / "config.json").write_text(json.dumps(config))
        old = {**full.transformer.state_dict(), "h.0.attn.bias": torch.ones(1, 1, 64, 64).tril()}
        torch.save(old, pickled / "pytorch_model.bin")
        torch.testing.assert_close(
            Transformer.from_pretrained(pickled).eval()(ids), expected, atol=1e-4, rtol=0
        )
    torch.save({"wte.weight": Path("not a tensor")}, pickled / "pytorch_model.bin")
    with pytest.raises(UserError, match=r"pytorch_model\.bin: not a whole file of weights"):
        Transformer.from_pretrained(pickled)


def test_load_balancing_loss_is_transformers() -> None:
    """One layer of experts: with several, transformers takes their routers together and we take the
    mean."""
    torch.manual_seed(0)
    fields = {**_GQA, "num_hidden_layers": 1, "num_local_experts": 4, "num_experts_per_tok": 2}
    theirs = AutoModelForCausalLM.from_config(
        AutoConfig.for_model("mixtral", **fields, router_aux_loss_coef=0.1)
    )
    config = config_from_hf(theirs.config.to_dict(), "here")
    ours = Transformer(config)
    ours.assign_weights(_as_ours(theirs, config))
    ids = torch.randint(0, 97, (2, 16))
    expected = 0.1 * theirs(ids, output_router_logits=True).aux_loss
    ours.train()(ids)
    loss = ours.take_router_loss()
    torch.testing.assert_close(loss, expected)
    assert ours.take_router_loss() is None
    loss.backward()
    assert ours.layers[0].mlp.router.weight.grad.abs().sum() > 0
    ours.eval()(ids)
    assert ours.take_router_loss() is None


def _as_ours(
    theirs: transformers.PreTrainedModel, config: TransformerConfig
) -> dict[str, torch.Tensor]:
    import tempfile

    with tempfile.TemporaryDirectory() as folder:
        theirs.save_pretrained(folder)
        return {
            name: t.clone() for name, t in Transformer.from_pretrained(folder).state_dict().items()
        }


def test_every_family_is_in_the_table(request: pytest.FixtureRequest) -> None:
    """docs/families.md is written by ``make families``, from this file's own measurements."""
    assert {model_type for model_type, _ in CONFIGS.values()} == set(FAMILIES)
    rows = dict(
        line[2:].split(" | ", 1) for line in TABLE.read_text("utf-8").splitlines() if " | " in line
    )
    for name, (model_type, fields) in CONFIGS.items():
        config = config_from_hf(AutoConfig.for_model(model_type, **fields).to_dict(), "here")
        column = rows[name].split(" | ")[-1]
        assert column.startswith("refused: ") == (_refused(config) is not None), name
        assert column.startswith("refused: ") or float(column.rstrip(" |")) <= 1e-2


def _refused(config: TransformerConfig) -> str | None:
    try:
        gguf_arch_of(config)
    except UserError as error:
        return str(error)
    return None
