"""Dependencies point one way, and only the page knows gradio."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
# Lower layers never import higher ones.
LAYERS = (
    {"types", "errors", "scope", "metrics", "findings"},
    {"images", "prompt", "learnt"},
    {"plan"},
    {"steering", "encoders", "corpus", "fetch", "conformance", "towers"},
    {"attention", "checkpoint"},
    {"backbone", "knowledge_base"},
    {"retrieval"},
    {"calibration"},
    {"pipeline"},
    {"export", "evaluation", "bench", "bench_search"},
    {"experiment"},
    {"tables"},
    {"experiment_report"},
    {"phantom"},
    {"training"},
    {"__main__"},
)
# Of app/: what the controls do, section by section, and the page that is made of gradio.
ACTIONS = ("visit", "settings", "case", "evidence", "attention", "asking", "saving")
PAGE = ("page", "layout", "theme", "launch")
PHANTOM_LEAVES = {"world", "report", "render", "fundus", "dicom", "write"}


def imports(path: Path) -> set[str]:
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and node.module:
            found.add(node.module)
            if node.module == "app":
                found.update(f"app.{alias.name}" for alias in node.names)
        elif isinstance(node, ast.Import):
            found.update(alias.name for alias in node.names)
    return found


def level(module: str) -> int:
    name = module.split(".")[1]
    if module.startswith("mrrag.phantom.") and module.split(".")[2] in PHANTOM_LEAVES:
        return 0  # the world itself knows nothing of the method
    return next(i for i, names in enumerate(LAYERS) if name in names)


FILES = sorted((ROOT / "mrrag").rglob("*.py"))


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(ROOT)))
def test_a_module_imports_only_from_its_own_layer_or_below(path: Path) -> None:
    module = ".".join(path.relative_to(ROOT).with_suffix("").parts)
    if module.endswith("__init__"):
        return
    for imported in imports(path):
        if imported.startswith("mrrag."):
            assert level(imported) <= level(module), f"{module} imports {imported}"


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(ROOT)))
def test_the_library_knows_neither_gradio_nor_the_page(path: Path) -> None:
    # The command line may write a case as a page; what writes it knows no gradio either.
    allowed = {"app.report"} if path.name == "__main__.py" else set()
    roots = {name.split(".")[0] for name in imports(path) - allowed}
    assert not roots & {"gradio", "app"}
    # Plots of training and of experiments are the library's; it draws nothing else.
    assert "plotly" not in roots or path.name in ("experiment_report.py", "loop.py")


@pytest.mark.parametrize("name", ["report", "cards", "plots", "pictures"])
def test_what_draws_a_case_knows_no_gradio(name: str) -> None:
    names = imports(ROOT / "app" / f"{name}.py")
    assert not any(n.split(".")[0] == "gradio" for n in names)
    assert not names & {f"app.{other}" for other in (*ACTIONS, *PAGE)}


@pytest.mark.parametrize("name", ACTIONS)
def test_what_a_control_does_knows_no_gradio(name: str) -> None:
    names = imports(ROOT / "app" / f"{name}.py")
    assert not any(n.split(".")[0] == "gradio" for n in names)
    assert not names & {f"app.{other}" for other in PAGE}


def test_only_the_page_knows_gradio() -> None:
    knowing = {
        path.stem
        for path in (ROOT / "app").glob("*.py")
        if any(n.split(".")[0] == "gradio" for n in imports(path))
    }
    assert knowing <= {*PAGE, "uploads"}


def test_types_compute_nothing() -> None:
    allowed = {"__future__", "collections.abc", "dataclasses", "numpy", "numpy.typing"}
    assert imports(ROOT / "mrrag" / "types.py") <= allowed
