"""The settings of a class as its source declares them: name, type, default and sentence of every field.

A field's annotation, its default and its entry under `Attributes:` are the only place where a setting is
described. The command line makes its options from them. They are read from the source and not from the
imported class, because `--help` shows the settings of regularizers and must not wait for torch; a test
compares the two.
"""

from __future__ import annotations

import ast
import inspect
import re
import textwrap
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any, Final

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT.name

REQUIRED: Final = "(required)"
"""Default of a setting that has none."""

_BOUNDS = {"ge": "at least", "gt": "above", "le": "at most", "lt": "below"}
"""Keywords of pydantic's `Field`, in words."""

_NUMBERS_AND_TEXT = ("int", "float", "str", "bool")
_SEQUENCES = ("tuple", "list", "Sequence", "Collection")


@dataclass(frozen=True, kw_only=True)
class Setting:
    """One field of a class of settings.

    Attributes:
        name: of the field.
        kind: type of its value, or of each value of a sequence: `int`, `float`, `str` or `bool`; the dotted
            name of a class in this package, for a section; empty for all others.
        many: whether it takes several values.
        optional: whether it may be None.
        choices: the names it can be.
        bounds: the range of numbers in words, such as `at least 1`; empty: none is declared.
        default: the value where none is given, or `REQUIRED`.
        text: its entry under `Attributes:`. The first sentence is a summary, and ends with what holds if the
            value is None: `…; None: X.`
    """

    name: str = ""
    kind: str = ""
    many: bool = False
    optional: bool = False
    choices: tuple[str, ...] = ()
    bounds: str = ""
    default: Any = REQUIRED
    text: str = ""

    @property
    def summary(self) -> str:
        """The first sentence, without what holds if the value is None."""
        return self._first[0]

    @property
    def shown_default(self) -> str:
        """The default as a person types it, or in words what holds if it is None; empty: there is none."""
        if self.default is None:
            return self._first[1]
        if self.default is REQUIRED or self.default == ():
            return ""
        values = self.default if isinstance(self.default, tuple) else (self.default,)
        return ",".join(f"{each:g}" if isinstance(each, float) else f"{each}" for each in values)

    @property
    def facts(self) -> str:
        """Choices, default and range in words."""
        shown = self.shown_default and f"default: {self.shown_default}"
        if self.default is REQUIRED:
            shown = "required"
        return "; ".join(filter(None, ["|".join(self.choices), shown, self.bounds]))

    @property
    def _first(self) -> tuple[str, str]:
        sentence = re.split(r"(?<=\.) (?=[A-Z])", self.text, maxsplit=1)[0]
        summary, _, none = sentence.removesuffix(".").partition("; None: ")
        symbol = re.match(r"\w(,| [≥>])|[^a-z]", summary)  # of an equation, such as λ
        return (summary if symbol else summary[:1].upper() + summary[1:]) + ".", none


_SECTION = re.compile(r"^Attributes:\n(?: {4}.*\n?|\n(?= {4}))*", re.MULTILINE)
_ENTRY = re.compile(r"^ {4}(\w+): (.*(?:\n {8}.*)*)", re.MULTILINE)


def attributes(docstring: str) -> dict[str, str]:
    """The entries under `Attributes:` of a Google-style docstring without common indentation, by name."""
    section = _SECTION.search(docstring)
    return {name: " ".join(text.split()) for name, text in _ENTRY.findall(section[0] if section else "")}


def inherit_attributes(cls: type) -> None:
    """Add the entries under `Attributes:` of the base class to the docstring, but for those that it has."""
    docstring, base = inspect.cleandoc(cls.__doc__ or ""), inspect.getdoc(cls.__base__) or ""
    entries = {name: text for name, text in attributes(base).items() if name not in attributes(docstring)}
    if not docstring or not entries:
        return
    layout = textwrap.TextWrapper(110, initial_indent=" " * 4, subsequent_indent=" " * 8)
    added = "".join(layout.fill(f"{name}: {text}") + "\n" for name, text in entries.items())
    section = _SECTION.search(docstring)
    if section is None:
        cls.__doc__ = f"{docstring}\n\nAttributes:\n{added}"
    else:
        end = section.end()
        cls.__doc__ = f"{docstring[:end].rstrip()}\n{added}{docstring[end:]}"


def find_setting(cls: str, path: str) -> Setting:
    """A setting by its dotted path, through the sections of a class.

    Args:
        cls: dotted name of the class.
        path: such as `resources.env_runners`.

    Raises:
        KeyError: no such setting.
    """
    *sections, name = path.split(".")
    for section in sections:
        cls = declared(cls)[section].kind
    return declared(cls)[name]


def every_setting(cls: str, prefix: str = "") -> Iterator[tuple[str, Setting]]:
    """All settings of a class and its sections by dotted path; `[]` marks the entries of a list.

    Args:
        cls: dotted name of the class.
        prefix: of the paths.
    """
    for name, setting in declared(cls).items():
        path = f"{prefix}{name}"
        if setting.kind.startswith(PACKAGE):
            yield from every_setting(setting.kind, f"{path}[]." if setting.many else f"{path}.")
        else:
            yield path, setting


