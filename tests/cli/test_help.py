"""Help that explains itself, examples that work, and old option names that still do."""

from __future__ import annotations

import argparse
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from mrrag.cli import options
from mrrag.cli.main import parser
from mrrag.data.corpus import LAYOUTS


def commands() -> dict[str, argparse.ArgumentParser]:
    """Every command's parser, by name."""
    (choices,) = [a.choices for a in parser()._actions if isinstance(a.choices, dict)]
    return choices


COMMANDS = commands()


@pytest.mark.parametrize("name", COMMANDS)
def test_a_command_says_what_it_does_with_an_example_that_parses(name: str) -> None:
    command = COMMANDS[name]
    assert command.description
    assert command.description.split("\n\n")[0].endswith(".")
    assert command.epilog is not None
    program, called, *arguments = shlex.split(command.epilog.removeprefix("example:"))
    assert (program, called) == ("mrrag", name)
    assert parser().parse_args([name, *arguments]).run


@pytest.mark.parametrize("name", COMMANDS)
def test_every_option_is_explained(name: str) -> None:
    for action in COMMANDS[name]._actions:
        assert action.help, f"{name} {action.dest}"
        # A default that is not None is shown, but for switches.
        if action.nargs != 0 and action.default not in (None, argparse.SUPPRESS):
            assert "default" in action.help, f"{name} {action.dest}"


@pytest.mark.parametrize("name", COMMANDS)
def test_a_default_is_shown_as_a_person_would_type_it(name: str) -> None:
    assert not re.search(r"default:\s+[\[(]", COMMANDS[name].format_help())


def test_the_layouts_that_are_listed_are_those_that_are_read() -> None:
    assert options.LAYOUTS.split(", ") == list(LAYOUTS)


def test_run_folders_are_in_the_current_directory() -> None:
    evaluate = parser().parse_args(["evaluate"])
    samples = parser().parse_args(["samples", "--data", "runs/phantoms"])
    assert (evaluate.folder, samples.runs) == (Path("runs/evaluate"), Path("runs"))


def test_one_word_means_one_thing() -> None:
    meanings: dict[str, set[tuple[object, object]]] = {}
    for command in COMMANDS.values():
        for action in command._actions:
            for option in action.option_strings:
                meanings.setdefault(option, set()).add((action.type, action.dest))
    several = {option for option, kinds in meanings.items() if len(kinds) > 1}
    # A table of questions in `ask`, a number of pictures in `index` and in training.
    assert several == {"--batch"}


def test_options_of_before_are_still_taken() -> None:
    evaluate = parser().parse_args(["evaluate", "--noise", "0", "0.5"])
    assert evaluate.noise_shares == [0.0, 0.5]
    ask = parser().parse_args(["ask", "a.png", "Is it?", "--tower", "stock", "--noise", "2"])
    assert (ask.vision_tower, ask.noise) == ("stock", 2)


def test_help_needs_no_torch() -> None:
    check = (
        "import sys; from mrrag.cli.main import parser; parser();"
        "sys.exit('torch' in sys.modules or 'transformers' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", check], check=False).returncode == 0
