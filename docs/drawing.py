"""Draw the house into docs/design.md, from what the modules say and import: python docs/drawing.py.

The page is written by hand but for what stands between `<!-- the house -->`, `<!-- the layers -->` and `<!-- end -->`.
"""

import ast
import re
from collections.abc import Mapping
from pathlib import Path

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs" / "design.md"
PACKAGE = ROOT / "rome_lens"
BLOCK = re.compile(r"(<!-- the (house|layers) -->\n).*?(<!-- end -->)", re.S)


def main() -> None:
    """Write the page again."""
    PAGE.write_text(written(PAGE.read_text("utf-8")), "utf-8")


def written(page: str) -> str:
    """The page with the house and the layers as they are now."""
    drawn = {"house": house(PACKAGE), "layers": layers(imports(PACKAGE))}
    return BLOCK.sub(lambda match: f"{match[1]}\n```text\n{drawn[match[2]]}\n```\n\n{match[3]}", page)


def first_line(file: Path) -> str:
    """What a module holds, in the words of its first line; empty where it has none."""
    return (ast.get_docstring(ast.parse(file.read_text("utf-8"))) or "").partition("\n")[0]


def house(folder: Path, indent: str = "") -> str:
    """A line a module, the folder's own first."""
    lines = [_line(indent, f"{folder.name}/", first_line(folder / "__init__.py"))]
    for path in sorted(folder.iterdir(), key=lambda path: (path.is_dir(), path.name)):
        if (path / "__init__.py").is_file():
            lines.append(house(path, indent + "  "))
        elif path.suffix == ".py" and path.name != "__init__.py":
            lines.append(_line(indent + "  ", path.name, first_line(path)))
    return "\n".join(lines)


def _line(indent: str, name: str, said: str) -> str:
    return f"{indent + name:26} {said}"


def imports(package: Path) -> dict[str, set[str]]:
    """The package's folders and modules, each with those that it imports, anywhere in it and for types alone, too."""
    own = {path.stem for path in package.iterdir() if path.suffix == ".py" or (path / "__init__.py").is_file()}
    found: dict[str, set[str]] = {name: set() for name in sorted(own - {"__init__"})}
    for name, needed in found.items():
        files = [package / f"{name}.py"] if (package / f"{name}.py").is_file() else (package / name).rglob("*.py")
        for node in (node for file in files for node in ast.walk(ast.parse(file.read_text("utf-8")))):
            modules = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            if isinstance(node, ast.ImportFrom) and node.module == package.name:
                modules = [f"{node.module}.{alias.name}" for alias in node.names]
            elif isinstance(node, ast.ImportFrom):
                modules = [node.module or ""]
            needed |= {module.split(".")[1] for module in modules if module.startswith(f"{package.name}.")}
        needed.discard(name)
    return found


def layers(needed: Mapping[str, set[str]]) -> str:
    """Who stands on whom: a line imports from lines below it alone, and stands as low as that allows.

    Raises:
        ValueError: some of them import each other in a circle.
    """
    levels: list[list[str]] = []
    left = dict(needed)
    while left:
        level = [name for name, others in left.items() if not others & left.keys()]
        if not level:
            raise ValueError(f"imports in a circle: {sorted(left)}")
        levels.append(level)
        left = {name: others for name, others in left.items() if name not in level}
    return "\n".join("   ".join(level) for level in reversed(levels))


if __name__ == "__main__":
    main()
