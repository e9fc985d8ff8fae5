"""One request to a DICOMweb service, bounded in bytes and seconds, that can be stopped.

``dicomweb-client`` (the extra ``dicomweb``) makes the request, and is imported when the first one
is made. Of what goes wrong, a sentence is told that never holds the request, since its address
may name the patient.
"""

from __future__ import annotations

import logging
import ssl
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future, wait
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar
from urllib.parse import urlsplit

from mrrag.errors import ArchiveError, SettingsError

if TYPE_CHECKING:
    from dicomweb_client import DICOMwebClient

__all__ = ["Archive", "RefusedError", "archive_at", "ask", "log_no_addresses", "wrong"]

# The environment variables that say how to log in, and whom to trust.
USER, PASSWORD, TOKEN = "MRRAG_DICOMWEB_USER", "MRRAG_DICOMWEB_PASSWORD", "MRRAG_DICOMWEB_TOKEN"
CA, CERTIFICATE = "MRRAG_DICOMWEB_CA", "MRRAG_DICOMWEB_CERT"

CONNECT_S, READ_S = 10.0, 20.0  # until connected, and between two bytes
POLL_S = 0.05
BLOCK = 2**16
ADDRESS = (
    "It is the address of a DICOMweb service, such as https://pacs.example.org/dicom-web, without "
    "a user, password or query."
)

T = TypeVar("T")
Stopped = Callable[[], bool]


@dataclass(frozen=True)
class Archive:
    """Where an archive is, and how to log in; :func:`archive_at` checks it.

    Attributes
    ----------
    url : str
        Of the DICOMweb service, without a slash at its end.
    user, password : str
        For HTTP Basic; empty for none.
    token : str
        For HTTP Bearer, instead; empty for none.
    ca : str
        A file of certificates to trust, PEM; empty for the usual ones.
    certificate : str
        A file with this client's certificate and key, PEM; empty for none.
    read_s : float
        Seconds to wait between two bytes.
    """

    url: str
    user: str = ""
    password: str = field(default="", repr=False)
    token: str = field(default="", repr=False)
    ca: str = ""
    certificate: str = ""
    read_s: float = READ_S


def archive_at(url: str, environment: Mapping[str, str]) -> Archive:
    """Return the archive at an address, with credentials from the environment.

    Raises
    ------
    SettingsError
        If the address or what the environment says cannot be used. A password is never quoted.
    """
    address = url.rstrip("/")
    try:
        parts = urlsplit(address)
        known = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:
        known = False
    if not known or parts.username or parts.password or parts.query or parts.fragment:
        shown = "" if "@" in url else f" {url!r}"
        raise SettingsError(f"The archive's address{shown} cannot be used. {ADDRESS}")
    names = (USER, PASSWORD, TOKEN, CA, CERTIFICATE)
    user, password, token, ca, certificate = (environment.get(name, "") for name in names)
    if bool(user) != bool(password):
        raise SettingsError(f"{USER} and {PASSWORD} go together: set both, or neither.")
    if user and token:
        raise SettingsError(f"Set {USER} and {PASSWORD}, or {TOKEN}, not both.")
    for name, path in ((CA, ca), (CERTIFICATE, certificate)):
        if path and not Path(path).is_file():
            raise SettingsError(f"{name} is {path}, which is no file. Give a file in PEM format.")
    _check_certificates(ca, certificate)
    _require_client()
    return Archive(address, user, password, token, ca, certificate)


