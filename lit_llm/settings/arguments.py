"""Command-line parser of the verbs with flat options, and one-line errors of all parsers.

The Trainer's verbs and ``corpus build`` have jsonargparse's parsers, whose messages
`explain_mistake` shortens. ``--config`` is the same for all verbs, see `config_files`.
"""

from __future__ import annotations

import argparse
import difflib
import re
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NoReturn

from lit_llm.errors import UserError
from lit_llm.settings.config_files import OPTIONS, split_config

_PARSER_OPTIONS = ("help", "config", "print_config")
# Options below which the user chooses the key names.
_USER_KEYS_BELOW = ("sources", "mixture", "dict_kwargs", "tags")


def with_underscores(args: Sequence[str]) -> list[str]:
    """Spell option names with underscores: ``--data.seq-len=8`` becomes ``--data.seq_len=8``.

    Values stay as they are, and so do names that the user chose (``--data.mixture.my-texts``) and
    everything after ``--``.
    """
    args = list(args)
    end = args.index("--") if "--" in args else len(args)
    return [_with_underscores(arg) for arg in args[:end]] + args[end:]


def _with_underscores(arg: str) -> str:
    if not arg.startswith("--"):
        return arg
    option, equals, value = arg.partition("=")
    parts = option[2:].split(".")
    fixed = next(
        (i + 1 for i, part in enumerate(parts) if part.replace("-", "_") in _USER_KEYS_BELOW),
        len(parts),
    )
    parts[:fixed] = [part.replace("-", "_") for part in parts[:fixed]]
    return "--" + ".".join(parts) + equals + value


def named_adapter(word: str) -> tuple[str | None, str]:
    """Split ``NAME=DIR``, the value of ``--adapter``; the name is None in ``DIR`` alone.

    A folder's own name may contain the sign, as in runs/lr=2e-4/adapter.
    """
    name, equals, folder = word.partition("=")
    if not equals or not name or "/" in name or Path(word).expanduser().exists():
        return None, word
    return name, folder


def adapter_name(folder: str) -> str:
    """Name of an adapter without one: its folder's, and that of the run for its ``adapter/``."""
    path = Path(folder).expanduser().resolve()
    return path.parent.name if path.name == "adapter" else path.name


