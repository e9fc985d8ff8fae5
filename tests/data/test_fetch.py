"""Downloads from a server that misbehaves: complete and safe, or an error that says why."""

from __future__ import annotations

import gzip
import io
import random
import subprocess
import sys
import tarfile
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from mrrag.data import fetch as module
from mrrag.data.corpus import read_corpus
from mrrag.data.fetch import fetch_iu_xray
from mrrag.errors import FetchError

REPORT = """<eCitation><uId id="CXR{n}"/><MedlineCitation><Article><Abstract>
<AbstractText Label="FINDINGS">Clear.</AbstractText></Abstract></Article></MedlineCitation>
<parentImage id="CXR{n}_IM-0001-1001"/></eCitation>"""


def tgz(files: dict[str, bytes], *more: tarfile.TarInfo) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as tar:
        for name, data in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
        for info in more:
            tar.addfile(info)
    return buffer.getvalue()


def archives() -> dict[str, bytes]:
    reports = {f"ecgen-radiology/{n}.xml": REPORT.format(n=n).encode() for n in (1, 2)}
    # Bytes that do not compress, so that the archive is long enough to break off in.
    noise = random.Random(0).randbytes(40_000)
    images = {f"./CXR{n}_IM-0001-1001.png": noise[n:] + b"end" for n in (1, 2)}
    return {"NLMCXR_reports.tgz": tgz(reports), "NLMCXR_png.tgz": tgz(images)}


