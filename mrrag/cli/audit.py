"""``audit``: how good a knowledge base is, without a language model."""

from __future__ import annotations

import argparse
import json
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mrrag.cli.options import (
    Commands,
    add_command,
    add_data,
    add_json,
    add_kb,
    print_json,
    read_chosen,
    ticker,
)
from mrrag.errors import SettingsError
from mrrag.files import write_atomic
from mrrag.types import BUNDLED, Weights

if TYPE_CHECKING:
    from collections.abc import Sequence

    from mrrag.data.records import Record
    from mrrag.retrieval.address import Place


def add_commands(commands: Commands) -> None:
    """Add ``audit``."""
    audit = add_command(
        commands,
        "audit",
        run_audit,
        "Measure how good a knowledge base is, without a language model.\n\n"
        "Looks at what is retrieved for studies whose findings are known: by each similarity,\n"
        "each pair and MCR, against random reports, plain pixels and the studies' own reports.\n"
        "The queries are the base's own studies, each without its own patient, or the studies\n"
        "of another data set or split. The result is kept in the knowledge base as audit.json,\n"
        "which the page shows.",
        "mrrag audit --kb runs/kb --data data/iu-xray --split validation",
    )
    add_kb(audit)
    add_data(audit, required=False, text="data set of the queries (default: the base's own)")
    audit.add_argument(
        "--split",
        default="validation",
        help='split of the data set, or "all" (default: validation)',
    )
    audit.add_argument(
        "--queries",
        type=int,
        default=500,
        metavar="N",
        help="maximum number of query studies (default: %(default)s)",
    )
    audit.add_argument(
        "--k", type=int, default=8, help="number of reports to retrieve (default: %(default)s)"
    )
    audit.add_argument(
        "--seed", type=int, default=0, help="seed of random draws (default: %(default)s)"
    )
    audit.add_argument(
        "--choose-weights",
        action="store_true",
        help="choose α, β, γ on half of the patients, and keep them in the knowledge base's "
        "learnt.json if they are better on the other half",
    )
    add_json(audit)
    audit.add_argument("--html", type=Path, metavar="FILE", help="also write a web page")


def run_audit(args: argparse.Namespace) -> None:
    """Audit the knowledge base, store the result in it, and print it."""
    from mrrag.learnt import learnt_for, learnt_path
    from mrrag.report.audit_panel import AUDIT, audit_to_html
    from mrrag.retrieval.knowledge_base import KnowledgeBase, load_encoder_of
    from mrrag.retrieval.manifest import files_of
    from mrrag.study.audit import audit, choose_weights, compared, facts_of, sample_of
    from mrrag.study.audit_text import audit_text, choice_text
    from mrrag.study.similarities import queries_of_base, queries_of_records

    if args.queries < 1:
        raise SettingsError(f"--queries is {args.queries}. It must be at least 1.")
    if args.choose_weights and args.kb is None:
        raise SettingsError(
            "The bundled knowledge base's weights were learnt with the bundled model and stay as "
            "they are. Name another knowledge base with --kb."
        )
    if args.choose_weights:
        learnt_path(BUNDLED, args.kb, args.assets)  # refuses before anything is measured
    place = args.kb or args.assets / "knowledge_base"
    encoder = load_encoder_of(place, args.assets / "encoder")
    knowledge_base = KnowledgeBase.load(place, encoder)
    weights = learnt_for(BUNDLED, files_of(args.kb), args.assets).weights
    numbers_N, records = sample_of(knowledge_base, args.seed), _records(args)
    if args.data is None:
        queries = queries_of_base(knowledge_base, numbers_N, args.queries, seed=args.seed)
        origin = "the base's own, each without its patient"
    else:
        asked = [r for r in records if args.split in ("all", r.split)]
        queries = queries_of_records(asked, encoder, args.queries, seed=args.seed, ticker=ticker)
        origin = f"{args.data.name}, split {args.split}"
    case = compared(
        knowledge_base, encoder, numbers_N, queries, records=records, k=args.k, seed=args.seed
    )
    result = facts_of(knowledge_base) | {"from": origin} | audit(case, weights, seed=args.seed)
    text = audit_text(result)
    if args.choose_weights:
        chosen = choose_weights(case, weights, seed=args.seed)
        text += f"\n\n{choice_text(chosen)}"
        if chosen["better"]:
            text += f" They were written to {_write_weights(args, chosen)}."
        result["chosen"] = {name: value for name, value in chosen.items() if name != "studies"}
    _keep(place, AUDIT, result)
    if args.html:
        args.html.write_text(audit_to_html(result), encoding="utf-8")
    if args.json:
        print_json(result)
    else:
        print(text)


def _keep(place: Place, name: str, result: dict[str, Any]) -> None:
    """Store a result with its knowledge base."""
    if isinstance(place, Path):
        write_atomic(place / name, json.dumps(result) + "\n")
        return
    from mrrag.retrieval.milvus_notes import keep_note  # pymilvus may not be installed

    keep_note(place, name, result)


def _records(args: argparse.Namespace) -> Sequence[Record]:
    """Return the records of the data set that the options name; none where they name none."""
    if args.data is None:
        return ()
    records = read_chosen(args).records
    if not any(args.split in ("all", record.split) for record in records):
        has = ", ".join(sorted({record.split or "none" for record in records}))
        raise SettingsError(
            f"No study of {args.data} is of the split {args.split}. Its splits: {has}. "
            "Name one of them, or all, with --split."
        )
    return records


def _write_weights(args: argparse.Namespace, chosen: dict[str, Any]) -> Path:
    """Write chosen weights where the knowledge base keeps what was learnt for it."""
    from mrrag.learnt import learnt_for, learnt_path, load_learnt, study_digest, write_learnt

    path = learnt_path(BUNDLED, args.kb, args.assets)
    learnt = load_learnt(path) if path.is_file() else learnt_for(BUNDLED, args.kb, args.assets)
    found = {name: value for name, value in chosen.items() if name != "studies"}
    found |= {"used": True, "chosen_by": "mrrag audit --choose-weights"}
    found["studies"] = sorted(map(study_digest, chosen["studies"]))
    learnt = replace(learnt, weights=Weights(**chosen["weights"]), intervals=())
    write_learnt(path, learnt, model=learnt.model, adapter=found)
    return path
