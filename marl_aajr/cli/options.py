"""Options of the command line that stand for settings: made from what the settings' classes declare.

An option's type, default, range and help are those of the field (`marl_aajr.core.settings`); only its name
and its place in the help are decided here. What is typed is read as YAML and checked by the class.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any

import typer
from rich.markup import escape

from marl_aajr.core.settings import Setting, find_setting


@dataclass(frozen=True, kw_only=True)
class Option:
    """One option that stands for a setting: its flag as typed, `--env-steps`, and what the help shows for it.

    Attributes:
        key: where its value goes in the configuration, `env_steps`.
        panel: heading of the help; None: typer's own.
        default: as the help shows it; None: the field's.
        repeated: whether each value of a sequence is an option of its own.
    """

    setting: Setting
    flag: str
    key: str
    metavar: str
    panel: str | None = None
    default: str | None = None
    repeated: bool = False

    @property
    def name(self) -> str:
        """The parameter's name in Python."""
        return self.flag.removeprefix("--").replace("-", "_")

    @property
    def help(self) -> str:
        """The first sentence about the setting, with default and range."""
        text = _bold(self.setting.summary)
        if self.repeated:
            text = text.removesuffix(".") + "; may be repeated."
        default = self.setting.shown_default if self.default is None else self.default
        if isinstance(self.setting.default, bool):
            default = self.flag.removeprefix("--") if self.setting.default else ""
        return told(text, default, self.setting.bounds)

    def read(self, given: Any) -> Any:
        """The value of what was typed."""
        if isinstance(given, bool):
            return given
        if self.repeated:
            return [self._value(each) for each in given]
        if not self.setting.many:
            return self._value(given)
        return None if self.setting.optional and given == "none" else number_or_text(f"[{given}]")

    def _value(self, text: str) -> Any:
        return text if self.setting.kind == "str" else number_or_text(text)

    def parameter(self) -> inspect.Parameter:
        """The option as typer wants it."""
        kind: Any = list[str] if self.repeated else str
        flag = self.flag
        if self.setting.kind == "bool" and not self.setting.many:
            kind = bool
            flag += "" if self.setting.default is False else f"/--no-{self.flag.removeprefix('--')}"
        option = typer.Option(
            flag,
            metavar=None if kind is bool else self.metavar,
            help=self.help,
            rich_help_panel=self.panel,
            show_default=False,
        )
        only = inspect.Parameter.KEYWORD_ONLY
        return inspect.Parameter(self.name, only, default=None, annotation=Annotated[kind | None, option])


def options(
    cls: str,
    paths: str,
    *,
    under: str = "",
    panel: str | None = None,
    flags: Mapping[str, str] | None = None,
    metavars: Mapping[str, str] | None = None,
    defaults: Mapping[str, str] | None = None,
    repeated: Sequence[str] = (),
) -> tuple[Option, ...]:
    """The options for settings of a class; `KeyError`: no such setting.

    Args:
        cls: dotted name of the class.
        paths: the settings, dotted through its sections, with spaces between them.
        under: key of the configuration that holds what the class describes; empty: it is the whole.
        panel: heading of the help.
        flags: by path, where the option is not named after the field.
        metavars: by path, where the field's type says too little.
        defaults: by path, in words, where the command does something else than the field's default.
        repeated: settings of several values that are given one by one.
    """
    found = []
    for path in paths.split():
        setting = find_setting(cls, path)
        number = {"int": "INT", "float": "FLOAT"}.get(setting.kind, "")
        word = "|".join(filter(None, [number, *setting.choices])) or "NAME"
        found.append(
            Option(
                setting=setting,
                flag=(flags or {}).get(path, f"--{setting.name.replace('_', '-')}"),
                key=f"{under}.{path}" if under else path,
                metavar=(metavars or {}).get(path, word + ",…" * (setting.many and path not in repeated)),
                panel=panel,
                default=(defaults or {}).get(path),
                repeated=path in repeated,
            )
        )
    return tuple(found)