@cache
def declared(cls: str) -> dict[str, Setting]:
    """The settings of a class and its bases, by name.

    Args:
        cls: its dotted name, such as `marl_aajr.regularizers.aajr.AAJR`; of a dataclass or a pydantic model
            in this package.

    Raises:
        ValueError: no such class, or a default that is no literal and no constant.
    """
    home, node = _definition(*cls.rsplit(".", 1))
    if not isinstance(node, ast.ClassDef):
        raise ValueError(f"expected a class in {PACKAGE}, got {cls}")
    settings: dict[str, Setting] = {}
    for base in reversed(node.bases):  # as dataclasses order their fields
        parent, found = _definition(home, base.id) if isinstance(base, ast.Name) else ("", None)
        if isinstance(found, ast.ClassDef):
            settings |= declared(f"{parent}.{found.name}")
    for statement in node.body:
        match statement:
            case ast.AnnAssign(ast.Name(name), annotation, value) if not name.startswith("_"):
                if "ClassVar" not in ast.unparse(annotation):
                    default = REQUIRED if value is None else _value(home, value)
                    text = settings.get(name, Setting()).text
                    settings[name] = replace(_type(home, annotation), name=name, default=default, text=text)
    for name, text in attributes(ast.get_docstring(node) or "").items():
        if name in settings:
            settings[name] = replace(settings[name], text=text)
    return settings


def _type(module: str, node: ast.expr) -> Setting:
    """What an annotation says, as a setting without name and default."""
    result = Setting()
    match node:
        case ast.Constant(None):
            result = Setting(optional=True)
        case ast.BinOp(left, ast.BitOr(), right):
            one, other = _type(module, left), _type(module, right)
            choices, optional = one.choices + other.choices, one.optional or other.optional
            result = replace(one if one.kind else other, choices=choices, optional=optional)
        case ast.Subscript(ast.Name("Literal"), names):
            values = ast.literal_eval(names)
            result = Setting(kind="str", choices=values if isinstance(values, tuple) else (values,))
        case ast.Subscript(ast.Name("Annotated"), ast.Tuple([kind, *metadata])):
            inner = _type(module, kind)
            result = replace(inner, bounds=" and ".join(_bounds(metadata)) or inner.bounds)
        case ast.Subscript(ast.Name(name), of) if name in _SEQUENCES:
            result = replace(_type(module, of.elts[0] if isinstance(of, ast.Tuple) else of), many=True)
        case ast.Name(name) if name in _NUMBERS_AND_TEXT:
            result = Setting(kind=name)
        case ast.Name(name):
            home, found = _definition(module, name)
            if isinstance(found, ast.ClassDef):
                result = Setting(kind=f"{home}.{found.name}")
            elif found is not None:
                result = _type(home, found)
    return result


def _bounds(metadata: list[ast.expr]) -> Iterator[str]:
    """The bounds that are declared by pydantic's `Field`, in words."""
    for entry in metadata:
        for keyword in entry.keywords if isinstance(entry, ast.Call) else ():
            if keyword.arg in _BOUNDS:
                yield f"{_BOUNDS[keyword.arg]} {ast.literal_eval(keyword.value):g}"


def _value(module: str, node: ast.expr) -> Any:
    """A default: a literal, a constant of this package, that of another class, or the one in a `Field`.

    An object is None here: it has no literal.
    """
    match node:
        case ast.Call(ast.Name("Field" | "field"), keywords=keywords):
            given = {keyword.arg: keyword.value for keyword in keywords}
            if "default" in given:
                return _value(module, given["default"])
            return None if "default_factory" in given else REQUIRED
        case ast.Call():
            return None
        case ast.Name(name):
            home, found = _definition(module, name)
            if isinstance(found, ast.expr):
                return _value(home, found)
        case ast.Attribute(ast.Name(name), field):
            home, found = _definition(module, name)
            if isinstance(found, ast.ClassDef):
                return declared(f"{home}.{found.name}")[field].default
    try:
        return ast.literal_eval(node)
    except ValueError:
        raise ValueError(
            f"expected a literal or a constant as default of a setting in {module}, got {ast.unparse(node)}"
        ) from None


def _definition(module: str, name: str) -> tuple[str, ast.ClassDef | ast.expr | None]:
    """The module that defines a name, and the class or value; None for what is not of this package."""
    while module.split(".", maxsplit=1)[0] == PACKAGE:
        found = _names(module).get(name)
        if not isinstance(found, tuple):
            return module, found
        module, name = found
    return module, None


@cache
def _names(module: str) -> dict[str, ast.ClassDef | ast.expr | tuple[str, str]]:
    """The global names of a module: a class, a value, or the module and name that it is imported from."""
    path = ROOT.joinpath(*module.split(".")[1:])
    file = path / "__init__.py" if path.is_dir() else path.with_suffix(".py")
    found: dict[str, ast.ClassDef | ast.expr | tuple[str, str]] = {}
    for statement in ast.parse(file.read_text(encoding="utf-8")).body:
        match statement:
            case ast.ClassDef(name):
                found[name] = statement
            case ast.Assign([ast.Name(name)], value) | ast.AnnAssign(ast.Name(name), _, ast.expr() as value):
                found[name] = value
            case ast.ImportFrom(str(source), aliases):
                found |= {alias.asname or alias.name: (source, alias.name) for alias in aliases}
    return found
