"""fit, validate, test and predict: LightningCLI with run folders, presets by name and one-line errors."""

from __future__ import annotations

import errno
import inspect
import json
import logging
import pickle
import re
import warnings
from pathlib import Path
from typing import Any, NoReturn

import lightning as L
import torch
import yaml
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.callbacks import Checkpoint as CheckpointBase
from lightning.pytorch.callbacks import ProgressBar as ProgressBarBase
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI
from lightning.pytorch.loggers import TensorBoardLogger
from lightning.pytorch.strategies import StrategyRegistry
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from lightning.pytorch.utilities.rank_zero import rank_zero_info

from lit_llm.arguments import explain_mistake
from lit_llm.data.base import TokenDataModule
from lit_llm.data.instructions import InstructionDataModule
from lit_llm.data.pretrain import PretrainDataModule
from lit_llm.errors import PeerLost, UserError
from lit_llm.models.device import has_fast_bf16
from lit_llm.orphans import follow
from lit_llm.plan.preflight import Preflight
from lit_llm.presets import config_name, find_config
from lit_llm.report.callback import RunReport
from lit_llm.run_folder import launcher, leave_run, prepare_run
from lit_llm.training.callbacks.checkpoint import Checkpoint
from lit_llm.training.callbacks.checkpoint_folder import checkpoints
from lit_llm.training.callbacks.garbage import FreezeGarbage
from lit_llm.training.callbacks.progress import ProgressBar
from lit_llm.training.callbacks.samples import SampleCallback
from lit_llm.training.callbacks.spike_guard import SpikeGuard
from lit_llm.training.callbacks.throughput import ThroughputCallback
from lit_llm.training.loggers import CSVLogger
from lit_llm.training.neptune_logger import NeptuneLogger
from lit_llm.training.pretrain import PretrainModule
from lit_llm.training.strategy import FSDP2Strategy

StrategyRegistry.register(
    "fsdp2", FSDP2Strategy, description="weights, gradients and states sharded (FSDP2)"
)


class _Parser(LightningArgumentParser):
    """Says what is wrong in one line instead of after fifty lines of usage."""

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:  # type: ignore[override]
        raise UserError(explain_mistake(message, known_keys(self))) from None


def known_keys(parser: LightningArgumentParser) -> list[str]:
    """All dotted keys of the parser, the arguments of our modules included."""
    keys = []
    for action in parser._actions:
        for verb_parser in (getattr(action, "_name_parser_map", None) or {}).values():
            keys += [inner.dest for inner in verb_parser._actions if inner.dest != "help"]
        if action.dest and action.dest != "help":
            keys.append(action.dest)
    for group, cls in (("model", PretrainModule), ("data", PretrainDataModule)):
        for name in list(inspect.signature(cls).parameters):
            keys += [f"{group}.init_args.{name}", f"{group}.{name}"]
    return keys