def takes(*chosen: Option) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """A decorator that makes a command of a function: it has these options in the place of `**typed`.

    Its own parameters are arguments before the `*` and options behind it, integers ≥ 0. Their help stands
    under `Args:` of its docstring as `name (METAVAR): text. Default: words.`, without what does not apply.
    """

    def extended(command: Callable[..., None]) -> Callable[..., None]:
        signature = inspect.signature(command, eval_str=True)
        texts = {name: words for name, *words in _ENTRY.findall(inspect.cleandoc(command.__doc__ or ""))}
        own = [
            _own(parameter, *texts[parameter.name])
            for parameter in signature.parameters.values()
            if parameter.kind is not inspect.Parameter.VAR_KEYWORD
        ]
        parameters = [*(option.parameter() for option in chosen), *own]
        command.__signature__ = signature.replace(parameters=parameters)  # type: ignore[attr-defined]
        command.__annotations__ = {p.name: p.annotation for p in parameters}
        return command

    return extended


_ENTRY = re.compile(r"^ {4}(\w+)(?: \((.+)\))?: (.*(?:\n {8}.*)*)", re.MULTILINE)


def _own(parameter: inspect.Parameter, metavar: str, words: str) -> inspect.Parameter:
    """A parameter of a command as typer wants it."""
    text, _, default = " ".join(words.split()).removesuffix(".").partition(". Default: ")
    shown: dict[str, Any] = {"metavar": metavar or None, "help": told(_bold(f"{text}."), default)}
    if parameter.kind is inspect.Parameter.KEYWORD_ONLY:
        flag = f"--{parameter.name.strip('_').replace('_', '-')}"
        made: Any = typer.Option(flag, min=0 if parameter.annotation is int else None, **shown)
    else:
        made = typer.Argument(**shown)
    kind = inspect.Parameter.KEYWORD_ONLY
    return parameter.replace(kind=kind, annotation=Annotated[parameter.annotation, made])


def values(chosen: Iterable[Option], typed: Mapping[str, Any]) -> dict[str, Any]:
    """The values of the options that were given, by key of the configuration.

    What was typed stands under the parameter's name; None or an empty list: it was not given.
    """
    return {
        option.key: option.read(given)
        for option in chosen
        if (given := typed.get(option.name)) is not None and given != []
    }


def assigned(assignments: Iterable[str]) -> dict[str, Any]:
    """`KEY=VALUE` as given to `--set`, by key."""
    given = {}
    for assignment in assignments:
        key, equals, text = assignment.partition("=")
        if not equals or not re.fullmatch(r"\w+(\.\w+)*", key):
            raise ValueError(f"expected --set KEY=VALUE such as ppo.lr=3e-4, got {assignment!r}")
        given[key] = number_or_text(text)
    return given


def number_or_text(text: str) -> Any:
    """A value as in a YAML file; what is no YAML is text."""
    import yaml

    from marl_aajr.training.files import NumberLoader

    try:
        return yaml.load(text, Loader=NumberLoader)
    except yaml.YAMLError:
        return text


def guide(text: str, *examples: str) -> str:
    """A command's help: what it is for, and lines to type that a terminal of 80 columns need not wrap."""
    return f"{text}\n\n{_kept('Examples:', examples)}"


def sample(text: str, file: str) -> str:
    """An addition to a command's help: a line about a file, and the file as it is, of lines as short."""
    return f"\n\n{_kept(text, escape(file).splitlines())}"


def _kept(heading: str, lines: Iterable[str]) -> str:
    """Lines that are shown as they are; the marker keeps their breaks."""
    return f"\b\n{heading}\n" + "\n".join(f"  {line}" for line in lines)


def plain(text: str, *, by: str = r"\1") -> str:
    """A docstring's text with names marked by a terminal's means: without backticks, and as `by` says."""
    return re.sub(r'`"?([^`]*?)"?`', by, text)


def _bold(text: str) -> str:
    return plain(escape(text), by=r"[b]\1[/b]")


def told(text: str, default: str, bounds: str = "") -> str:
    """An option's help with its default and range, as typer shows its own."""
    facts = "; ".join(filter(None, [f"default: {default}" if default else "", bounds]))
    return f"{text} [dim]\\[{escape(facts)}][/dim]" if facts else text