class Parser(argparse.ArgumentParser):
    """An ``argparse.ArgumentParser`` for one verb of the command line.

    ``--config FILE`` reads arguments, also positional ones, from YAML mappings. Arguments of the
    command line take precedence. ``--print_config`` prints the complete mapping and exits.

    Raises:
        UserError: for every mistake, where argparse would print the usage and exit.
    """

    def __init__(self, **kwargs: Any):
        super().__init__(allow_abbrev=False, **kwargs)
        self.add_argument(*OPTIONS, metavar="FILE", help="YAML file with these arguments")
        self.add_argument(
            "--print_config",
            action="store_true",
            help="print the arguments as such a file and exit",
        )

    def error(self, message: str) -> NoReturn:
        """Raise UserError; for an unknown option the message names the nearest known one."""
        if found := re.match(r"unrecognized arguments: (--[\w-]+)", message):
            options = [option for action in self._actions for option in action.option_strings]
            near = difflib.get_close_matches(found[1], options, n=1, cutoff=0.6)
            message = f"unknown option {found[1]}" + (f": did you mean {near[0]}?" if near else "")
            if found[1] in options:
                message = f"{found[1]}: stands after --, where no options are read; put it before"
        raise UserError(message)

    def parse_args(  # type: ignore[override]
        self, args: Sequence[str] | None = None, namespace: None = None
    ) -> argparse.Namespace:
        """Parse the arguments; missing ones come from the config file, then from the defaults."""
        files, args = split_config(sys.argv[1:] if args is None else args)
        end = args.index("--") if "--" in args else len(args)
        for option in (arg.partition("=")[0] for arg in args[:end]):
            # argparse would report missing arguments first and hide the unknown option.
            if re.fullmatch(r"--[\w-]+", option) and option not in self._option_string_actions:
                self.error(f"unrecognized arguments: {option}")
        settings = [action for action in self._actions if action.dest not in _PARSER_OPTIONS]
        in_file: dict[str, Any] = {}
        for file in files:
            in_file |= self._read_config(file, settings)
        for action in settings:
            if action.dest in in_file or "--print_config" in args:
                action.required = False
                if not action.option_strings:
                    action.nargs = "*" if action.nargs in ("+", "*") else "?"
        # None marks arguments that the command line leaves out. Without this mark, a value on the
        # command line that equals the default would lose to the file, and a list would extend the
        # file's list instead of replacing it.
        given = vars(
            super().parse_args(
                args, argparse.Namespace(**{action.dest: None for action in settings})
            )
        )
        for action in settings:
            if given[action.dest] in (None, []):
                given[action.dest] = in_file.get(action.dest, action.default)
        del given["config"]
        if given.pop("print_config"):
            import yaml

            plain = {
                key: str(value) if isinstance(value, Path) else value
                for key, value in given.items()
            }
            print(yaml.safe_dump(plain, sort_keys=False, allow_unicode=True), end="")
            raise SystemExit(0)
        return argparse.Namespace(**given)

    def _read_config(self, file: str, settings: list[argparse.Action]) -> dict[str, Any]:
        """Read and check the values of ``--config FILE``."""
        if not file:
            raise UserError("--config: give a file")
        from lit_llm.settings.yaml_file import read_yaml

        content = read_yaml(file, f"--config {file}")
        if not isinstance(content, dict):
            raise UserError(
                f"--config {file}: holds no settings; a config is a mapping such as 'seed: 1'"
            )
        known = {action.dest: action for action in settings}
        values = {}
        for key, value in content.items():
            if key not in known:
                near = difflib.get_close_matches(str(key), known, n=1, cutoff=0.6)
                raise UserError(
                    f"{file}: unknown key {key}" + (f": did you mean {near[0]}?" if near else "")
                )
            if value is not None:
                values[key] = _checked(file, known[key], value)
        return values


def _checked(file: str, action: argparse.Action, value: Any) -> Any:
    """Convert a value of the file as the command line would convert it."""
    where = f"{file}: {action.dest}"
    if action.nargs == 0:
        if not isinstance(value, bool):
            raise UserError(f"{where} must be true or false, got {value!r}")
        return value
    many = action.nargs in ("+", "*") or isinstance(action, argparse._AppendAction)
    items = value if many and isinstance(value, list) else [value]
    convert: Any = action.type or str
    converted = []
    for item in items:
        try:
            if not isinstance(item, (str, int, float)) or isinstance(item, bool):
                raise ValueError
            converted.append(convert(str(item)))
        except argparse.ArgumentTypeError as error:
            raise UserError(f"{where}: {error}") from None
        except ValueError:
            kind = getattr(convert, "__name__", "value")
            raise UserError(
                f"{where} must be {'a list of ' if many else ''}{kind}, got {value!r}"
            ) from None
        if action.choices is not None and converted[-1] not in action.choices:
            raise UserError(
                f"{where} is one of {', '.join(map(str, action.choices))}; got {item!r}"
            )
    return converted if many else converted[0]


_OF_FINETUNING = {
    "data.add_tokens": "tokens are added in finetuning (InstructionDataModule); for a corpus give "
    "a tokenizer that has them as data.tokenizer",
}
"""Settings that are wanted in pretraining too -> why they are not there."""
_OF_PEFT = {
    "r": "rank", "lora_alpha": "alpha", "lora_dropout": "dropout", "target_modules": "targets",
    "modules_to_save": "train_modules", "use_dora": "dora", "use_rslora": "rank_stabilized",
}  # fmt: skip
"""PEFT's names -> ours below ``model.lora``."""


