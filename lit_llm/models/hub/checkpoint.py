"""Load a model and its tokenizer from a path of any kind.

The path is a Hugging Face directory, a GGUF file, a run folder, a training checkpoint or a
checkpoint of nanochat.
"""

from __future__ import annotations

import pickle
import warnings
from pathlib import Path
from typing import Any

import torch

from lit_llm.errors import UserError
from lit_llm.models.added_tokens import check_extends
from lit_llm.models.config import TransformerConfig
from lit_llm.models.hub.adapter_base import AdapterBase
from lit_llm.models.hub.adapters import load_adapter
from lit_llm.models.hub.digest import digest
from lit_llm.models.hub.formats import FILE_FORMATS
from lit_llm.models.hub.huggingface import read_model
from lit_llm.models.hub.locate import locate
from lit_llm.models.hub.quantized import load_quantized
from lit_llm.models.kernels.cpu_threads import limit_threads
from lit_llm.models.kernels.device import has_fast_bf16
from lit_llm.models.kernels.packed import pack_linears
from lit_llm.models.lora import apply_lora, is_trained, merge_lora
from lit_llm.models.lora_config import LoRAConfig
from lit_llm.models.meta import meta_transformer
from lit_llm.models.parallel.sharded_checkpoint import open_shards
from lit_llm.models.token_rows import add_token_rows
from lit_llm.models.tokenizer import Tokenizer
from lit_llm.models.transformer import Transformer

_KINDS = (
    "a Hugging Face directory, a .gguf file, a run folder, a .ckpt file or nanochat's model_*.pt"
)
_PREFIX = "model."  # attribute in which lit_llm's LightningModules keep the network
SETTINGS = "lit_llm_settings"
"""Key of a module's settings in a checkpoint, used if its hyperparameters are not complete.

See `SavedSettings`.
"""


def settings_of(checkpoint: dict[str, Any]) -> dict[str, Any]:
    """Return the settings that the module in a training checkpoint was built with; else empty."""
    settings = checkpoint.get(SETTINGS, checkpoint.get("hyper_parameters"))
    return settings if isinstance(settings, dict) else {}


def open_model(
    path: str | Path, adapter: str | Path | None = None, device: str = "auto"
) -> tuple[Transformer, Tokenizer]:
    """Load a model onto a device for generation.

    The weights are bfloat16 on CUDA if that is fast there, else float32. On a CPU the linear layers
    are packed (`pack_linears`): the model answers faster and cannot be trained.

    Args:
        path, adapter: as for `load_model`.
        device: "auto" (CUDA if there is one, else CPU) or a torch device such as "cuda:1".

    Raises:
        UserError: as `load_model`, and if the device is not available.
    """
    place = choose_device(device)
    model, tokenizer = load_for(path, place, adapter)
    model.to(place)
    pack_linears(model)
    return model, tokenizer


def load_for(
    path: str | Path, place: torch.device, adapter: str | Path | None = None
) -> tuple[Transformer, Tokenizer]:
    """`load_model` in the dtype for generation on ``place``; the model is still on the CPU."""
    half = place.type == "cuda" and has_fast_bf16(place)
    return load_model(path, adapter, torch.bfloat16 if half else torch.float32)


