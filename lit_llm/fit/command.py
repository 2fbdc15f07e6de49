"""The verbs fit, validate, test and predict: LightningCLI with run folders and presets."""

from __future__ import annotations

import inspect
import json
import logging
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

import lit_llm.evaluate.items  # noqa: F401 -- lets data.decontaminate name tasks
from lit_llm.data.base import TokenDataModule
from lit_llm.data.instructions import InstructionDataModule
from lit_llm.data.pretrain import PretrainDataModule
from lit_llm.data.trainer_settings import refuse_accumulation_schedules
from lit_llm.errors import UserError
from lit_llm.fit import launchers
from lit_llm.fit.mistakes import check_settings, explain, in_constructor
from lit_llm.fit.orphans import follow
from lit_llm.fit.run_folder import leave_run, prepare_run
from lit_llm.fit.saved_config import with_absolute_paths
from lit_llm.io.streams import say
from lit_llm.lightning_internals import CLIHooks, set_rank
from lit_llm.models.kernels.device import has_fast_bf16
from lit_llm.models.scorer import is_scorer
from lit_llm.plan.preflight import Preflight
from lit_llm.report.callback import RunReport
from lit_llm.report.forgetting import final_state
from lit_llm.settings.arguments import explain_mistake
from lit_llm.settings.config_files import naming_the_file, with_config_files
from lit_llm.settings.presets import OF_RUNS, all_presets, config_name
from lit_llm.settings.replaced_settings import settle_replaced
from lit_llm.settings.shell import command_line
from lit_llm.settings.yaml_file import guard_jsonargparse
from lit_llm.training.callbacks.checkpoint import Checkpoint
from lit_llm.training.callbacks.checkpoint_folder import checkpoints
from lit_llm.training.callbacks.garbage import FreezeGarbage
from lit_llm.training.callbacks.progress import ProgressBar
from lit_llm.training.callbacks.samples import SampleCallback
from lit_llm.training.callbacks.spike_guard import SpikeGuard
from lit_llm.training.callbacks.throughput import ThroughputCallback
from lit_llm.training.language import LanguageModule
from lit_llm.training.loggers import CSVLogger
from lit_llm.training.neptune.logger import NeptuneLogger
from lit_llm.training.pretrain import PretrainModule
from lit_llm.training.strategy import FSDP2Strategy
from lit_llm.training.trainer_checks import refuse_early_callbacks

_LOGGERS = {
    "CSVLogger": "lit_llm.training.loggers.CSVLogger",
    "TensorBoardLogger": "lightning.pytorch.loggers.TensorBoardLogger",
}
# Exceptions that the Trainer's constructor raises for wrong settings. Any other type is a bug.
_COMPLAINTS = (ValueError, TypeError, ImportError, RuntimeError, MisconfigurationException)
_SAVE_DIR = ("--trainer.logger.init_args.save_dir", "--trainer.logger.save_dir")
_RUN_FOLDER = "the run folder"  # a placeholder: the folder is chosen after the arguments are parsed

guard_jsonargparse()
StrategyRegistry.register(
    "fsdp2", FSDP2Strategy, description="weights, gradients and states sharded (FSDP2)"
)


class _Parser(LightningArgumentParser):
    """Reports a mistake in one line instead of after fifty lines of usage."""

    def __init__(self, *args: Any, **kwargs: Any):
        super().__init__(*args, **{"allow_abbrev": False, **kwargs})

    def error(  # type: ignore[override]
        self, message: str, ex: Exception | None = None
    ) -> NoReturn:
        raise UserError(explain_mistake(message, known_keys(self))) from None


def known_keys(parser: LightningArgumentParser) -> list[str]:
    """All dotted keys of the parser, including the arguments of our modules."""
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


