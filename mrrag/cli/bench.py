"""``bench``, ``bench-search``, ``conformance``: measured beside others."""

from __future__ import annotations

import argparse
from pathlib import Path

from mrrag.cli.options import (
    Commands,
    add_command,
    add_json,
    add_model,
    print_json,
    spare_the_cores,
    ticker,
)
from mrrag.errors import MRRAGError

SIZES = (10_000, 100_000, 377_110)


def add_commands(commands: Commands) -> None:
    """Add ``bench``, ``bench-search`` and ``conformance``."""
    _add_bench(commands)
    _add_bench_search(commands)
    conformance = add_command(
        commands,
        "conformance",
        run_conformance,
        "Read DICOM files and compare the pictures with those of independent readers.\n\n"
        "Reads every file that pydicom ships, and all files in the given directories, each of\n"
        "which must hold a DICOM file.",
        "mrrag conformance archive/",
    )
    conformance.add_argument(
        "folders", type=Path, nargs="*", metavar="DIR", help="more directories to read"
    )
    add_json(conformance)


def _add_bench(commands: Commands) -> None:
    bench = add_command(
        commands,
        "bench",
        run_bench,
        "Time three answers with their attention trace beside transformers' generate().",
        "mrrag bench --random-weights 7b --k 1 --new-tokens 4 --repeats 1",
    )
    add_model(bench)
    bench.add_argument(
        "--random-weights",
        choices=("7b",),
        help="time a model of this size with random weights; nothing is downloaded",
    )
    bench.add_argument(
        "--dtype",
        choices=("bfloat16", "float16", "float32"),
        help="type to compute in (default: float32 on a CPU, bfloat16 elsewhere)",
    )
    bench.add_argument(
        "--k", type=int, default=15, help="reports in the prompt (default: %(default)s)"
    )
    bench.add_argument(
        "--new-tokens",
        type=int,
        default=64,
        metavar="N",
        help="tokens that each answer writes (default: %(default)s)",
    )
    bench.add_argument(
        "--repeats",
        type=int,
        default=5,
        metavar="N",
        help="repeats after one warm-up, of which the median is shown (default: %(default)s)",
    )
    add_json(bench)


def _add_bench_search(commands: Commands) -> None:
    search = add_command(
        commands,
        "bench-search",
        run_bench_search,
        "Time the fused search at several sizes or, with --data, the building of a\n"
        "knowledge base.",
        "mrrag bench-search --documents 10000 100000",
    )
    search.add_argument(
        "--documents",
        type=int,
        nargs="+",
        default=SIZES,
        metavar="N",
        help=f"sizes of the knowledge base, in documents (default: {' '.join(map(str, SIZES))})",
    )
    search.add_argument(
        "--dimension",
        type=int,
        default=128,
        metavar="D",
        help="length of each of the two vectors of a document (default: %(default)s)",
    )
    search.add_argument(
        "--milvus",
        metavar="URI",
        help="also time Milvus: a file of Milvus Lite (FILE.db) or the address of a server",
    )
    search.add_argument(
        "--data", type=Path, metavar="PATH", help="time the indexing of this data set instead"
    )
    search.add_argument(
        "--cases",
        type=int,
        default=640,
        metavar="N",
        help="maximum number of its cases (default: %(default)s)",
    )
    search.add_argument("--encoder", help="encoder to index with (default: the bundled one)")
    search.add_argument(
        "--random-paper-tower",
        action="store_true",
        help="index with random weights of the paper's encoder sizes; nothing is downloaded",
    )
    add_json(search)


def run_bench(args: argparse.Namespace) -> None:
    """Time three answers and their trace."""
    from mrrag.bench.answers import Bench, bench, bench_text
    from mrrag.model.weights import best_device

    options = Bench(
        args.assets,
        model=args.model,
        random_weights=args.random_weights,
        dtype=args.dtype,
        device=best_device(args.random_weights or args.model),
        quantize=args.quantize,
        reports=args.k,
        new_tokens=args.new_tokens,
        repeats=args.repeats,
    )
    result = bench(options)
    if args.json:
        print_json(result)
    else:
        print(bench_text(result))


def run_bench_search(args: argparse.Namespace) -> None:
    """Time a fused search or, with a data set, the building of a knowledge base."""
    if args.data is not None:
        spare_the_cores()
        _bench_index(args)
        return
    from mrrag.bench.search import bench_search, bench_search_text

    rows = bench_search(args.documents, dimension=args.dimension, milvus=args.milvus)
    if args.json:
        print_json(rows)
    else:
        print(bench_search_text(rows))


def _bench_index(args: argparse.Namespace) -> None:
    from mrrag.bench.search import bench_index, random_paper_tower
    from mrrag.data.corpus import read_corpus
    from mrrag.retrieval.encoders import load_encoder

    records = [r for r in read_corpus(args.data).records if r.document.report][: args.cases]
    given = load_encoder(args.encoder or args.assets / "encoder")
    encoder = random_paper_tower(given.tokenizer) if args.random_paper_tower else given
    result = bench_index(records, encoder)
    text = (
        "{cases} cases, {encoder}: the encoder alone {encoder_alone_per_s:.1f} a second, "
        "from files to a knowledge base {index_per_s:.1f} a second ({share:.0%})"
    )
    if args.json:
        print_json(result)
    else:
        print(text.format(**result))


def run_conformance(args: argparse.Namespace) -> None:
    """Read the files, and print each one's outcome and the totals."""
    from dataclasses import asdict

    from mrrag.bench.conformance import (
        FAILURES,
        check_folders,
        conform,
        files_in,
        shipped,
        totals,
    )

    check_folders(args.folders)
    paths = files_in([shipped(), *args.folders])
    outcomes = list(ticker(conform(paths), len(paths), "reading"))
    failed = [outcome for outcome in outcomes if outcome.kind in FAILURES]
    counts, slowest = totals(outcomes), max((o.seconds for o in outcomes), default=0.0)
    if args.json:
        print_json({"totals": counts, "slowest": slowest, "files": [asdict(o) for o in outcomes]})
    else:
        for o in outcomes:
            print(f"{o.name:44.44s} {o.syntax:34.34s} {o.kind:14s} {o.detail}")
        print("; ".join(f"{kind}: {n}" for kind, n in counts.items()), end="; ")
        print(f"slowest {slowest:.2f} s of CPU")
    if failed:
        raise MRRAGError(f"{len(failed)} of {len(outcomes)} files were not read as they must be.")