def explain_mistake(message: str, known: Sequence[str] = ()) -> str:
    """Shorten a message of jsonargparse to one line.

    For an unknown key, the line names the nearest known key.
    """
    text = " ".join(message.replace("\n", " ").split())
    if (file := re.match(r"unrecognized arguments?: ([^-]\S*\.ya?ml)", text)) is not None:
        return f"{file[1]}: give it as --config {file[1]}"
    if (value := re.match(r"unrecognized arguments?: ([^-\s]\S*)", text)) is not None:
        return (
            f"{value[1]}: belongs to no option; put a pattern such as '*.txt' in quotes, or the "
            "shell replaces it by the names of files"
        )
    if said := _explain_class(text) or _explain_value(text):
        return said
    # An optional section is typed as a Union. jsonargparse then reports the mistake of each member:
    # "<what is wrong> - Expected a <class 'NoneType'>". Only the first part is useful.
    union = re.search(
        r"^(?:(?:Parser key \")?([\w.]+)\"?: )?Does not validate against any of the "
        r"Union.*?Errors: - (.*?)"
        r" - Expected a <class 'NoneType'>",
        text,
    )
    section = ""
    if union:
        section, text = union[1] or "", union[2]
    for pattern in _UNKNOWN_KEY:
        if found := re.search(pattern, text):
            key = found[1]
            full = f"{section}.{key}" if section and not key.startswith(section) else key
            if full in _OF_FINETUNING:
                return f"unknown key {full}: {_OF_FINETUNING[full]}"
            if full.startswith("model.") and (ours := _OF_PEFT.get(full.rpartition(".")[2])):
                return f"unknown key {full}: PEFT's name of model.lora.{ours}"
            if full in known:
                return (
                    f"unknown key {full}: "
                    "the class that the configuration names has no such setting"
                )
            # A mistyped init_args makes every key below it unknown: name that word alone.
            group, _, below = full.partition(".")
            second = below.partition(".")[0]
            classes = {key.rpartition(".init_args.")[0] for key in known}
            inner = ["init_args"] if group in classes else []
            if second != "init_args" and difflib.get_close_matches(second, inner, cutoff=0.8):
                return f"unknown key {group}.{second}: did you mean {group}.init_args?"
            sections = {name.split(".")[0] for name in known}
            if full.split(".")[0] not in sections:
                near = difflib.get_close_matches(full.split(".")[0], sections, n=1, cutoff=0.6)
            else:
                near = difflib.get_close_matches(full, known, n=1, cutoff=0.6)
            if not near:
                tails = {name.rsplit(".", 1)[-1]: name for name in known}
                near = [
                    tails[t]
                    for t in difflib.get_close_matches(
                        key.rsplit(".", 1)[-1], tails, n=1, cutoff=0.6
                    )
                ]
            return f"unknown key {full}" + (f": did you mean {near[0]}?" if near else "")
    # Name the section once, unless the message already names a key below it or an unknown key.
    if section and re.match(r"[\w.]+=.*: must be ", text):
        text = f"{section}.{text}"
    elif section and not text.startswith("unknown key"):
        text = f"{section}: {text}"
    text = text.partition(" - Not a valid subclass of ")[0]
    # Keep the innermost sentence. The text before it repeats the path through nested types.
    text = re.sub(r"^Parser key \"([\w.]+)\": ", r"\1: ", text)
    return text if len(text) < 400 else text[:400] + " ..."


# An optional group of settings, such as model.lora, that is given as one word or number.
_GROUP_AS_VALUE = re.compile(
    r"Parser key \"([\w.]+)\": .*Subtypes: \[<class 'lit_llm\.[\w.]+'>, <class 'NoneType'>\] .*"
    r"(?:Expected a dot import path|Not a valid subclass of) .*Given value: (?!\{|NestedArg)(.+)$"
)