class TrainerCLI(CLIHooks, LightningCLI):
    """LightningCLI for a run: model, data, trainer, and a section per configurable callback."""

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """Add the callbacks whose settings users change."""
        parser.add_lightning_class_args(Checkpoint, "checkpoint")
        parser.add_lightning_class_args(SpikeGuard, "spike_guard")
        parser.add_lightning_class_args(SampleCallback, "samples")
        parser.add_lightning_class_args(RunReport, "report")
        parser.add_argument(
            "--plan", type=bool, default=True, help="say what fit will take; refuse what cannot fit"
        )

    def before_instantiate_classes(self) -> None:
        """Choose the run folder before anything writes files."""
        assert self.subcommand is not None
        for section in ("trainer", "checkpoint", "spike_guard", "samples", "report"):
            if isinstance(given := self.config[self.subcommand].get(section), list | str):
                raise UserError(
                    f"{section} must be a mapping such as {{key: value}}, got {given!r}"
                )
        settings = self.config[self.subcommand].trainer
        launcher = _settle(settings)
        check_settings(self.subcommand, settings, self.config[self.subcommand].data)
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
        self.run_folder = prepare_run(self.subcommand, name, self.config[self.subcommand], launcher)
        loggers = settings.logger if isinstance(settings.logger, list) else [settings.logger]
        for logger in loggers:
            if (getattr(logger, "init_args", None) or {}).get("save_dir") == _RUN_FOLDER:
                logger.init_args.save_dir = str(self.run_folder)

    def instantiate_trainer(self, **kwargs: Any) -> L.Trainer:
        """Add the default loggers if none are configured.

        Only fit gets loggers: the other verbs would write into the files of the fit.
        """
        if self.subcommand != "fit":
            if self.config[str(self.subcommand)].trainer.logger not in (None, True, False):
                rank_zero_info(f"trainer.logger is for fit: {self.subcommand} prints its results")
            kwargs["logger"] = False
        elif self.config[self.subcommand].trainer.logger in (None, True):
            kwargs["logger"] = [
                CSVLogger(self.run_folder),
                TensorBoardLogger(self.run_folder, name="", version="tensorboard"),
            ]
        settings = self.config[self.subcommand].trainer
        try:
            return super().instantiate_trainer(**kwargs)
        except UserError:
            raise
        except _COMPLAINTS as error:
            raise in_constructor(error, settings) from None

    def choose_callbacks(self, config: dict[str, Any], callbacks: list[Callback]) -> list[Callback]:
        """Leave out our callbacks that the user switched off or replaced."""
        mine = [*callbacks, ProgressBar(), ThroughputCallback(), FreezeGarbage()]
        if self.config[str(self.subcommand)].plan:
            mine.append(Preflight())
        given = config.get("callbacks") or []
        given = given if isinstance(given, list) else [given]
        if isinstance(self.model, LanguageModule):
            refuse_early_callbacks(given)
        # With other data modules, a resumed run does repeat samples, so the warning stays.
        if isinstance(self.datamodule, TokenDataModule):
            warnings.filterwarnings("ignore", ".*dataloader is not resumable.*")
            refuse_accumulation_schedules(given)  # before any data is made
        unwanted = [base for base in (ProgressBarBase, CheckpointBase, SpikeGuard)
                    if any(isinstance(c, base) for c in given)]  # fmt: skip
        if CheckpointBase in unwanted:
            rank_zero_info(
                "a checkpoint callback of trainer.callbacks replaces ours: the settings "
                "under checkpoint are not used, and no final/ is written"
            )
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
        return mine

    def before_fit(self) -> None:
        """Schedule the write of the resolved configuration, after data and model are checked."""
        content = yaml.safe_load(self.parser.dump(self.config, skip_none=False))[self.subcommand]
        for key in ("config", "ckpt_path"):  # these belong to the call, not to the run
            content.pop(key, None)
        if isinstance(self.datamodule, TokenDataModule) and isinstance(self.model, LanguageModule):
            content = with_absolute_paths(content)
        self.trainer.callbacks.append(  # type: ignore[attr-defined]
            _WriteSetup(self.run_folder, content)
        )
        rank_zero_info(f"run folder: {self.run_folder}")

    def after_fit(self) -> None:
        """Print the result, samples of the model's output, and the next commands."""
        if self.trainer.is_global_zero:
            metrics = {k: float(v) for k, v in self.trainer.callback_metrics.items()}
            say(
                summary(
                    self.run_folder,
                    metrics,
                    chats=isinstance(self.datamodule, InstructionDataModule),
                    own_tokenizer=getattr(self.datamodule, "corpus_folder", None) is None,
                    scores=is_scorer(getattr(self.model, "model", None)),
                )
            )
        # The first process still writes the model and the report. The others wait, because
        # launchers end the run when any process ends.
        self.trainer.strategy.barrier("fit")

    def after_predict(self) -> None:
        """Print the answers and write them to the run folder."""
        if not self.trainer.is_global_zero:
            return  # every rank answers every prompt
        rows = [row for batch in self.trainer.predict_loop.predictions for row in batch]
        self.run_folder.mkdir(parents=True, exist_ok=True)
        file = self.run_folder / "predictions.jsonl"
        file.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
        say("".join(row["prompt"] + row["text"] + "\n\n" for row in rows) + f"wrote {file}")


