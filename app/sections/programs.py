"""What programs ask: the checks and the engine of the page, and the answer as JSON.

Nothing of a visit is kept, so that nothing can be superseded: each call stands for itself.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from concurrent.futures import TimeoutError as LoadingTimeout
from typing import TYPE_CHECKING, Any, NamedTuple

from app.about import About
from app.backend import Backend
from app.sections.asking import LOADING_SECONDS, STILL_LOADING, checked_question
from app.sections.case import NO_FILE
from app.sections.settings import Controls, settings_from, whole
from app.waiting import Room
from mrrag.case import Case, Evidence, Settings
from mrrag.data.images import read_image
from mrrag.errors import ImageError, SettingsError
from mrrag.report.export import case_to_json, evidence_to_json
from mrrag.types import Image, Query

if TYPE_CHECKING:
    from mrrag.pipeline import Pipeline

# As the page's controls stand before anybody moves them.
K = 8
NAMES = ("k", "weights", "strength", "layers", "form", "noise")
WEIGHTS = ("alpha", "beta", "gamma")
MOST_FRAMES = 99_999


class Call(NamedTuple):
    """What a program sent, unchecked but for the picture's bytes."""

    picture: bytes
    question: Any
    settings: Any = None
    knowledge_base: Any = ""
    frame: Any = 0


class Checked(NamedTuple):
    """A call that may be answered."""

    backend: Backend
    image: Image
    question: str
    settings: Settings

    @property
    def query(self) -> Query:
        """The question and its picture."""
        return Query(self.image, self.question)


def ask_case(backends: Sequence[Backend], call: Call, room: Room, caller: str) -> dict[str, Any]:
    """Answer three ways; return what ``mrrag ask --json`` prints.

    Parameters
    ----------
    room
        Where the call waits for its turn.
    caller
        Whose turn it is; the calls of one caller wait for each other.

    Raises
    ------
    MRRAGError
        Whose sentence is the page's.
    """
    from mrrag.evidence import find_evidence

    checked = check(backends, call)

    def answered() -> tuple[Pipeline, Evidence, Case]:
        pipeline = wait_for_pipeline(checked.backend)
        evidence = find_evidence(pipeline, checked.query, checked.settings)
        steps = checked.backend.answer(pipeline, checked.query, evidence, checked.settings)
        *_, case = steps
        if not isinstance(case, Case):  # for the type checker: the last item is the case
            raise TypeError("A question was not answered.")
        return pipeline, evidence, case

    with room.turn(caller) as turn:
        room.wait(turn)
        pipeline, evidence, case = room.work(answered)
    with room.turn(caller, later=True) as turn:
        room.wait(turn)
        vectors = evidence.vectors
        explain = checked.backend.explain
        explained = room.work(lambda: explain(pipeline, checked.query, case, vectors=vectors))
    return case_to_json(explained, checked.image)


def retrieve_evidence(
    backends: Sequence[Backend], call: Call, room: Room, caller: str
) -> dict[str, Any]:
    """Retrieve similar reports; the model is not asked. It waits as :func:`ask_case` does.

    Raises
    ------
    MRRAGError
        Whose sentence is the page's.
    """
    from mrrag.evidence import find_evidence

    checked = check(backends, call)
    with room.turn(caller) as turn:
        room.wait(turn)
        pipeline = wait_for_pipeline(checked.backend)
        evidence = room.work(lambda: find_evidence(pipeline, checked.query, checked.settings))
    return evidence_to_json(evidence, checked.question, checked.image)


def check(backends: Sequence[Backend], call: Call) -> Checked:
    """Return the call as what the page would ask.

    Raises
    ------
    SettingsError, ImageError
        Where the page would refuse it.
    """
    backend = backend_named(backends, call.knowledge_base)
    question = checked_question(call.question)
    settings = settings_from(backend.about, controls_of(backend.about, call.settings))
    if not call.picture:
        raise ImageError(NO_FILE)
    frame = whole("The frame", call.frame, 0, MOST_FRAMES)
    return Checked(backend, read_image(call.picture, frame=frame), question, settings)


def backend_named(backends: Sequence[Backend], name: object) -> Backend:
    """Return the backend over the knowledge base of this name; the first for an empty one.

    Raises
    ------
    SettingsError
        If there is none.
    """
    names = [backend.about.base.name for backend in backends]
    if name in ("", None):
        return backends[0]
    if name not in names:
        raise SettingsError(
            f"There is no knowledge base of that name here. Choose one of: {', '.join(names)}."
        )
    return backends[names.index(str(name))]


def controls_of(about: About, given: object) -> Controls:
    """Return the page's controls as learnt, with what was given in their place.

    Raises
    ------
    SettingsError
        If what was given is no object of known settings.
    """
    settings = {} if given is None else given
    if not isinstance(settings, Mapping):
        raise SettingsError('The settings are no object. Give one such as {"k": 4}.')
    unknown = [str(name)[:40] for name in settings if name not in NAMES]
    if unknown:
        raise SettingsError(
            f"There is no setting {', '.join(unknown[:5])}. The settings are {', '.join(NAMES)}."
        )
    alpha, beta, gamma = weights_of(about, settings.get("weights"))
    learnt: dict[str, Any] = {
        "k": K,
        "strength": about.strength,
        "layers": list(about.critical),
        "form": about.form,
        "noise": 0,
    }
    chosen = learnt | {n: v for n, v in settings.items() if n in learnt and v is not None}
    return Controls(alpha=alpha, beta=beta, gamma=gamma, **chosen)


def weights_of(about: About, given: object) -> list[Any]:
    """Return α, β and γ, still unchecked: of three numbers or of an object; else as learnt.

    Raises
    ------
    SettingsError
        If they are neither.
    """
    if given is None:
        return [getattr(about.weights, name) for name in WEIGHTS]
    if isinstance(given, Mapping) and set(given) == set(WEIGHTS):
        return [given[name] for name in WEIGHTS]
    if isinstance(given, list | tuple) and len(given) == len(WEIGHTS):
        return list(given)
    raise SettingsError(
        "The weights are α, β and γ: give a list of three numbers, or an object of alpha, beta "
        "and gamma."
    )


def wait_for_pipeline(backend: Backend) -> Any:
    """Return the pipeline once it is loaded.

    Raises
    ------
    SettingsError
        If that takes longer than ``LOADING_SECONDS``.
    """
    try:
        return backend.loading.result(timeout=LOADING_SECONDS)
    except LoadingTimeout:
        raise SettingsError(STILL_LOADING) from None
