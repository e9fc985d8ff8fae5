"""What is declared is what is imported, and the wheel holds all that a user needs."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
import zipfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest

if sys.version_info >= (3, 11):
    import tomllib
else:  # pip's own copy reads the same format
    from pip._vendor import tomli as tomllib

ROOT = Path(__file__).parents[1]
PROJECT: dict[str, Any] = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))[
    "project"
]
# Module → distribution, where the names differ.
DISTRIBUTIONS = {
    "PIL": "pillow",
    "dicomweb_client": "dicomweb-client",
    "faiss": "faiss-cpu",
    "gdcm": "python-gdcm",
    "huggingface_hub": "huggingface-hub",
    "gradio_client": "gradio-client",
    "grpc": "grpcio",
    "sklearn": "scikit-learn",
    "typing_extensions": "typing-extensions",
    "yaml": "pyyaml",
}
# Imported only where they are there: by an extra, on a Space, or to drive the page's bench.
OPTIONAL = {
    *("bitsandbytes", "pyarrow", "python-gdcm", "spaces", "playwright"),
    *("dicomweb-client", "requests", "pymilvus", "grpcio"),
}
# Not imported: transformers needs them to read SentencePiece models.
INDIRECT = {"protobuf", "sentencepiece"}


def imported(paths: Iterable[Path]) -> set[str]:
    """Distributions that files import, anywhere in them."""
    found: set[str] = set()
    for path in paths:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import):
                found.update(alias.name.split(".")[0] for alias in node.names)
            elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
                found.add(node.module.split(".")[0])
    own = {"mrrag", "app"} | set(sys.stdlib_module_names)
    return {DISTRIBUTIONS.get(name, name) for name in found - own}


def names(requirements: Iterable[str]) -> list[str]:
    return [re.split(r"[<>=!~ ;\[]", line)[0].lower() for line in requirements]


def listed(path: Path) -> list[str]:
    lines = path.read_text(encoding="utf-8").splitlines()
    return [line for line in lines if line and not line.startswith(("#", "-"))]


def test_the_library_declares_what_it_imports_once_and_nothing_else() -> None:
    declared = names(PROJECT["dependencies"])
    assert len(declared) == len(set(declared))
    found = imported((ROOT / "mrrag").rglob("*.py"))
    assert found - OPTIONAL == set(declared) - INDIRECT


def test_the_page_declares_what_it_imports_beside_the_library() -> None:
    extra = names(PROJECT["optional-dependencies"]["app"])
    found = imported([*(ROOT / "app").rglob("*.py"), ROOT / "app.py"])
    assert found - OPTIONAL - set(names(PROJECT["dependencies"])) == set(extra)


def test_the_requirement_files_say_what_the_project_says() -> None:
    extras = PROJECT["optional-dependencies"]
    page = sorted([*PROJECT["dependencies"], *extras["app"]])
    assert sorted(listed(ROOT / "requirements.txt")) == page
    assert sorted(listed(ROOT / "requirements-dev.txt")) == sorted(extras["dev"])


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel, built here without the network."""
    folder = tmp_path_factory.mktemp("wheel")
    command = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(folder)]
    subprocess.run(command, cwd=ROOT, check=True, capture_output=True)
    (built,) = folder.glob("*.whl")
    return built


def test_the_wheel_holds_the_library_its_assets_and_its_templates(wheel: Path) -> None:
    held = set(zipfile.ZipFile(wheel).namelist())
    for folder in ("encoder", "knowledge_base", "llava"):
        files = [p for p in (ROOT / "assets" / folder).rglob("*") if p.is_file()]
        assert {f"mrrag/assets/{p.relative_to(ROOT / 'assets').as_posix()}" for p in files} <= held
    assert {"mrrag/assets/learnt.json", "mrrag/assets/world.json", "mrrag/py.typed"} <= held
    for path in (ROOT / "mrrag").rglob("*"):
        if path.is_file() and path.suffix not in (".pyc",):
            assert path.relative_to(ROOT).as_posix() in held
    assert not {name.split("/")[0] for name in held} & {"app", "tests", "sample_cases"}


def test_the_installed_package_needs_no_checkout(wheel: Path, tmp_path: Path) -> None:
    zipfile.ZipFile(wheel).extractall(tmp_path / "site")
    code = "\n".join(
        (
            "import sys; sys.path.insert(0, 'site')",
            "import mrrag, mrrag.files",
            "assert mrrag.__file__.startswith(sys.argv[1]), mrrag.__file__",
            "rag = mrrag.load()",
            "print(rag, rag.retrieve(None, 'Is there a pleural effusion?', k=1).retrieved[0].rank)",
        )
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path)], cwd=tmp_path, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert "2400 documents> 1" in done.stdout
    assert not (tmp_path / "runs").exists()