def _explain_class(text: str) -> str | None:
    """Say what is wrong with a class that a key names, without the list of all types tried."""
    if (section := _GROUP_AS_VALUE.match(text)) is not None:
        return f"{section[1]}={section[2]}: must be a mapping of its settings, or null"
    found = re.search(r"\b((?:trainer|model|data)[\w.]*)", text)
    if found is None or not ("subclass" in text or "Union" in text):
        return None
    key = found[1]
    if many := re.search(r"Multiple subclasses with name (\w+)\..*?ambiguity: ([\w., ]+\w)", text):
        return f"{key}={many[1]}: there are several; give one in full: {many[2]}"
    if unknown := re.search(r"Expected a dot import path string: ([^\s{}\[\]]+)(?: |$)", text):
        return f"{key}={unknown[1]}: no such class; give its import path (package.module.Name)"
    if missing := re.search(r"Problem with given class_path '([\w.]+)\.(\w+)': module", text):
        import importlib

        near = difflib.get_close_matches(missing[2], dir(importlib.import_module(missing[1])), n=1)
        hint = f": did you mean {missing[1]}.{near[0]}?" if near else ""
        return f"{key}: {missing[1]} has no class {missing[2]}{hint}"
    return None


_KINDS = {"int": "a whole number", "float": "a number", "bool": "true or false", "str": "text",
          "list": "a list such as [a, b]", "tuple": "a list such as [a, b]",
          "dict": "a mapping"}  # fmt: skip


def _explain_value(text: str) -> str | None:
    """Say which key has a value of the wrong type, and which types it takes.

    Returns None if the message is not about the type of a value.
    """
    key = re.match(r"(?:Parser key \")?([\w.]+)\"?: ", text)
    value = re.search(
        r"(?:Got value|Given value): (.*?)(?: - Expected a| Given value type|$)", text
    )
    kinds = re.findall(r"Expected a (<class '\w+'>|typing\.Literal\[.*?\])", text)
    explained = re.search(r"Errors: - (?!\w+: (?:Does|Expected))(?!Expected)", text)
    if key is None or value is None or not kinds or explained:
        return None
    taken: list[str] = []
    for kind in kinds:
        if kind.startswith("typing"):
            taken += re.findall(r"'([^']*)'", kind)
        elif (name := kind.split("'")[1]) in _KINDS:
            taken.append(_KINDS[name])
    if _KINDS["float"] in taken and _KINDS["int"] in taken:
        taken.remove(_KINDS["int"])
    if nested := re.match(r"NestedArg\(key='([\w.]+)'", value[1]):
        return f"unknown key {key[1]}.{nested[1]}: {key[1]} has one value and nothing below it"
    if not taken:
        return None
    inner = re.findall(r"(?:- |\": )(\w+): (?=Expected a|Does not validate)", text)
    said = f"{'.'.join([key[1], *inner])}={value[1]}: must be {' or '.join(dict.fromkeys(taken))}"
    if value[1] in ("True", "False") and _KINDS["str"] in taken:  # "no" is Norwegian
        said += "; YAML takes no, yes, off and on for true or false: put the word in quotes"
    return said


_UNKNOWN_KEY = (
    r"Key '([\w.]+)' is not expected",
    r"does not accept option '([\w.]+)'",
    r"Option '([\w.]+)' is not accepted",
    r"[Uu]nrecognized arguments?: --?([\w.-]+)",
    r"unknown key ([\w.]+)(?!.*transformer)",
)


def run_command(
    commands: Mapping[str, Callable[[list[str]], None]], usage: str, args: list[str]
) -> None:
    """Run the command that ``args`` begins with, or print ``usage`` if there is none.

    Args:
        commands: name -> function, which gets the arguments after the name.
        usage: text for ``--help`` and for empty arguments.
        args: command-line arguments.

    Raises:
        UserError: no such command.
    """
    if not args or args[0] in ("-h", "--help"):
        print(usage)
        return
    if args[0] not in commands:
        raise UserError(f"no command {args[0]!r}; commands: {', '.join(commands)}")
    commands[args[0]](args[1:])
