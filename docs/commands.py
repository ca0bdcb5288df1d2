"""Write the options of every command into docs/command-line.md, from the commands themselves: python docs/commands.py.

The page is written by hand but for what stands between `<!-- options of COMMAND -->` and `<!-- end of options -->`.
"""

import re
from pathlib import Path
from typing import Any

import typer

from rome_lens.cli import app

PAGE = Path(__file__).parent / "command-line.md"
BLOCK = re.compile(r"(<!-- options of (rome-lens[a-z -]*?) -->\n).*?(<!-- end of options -->)", re.S)
# typer puts what is needed into braces; readers know it as it stands.
BRACES = str.maketrans("", "", "{}")
# What a help text says as it is typed: 'quoted', --option, {placeholder}.
TYPED = re.compile(r"(?<!\w)'([^']+)'(?!\w)|((?<!\S)--[a-z][a-z-]*|\{[a-z]*\})")


def main() -> None:
    """Write the page again."""
    PAGE.write_text(written(PAGE.read_text("utf-8")), "utf-8")


def written(page: str) -> str:
    """The page with the options that its commands have now.

    Raises:
        KeyError: a command that has options is not on the page, or the page names one that there is not.
    """
    found = commands(typer.main.get_command(app), "rome-lens")
    named = {match[2] for match in BLOCK.finditer(page)}
    if different := named ^ found.keys():
        raise KeyError(f"on the page or in the program, but not in both: {sorted(different)}")
    return BLOCK.sub(lambda match: f"{match[1]}\n{options(found[match[2]], match[2])}\n{match[3]}", page)


def commands(command: Any, name: str) -> dict[str, Any]:
    """Every command that has options of its own, by what is typed."""
    own = {name: command} if any(shown(parameter) for parameter in command.params) and name != "rome-lens" else {}
    for word, child in getattr(command, "commands", {}).items():
        own |= commands(child, f"{name} {word}")
    return own


def options(command: Any, name: str) -> str:
    """A command's usage, and a table for each group of its options, in the order of its help."""
    groups: dict[str | None, list[str]] = {}
    for parameter in filter(shown, command.params):
        groups.setdefault(parameter.rich_help_panel, []).append(row(parameter))
    pieces = command.collect_usage_pieces(command.make_context(name, [], resilient_parsing=True))
    tables = [f"```text\n{' '.join([name, *pieces]).translate(BRACES)}\n```\n"]
    for title, rows in groups.items():
        head = f"**{title}**\n\n" if title else ""
        tables.append(f"{head}| option | default | |\n|---|---|---|\n" + "\n".join(rows) + "\n")
    return "\n".join(tables)


def shown(parameter: Any) -> bool:
    """Whether the help shows it."""
    return not parameter.hidden


def row(parameter: Any) -> str:
    """A parameter's row: what is typed, its default, its help."""
    is_argument = parameter.param_type_name == "argument"
    typed = [parameter.metavar] if is_argument else [*parameter.opts, *parameter.secondary_opts]
    names = ", ".join(f"`{word}`" for word in typed)
    if not is_argument and not parameter.is_flag:
        names += f" `{parameter.metavar}`"
    return f"| {names} | {default(parameter)} | {marked(parameter.help)} |"


def default(parameter: Any) -> str:
    """What holds if it is not given."""
    if isinstance(parameter.show_default, str):
        return marked(parameter.show_default)
    if parameter.required:
        return "needed"
    if isinstance(parameter.default, bool):
        return "on" if parameter.default else "off"
    return "" if parameter.default is None else str(parameter.default)


def marked(text: str) -> str:
    """A help text as Markdown in a table."""
    plain = text.removesuffix(".").replace("|", r"\|").replace("<", "&lt;")
    return TYPED.sub(lambda match: f"`{match[1] or match[2]}`", plain)


if __name__ == "__main__":
    main()
