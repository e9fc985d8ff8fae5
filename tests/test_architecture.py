"""The rooms of the house: what each may import, and what no file of it may ever know."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
GROUND = {"types", "errors", "files", "schema", "hub", "forms", "learnt"}
PARTS = {"case", "data", "retrieval", "model"}
# Room → the rooms that it may import, beside itself. Dependencies point one way, downwards.
ROOMS: dict[str, set[str]] = {
    "types": set(),
    "errors": set(),
    "files": {"errors"},
    "hub": {"errors", "files"},
    "schema": set(),
    "forms": {"types"},
    "learnt": {"types", "errors", "files", "schema", "forms"},
    "data": GROUND,
    "retrieval": GROUND | {"data"},
    "model": GROUND,
    "case": GROUND,
    "pipeline": GROUND | PARTS,
    "loading": GROUND | {"retrieval", "model", "pipeline"},
    "evidence": GROUND | PARTS | {"pipeline"},
    "explain": GROUND | PARTS | {"pipeline", "evidence"},
    "study": GROUND | PARTS | {"pipeline", "evidence"},
    "api": GROUND
    | {"case", "data", "retrieval"}
    | {"pipeline", "evidence", "loading", "explain", "report", "study"},
    "report": GROUND | {"case", "data", "retrieval", "study"},
    "phantom": GROUND,
    "training": GROUND | PARTS | {"pipeline", "evidence", "loading", "study", "phantom"},
    "bench": GROUND | PARTS | {"pipeline", "evidence", "loading"},
}
ANYTHING = {"cli", "__init__", "__main__"}
# What a room's files never import, wherever in the file.
NEVER: dict[str, set[str]] = {
    "types": {"torch", "transformers", "faiss"},
    "case": {"torch", "transformers", "faiss"},
    "forms": {"torch", "transformers", "faiss"},
    "learnt": {"torch", "transformers", "faiss"},
    "data": {"torch", "transformers", "faiss"},
    "report": {"torch", "transformers", "faiss"},
    "study": {"plotly"},
    "retrieval": {"plotly"},
    "model": {"plotly", "faiss"},
}
# Of app/: what a control does; it returns updates by name and knows no widget.
SECTIONS = sorted(p.stem for p in (ROOT / "app" / "sections").glob("*.py") if p.stem != "__init__")
GRADIO = {
    *("page", "layout", "internals", "theme", "launch", "uploads", "programs"),
    *("events", "picker", "markup", "arena_panel", "choosing"),
}
FILES = sorted((ROOT / "mrrag").rglob("*.py"))


def imports(path: Path) -> set[str]:
    """Modules imported anywhere in a file, but for annotations' sake alone."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    for node in ast.walk(tree):
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING":
            node.body = [ast.Pass()]
    found: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.module:
            found.add(node.module)
            if node.module in ("app", "mrrag"):
                found.update(f"{node.module}.{alias.name}" for alias in node.names)
        elif isinstance(node, ast.Import):
            found.update(alias.name for alias in node.names)
    return found


def room_of(module: str) -> str:
    return module.split(".")[1] if "." in module else "__init__"


def id_of(path: Path) -> str:
    return str(path.relative_to(ROOT))


@pytest.mark.parametrize("path", FILES, ids=id_of)
def test_a_room_imports_only_from_the_rooms_below_it(path: Path) -> None:
    room = room_of(".".join(path.relative_to(ROOT).with_suffix("").parts))
    if room in ANYTHING:
        return
    known = {room_of(name) for name in imports(path) if name.split(".")[0] == "mrrag"}
    assert known <= ROOMS[room] | {room}, f"{id_of(path)} imports from {known - ROOMS[room]}"


@pytest.mark.parametrize("path", FILES, ids=id_of)
def test_the_library_knows_neither_gradio_nor_the_page(path: Path) -> None:
    assert not {name.split(".")[0] for name in imports(path)} & {"gradio", "app"}


@pytest.mark.parametrize("path", FILES, ids=id_of)
def test_a_room_is_free_of_what_it_must_not_know(path: Path) -> None:
    room = room_of(".".join(path.relative_to(ROOT).with_suffix("").parts))
    assert not {name.split(".")[0] for name in imports(path)} & NEVER.get(room, set())


@pytest.mark.parametrize("room", sorted({p.parent for p in FILES} - {ROOT / "mrrag"}), ids=id_of)
def test_a_room_says_what_lives_there(room: Path) -> None:
    assert ast.get_docstring(ast.parse((room / "__init__.py").read_text(encoding="utf-8")))


@pytest.mark.parametrize("name", SECTIONS)
def test_what_a_control_does_knows_no_gradio(name: str) -> None:
    names = imports(ROOT / "app" / "sections" / f"{name}.py")
    assert "gradio" not in {n.split(".")[0] for n in names}
    assert not names & {f"app.{other}" for other in GRADIO}


def test_only_the_page_knows_gradio() -> None:
    knowing = {
        path.stem
        for path in (ROOT / "app").rglob("*.py")
        if "gradio" in {n.split(".")[0] for n in imports(path)}
    }
    assert knowing <= GRADIO


def test_types_compute_nothing() -> None:
    allowed = {"__future__", "collections.abc", "dataclasses", "numpy", "numpy.typing"}
    assert imports(ROOT / "mrrag" / "types.py") <= allowed
