"""The models that answer: the one that is loaded at the start, and others once a visitor asks.

Each has a :class:`Backend` for every knowledge base. A visitor's choice is the visitor's own. What
one visitor had loaded is loaded once, stays until the page ends, and may be chosen by all.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from pathlib import Path

from app.backend import Backend
from app.choice import Offer
from app.sections.visit import sentence_of
from mrrag.errors import OTHERWISE, ModelError

HUB_TIMEOUT_S = 4.0

# Loads an offer with its number: one backend for each knowledge base. It may take minutes.
Loader = Callable[[Offer, int], Sequence[Backend]]


@dataclass(frozen=True)
class Row:
    """An offer as the page shows it.

    Attributes
    ----------
    number : int
        Of the model among all; 0 is the one of the start.
    state : str
        ``"offered"``, ``"loading"``, ``"ready"``, or ``"unreachable"``.
    download : int
        Bytes that are still on the hub, as far as is known.
    problem : str
        Why it could not be loaded; else empty.
    """

    number: int
    offer: Offer
    state: str
    download: int = 0
    problem: str = ""


class Models:
    """What the threads that serve the page share: the models that are loaded and offered."""

    def __init__(
        self, first: Sequence[Backend], offers: Sequence[Offer] = (), load: Loader | None = None
    ) -> None:
        self._ready: dict[int, Sequence[Backend]] = {0: first}
        self._offers = dict(enumerate(offers, start=1)) if load else {}
        self._load = load
        self._loading: dict[int, Future[None]] = {}
        self._bytes: dict[int, int] = {}
        self._lock = threading.Lock()
        self._one_at_a_time = threading.Lock()

    @property
    def first(self) -> Sequence[Backend]:
        """The backends of the model of the start, one for each knowledge base."""
        return self._ready[0]

    @property
    def offers(self) -> bool:
        """Whether there are further models."""
        return bool(self._offers)

    def select(self, model: object, base: object) -> Backend:
        """Return the backend with these numbers, or the first where there is none."""
        ready = list(self._ready.items())
        backends = next((found for n, found in ready if n == model), self.first)
        return next((found for n, found in enumerate(backends) if n == base), backends[0])

    def ready(self) -> list[tuple[str, int]]:
        """Return title and number of every model that may be chosen."""
        return [(Path(b[0].about.model).name, n) for n, b in sorted(self._ready.items())]

    def load(self, number: object) -> Future[None]:
        """Load an offer beside all else; whoever asks meanwhile gets the same future.

        Where loading failed, it is tried again.

        Raises
        ------
        ModelError
            If there is no such offer. The future may raise it, too.
        """
        with self._lock:
            wanted = next((n for n in self._offers if n == number), None)
            if wanted is None:
                raise ModelError("That model is not offered. Choose one of those shown.")
            before = self._loading.get(wanted)
            if before is not None and not (before.done() and before.exception()):
                return before
            loading = self._loading[wanted] = Future()
            # A daemon: whoever ends the page does not wait for a download.
            threading.Thread(target=self._make, args=(wanted, loading), daemon=True).start()
            return loading

    def _make(self, number: int, loading: Future[None]) -> None:
        assert self._load is not None  # for the type checker: there are no offers without it
        try:
            with self._one_at_a_time:
                self._ready[number] = self._load(self._offers[number], number)
            loading.set_result(None)
        except BaseException as error:
            loading.set_exception(error)

    def rows(self) -> list[Row]:
        """Return the offers as they stand; asks the hub for sizes that it does not know yet."""
        return [self._row(number, offer) for number, offer in self._offers.items()]

    def _row(self, number: int, offer: Offer) -> Row:
        if number in self._ready:
            return Row(number, offer, "ready")
        loading = self._loading.get(number)
        if loading is not None and not loading.done():
            return Row(number, offer, "loading", self._bytes.get(number, 0))
        try:
            download = self._to_download(number, offer.name)
        except ModelError:
            return Row(number, offer, "unreachable")
        failed = loading.exception() if loading is not None else None
        problem = sentence_of(failed) if isinstance(failed, Exception) else ""
        return Row(number, offer, "offered", download, problem.removesuffix(f" {OTHERWISE}"))

    def _to_download(self, number: int, name: str) -> int:
        """Return the bytes of a model that is not on this machine; the hub is asked once."""
        from mrrag.hub import downloaded, is_hub_name, repository_bytes
        from mrrag.model.checkpoint import FILES

        if number not in self._bytes:
            local = Path(name).expanduser().is_dir() or not is_hub_name(name)
            there = local or downloaded(name, FILES) is not None
            size = 0 if there else repository_bytes(name, FILES, timeout_s=HUB_TIMEOUT_S)
            self._bytes[number] = size
        return self._bytes[number]
