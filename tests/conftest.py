"""Shared fixtures: a small corpus built once, runs in subprocesses, a disk that fills up."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from lit_llm.models.tokenizer import Tokenizer

# Two torch processes at most share the test machine's two cores; spinning OpenMP threads would
# starve each other.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

# At its import it binds a log handler to stderr, which inside a test would be a captured one,
# closed later.
import lightning  # noqa: F401

# A shell that starts the tests in the background has them, and what they start, ignore Ctrl-C.
signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(scope="session")
def text_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Some real text: forty modules of the standard library."""
    folder = tmp_path_factory.mktemp("text")
    stdlib = Path(os.__file__).parent
    for file in sorted(stdlib.glob("*.py"), key=lambda f: f.name)[:40]:
        (folder / file.name).write_bytes(file.read_bytes())
    return folder


@pytest.fixture(scope="session")
def cache_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A cache of its own, so that tests neither see nor leave anything in the user's."""
    folder = tmp_path_factory.mktemp("cache")
    os.environ["LIT_LLM_CACHE"] = str(folder)
    return folder


@pytest.fixture(scope="session")
def corpus(text_folder: Path, cache_dir: Path) -> Path:
    """A built corpus of `text_folder` with 512 tokens."""
    from lit_llm.corpus.build import build_corpus

    folder = cache_dir / "small"
    build_corpus(
        folder,
        sources={"lib": str(text_folder)},
        vocab_size=512,
        validation_fraction=0.1,
        progress=False,
    )
    return folder


@pytest.fixture(scope="session")
def three_sources(text_folder: Path, cache_dir: Path) -> Path:
    """The same text as a corpus of the sources a, b and c."""
    from lit_llm.corpus.build import build_corpus

    files = sorted(map(str, text_folder.glob("*.py")))
    folder, sources = cache_dir / "three", {"a": files[:10], "b": files[10:20], "c": files[20:]}
    build_corpus(folder, sources=sources, vocab_size=512, validation_fraction=0.1, progress=False)
    return folder


@pytest.fixture(scope="session")
def lit_llm_command(cache_dir: Path) -> Callable[..., subprocess.CompletedProcess[str]]:
    """Run ``lit_llm ARGS`` in a subprocess from ``cwd``."""

    def run(*args: object, cwd: Path, timeout: float = 300) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-m", "lit_llm", *map(str, args)],
            cwd=cwd, capture_output=True, text=True, timeout=timeout, check=False,
            env={**os.environ, "LIT_LLM_CACHE": str(cache_dir)},
        )  # fmt: skip

    return run


@pytest.fixture(scope="session")
def random_base(corpus: Path) -> Callable[..., Path]:
    """Write the directory of a model with `corpus`'s chat tokenizer.

    ``random_base(folder, std, hidden_size=...)`` draws every weight with this standard deviation;
    with None they are those of a new model.
    """
    import torch

    from lit_llm.models.config import TransformerConfig
    from lit_llm.models.tokenizer import Tokenizer
    from lit_llm.models.transformer import Transformer

    def write(folder: Path, std: float | None, **shape: Any) -> Path:
        torch.manual_seed(3)
        tokenizer = Tokenizer.from_pretrained(corpus / "tokenizer")
        model = Transformer(TransformerConfig(**shape, vocab_size=tokenizer.vocab_size))
        if std is not None:
            for parameter in model.parameters():
                torch.nn.init.normal_(parameter, std=std)
        model.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
        return folder

    return write


@pytest.fixture(scope="session")
def bare_base() -> Callable[..., Path]:
    """Write the directory of a base whose tokenizer has no chat template and no token for one.

    ``bare_base(folder, text, draw, padding, hidden_size=...)``: the tokens are the bytes, the end
    of text, and what is frequent in ``text``. ``draw(model)`` sets the weights. Embedding and head
    have ``padding`` rows more than there are tokens.
    """
    import torch
    from tokenizers import Tokenizer as Backend
    from tokenizers import decoders, models, pre_tokenizers, trainers

    from lit_llm.models.config import TransformerConfig
    from lit_llm.models.tokenizer import Tokenizer
    from lit_llm.models.transformer import Transformer

    def write(
        folder: Path, text: str, draw: Callable[[Transformer], Any], padding: int = 0, **shape: Any
    ) -> Path:
        backend = Backend(models.BPE())
        backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        backend.decoder = decoders.ByteLevel()
        backend.train_from_iterator([text] * 9, trainers.BpeTrainer(
            vocab_size=320, special_tokens=["<|endoftext|>"], show_progress=False,
            initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        ))  # fmt: skip
        tokenizer = Tokenizer(backend, bos_token="<|endoftext|>", eos_token="<|endoftext|>")
        torch.manual_seed(3)
        model = Transformer(
            TransformerConfig(
                **shape, vocab_size=tokenizer.vocab_size + padding,
                bos_token_id=tokenizer.bos_id, eos_token_id=tokenizer.eos_id,
            )
        )  # fmt: skip
        draw(model)
        model.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
        return folder

    return write


@pytest.fixture(scope="session")
def scripted_model() -> Callable[..., Path]:
    """Write the directory of a model in which every token is always followed by the same one.

    ``scripted_model(folder, tokenizer, {a: b})`` says ``b`` after ``a``. A token that is not named
    is followed by the one with the next id that is no control token.
    """
    import torch

    from lit_llm.models.config import TransformerConfig
    from lit_llm.models.transformer import Transformer

    def write(
        folder: Path, tokenizer: Tokenizer, follows: dict[int, int], context: int = 192
    ) -> Path:
        size = tokenizer.vocab_size
        config = TransformerConfig(
            vocab_size=size, hidden_size=-(-size // 16) * 16, intermediate_size=16, num_layers=1,
            num_heads=4, max_seq_len=context, bos_token_id=tokenizer.bos_id,
            eos_token_id=tokenizer.eos_id, pad_token_id=tokenizer.pad_id,
        )  # fmt: skip
        model = Transformer(config)  # whose block adds nothing yet
        plain = [i for i in range(size) if not tokenizer.is_control(i)]
        after = dict(zip(plain, plain[1:] + plain[:1], strict=True))
        with torch.no_grad():
            model.embed.weight.copy_(torch.eye(size, config.hidden_size))
            model.head.weight.zero_()
            for token in range(size):
                model.head.weight[(after | follows).get(token, plain[0]), token] = 1.0
        model.save_pretrained(folder)
        tokenizer.save_pretrained(folder, model_max_length=context)
        return folder

    return write


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 8 MB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    try:
        subprocess.run(
            ["mount", "-t", "tmpfs", "-o", "size=8m", "none", folder],
            check=True,
            capture_output=True,
        )
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("mounting a file system is not permitted")
    yield folder
    subprocess.run(["umount", "--lazy", folder], check=True)
