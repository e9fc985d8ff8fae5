"""The documents are correct: links resolve, commands parse, names and paths exist."""

from __future__ import annotations

import ast
import contextlib
import importlib
import importlib.util
import io
import re
import shlex
from pathlib import Path

import pytest
import yaml

import mrrag
from app.serve import parse_arguments
from mrrag.cli.main import parser

ROOT = Path(__file__).parents[1]
DOCUMENTS = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md"), *ROOT.glob("assets/*.md")])
# It also names what was renamed or removed.
CHANGELOG = ROOT / "CHANGELOG.md"
CURRENT = [path for path in DOCUMENTS if path != CHANGELOG]
MAX_README_LINES = 150

FENCE = re.compile(r"^( *)```(\w*)\n(.*?)^\1```$", re.MULTILINE | re.DOTALL)
LINK = re.compile(r"!?\[[^\]]*\]\(([^)\s]+)\)")
COMMAND = re.compile(r"^(?:accelerate launch .*?-m |python -m )?mrrag (?=[a-z])(.*)$")
# Files that an example of CONTRIBUTING.md makes.
EXAMPLES = {"mrrag.data.readers.pairs"}


def id_of(path: Path) -> str:
    return str(path.relative_to(ROOT))


def text_of(path: Path) -> str:
    return path.read_text(encoding="utf-8")


def prose_of(path: Path) -> str:
    return FENCE.sub("", text_of(path))


def code_lines(path: Path) -> list[str]:
    """Return the commands in the fenced blocks and in the inline code."""
    blocks = [body for _, language, body in FENCE.findall(text_of(path)) if not language]
    lines = [part.strip() for body in blocks for part in re.split(r"\n| && ", body)]
    return lines + re.findall(r"`([^`\n]+)`", prose_of(path))


def anchors(path: Path) -> set[str]:
    """Return the anchors that GitHub makes of a document's headings."""
    headings = re.findall(r"^#+ (.+)$", prose_of(path), re.MULTILINE)
    plain = (re.sub(r"[^\w\- ]", "", heading.lower()) for heading in headings)
    return {heading.replace(" ", "-") for heading in plain}


def parsed(line: str) -> list[str]:
    """Return the words of a command, without its comment."""
    return shlex.split(line, comments=True)


def refusal(words: list[str]) -> str:
    """Return the parser's error message, empty if it accepts the command line."""
    said = io.StringIO()
    try:
        with contextlib.redirect_stderr(said), contextlib.redirect_stdout(io.StringIO()):
            parser().parse_args(words)
    except SystemExit as error:
        return said.getvalue() if error.code else ""
    return ""


def commands() -> set[str]:
    said = refusal(["no-such-command"])
    return set(re.findall(r"[\w-]+", said.partition("choose from")[2]))


def exists(name: str) -> bool:
    """Return whether a dotted name of the library is a module, or is found in one."""
    parts = name.split(".")
    for n in range(len(parts), 0, -1):
        module = ".".join(parts[:n])
        with contextlib.suppress(ModuleNotFoundError):
            if importlib.util.find_spec(module) is None:
                continue
            found = importlib.import_module(module)
            for part in parts[n:]:
                if not hasattr(found, part):
                    return False
                found = getattr(found, part)
            return True
    return False


def exists_in_page(name: str) -> bool:
    """Return whether a dotted name of ``app`` is a module or defined in one; no gradio needed."""
    path = ROOT.joinpath(*name.split("."))
    if path.is_dir() or path.with_suffix(".py").is_file():
        return True
    module = path.parent.with_suffix(".py")
    if not module.is_file():
        return False
    defined = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)
    tree = ast.parse(module.read_text(encoding="utf-8"))
    return path.name in {node.name for node in tree.body if isinstance(node, defined)}


@pytest.mark.parametrize("path", DOCUMENTS, ids=id_of)
def test_every_relative_link_resolves_with_its_anchor(path: Path) -> None:
    for target in LINK.findall(prose_of(path)):
        if re.match(r"\w+:", target):
            continue
        file, _, anchor = target.partition("#")
        place = (path.parent / file).resolve() if file else path
        assert place.exists(), target
        if anchor:
            assert anchor in anchors(place), target


@pytest.mark.parametrize("path", CURRENT, ids=id_of)
def test_every_command_is_one_that_the_program_takes(path: Path) -> None:
    for line in code_lines(path):
        found = COMMAND.match(line)
        if not found:
            continue
        words = parsed(found[1])
        if len(words) == 1:  # in the text a command is named without its arguments
            assert words[0] in commands(), line
        else:
            assert not refusal(words), f"{line}\n{refusal(words)}"


@pytest.mark.parametrize("path", CURRENT, ids=id_of)
def test_every_command_of_the_page_exists(path: Path) -> None:
    for line in code_lines(path):
        words = parsed(line) if line.startswith("python ") else []
        if words[1:2] == ["app.py"] and "--help" not in words:
            parse_arguments(words[2:])
        elif words[1:2] == ["-m"]:
            assert importlib.util.find_spec(words[2]) is not None, line


def test_the_options_listed_for_the_page_are_those_that_it_has() -> None:
    said = io.StringIO()
    with contextlib.redirect_stdout(said), pytest.raises(SystemExit):
        parse_arguments(["--help"])
    table = text_of(ROOT / "docs" / "the-page.md").partition("## Options")[2]
    rows = [row.split("|")[1] for row in table.split("\n") if row.startswith("| `")]
    option = re.compile(r"--[a-z][a-z-]*")
    listed = {name for row in rows for name in option.findall(row)}
    usage = said.getvalue().partition("\n\n")[0]
    assert listed == set(option.findall(usage)) - {"--help"}


@pytest.mark.parametrize("path", DOCUMENTS, ids=id_of)
def test_every_file_that_is_named_exists(path: Path) -> None:
    text = text_of(path)
    for name in re.findall(r"(?<![\w/])(?:mrrag|app|tests)/(?:[\w]+/)*\w+\.\w+", text):
        assert (ROOT / name).exists(), name
    for name in re.findall(r"(?<![\w/.])(?:mrrag|app|tests)/(?:\w+/)+(?!\w)", text):
        assert (ROOT / name).is_dir(), name


@pytest.mark.parametrize("path", DOCUMENTS, ids=id_of)
def test_every_dotted_name_exists(path: Path) -> None:
    for name in set(re.findall(r"(?<![\w./])mrrag(?:\.[A-Za-z_]\w*)+", text_of(path))):
        assert name in EXAMPLES or exists(name), name


@pytest.mark.parametrize("path", CURRENT, ids=id_of)
def test_every_dotted_name_of_the_page_exists(path: Path) -> None:
    for name in set(re.findall(r"(?<![\w./])app(?:\.[A-Za-z_]\w*)+", text_of(path))):
        assert name in ("app.py",) or exists_in_page(name), name


@pytest.mark.parametrize("path", [ROOT / "README.md", ROOT / "docs" / "api.md"], ids=id_of)
def test_the_python_examples_are_python(path: Path) -> None:
    examples = [body for _, language, body in FENCE.findall(text_of(path)) if language == "python"]
    assert examples
    for example in examples:
        ast.parse(example)


def test_the_architecture_names_every_module() -> None:
    text = text_of(ROOT / "docs" / "architecture.md")
    modules = [*(ROOT / "mrrag").rglob("*.py"), *(ROOT / "app").rglob("*.py")]
    names = {id_of(path) for path in modules if not path.name.startswith("__")}
    assert {name for name in names if f"`{name}`" not in text} == set()


def test_the_readme_is_short_and_begins_with_the_header_of_a_space() -> None:
    _, header, body = text_of(ROOT / "README.md").split("---\n", 2)
    space = yaml.safe_load(header)
    assert space["sdk"] == "gradio"
    assert (ROOT / space["app_file"]).is_file()
    assert body.count("\n") <= MAX_README_LINES


def test_citation_and_changelog_are_of_this_version() -> None:
    citation = yaml.safe_load(text_of(ROOT / "CITATION.cff"))
    assert citation["version"] == mrrag.__version__
    versions = re.findall(r"^## (\d+\.\d+\.\d+)", text_of(CHANGELOG), re.MULTILINE)
    assert versions[0] == mrrag.__version__


def test_workflow_and_hooks_are_yaml() -> None:
    hooks = yaml.safe_load(text_of(ROOT / ".pre-commit-config.yaml"))
    assert {hook["id"] for repo in hooks["repos"] for hook in repo["hooks"]} == {
        "ruff",
        "ruff-format",
    }
    workflow = yaml.safe_load(text_of(ROOT / ".github" / "workflows" / "ci.yml"))
    steps = workflow["jobs"]["tests"]["steps"]
    assert any(step.get("run") == "bash .ci/run" for step in steps)