def _check_certificates(ca: str, certificate: str) -> None:
    """Raise ``SettingsError`` if a file cannot be used; an encrypted key would be asked about."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    try:
        if ca:
            context.load_verify_locations(ca)
    except OSError:
        raise SettingsError(
            f"{CA} is {ca}, which holds no certificate. Give the certificates to trust as one "
            "file in PEM format."
        ) from None
    try:
        if certificate:
            context.load_cert_chain(certificate, password="")
    except OSError:
        raise SettingsError(
            f"{CERTIFICATE} is {certificate}, which does not hold a certificate and its key, or "
            "the key is encrypted. Give both as one file in PEM format, the key without a "
            "passphrase."
        ) from None


def log_no_addresses() -> None:
    """Log no warning of the libraries that make the requests, for the whole process.

    Such a warning holds the request's address, and so the patient that was searched for.
    """
    for name in ("urllib3", "dicomweb_client"):
        logging.getLogger(name).setLevel(logging.ERROR)


class RefusedError(ArchiveError):
    """One request failed for what was asked, so that another one may succeed."""


def ask(
    archive: Archive,
    call: Callable[[DICOMwebClient], T],
    *,
    stopped: Stopped,
    most: int,
    seconds: float,
    accept: str = "",
) -> T:
    """Call the client in a thread of its own, and wait until it is done, stopped or too late.

    The thread of a call that is given up ends with its next byte, or ``Archive.read_s`` later.
    """
    given_up = threading.Event()
    result: Future[T] = Future()

    def work() -> None:
        try:
            with _client(archive, most, given_up, accept) as client:
                result.set_result(call(client))
        except BaseException as error:
            result.set_exception(error)

    threading.Thread(target=work, daemon=True).start()
    until = time.monotonic() + seconds
    try:
        while not wait([result], POLL_S).done:
            if stopped():
                raise ArchiveError("Stopped. Nothing is being fetched from the archive.")
            if time.monotonic() > until:
                raise _slow(seconds)
    finally:
        given_up.set()
    error = result.exception()
    if error is not None:
        # Its own text holds the address, and so the patient that was searched for.
        raise _in_words(error, archive) from None
    return result.result()


def _in_words(error: BaseException, archive: Archive) -> Exception:
    """Return what went wrong as a sentence without the request."""
    import requests

    if isinstance(error, ArchiveError):
        return error
    if isinstance(error, requests.HTTPError) and error.response is not None:
        return _refused(error.response.status_code, archive)
    if isinstance(error, requests.exceptions.SSLError):
        return ArchiveError(
            "The archive's certificate is not trusted, or it does not accept ours. Set "
            f"{CA} to the file of your hospital's certificates, or {CERTIFICATE} to our own."
        )
    if isinstance(error, requests.Timeout):
        return _slow(archive.read_s)
    if isinstance(error, requests.exceptions.ChunkedEncodingError):
        return ArchiveError("The archive broke off in the middle of its answer. Try again.")
    if isinstance(error, requests.ConnectionError):
        return ArchiveError(
            "The archive cannot be reached, or broke the connection. Check that it is running "
            "and that its address is right; then try again."
        )
    return wrong("an answer that is not DICOMweb")


def _refused(status: int, archive: Archive) -> ArchiveError:
    if status in (401, 403):
        return ArchiveError(
            f"The archive does not let MR-RAG in (HTTP {status}). Whoever runs the page sets "
            f"{USER} and {PASSWORD}, {TOKEN} or {CERTIFICATE}, and asks the archive for the right "
            "to search and retrieve."
        )
    if status in (408, 429, 503, 504):
        return ArchiveError(f"The archive is too busy to answer (HTTP {status}). Try again.")
    words = (
        f"The archive refused the request (HTTP {status}). Check that the address is that "
        "of its DICOMweb service, and that it allows QIDO-RS and WADO-RS."
    )
    if status == 400 and archive.url.startswith("https:"):  # nginx, without a certificate it trusts
        words += f" If it asks for a certificate, set {CERTIFICATE} to one that it trusts."
    return RefusedError(words)


def _slow(seconds: float) -> ArchiveError:
    return ArchiveError(
        f"The archive did not answer within {seconds:.0f} seconds. Try again, or search for less."
    )


def wrong(came: str) -> ArchiveError:
    """Return the error for an answer that DICOMweb does not allow."""
    return RefusedError(
        f"The archive sent {came}. Check that the address is that of its DICOMweb service."
    )


def _too_much(most: int) -> ArchiveError:
    return RefusedError(
        f"The archive sent more than {most:,} bytes, which is more than is read. Choose a smaller "
        "picture, or search for less."
    )


def _require_client() -> None:
    """Raise ``SettingsError`` if ``dicomweb-client`` is not installed."""
    try:
        import dicomweb_client  # noqa: F401
    except ImportError:
        raise SettingsError(
            "An archive needs the package dicomweb-client, which is not installed. Install it: "
            'pip install "dicomweb-client>=0.60,<1"'
        ) from None


@contextmanager
def _client(
    archive: Archive, most: int, given_up: threading.Event, accept: str
) -> Iterator[DICOMwebClient]:
    """Yield a client whose answers have at most ``most`` bytes, and end once given up.

    ``accept`` replaces the media type that the client asks for.
    """
    import requests
    from dicomweb_client import DICOMwebClient
    from requests.adapters import HTTPAdapter

    class Bounded(HTTPAdapter):
        """Sends a request, and bounds what comes back."""

        def send(self, request: Any, *args: Any, **options: Any) -> Any:
            if accept:
                request.headers["Accept"] = accept
            # The comma of a viewport, which Orthanc reads as it stands only (RFC 3986, 2.2).
            if "/rendered?" in request.url:
                request.url = request.url.replace("%2C", ",")
            if archive.ca:  # requests would prefer what the environment says
                options["verify"] = archive.ca
            response = super().send(request, *args, **options)
            response.raw = _Counted(response.raw, most, given_up)
            return response

    with requests.Session() as session:
        session.mount("https://", Bounded())
        session.mount("http://", Bounded())
        if archive.user:
            session.auth = (archive.user, archive.password)
        if archive.token:
            session.auth = lambda request: _with_token(request, archive.token)
        if archive.certificate:
            session.cert = archive.certificate
        client = DICOMwebClient(archive.url, session, timeout=(CONNECT_S, archive.read_s))
        client.set_http_retry_params(retry=False)  # whoever asked may ask again
        yield client


def _with_token(request: Any, token: str) -> Any:
    request.headers["Authorization"] = f"Bearer {token}"
    return request


class _Counted:
    """The body of an answer, which ends with an error beyond so many bytes or once given up."""

    def __init__(self, raw: Any, most: int, given_up: threading.Event) -> None:
        self._raw, self._most, self._given_up = raw, most, given_up

    def stream(self, size: int, decode_content: bool = True) -> Iterator[bytes]:
        """Yield the decoded body in blocks."""
        count = 0
        try:
            for block in self._raw.stream(max(size, BLOCK), decode_content=decode_content):
                count += len(block)
                if count > self._most:
                    raise _too_much(self._most)
                if self._given_up.is_set():
                    raise ArchiveError("Stopped.")
                yield block
        except BaseException:
            self._raw.close()  # what is left of it is not read, and the connection not used again
            raise

    def close(self) -> None:
        """Close the connection."""
        self._raw.close()

    def release_conn(self) -> None:
        """Give the connection back."""
        self._raw.release_conn()