def choose_device(name: str) -> torch.device:
    """Return the device called ``name``.

    Raises:
        UserError: the device is unknown or not available.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        torch.empty(0, device=name)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        said = str(error).strip().splitlines()[0]
        raise UserError(
            f"--device {name}: not available here ({said}); auto takes an available device"
        ) from None
    return torch.device(name)


def load_model(
    path: str | Path, adapter: str | Path | None = None, dtype: torch.dtype | None = None
) -> tuple[Transformer, Tokenizer]:
    """Return the model, in evaluation mode on the CPU, and its tokenizer.

    Args:
        path: a Hugging Face directory; a .gguf file; a run folder, whose ``final/`` is taken; or a
            training checkpoint (.ckpt, a file or a folder of shards); or nanochat's model_*.pt.
            See also `locate`.
        adapter: a PEFT directory whose updates are folded into the weights. If it has a tokenizer,
            that one is taken.
        dtype: of the weights. None: the file's dtype (float32 for GGUF).

    Raises:
        UserError: there is no such checkpoint, or it is broken, of an unknown kind or without a
            tokenizer; or the adapter was trained on another base.
    """
    limit_threads()
    found = locate(path)
    if not found.exists():
        raise UserError(f"{path}: no such file or folder; a checkpoint is {_KINDS}")
    if found.suffix == ".ckpt":
        model, tokenizer = _load_training_checkpoint(found, dtype)
    elif found.is_dir():
        folder = model_folder(found)
        model, tokenizer = read_model(folder, dtype), Tokenizer.from_pretrained(folder)
    elif found.suffix == ".gguf":
        from lit_llm.models.hub.gguf.read import load_gguf  # its package is an extra

        model, tokenizer = load_gguf(found, dtype)
    elif found.suffix in FILE_FORMATS:
        model = Transformer.from_pretrained(found, dtype)
        tokenizer = Tokenizer.from_pretrained(found)
    else:
        raise UserError(f"{path}: is not a checkpoint; give {_KINDS}")
    if tokenizer.vocab_size > model.config.vocab_size:
        raise UserError(
            f"{path}: the model has {model.config.vocab_size} tokens, the tokenizer found for it "
            f"{tokenizer.vocab_size}: it is another model's"
        )
    if adapter is not None:
        check_base(model, locate(adapter))
        load_adapter(model, adapter)
        merge_lora(model)
        tokenizer = tokenizer_of_adapter(locate(adapter), tokenizer, model.config.vocab_size)
    return model.eval(), tokenizer


def check_base(model: Transformer, folder: Path) -> None:
    """Compare the model with the base that an adapter's folder names, if it says which one.

    Raises:
        UserError: the adapter was trained on other weights.
    """
    base = AdapterBase.read(folder)
    if base is not None and base.digest != digest(model.state_dict().items()):
        raise UserError(
            f"{folder}: was trained on another base than this model: {base.init_from}; give that "
            "one"
        )


def tokenizer_of_adapter(folder: Path, base: Tokenizer, vocab_size: int) -> Tokenizer:
    """Return the adapter's own tokenizer if it fits; it holds the chat template of the training.

    An adapter's folder usually has no generation_config.json. The base's fields are therefore kept
    unless the adapter's replace them, and every token that ends the base's texts ends the adapter's
    texts too.

    Raises:
        UserError: it is not the base's tokenizer, with or without further tokens.
    """
    if not (folder / "tokenizer.json").is_file():
        return base
    own = Tokenizer.from_pretrained(folder)
    check_extends(own, base, folder)
    if own.vocab_size > vocab_size:
        warnings.warn(
            f"{folder}: its tokenizer has {own.vocab_size} tokens and the model {vocab_size}; the "
            "model's tokenizer is used",
            stacklevel=2,
        )
        return base
    own.generation_config = {**base.generation_config, **own.generation_config}
    own.add_stop_ids(base.stop_ids)
    return own


def model_folder(folder: Path) -> Path:
    """Return ``folder`` itself if it holds a model, else the final model of the run."""
    if (folder / "config.json").is_file():
        return folder
    if (folder / "final" / "config.json").is_file():
        return folder / "final"
    if (folder / "adapter_config.json").is_file():
        raise UserError(
            f"{folder}: is an adapter; give the model it was made for, and this folder as --adapter"
        )
    if saved := sorted(folder.glob("checkpoints/step-*.ckpt")):  # the numbers are padded with zeros
        raise UserError(
            f"{folder}: the run has no final/ yet; give one of its checkpoints: {saved[-1]}"
        )
    raise UserError(f"{folder}: holds no config.json and no final/; a checkpoint is {_KINDS}")


def open_training_checkpoint(path: Path) -> dict[str, Any]:
    """Return the contents of a .ckpt with its tensors mapped.

    Tensors that nobody reads, such as the optimizer's, cost nothing. In a sharded checkpoint the
    tensors are `Stored`.

    Raises:
        UserError: it is broken, or not written by this package.
    """
    if path.is_dir():
        checkpoint = open_shards(path)
    elif path.stat().st_size == 0:
        raise UserError(f"{path}: is empty, not a training checkpoint")
    else:
        try:
            checkpoint = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
        except (
            pickle.UnpicklingError,
            RuntimeError,
            EOFError,
            OSError,
            ValueError,
            AttributeError,
        ) as error:
            said = (str(error).strip() or type(error).__name__).splitlines()[0]
            raise UserError(f"{path}: not a whole training checkpoint ({said})") from None
    transformer = (
        settings_of(checkpoint).get("transformer") if isinstance(checkpoint, dict) else None
    )
    if not isinstance(transformer, (dict, str)) or "state_dict" not in checkpoint:
        raise UserError(
            f"{path}: not a checkpoint of this package: it does not say which transformer it holds"
        )
    return checkpoint


def _load_training_checkpoint(
    file: Path, dtype: torch.dtype | None
) -> tuple[Transformer, Tokenizer]:
    checkpoint = open_training_checkpoint(file)
    settings = settings_of(checkpoint)
    tokenizer = tokenizer_of_run(file)
    adapted = settings.get("lora") is not None  # updates stay float32 until they are merged
    weights = {
        # A copy, because the file is only mapped.
        name.removeprefix(_PREFIX): tensor[...].to(
            tensor.dtype if adapted or dtype is None else dtype, copy=True
        )
        for name, tensor in checkpoint["state_dict"].items()
        if name.startswith(_PREFIX)
    }
    if adapted:
        model, base = _base(settings, dtype)
        if checkpoint.get("base_digest", base) != base:
            raise UserError(
                f"{file}: {settings['init_from']} holds other weights than the base for which the "
                "updates were trained"
            )
        _add_updates(file, model, settings, weights)
    else:
        model = _build(file, settings["transformer"], weights)
    return model, tokenizer


def _base(settings: dict[str, Any], dtype: torch.dtype | None) -> tuple[Transformer, str]:
    """Load the base of LoRA training as it was trained beside, and return its digest too."""
    if settings.get("quantize") is not None:
        return load_quantized(settings["init_from"], settings["quantize"], dtype or torch.float32)
    model = Transformer.from_pretrained(settings["init_from"], dtype)
    return model, digest(model.state_dict().items())


def _add_updates(
    file: Path, model: Transformer, settings: dict[str, Any], updates: dict[str, torch.Tensor]
) -> None:
    """Fold the checkpoint's updates into the base, in place."""
    ids = settings.get("added_tokens", {}).values()
    add_token_rows(model, ids)
    apply_lora(model, LoRAConfig(**settings["lora"]), ids)
    unfit = model.load_state_dict(updates, strict=False)
    if unfit.unexpected_keys or any(is_trained(model, n) for n in unfit.missing_keys):
        raise UserError(f"{file}: its updates do not fit {settings['init_from']}")
    merge_lora(model)


def _build(
    file: Path, fields: dict[str, Any] | str, weights: dict[str, torch.Tensor]
) -> Transformer:
    config = TransformerConfig.from_dict({"preset": fields} if isinstance(fields, str) else fields)
    model = meta_transformer(config)
    try:
        model.assign_weights(weights)
    except (RuntimeError, KeyError) as error:
        said = " ".join(str(error).split(":", 1)[-1].split())[:200]
        raise UserError(f"{file}: its weights are not those of a Transformer ({said})") from None
    return model


def tokenizer_of_run(file: Path) -> Tokenizer:
    """Return the tokenizer of the run that wrote ``file``; the checkpoint itself holds none."""
    run = file.parent.parent if file.parent.name == "checkpoints" else file.parent
    for place in (run / "tokenizer", run / "final"):
        if (place / "tokenizer.json").is_file():
            return Tokenizer.from_pretrained(place)
    raise UserError(
        f"{file}: no tokenizer of this run is found; copy its tokenizer.json and "
        f"tokenizer_config.json into {run / 'tokenizer'}"
    )