class TrainerCLI(LightningCLI):
    """The configuration of a run: model, data, trainer, and our callbacks as sections of their own."""

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """Callbacks whose settings people change."""
        parser.add_lightning_class_args(Checkpoint, "checkpoint")
        parser.add_lightning_class_args(SpikeGuard, "spike_guard")
        parser.add_lightning_class_args(SampleCallback, "samples")
        parser.add_lightning_class_args(RunReport, "report")
        parser.add_argument(
            "--plan", type=bool, default=True, help="say what fit will take; refuse what cannot fit"
        )

    def _parse_ckpt_path(self) -> None:
        """Nothing: Lightning would let the checkpoint's settings replace the config's in silence."""

    def before_instantiate_classes(self) -> None:
        """Fix the run folder before anything writes."""
        assert self.subcommand is not None
        settings = self.config[self.subcommand].trainer
        if settings.precision is None:
            settings.precision = default_precision(settings.accelerator)
        model = self.config[self.subcommand].model
        starts_from = self.config[self.subcommand].ckpt_path or model.get("init_args", {}).get(
            "init_from"
        )
        if self.subcommand != "fit" and model.class_path.startswith("lit_llm.") and not starts_from:
            raise UserError(
                "weights would be random: give --ckpt_path (last, or a file) or --model.init_from"
            )
        given = self.config[self.subcommand].get("config")
        name = config_name(str(given[0])) if given else "run"
        self.run_folder = prepare_run(self.subcommand, name, self.config[self.subcommand])

    def instantiate_trainer(self, **kwargs: Any) -> L.Trainer:
        """Default loggers, where none are configured; none but for fit, whose files a validation would write into."""
        if self.subcommand != "fit":
            kwargs["logger"] = False
        elif self.config[self.subcommand].trainer.logger in (None, True):
            kwargs["logger"] = [
                CSVLogger(self.run_folder),
                TensorBoardLogger(self.run_folder, name="", version="tensorboard"),
            ]
        settings = self.config[self.subcommand].trainer
        try:
            return super().instantiate_trainer(**kwargs)
        except (MisconfigurationException, ValueError) as error:
            text = " ".join(str(error).split())
            # Name the key the Trainer complains about in its own words.
            keys = [
                key
                for key in ("accelerator", "devices", "strategy", "precision")
                if f"{key}=" in text
            ]
            keys += ["accelerator"] if "Accelerator" in text else []
            where = "".join(f"trainer.{key}={settings[key]}: " for key in keys[:1])
            raise UserError(where + text) from None

    def _instantiate_trainer(self, config: dict[str, Any], callbacks: list[Callback]) -> L.Trainer:
        """Leave out of our callbacks what the user switched off or brings along."""
        mine = [*callbacks, ProgressBar(), ThroughputCallback(), FreezeGarbage()]
        if self.config[str(self.subcommand)].plan:
            mine.append(Preflight())
        given = config.get("callbacks") or []
        given = given if isinstance(given, list) else [given]
        unwanted = [base for base in (ProgressBarBase, CheckpointBase, SpikeGuard)
                    if any(isinstance(c, base) for c in given)]  # fmt: skip
        for base, flag in (
            (ProgressBarBase, "enable_progress_bar"),
            (CheckpointBase, "enable_checkpointing"),
        ):
            unwanted += [base] if config.get(flag) is False else []
        mine = [c for c in mine if not isinstance(c, tuple(unwanted))]
        loggers = config.get("logger") or []
        for logger in loggers if isinstance(loggers, list) else [loggers]:
            if isinstance(logger, NeptuneLogger) and logger.save_dir is None:
                logger.save_dir = str(self.run_folder)
        return super()._instantiate_trainer(config, mine)

    def before_fit(self) -> None:
        """Have the resolved configuration written once data and model are known to fit."""
        content = yaml.safe_load(self.parser.dump(self.config, skip_none=False))[self.subcommand]
        for key in ("config", "ckpt_path"):  # of this call, not of the run
            content.pop(key, None)
        self.trainer.callbacks.append(  # type: ignore[attr-defined]
            _WriteSetup(self.run_folder, content)
        )
        rank_zero_info(f"run folder: {self.run_folder}")

    def after_fit(self) -> None:
        """Say how it went, show what the model writes, and what can be done next."""
        if self.trainer.is_global_zero:
            metrics = {k: float(v) for k, v in self.trainer.callback_metrics.items()}
            print(
                summary(
                    self.run_folder,
                    metrics,
                    chats=isinstance(self.datamodule, InstructionDataModule),
                )
            )
        # The first process writes the model and the report: launchers take the end of another for the run's.
        self.trainer.strategy.barrier("fit")

    def after_predict(self) -> None:
        """Print the answers and keep them in the run folder."""
        if not self.trainer.is_global_zero:
            return  # every rank answers every prompt
        rows = [row for batch in self.trainer.predict_loop.predictions for row in batch]
        self.run_folder.mkdir(parents=True, exist_ok=True)
        file = self.run_folder / "predictions.jsonl"
        file.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
        for row in rows:
            print(row["prompt"] + row["text"] + "\n")
        print(f"wrote {file}")


class _WriteSetup(Callback):
    """Writes config.yaml, and the tokenizer, with which a checkpoint can be used before there is a final/."""

    def __init__(self, folder: Path, config: dict[str, Any]):
        self.folder, self.config = folder, config

    def on_fit_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if not trainer.is_global_zero:
            return
        self.folder.mkdir(parents=True, exist_ok=True)
        (self.folder / "config.yaml").write_text(
            yaml.safe_dump(self.config, sort_keys=False), encoding="utf-8"
        )
        data = getattr(trainer, "datamodule", None)
        if isinstance(data, TokenDataModule):
            data.tokenizer.save_pretrained(self.folder / "tokenizer")


def default_precision(accelerator: str) -> str:
    """bf16-mixed where the device multiplies bfloat16 in hardware, else 32-true."""
    cuda = accelerator in ("auto", "cuda", "gpu") and torch.cuda.is_available()
    return "bf16-mixed" if has_fast_bf16(torch.device("cuda" if cuda else "cpu")) else "32-true"


