"""Help that teaches: what a command is for, lines to type, and what happens when an option is left out."""

from __future__ import annotations

from collections.abc import Iterable

from rich.markup import escape


def guide(text: str, *examples: str) -> str:
    """A command's help text.

    Args:
        text: what the command is for.
        examples: lines to type, short enough not to be wrapped on a terminal of 80 columns.
    """
    return f"{text}\n\n{_kept('Examples:', examples)}"


def sample(text: str, file: str) -> str:
    """More of a command's help: a file.

    Args:
        text: what it is, a line.
        file: its lines, as short as examples.
    """
    return f"\n\n{_kept(text, escape(file).splitlines())}"


def _kept(heading: str, lines: Iterable[str]) -> str:
    """Lines that are shown as they are; the marker keeps their breaks."""
    return f"\b\n{heading}\n" + "\n".join(f"  {line}" for line in lines)


def told(text: str, default: str | None) -> str:
    """An option's help with its default as typer shows its own, for defaults that lie elsewhere."""
    return text if default is None else f"{text} [dim]\\[default: {default}][/dim]"
