"""Help that teaches: what a command is for, lines to type, and what happens when an option is left out."""

from __future__ import annotations


def guide(text: str, *examples: str) -> str:
    """A command's help text; the marker keeps the examples' line breaks.

    Args:
        text: what the command is for.
        examples: lines to type, short enough not to be wrapped on a terminal of 80 columns.
    """
    return f"{text}\n\n\b\nExamples:\n" + "\n".join(f"  {line}" for line in examples)


def told(text: str, default: str | None) -> str:
    """An option's help with its default as typer shows its own, for defaults that lie elsewhere."""
    return text if default is None else f"{text} [dim]\\[default: {default}][/dim]"
