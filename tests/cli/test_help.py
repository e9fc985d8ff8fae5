"""Help that explains itself, examples that work, and old option names that still do."""

from __future__ import annotations

import argparse
import shlex
import subprocess
import sys

import pytest

from mrrag.cli.main import parser


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
            assert "default" in action.help or action.dest == "assets", f"{name} {action.dest}"


def test_one_word_means_one_thing() -> None:
    meanings: dict[str, set[tuple[object, object]]] = {}
    for command in COMMANDS.values():
        for action in command._actions:
            for option in action.option_strings:
                meanings.setdefault(option, set()).add((action.type, action.dest))
    several = {option for option, kinds in meanings.items() if len(kinds) > 1}
    assert several == set()


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