def _settle(settings: Any) -> launchers.Launcher | None:
    """Find the launcher that fits the Trainer's settings; None if there is none."""
    plugins = settings.plugins if isinstance(settings.plugins, list) else [settings.plugins]
    devices = _number_of_devices(settings.devices, settings.accelerator)
    if devices is None or any("Environment" in str(plugin) for plugin in plugins):
        # Either the Trainer will refuse the settings, or the user configured the launcher
        return None
    launcher = launchers.settle(devices, settings.num_nodes)
    set_rank(launcher.rank if launcher else 0)
    if launcher is not None and launcher.parent is not None:
        follow(launcher.parent)
    return launcher


def _number_of_devices(devices: Any, accelerator: str) -> int | None:
    """Number of devices per node in ``trainer.devices``; None if the Trainer would refuse it."""
    cuda = accelerator in ("auto", "cuda", "gpu") and torch.cuda.is_available()
    text = str(devices).strip("[] ")
    if text in ("auto", "-1"):
        return torch.cuda.device_count() if cuda else 1
    numbers = [number.strip() for number in text.split(",") if number.strip()]
    if not numbers or not all(number.isdecimal() for number in numbers):
        return None
    listed = "," in text or not isinstance(devices, int | str) or "[" in str(devices)
    return len(numbers) if listed else int(text) or None


class _WriteSetup(Callback):
    """Writes config.yaml and the tokenizer when the fit starts.

    With both, a checkpoint is usable before final/ exists.
    """

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
            data.serving_tokenizer.save_pretrained(self.folder / "tokenizer")


def default_precision(accelerator: str) -> str:
    """bf16-mixed if the device multiplies bfloat16 in hardware, else 32-true."""
    cuda = accelerator in ("auto", "cuda", "gpu") and torch.cuda.is_available()
    return "bf16-mixed" if has_fast_bf16(torch.device("cuda" if cuda else "cpu")) else "32-true"


def summary(
    run: Path,
    metrics: dict[str, float],
    chats: bool = False,
    own_tokenizer: bool = True,
    scores: bool = False,
) -> str:
    """Final message of a fit: result, two samples, files, and the next commands.

    Every printed command works in the current working directory.

    Args:
        run: the run folder.
        metrics: the metrics that the Trainer logged last.
        chats: the model was trained to answer, so the next command is a chat.
        own_tokenizer: the tokenizer is a setting of the run, not part of a finished corpus.
        scores: the model scores texts and writes none, so no command follows.
    """
    lines = [""]
    if "val_bits_per_byte" in metrics:
        lines.append(
            f"validation: {metrics['val_bits_per_byte']:.4f} bits per byte, loss "
            f"{metrics['val_loss']:.4f}"
        )
    samples = run / "samples.jsonl"
    prompt = "What is Python?" if chats else "The "
    if samples.exists():
        for line in samples.read_text(encoding="utf-8").splitlines()[-2:]:
            row = json.loads(line)
            lines += ["", f"--- sample after {row['tokens']:,} tokens", row["prompt"] + row["text"]]
    lines += ["", f"report:  {run / 'report.html'}"]
    final, last = run / "final", checkpoints(run / "checkpoints")
    config = run / "config.yaml"
    if final.exists():
        state = final_state(run)
        step, end = state.get("global_step"), state.get("last_step")
        of = "" if step == end else f", of step {step:,}; the last one is {end:,}"
        lines.append(f"model:   {final} (a Hugging Face directory{of})")
    if final.exists() and not scores:
        following = [["generate", final, *(["--chat"] if chats else []), "--prompt", prompt]]
        if chats:
            following.insert(0, ["chat", final])
        else:
            more = ["--trainer.default_root_dir", _free_name(run)]
            tokenizer = ["--data.tokenizer", final] if own_tokenizer else []
            following.append(
                ["fit", "--config", config, "--model.init_from", final, *tokenizer, *more]
            )
        lines += ["next:", *map(_command, following)]
        if not chats:
            lines.append(
                "  the last one goes on with the same text; for your own add "
                + ("" if own_tokenizer else f"{command_line('--data.tokenizer', final)} ")
                + "--data.sources 'your/*.txt'"
            )
    elif last:
        validate = ["validate", "--config", config, "--ckpt_path", last[-1]]
        lines += ["next:", _command(validate)]
    return "\n".join(lines)


