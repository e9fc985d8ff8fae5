"""``index``, ``corpus``, ``fetch``: data sets, and knowledge bases made of them."""

from __future__ import annotations

import argparse
import os
import sys
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mrrag.cli.kb import copied_lines
from mrrag.cli.options import (
    RUNS,
    Commands,
    Process,
    add_command,
    add_data,
    add_index_type,
    add_layout,
    check_index_type,
    knowledge_base,
    read_chosen,
    spare_the_cores,
    this_process,
)
from mrrag.data.fetch import OPENI
from mrrag.errors import SettingsError

if TYPE_CHECKING:
    from mrrag.data.dicomweb_request import Archive
    from mrrag.data.records import Corpus, Record
    from mrrag.retrieval.address import Place
    from mrrag.retrieval.encoders import Encoder
    from mrrag.retrieval.knowledge_base import KnowledgeBase
    from mrrag.retrieval.open_images import ImageSource

# What the address of a picture archive begins with, in --data.
ARCHIVE = "dicomweb:"
# What --reports names where the archive's own structured reports are read.
STRUCTURED = Path("sr")
# What is indexed of a data set that has no training split.
NO_TEST = "all but test"


def add_commands(commands: Commands) -> None:
    """Add ``index``, ``corpus`` and ``fetch``."""
    _add_index(commands)
    corpus = add_command(
        commands,
        "corpus",
        run_corpus,
        "Read a data set and print what it holds, and what was skipped and why.",
        "mrrag corpus runs/iu-xray --list-skipped",
    )
    corpus.add_argument("path", type=Path, help="directory of a data set, or a VQA file")
    add_layout(corpus)
    corpus.add_argument("--list-skipped", action="store_true", help="list every skipped row")
    fetch = add_command(
        commands,
        "fetch",
        run_fetch,
        "Download a public data set.\n\nA download that was stopped is resumed.",
        "mrrag fetch iu-xray",
    )
    fetch.add_argument("data_set", choices=("iu-xray",), help="Open-i's chest radiographs")
    fetch.add_argument(
        "directory",
        type=Path,
        nargs="?",
        default=RUNS / "iu-xray",
        help="output directory (default: %(default)s)",
    )
    fetch.add_argument(
        "--source", default=OPENI, metavar="URL", help="where the archives are (default: Open-i)"
    )


def _add_index(commands: Commands) -> None:
    index = add_command(
        commands,
        "index",
        run_index,
        "Build a knowledge base from the images and reports of a data set.\n\n"
        "A build that was stopped is resumed by the same command. Under `accelerate launch`\n"
        "several processes share the work.",
        "mrrag index --data runs/iu-xray --kb runs/kb",
    )
    add_data(
        index,
        text="data set, in any of the supported layouts; or dicomweb:URL, a picture archive "
        "(see docs/hospital.md)",
    )
    index.add_argument(
        "--reports",
        type=Path,
        metavar="FILE",
        help="for an archive: table with the columns accession and report; or sr, the archive's "
        "own structured reports",
    )
    index.add_argument(
        "--unverified",
        action="store_true",
        help="with --reports sr: use reports that are not verified or not complete, too",
    )
    index.add_argument(
        "--kb",
        type=knowledge_base,
        metavar="KB",
        help="output directory, or milvus:URI/COLLECTION (default: the bundled knowledge base, "
        "made by its recipe)",
    )
    add_index_type(index)
    index.add_argument(
        "--vqa",
        action="store_true",
        help="use questions and their answers as reports, where a data set has none",
    )
    index.add_argument(
        "--split",
        help='split to index, or "all" (default: train where there is one, else all but test)',
    )
    _add_encoder(index)
    index.add_argument(
        "--thumbnail-size",
        type=int,
        default=256,
        metavar="PX",
        help="longer side of a thumbnail, in pixels (default: %(default)s)",
    )
    index.add_argument(
        "--batch",
        type=int,
        default=32,
        metavar="N",
        help="cases encoded together (default: %(default)s)",
    )
    index.add_argument(
        "--workers",
        type=int,
        metavar="N",
        help="processes that open images (default: one per core)",
    )
    index.add_argument(
        "--overwrite", action="store_true", help="replace an existing knowledge base"
    )
    index.add_argument(
        "--update",
        action="store_true",
        help="bring an existing knowledge base up to date: encode what is new, and remove what "
        "the data set no longer has",
    )