class Server:
    """A server's files, its faults, and the requests that it got."""

    def __init__(self) -> None:
        self.files = archives()
        self.asked: list[tuple[str, str | None]] = []
        self.break_at: list[int] = []  # bytes after which each next answer breaks off
        self.lie: Callable[[int], int] = lambda length: length
        self.ranges = True
        self.tag: str | None = '"one"'
        self.status: list[int] = []
        self.url = ""

    def answer(self, request: BaseHTTPRequestHandler) -> None:
        name = request.path.lstrip("/")
        wanted = request.headers.get("Range")
        self.asked.append((name, wanted))
        if self.status:
            request.send_error(self.status.pop(0))
            return
        if name not in self.files:
            request.send_error(404)
            return
        data, start = self.files[name], 0
        if wanted and self.ranges and request.headers.get("If-Range") == self.tag:
            start = int(wanted.removeprefix("bytes=").removesuffix("-"))
            if start >= len(data):
                request.send_error(416)
                return
            request.send_response(206)
            request.send_header("Content-Range", f"bytes {start}-{len(data) - 1}/{len(data)}")
        else:
            request.send_response(200)
        length = self.lie(len(data) - start)
        if length >= 0:
            request.send_header("Content-Length", str(length))
        if self.tag:
            request.send_header("ETag", self.tag)
        request.end_headers()
        body = data[start:]
        if self.break_at and name == "NLMCXR_png.tgz":
            body = body[: self.break_at.pop(0)]
        request.wfile.write(body)


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    served = Server()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            served.answer(self)

        def log_message(self, *args: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as http:
        thread = threading.Thread(target=http.serve_forever, args=(0.01,))
        thread.start()
        served.url = f"http://127.0.0.1:{http.server_port}"
        yield served
        http.shutdown()
        thread.join()


def fetch(directory: Path, server: Server) -> dict[str, int]:
    return fetch_iu_xray(directory, source=server.url, pause_s=0.0)


def names(directory: Path) -> list[str]:
    return sorted(p.name for p in directory.iterdir())


def test_a_downloaded_data_set_is_read_and_not_downloaded_again(
    tmp_path: Path, server: Server
) -> None:
    steps: list[tuple[str, int, int]] = []
    counts = fetch_iu_xray(
        tmp_path / "iu", source=server.url, progress=lambda *step: steps.append(step)
    )
    assert counts == {"ecgen-radiology": 2, "NLMCXR_png": 2}
    assert names(tmp_path / "iu") == ["NLMCXR_png", "ecgen-radiology"]
    assert [c.document.id for c in read_corpus(tmp_path / "iu").records] == ["1", "2"]
    size = len(server.files["NLMCXR_png.tgz"])
    assert steps[-1] == ("NLMCXR_png.tgz", size, size)
    asked = len(server.asked)
    assert fetch(tmp_path / "iu", server) == counts
    assert len(server.asked) == asked


def test_an_interrupted_download_continues_where_it_stopped(tmp_path: Path, server: Server) -> None:
    server.break_at = [1000, 500, 0, 2000]
    fetch(tmp_path, server)
    png = [wanted for name, wanted in server.asked if name == "NLMCXR_png.tgz"]
    assert png == [None, "bytes=1000-", "bytes=1500-", "bytes=1500-", "bytes=3500-"]
    assert (tmp_path / "NLMCXR_png" / "CXR1_IM-0001-1001.png").read_bytes().endswith(b"end")


def test_a_later_run_continues_where_the_first_gave_up(tmp_path: Path, server: Server) -> None:
    server.break_at = [1000] + [0] * module.ATTEMPTS
    with pytest.raises(FetchError, match=r"broke off at 1,000 of .* 1,000 bytes are kept"):
        fetch(tmp_path, server)
    assert (tmp_path / "NLMCXR_png.tgz.part").stat().st_size == 1000
    server.asked.clear()
    fetch(tmp_path, server)
    assert server.asked == [("NLMCXR_png.tgz", "bytes=1000-")]


@pytest.mark.parametrize("change", ["another version", "no ranges", "no validator"])
def test_parts_of_two_versions_are_never_joined(
    tmp_path: Path, server: Server, change: str
) -> None:
    if change == "no validator":
        server.tag = None
    server.break_at = [1000] + [0] * module.ATTEMPTS
    with pytest.raises(FetchError):
        fetch(tmp_path, server)
    if change == "another version":
        server.tag = '"two"'
        server.files["NLMCXR_png.tgz"] = tgz({"CXR1_IM-0001-1001.png": b"new"})
    server.ranges = change != "no ranges"
    server.break_at = []
    fetch(tmp_path, server)
    data = (tmp_path / "NLMCXR_png" / "CXR1_IM-0001-1001.png").read_bytes()
    assert data == (b"new" if change == "another version" else data)
    assert data.endswith(b"end") or change == "another version"


@pytest.mark.parametrize(
    ("lie", "message"),
    [
        (lambda length: length + 7, "the server answered 416|broke off at"),
        (lambda length: length - 7, "damaged or unsafe"),
        (lambda length: -1, "without its size"),
        (lambda length: 2**40, "at most 134,217,728 are allowed"),
        (lambda length: 2**26, "416|broke off"),
    ],
)
def test_false_sizes_are_detected(
    tmp_path: Path, server: Server, lie: Callable[[int], int], message: str
) -> None:
    server.lie = lie
    with pytest.raises(FetchError, match=message):
        fetch(tmp_path, server)
    assert not (tmp_path / "ecgen-radiology").exists()


def hostile(kind: str) -> bytes:
    def link(name: str, target: str, type_: bytes) -> tarfile.TarInfo:
        info = tarfile.TarInfo(name)
        info.type, info.linkname = type_, target
        return info

    good = {"1.xml": b"<a/>"}
    if kind == "huge member":
        info = tarfile.TarInfo("2.xml")
        info.size = 2**21
        data = io.BytesIO()
        with tarfile.open(fileobj=data, mode="w") as tar:
            tar.addfile(info, io.BytesIO(bytes(2**21)))
        return gzip.compress(data.getvalue())
    if kind == "member that claims terabytes":
        info = tarfile.TarInfo("2.txt")
        info.size = 2**42
        return gzip.compress(info.tobuf(tarfile.GNU_FORMAT) + bytes(1024))
    if kind == "bomb":  # 300 MB of zeros after a file
        return gzip.compress(gzip.decompress(tgz(good))) + gzip.compress(bytes(300 * 2**20), 1)
    if kind == "bomb in a header":
        info = tarfile.TarInfo("pax")
        info.type, info.size = tarfile.XHDTYPE, 2**26
        return gzip.compress(info.tobuf(tarfile.USTAR_FORMAT) + bytes(2**26), 1)
    members = {
        "traversal": ({"../../evil.xml": b"x"}, ()),
        "absolute": ({}, (link("x", "/etc/passwd", tarfile.SYMTYPE),)),
        "symlink": (good, (link("2.xml", "../../outside", tarfile.SYMTYPE),)),
        "symlink inside": (good, (link("2.xml", "1.xml", tarfile.SYMTYPE),)),
        "hard link": (good, (link("2.xml", "1.xml", tarfile.LNKTYPE),)),
        "device": (good, (link("2.xml", "", tarfile.CHRTYPE),)),
        "two of a name": ({"1.xml": b"a", "b/1.xml": b"b"}, ()),
        "nothing": ({"1.txt": b"a"}, ()),
    }
    if kind == "too many files":
        return tgz({f"{n}.xml": b"" for n in range(10_001)})
    if kind == "not an archive":
        return b"<html>Please log in.</html>"
    if kind == "cut short":
        return tgz(good)[:-20]
    if kind == "one bit off":
        data = bytearray(tgz({"1.xml": bytes(range(256))}))
        data[-6] ^= 1  # in the checksum
        return bytes(data)
    files, more = members[kind]
    return tgz(files, *more)


@pytest.mark.parametrize(
    "kind",
    [
        *("traversal", "absolute", "symlink", "symlink inside", "hard link", "device"),
        *("huge member", "member that claims terabytes", "bomb", "bomb in a header"),
        *("two of a name", "nothing", "too many files"),
        *("not an archive", "cut short", "one bit off"),
    ],
)
def test_a_hostile_or_damaged_archive_leaves_nothing(
    tmp_path: Path, server: Server, kind: str
) -> None:
    server.files["NLMCXR_reports.tgz"] = hostile(kind)
    with pytest.raises(FetchError, match=r"again|nothing of it was kept"):
        fetch(tmp_path / "a" / "b" / "iu", server)
    left = [p.name for p in tmp_path.rglob("*") if p.is_file()]
    assert left in ([], ["NLMCXR_reports.tgz"])
    assert names(tmp_path) == ["a"]
    # Once the server is repaired, the same command succeeds without any cleaning up.
    server.files = archives()
    (tmp_path / "a" / "b" / "iu" / "NLMCXR_reports.tgz").unlink(missing_ok=True)
    assert fetch(tmp_path / "a" / "b" / "iu", server)["ecgen-radiology"] == 2


def test_each_problem_of_a_server_gives_its_own_sentence(tmp_path: Path, server: Server) -> None:
    with pytest.raises(FetchError, match="cannot be reached"):
        fetch_iu_xray(tmp_path, source="http://127.0.0.1:9", pause_s=0.0)
    with pytest.raises(FetchError, match="not a valid address"):
        fetch_iu_xray(tmp_path, source="nonsense", pause_s=0.0)
    with pytest.raises(FetchError, match=r"does not exist \(404\)"):
        fetch_iu_xray(tmp_path, source=f"{server.url}/elsewhere", pause_s=0.0)
    server.status = [503] * module.ATTEMPTS
    with pytest.raises(FetchError, match="the server answered 503"):
        fetch(tmp_path, server)
    server.status = [500, 502]
    assert fetch(tmp_path, server)["NLMCXR_png"] == 2


def test_too_little_disk_space_is_reported_before_the_download(
    tmp_path: Path, server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module.shutil, "disk_usage", lambda _: type("U", (), {"free": 100}))
    with pytest.raises(FetchError, match=r"has 100 bytes left, and .* are needed"):
        fetch(tmp_path, server)


def test_on_a_full_disk_the_downloaded_part_is_kept(tmp_path: Path, server: Server) -> None:
    # A limit on the size of files makes writing fail as on a full disk.
    code = (
        "import resource, sys\n"
        "from mrrag.errors import FetchError\n"
        "from mrrag.data.fetch import fetch_iu_xray\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (20000, 20000))\n"
        "try:\n"
        f"    fetch_iu_xray({str(tmp_path)!r}, source={server.url!r}, pause_s=0.0)\n"
        "except FetchError as error:\n"
        "    print(error)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert "There is no room left" in done.stdout, done.stderr
    assert (tmp_path / "NLMCXR_png.tgz.part").stat().st_size == 20000
    server.asked.clear()
    assert fetch(tmp_path, server)["NLMCXR_png"] == 2
    assert server.asked == [("NLMCXR_png.tgz", "bytes=20000-")]