def _command(words: list[Any]) -> str:
    return "  " + command_line("lit_llm", *words)


def _free_name(run: Path) -> Path:
    """An unused folder name beside ``run``, for a run that continues with its model."""
    folder, number = run.with_name(f"{run.name}-more"), 2
    while folder.exists() or folder.is_symlink():
        folder, number = run.with_name(f"{run.name}-more-{number}"), number + 1
    return folder


def run_trainer(verb: str, args: list[str]) -> None:
    """Run one of the Trainer's verbs with command-line arguments.

    Raises:
        UserError: any mistake that the user can correct.
    """
    args = with_config_files(args, OF_RUNS)
    _check_values(args)
    args = settle_replaced(args, _defaults())
    args = _with_logger_folders(args)
    # Lightning advises on settings that lit_llm has decided: loader workers, missing loggers.
    for advice in (".*does not have many workers.*", ".*log_every_n_steps.*",
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
                "enable_model_summary": False,
            },
            args=[verb, *args],
        )
    except SystemExit as error:
        # Lightning turns Ctrl-C into exit status 1.
        if isinstance(error.__context__, KeyboardInterrupt):
            raise KeyboardInterrupt from None
        raise
    except Exception as error:
        if mistake := explain(error):
            if isinstance(mistake, UserError):
                mistake = naming_the_file(_without_a_config(args, mistake), args)
            raise mistake from None
        raise
    finally:
        leave_run()


def _check_values(args: list[str]) -> None:
    """Refuse a setting without a value, which the parser would report as "argument --data"."""
    for word, following in zip(args, [*args, "--"][1:], strict=True):
        option, equals, value = word.partition("=")
        if not re.fullmatch(r"--(data|model|trainer)\.[\w.]+(?<!\.help)", option):
            continue
        if (equals and not value) or (not equals and following.startswith("--")):
            raise UserError(f"{option}: give a value, or null for none")


def _defaults() -> dict[str, Any]:
    """Defaults of our modules' settings by dotted name."""
    classes = {"data": (InstructionDataModule, PretrainDataModule), "model": (PretrainModule,)}
    return {
        f"{group}.{name}": parameter.default
        for group, some in classes.items()
        for cls in some
        for name, parameter in inspect.signature(cls).parameters.items()
    }


def _without_a_config(args: list[str], mistake: UserError) -> UserError:
    """Replace ``mistake`` if neither a config nor the command line names a model and data."""
    names = {arg.partition("=")[0] for arg in args}
    missing = [
        f"--{part}" for part in ("model", "data")
        if not names & {f"--{part}", f"--{part}.class_path", "--config", "-c"}
    ]  # fmt: skip
    if found := re.search(r"arguments are required: fit\.(model|data)$", str(mistake)):
        classes = {"model": "PretrainModule or lit_llm.SFTModule",
                   "data": "PretrainDataModule or lit_llm.InstructionDataModule"}  # fmt: skip
        needed = UserError(
            f"{found[1]}: no class named; give {found[1]}.class_path, e.g. "
            f"lit_llm.{classes[found[1]]}"
        )
        mistake = mistake if missing else needed
    follows = r"unknown key (model|data)\.|.*arguments are required"
    if not missing or not re.match(follows, str(mistake)):
        return mistake
    presets = ", ".join(name for name in all_presets() if name.startswith(OF_RUNS))
    return UserError(
        f"{' and '.join(missing)}: no class named; give --config FILE or a preset, "
        f"e.g. --config pretrain/quickstart; presets: {presets}"
    )


def _with_logger_folders(args: list[str]) -> list[str]:
    """Expand short names of loggers in ``args``; loggers without a folder get the run folder."""
    made = []
    words = iter(args)
    for word in words:
        made.append(word)
        option, equals, name = word.partition("=")
        if option not in ("--trainer.logger", "--trainer.logger+"):
            continue
        if not equals:
            made.append(name := next(words, ""))
        if name in _LOGGERS:
            made[-1] = made[-1].removesuffix(name) + _LOGGERS[name]
            if not any(word.startswith(_SAVE_DIR) for word in args):
                made.append(f"{_SAVE_DIR[0]}={_RUN_FOLDER}")
    return made


def _no_chatter(record: logging.LogRecord) -> bool:
    """Filter out Lightning's list of absent accelerators and its advertisements.

    Messages about the run are kept.
    """
    said = record.getMessage()
    return not said.startswith(
        ("GPU available", "TPU available", "HPU available", "💡", "Using bfloat16")
    )
