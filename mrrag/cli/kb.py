"""``kb copy``: a knowledge base from a folder to a collection of Milvus, and back."""

from __future__ import annotations

import argparse
import sys
from typing import TYPE_CHECKING

from mrrag.cli.options import Commands, add_command, add_index_type, knowledge_base

if TYPE_CHECKING:
    from mrrag.retrieval.knowledge_base import KnowledgeBase


def add_commands(commands: Commands) -> None:
    """Add ``kb``."""
    copy = add_command(
        commands,
        "kb",
        run_copy,
        "Copy a knowledge base between a folder and a collection of Milvus.\n\n"
        "The copy has the same documents, scores and fingerprint. A copy that was stopped is\n"
        "resumed by the same command.",
        "mrrag kb copy runs/kb milvus:base.db/chest",
    )
    copy.add_argument("what", choices=("copy",), help="copy a knowledge base")
    copy.add_argument(
        "source",
        type=knowledge_base,
        metavar="FROM",
        help="knowledge base: a folder, or milvus:URI/COLLECTION",
    )
    copy.add_argument(
        "target", type=knowledge_base, metavar="TO", help="where the copy is put, likewise"
    )
    add_index_type(copy)
    copy.add_argument("--overwrite", action="store_true", help="replace an existing knowledge base")


def run_copy(args: argparse.Namespace) -> None:
    """Copy a knowledge base, with a progress bar."""
    from tqdm import tqdm

    from mrrag.cli.options import check_index_type
    from mrrag.retrieval.copy import copy_knowledge_base
    from mrrag.retrieval.knowledge_base import KnowledgeBase, load_encoder_of

    index = check_index_type(args.index_type, args.target)
    encoder = load_encoder_of(args.source, args.assets / "encoder")
    source = KnowledgeBase.load(args.source, encoder)
    with tqdm(total=len(source), unit="document", mininterval=2, file=sys.stderr) as bar:

        def progress(done: int, total: int) -> None:
            bar.set_description("checking" if bar.n > done or bar.n == total else "copying")
            bar.update(done - bar.n)

        copied = copy_knowledge_base(
            source, args.target, encoder, index=index, overwrite=args.overwrite, progress=progress
        )
    print("\n".join(copied_lines(copied)))


def copied_lines(copied: KnowledgeBase) -> list[str]:
    """Return what was written, as lines of text; of an index that is not exact, its recall."""
    from mrrag.retrieval.recall import ENOUGH, K

    lines = [f"{len(copied)} documents at {copied.place}, fingerprint {copied.fingerprint[:12]}"]
    index = copied.manifest.get("index", {})
    if "recall" in index:
        lines.append(
            f"Of the {K} best documents, the index {index['type']} finds {index['recall']:.2%} "
            "(mean over 100 queries)."
        )
        if index["recall"] < ENOUGH:
            lines.append(
                f"WARNING: that is less than {ENOUGH:.0%}. Retrieval differs from an exact search. "
                "Use --index-type FLAT, or one that finds more."
            )
    return lines
