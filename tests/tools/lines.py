"""Print the size of every room: files, lines, longest file and function, docstrings.

    python tests/tools/lines.py [FOLDER]

A room is a sub-package of ``mrrag/`` or ``app/``, or a module beside them. Lines of a
function exclude its docstring.
"""

from __future__ import annotations

import ast
import sys
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

LONG = 60
Function = ast.FunctionDef | ast.AsyncFunctionDef


@dataclass(frozen=True)
class File:
    """A file's name, number of lines, and syntax tree."""

    name: str
    lines: int
    tree: ast.Module


def room_of(path: Path) -> str:
    """Return the room of a file, from its path in the checkout."""
    if path.parts[0] == "tests":
        return "tests/" + (path.parts[1] if len(path.parts) > 2 else "")
    return "/".join(path.parts[: 2 if len(path.parts) > 2 else 1])


def functions(node: ast.AST, name: str = "") -> Iterator[tuple[str, Function, bool]]:
    """Yield every function with its dotted name, and whether it is public."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, Function | ast.ClassDef):
            full = f"{name}.{child.name}" if name else child.name
            if isinstance(child, Function):
                nested = isinstance(node, Function)
                private = any(part.startswith("_") for part in full.split("."))
                yield full, child, not nested and not private
            yield from functions(child, full)
        else:
            yield from functions(child, name)


def length(function: Function) -> int:
    """Return a function's number of lines without its docstring and decorators."""
    lines = (function.end_lineno or 0) - function.lineno + 1
    if ast.get_docstring(function) is not None:
        docstring = function.body[0]
        lines -= (docstring.end_lineno or 0) - docstring.lineno + 1
    return lines


def row(name: str, files: list[File]) -> str:
    """Return a room as one line of the table."""
    every = [
        (length(function), f"{file.name}:{full}", public, ast.get_docstring(function))
        for file in files
        for full, function, public in functions(file.tree)
    ]
    longest = max(files, key=lambda file: file.lines)
    count, function, *_ = max(every, default=(0, "none", False, None), key=lambda f: f[0])
    documented = [docstring is not None for _, _, public, docstring in every if public]
    share = f"{sum(documented) / len(documented):.0%}" if documented else "-"
    return (
        f"{name:16s}{len(files):6d}{sum(file.lines for file in files):7d}"
        f"  {longest.lines:5d} {Path(longest.name).name:24s}"
        f"{sum(n > LONG for n, *_ in every):5d}{share:>7s}"
        f"  {count:4d} {function}"
    )


def main(folder: Path) -> None:
    """Print the table of a checkout."""
    rooms: defaultdict[str, list[File]] = defaultdict(list)
    for path in sorted(folder.rglob("*.py")):
        inside = path.relative_to(folder)
        if inside.parts[0] in ("mrrag", "app", "tests", "app.py"):
            text = path.read_text(encoding="utf-8")
            file = File(str(inside), len(text.splitlines()), ast.parse(text))
            rooms[room_of(inside)].append(file)
    print(
        f"{'room':16s}{'files':>6s}{'lines':>7s}  {'longest file':30s}{f'>{LONG}':>5s}{'docs':>7s}"
        "  longest function"
    )
    for name, files in sorted(rooms.items()):
        print(row(name, files))
    library = [f for name, files in rooms.items() if not name.startswith("tests") for f in files]
    print(row("mrrag + app", library))


if __name__ == "__main__":
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else Path(__file__).resolve().parents[2])
