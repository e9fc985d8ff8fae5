"""``doctor``: what this machine can do."""

from __future__ import annotations

import argparse

from mrrag.cli.options import (
    Commands,
    add_command,
    add_json,
    add_model,
    print_json,
    spare_the_cores,
)
from mrrag.errors import MRRAGError


def add_commands(commands: Commands) -> None:
    """Add ``doctor``."""
    doctor = add_command(
        commands,
        "doctor",
        run_doctor,
        "Say what this machine can do, and test a model on it, in half a minute.\n\n"
        "Prints versions, devices, free memory, the model that the page would choose and why, and\n"
        "a self-test. The output names no user, host or directory: paste it into an issue.\n"
        "The exit status is 1 where a check fails.",
        "mrrag doctor --json",
    )
    add_model(doctor)
    add_json(doctor)


def run_doctor(args: argparse.Namespace) -> None:
    """Print what was found; MRRAGError where a check failed or a package cannot be loaded."""
    from dataclasses import asdict

    spare_the_cores()
    from mrrag import __version__

    try:
        from mrrag.bench.doctor import doctor_text, examine
    except (ImportError, OSError) as error:  # OSError: a library that a package is linked to
        raise MRRAGError(
            f"A package cannot be loaded here ({type(error).__name__}: {error}). Install MR-RAG "
            "again in a fresh environment; docs/troubleshooting.md says more."
        ) from error
    found = examine(args.assets, release=__version__, model=args.model, quantize=args.quantize)
    if args.json:
        print_json(asdict(found))
    else:
        print(doctor_text(found))
    failed = [check.name for check in found.checks if check.passed is False]
    if failed:
        raise MRRAGError(
            f"Failed: {', '.join(failed)}. docs/troubleshooting.md says what each check means."
        )