def summary(run: Path, metrics: dict[str, float], chats: bool = False) -> str:
    """The closing words of a fit: result, two samples, the files, the next commands.

    ``chats``: the model was taught to answer, so talking to it comes next.
    """
    lines = [""]
    if "val_bits_per_byte" in metrics:
        lines.append(
            f"validation: {metrics['val_bits_per_byte']:.4f} bits per byte, loss {metrics['val_loss']:.4f}"
        )
    samples = run / "samples.jsonl"
    if samples.exists():
        for line in samples.read_text(encoding="utf-8").splitlines()[-2:]:
            row = json.loads(line)
            lines += ["", f"--- sample after {row['tokens']:,} tokens", row["prompt"] + row["text"]]
    lines += ["", f"report:  {run / 'report.html'}"]
    final, config, last = run / "final", run / "config.yaml", checkpoints(run / "checkpoints")
    if final.exists():
        lines.append(f"model:   {final} (a Hugging Face directory)")
    if last:
        lines.append("next:")
        if chats and final.exists():
            lines.append(f"  lit_llm chat {final}")
        lines.append(
            f"  lit_llm predict --config {config} --ckpt_path {last[-1]} --data.prompts FILE"
        )
        if not chats:
            lines.append(
                f"  lit_llm fit --config {config} --model.init_from {final} --data.tokenizer {final} "
                "--data.sources 'your/*.txt' --trainer.default_root_dir runs/more"
            )
    return "\n".join(lines)


def run_trainer(verb: str, args: list[str]) -> None:
    """Run one of the Trainer's verbs with command-line arguments.

    Raises:
        UserError: anything the user can mend.
    """
    if (parent := launcher()) is not None:
        follow(parent)
    args = list(args)
    for i, arg in enumerate(args):
        if arg in ("--config", "-c") and i + 1 < len(args):
            args[i + 1] = str(find_config(args[i + 1]))
        elif arg.startswith("--config="):
            args[i] = f"--config={find_config(arg.split('=', 1)[1])}"
    # Lightning advises on things we have decided: loader workers, resumable loaders, missing loggers.
    for advice in (".*does not have many workers.*", ".*dataloader is not resumable.*", ".*log_every_n_steps.*",
                   ".*LightningCLI's args parameter.*", ".*`isinstance.treespec, LeafSpec.`.*",
                   ".*The `srun` command is available.*"):  # fmt: skip
        warnings.filterwarnings("ignore", advice)
    logging.getLogger("lightning.pytorch.utilities.rank_zero").addFilter(_no_chatter)
    torch.set_float32_matmul_precision("high")
    try:
        TrainerCLI(
            subclass_mode_model=True,
            subclass_mode_data=True,
            model_class=L.LightningModule,
            datamodule_class=L.LightningDataModule,
            parser_class=_Parser,
            save_config_callback=None,
            load_from_checkpoint_support=False,
            auto_configure_optimizers=False,
            seed_everything_default=42,
            trainer_defaults={
                "max_epochs": 1,
                "log_every_n_steps": 10,
                "num_sanity_val_steps": 0,
                "use_distributed_sampler": False,
                "enable_model_summary": False,
            },
            args=[verb, *args],
        )
    except SystemExit as error:
        # Lightning makes status 1 of Ctrl-C.
        if isinstance(error.__context__, KeyboardInterrupt):
            raise KeyboardInterrupt from None
        raise
    except MisconfigurationException as error:
        raise UserError(" ".join(str(error).split())) from None
    except RuntimeError as error:
        # gloo's words, and NCCL's; torch has no type of error for it.
        if not re.search(
            "closed by peer|reset by peer|Broken pipe|remote process exited", str(error)
        ):
            raise
        raise PeerLost(
            "another process of the run ended: what it said is why; --ckpt_path last goes on"
        ) from None
    except pickle.UnpicklingError as error:
        raise UserError(
            f"--ckpt_path: not a checkpoint of ours ({str(error).splitlines()[0]})"
        ) from None
    except OSError as error:
        if error.errno not in (
            errno.ENOSPC,
            errno.EDQUOT,
            errno.EACCES,
            errno.EPERM,
            errno.EROFS,
            errno.ENOTDIR,
        ):
            raise
        raise UserError(f"{error.filename or 'the run folder'}: {error.strerror}") from None
    except ValueError as error:
        # jsonargparse wraps what a class's __init__ raises in its own account of the types it tried.
        if mistake := _user_error(error):
            raise mistake from None
        if "Does not validate against any of the Union subtypes" in str(error):
            raise UserError(explain_mistake(str(error))) from None
        raise
    finally:
        leave_run()


def _user_error(error: BaseException | None) -> UserError | None:
    """The UserError in the chain that led to ``error``."""
    while error is not None and not isinstance(error, UserError):
        error = error.__cause__ or error.__context__
    return error


def _no_chatter(record: logging.LogRecord) -> bool:
    """Drop Lightning's list of absent accelerators and its advertisements; keep what it says about the run."""
    said = record.getMessage()
    return not said.startswith(
        ("GPU available", "TPU available", "HPU available", "💡", "Using bfloat16")
    )