def _add_encoder(index: argparse.ArgumentParser) -> None:
    index.add_argument(
        "--encoder",
        help="encoder: a directory, a hub name, or a checkpoint file of open_clip "
        "(default: the bundled one; with --update, the knowledge base's own)",
    )
    index.add_argument("--encoder-revision", help="branch, tag or commit of the encoder")
    index.add_argument(
        "--encoder-base",
        metavar="SOURCE",
        help="for a checkpoint file: directory or hub name that holds its configuration",
    )


def run_index(args: argparse.Namespace) -> None:
    """Build a knowledge base, resume a stopped build, or update an existing one."""
    spare_the_cores()
    import torch

    archive = _archive_of(args)
    records = records_to_index(args, archive)
    directory = args.kb or args.assets / "knowledge_base"
    encoder = encoder_of(args, directory)
    process = this_process()
    workers = args.workers
    if process.count > 1:
        encoder.to(process.device)
        workers = workers or max(1, (os.cpu_count() or 1) // process.local)
    elif torch.cuda.is_available():
        encoder.cuda()
    settings = {
        "index": check_index_type(args.index_type, directory),
        "thumbnail_size": args.thumbnail_size,
        "batch": args.batch,
        "workers": workers,
        "overwrite": args.overwrite,
        "update": args.update,
    }
    if archive is not None:
        settings["images"] = _images_of(archive)
    built = _build(directory, records, encoder, process, settings)
    if built is None:
        return
    for reason, ids in built.manifest["skipped"].items():
        if ids:
            print(f"left out: {len(ids)}, {reason} (listed in the manifest of {built.place})")
    patients = built.manifest["patients"]
    print(f"{len(built)} documents of {patients} patients, fingerprint {built.fingerprint[:12]}")
    for line in copied_lines(built)[1:]:
        print(line)


def encoder_of(args: argparse.Namespace, directory: Place) -> Any:
    """Load the encoder that the options name."""
    from mrrag.retrieval.encoders import load_encoder
    from mrrag.retrieval.knowledge_base import load_encoder_of

    bundled = args.assets / "encoder"
    if args.update and args.encoder is None:
        return load_encoder_of(directory, bundled)
    return load_encoder(
        args.encoder or bundled, revision=args.encoder_revision, base=args.encoder_base
    )


def _build(
    directory: Place,
    records: Sequence[Record],
    encoder: Encoder,
    process: Process,
    settings: dict[str, Any],
) -> KnowledgeBase | None:
    """Build with a progress bar; None in all processes but the first."""
    from tqdm import tqdm

    from mrrag.retrieval.build import build_knowledge_base, build_share

    batch = settings["batch"]
    bar = tqdm(
        # A share is of whole batches.
        total=min(len(records), batch * -(-len(records) // (batch * process.count))),
        disable=bool(process.index),
        desc="indexing",
        unit="case",
        mininterval=2,
        file=sys.stderr,
    )

    def progress(done: int, total: int) -> None:
        if not bar.n and done > batch:  # a resumed build's, which say nothing of speed
            bar.initial = done
        bar.update(done - bar.n)

    with bar:
        if process.count == 1:
            return build_knowledge_base(directory, records, encoder, progress=progress, **settings)
        share = (process.index, process.count)
        return build_share(
            directory, records, encoder, share, process.wait, progress=progress, **settings
        )


def records_to_index(args: argparse.Namespace, archive: Archive | None = None) -> Sequence[Record]:
    """Return the records for a knowledge base: the training split's, unless told otherwise."""
    if args.kb is None:  # the bundled one, by its recipe
        from mrrag.training.data import read_data_set
        from mrrag.training.recipe import knowledge_base_rows

        data = read_data_set(args.data)
        return [data.records[n] for n in knowledge_base_rows(data)]
    read = read_chosen(args) if archive is None else _read_archive(args, archive)
    splits = Counter(record.split for record in read.records)
    default = "train" if splits["train"] else NO_TEST if splits["test"] else "all"
    split = args.split or default
    records = [record for record in read.records if _is_of(record.split, split)]
    print("\n".join(_chosen_lines(read, records, split)))
    if not records:
        has = ", ".join(f"{n} {name or 'without one'}" for name, n in splits.items())
        raise SettingsError(
            f"No case is of the split {split}. The data set has {has}. Name one of these, or all, "
            "with --split."
        )
    if not any(record.document.report for record in records):
        raise SettingsError(
            f"{args.data} has no reports. Give --vqa to use questions and their answers instead."
        )
    return records


def _archive_of(args: argparse.Namespace) -> Archive | None:
    """Return the archive that ``--data`` names, or None."""
    if args.unverified and args.reports != STRUCTURED:
        raise SettingsError("--unverified goes with --reports sr. Leave it out.")
    if not str(args.data).startswith(ARCHIVE):
        if args.reports is not None:
            raise SettingsError(f"--reports goes with --data {ARCHIVE}URL. Leave it out.")
        return None
    alone = {"--layout": args.layout, "--images": args.images, "--vqa": args.vqa}
    unfit = [name for name, value in alone.items() if value]
    if unfit or args.reports is None or args.kb is None:
        raise SettingsError(
            f"--data {ARCHIVE}URL needs --reports and --kb, and takes no --layout, --images or "
            "--vqa."
        )
    from mrrag.data.dicomweb_request import archive_at, log_no_addresses

    log_no_addresses()
    # As a path, the address has lost one of its slashes.
    address = str(args.data).removeprefix(ARCHIVE).replace(":/", "://", 1)
    return archive_at(address, os.environ)


def _read_archive(args: argparse.Namespace, archive: Archive) -> Corpus:
    """Find the films of the reports, with a progress bar."""
    from tqdm import tqdm

    from mrrag.data.readers.dicomweb import read_archive, read_archive_reports
    from mrrag.data.views import choose_views

    with tqdm(desc="looking up", unit="report", mininterval=2, file=sys.stderr) as bar:

        def progress(done: int, total: int) -> None:
            bar.total = total
            bar.update(done - bar.n)

        if args.reports == STRUCTURED:
            read = read_archive_reports(archive, unverified=args.unverified, progress=progress)
        else:
            read = read_archive(archive, args.reports, progress=progress)
    return choose_views(read, args.views or "frontal")


def _images_of(archive: Archive) -> ImageSource:
    """Return how the archive's films are loaded while a knowledge base is built."""
    from mrrag.data.dicomweb import instance_stamp, load_instance
    from mrrag.retrieval.open_images import ImageSource

    return ImageSource(partial(load_instance, archive), instance_stamp)


def _is_of(name: str, split: str) -> bool:
    return name != "test" if split == NO_TEST else split in ("all", name)


def _chosen_lines(read: Corpus, records: Sequence[Record], split: str) -> list[str]:
    """Return what is indexed, what is not and why, as lines of text."""
    from mrrag.data.facts import repeated_reports

    skipped = sum(map(len, read.skipped.values()))
    lines = [
        f"{len(records)} of {len(read.records)} cases (split: {split}); {skipped} rows skipped"
    ]
    left = Counter(r.split or "without a split" for r in read.records)
    left.subtract(r.split or "without a split" for r in records)
    others = ", ".join(f"{n} {name}" for name, n in left.items() if n)
    if others:
        lines.append(f"not indexed: {others} (--split all includes them)")
    elif not any(record.split for record in read.records):
        lines.append("the data set has no splits: all cases are indexed, none is left for testing")
    if tests := sum(record.split == "test" for record in records):
        lines.append(f"{tests} test cases are among them, as asked by --split {split}")
    lines += _skipped_lines(replace(read, skipped_questions={}))
    repeated, commonest = repeated_reports(records)
    if repeated:
        lines.append(
            f"{repeated} reports repeat an earlier one word for word; the commonest stands there "
            f"{commonest} times"
        )
    return lines


def _skipped_lines(read: Corpus, list_skipped: bool = False) -> list[str]:
    """Return the notes and the counts of skipped rows by reason, each with an example."""
    lines = [f"note: {note}" for note in read.notes]
    for what, skipped in (("row", read.skipped), ("question", read.skipped_questions)):
        for reason, rows in skipped.items():
            example = f" ({read.examples[reason]})" if reason in read.examples else ""
            lines.append(f"skipped {what:8s}{len(rows):6d}  {reason}{example}")
            if list_skipped:
                lines += [f"    {row}" for row in rows]
    return lines


def run_corpus(args: argparse.Namespace) -> None:
    """Read a data set, and print what it holds."""
    from mrrag.data.corpus import detect_layout, read_corpus

    layout = args.layout or detect_layout(args.path)
    read = read_corpus(args.path, layout, images=args.images, views="all")
    print(corpus_text(read, layout, args.views or "frontal", args.list_skipped))


def corpus_text(read: Corpus, layout: str, views: str, list_skipped: bool = False) -> str:
    """Return what a data set holds, as lines of text; give all its pictures."""
    from mrrag.data.facts import facts_of
    from mrrag.data.views import choose_views

    facts = facts_of(read.records)
    chosen = choose_views(read, views)
    documents = [record.document for record in chosen.records]
    splits = Counter(record.split or "none" for record in chosen.records)
    by_type = Counter(question.answer_type for question in chosen.questions)
    repeated = f"{facts.repeated} repeat an earlier one"
    if facts.repeated:
        repeated += f"; the commonest stands there {facts.commonest} times"
    lines = [
        f"layout          {layout}",
        f"source          {'; '.join(dict.fromkeys(d.source for d in documents)) or 'not stated'}",
        f"licence         {'; '.join(dict.fromkeys(d.licence for d in documents)) or 'not stated'}",
        f"pictures        {facts.frontal} frontal, {facts.lateral} lateral, "
        f"{facts.unknown} of unknown or another view",
        f"  only lateral  {facts.only_lateral} studies",
        f"  more frontals {facts.second_frontals} beyond the first of a study",
        f"reports         {facts.impression_only} with an impression only, "
        f"{facts.redacted} with removed words (XXXX or ___)",
        f"  word for word {repeated}",
        f"views           {views}",
        f"cases           {len(documents)}",
        f"  with a report {sum(bool(d.report) for d in documents)}",
        f"patients        {len({d.patient for d in documents})}",
        f"studies         {len({d.study for d in documents})}",
        f"splits          {', '.join(f'{name} {n}' for name, n in splits.items())}",
        f"other images    {chosen.other_images} of these cases",
        f"questions       {len(chosen.questions)}"
        + "".join(f", {n} {name}" for name, n in sorted(by_type.items())),
    ]
    return "\n".join(lines + _skipped_lines(chosen, list_skipped))


def run_fetch(args: argparse.Namespace) -> None:
    """Download a public data set, with a progress bar a file."""
    from tqdm import tqdm

    from mrrag.data.fetch import fetch_iu_xray

    bars: dict[str, Any] = {}

    def progress(name: str, done: int, total: int) -> None:
        if name not in bars:
            bars[name] = tqdm(desc=name, total=total, unit="B", unit_scale=True, mininterval=1)
        bars[name].update(done - bars[name].n)

    counts = fetch_iu_xray(args.directory, source=args.source, progress=progress)
    for bar in bars.values():
        bar.close()
    print(", ".join(f"{n} files in {args.directory / folder}" for folder, n in counts.items()))
