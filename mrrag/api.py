"""MR-RAG in a few lines of Python: load once, ask about images, look at the case.

    import mrrag

    rag = mrrag.load()
    case = rag.ask("chest.dcm", "Is there a pleural effusion?", k=8)
    case.answers["mr_rag"].text, case.retrieved[0].score, case.after.mass_LHS

A thin face over :mod:`mrrag.pipeline` and :mod:`mrrag.report`; it computes nothing itself.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any

from mrrag.case import Case, Evidence, Progress, Settings
from mrrag.data.images import load_image, read_image
from mrrag.evidence import find_evidence
from mrrag.explain import explain as explain_case
from mrrag.loading import load_pipeline
from mrrag.pipeline import Pipeline, answer
from mrrag.report.case_page import case_fragment, case_to_html
from mrrag.report.export import case_to_json
from mrrag.retrieval.address import Place, place_of
from mrrag.retrieval.knowledge_base import KnowledgeBase
from mrrag.study.arena_answers import OFFERED, ArenaAnswer
from mrrag.study.one_case import answer_arena
from mrrag.types import BUNDLED, Image, Query, Weights

Picture = str | Path | bytes | Image | None


def load(
    model: str = BUNDLED,
    knowledge_base: str | Place | None = None,
    *,
    revision: str | None = None,
    device: str | None = None,
    vision_tower: str = "checkpoint",
    quantize: str | None = None,
    adapter: str | Path | None = None,
) -> MRRAG:
    """Load a model, and a knowledge base with its encoder.

    Parameters
    ----------
    model : str
        ``"bundled"`` (the small model that ships with the package), a checkpoint's folder, or
        a name on the Hugging Face hub such as ``"microsoft/llava-med-v1.5-mistral-7b"``.
    knowledge_base : path, optional
        A folder written by ``mrrag index``, or a collection of Milvus
        (``"milvus:URI/COLLECTION"``); the bundled one by default.
    revision : str, optional
        Branch, tag or commit on the hub.
    device : str, optional
        ``"cpu"``, ``"cuda"`` or ``"auto"`` (all GPUs). By default "auto" where there is a
        GPU, and "cpu" for the bundled model.
    vision_tower : str
        ``"checkpoint"``, ``"stock"`` (the CLIP that the checkpoint names), a folder or a hub
        name.
    quantize : {"int8", "int4"}, optional
        Quantise the weights with bitsandbytes.
    adapter : path, optional
        A LoRA adapter to merge into the model: a folder, or a name on the hub, in peft's format
        as safetensors. Not with ``quantize``.

    Raises
    ------
    ModelError, KnowledgeBaseError, SettingsError
        Where a part is missing, incomplete, was made for other parts, or does not go with another.
    """
    return MRRAG(
        load_pipeline(
            model=model,
            knowledge_base=None if knowledge_base is None else place_of(knowledge_base),
            revision=revision,
            device=device,
            vision_tower=vision_tower,
            quantize=quantize,
            adapter=adapter,
        )
    )


@dataclass(frozen=True, repr=False)
class CaseReport(Case):
    """A finished case with its picture: answers, evidence, attention, and ways to show them.

    Attributes
    ----------
    image : Image or None
        The query's image.
    knowledge_base : KnowledgeBase
        Where the retrieved documents come from.

    See Also
    --------
    mrrag.case.Case : the fields of the case itself.
    """

    image: Image | None = field(default=None, kw_only=True)
    knowledge_base: KnowledgeBase = field(kw_only=True)

    def to_json(self) -> dict[str, Any]:
        """Return the case as JSON values, as ``mrrag ask --json`` prints it (no pixels)."""
        return case_to_json(self, self.image)

    def to_html(self, *, pixels: bool = True) -> str:
        """Return the case as one HTML page that needs no network.

        Parameters
        ----------
        pixels
            Whether the query's image and the thumbnails of the documents are included.
        """
        return case_to_html(self, self.to_json(), self._pixels() if pixels else None)

    def _pixels(self) -> tuple[Image, KnowledgeBase] | None:
        return None if self.image is None else (self.image, self.knowledge_base)

    def _repr_html_(self) -> str:
        return case_fragment(self, self.to_json(), self._pixels())

    def __repr__(self) -> str:
        said = "".join(
            f"\n  {method:8s}P(yes) {a.p_yes:.3f}  P(no) {a.p_no:.3f}  {a.text}"
            for method, a in self.answers.items()
        )
        outside = self.warnings.get("outside", "")
        said = f"\n  WARNING: {outside}{said}" if outside else said
        return f"<{type(self).__name__} {self.question!r}, {len(self.retrieved)} reports{said}>"


@dataclass(frozen=True)
class MRRAG:
    """A loaded model over a knowledge base; see :func:`load`.

    Methods take ``image`` as a path (DICOM, PNG, JPEG, WebP, TIFF or BMP), the bytes of such
    a file, an :class:`~mrrag.types.Image`, or None. They take the fields of
    :class:`~mrrag.case.Settings` as keywords (``k``, ``weights``, ``strength``, ``layers``,
    ``form``, ``noise``, …), or a whole ``settings`` value that keywords then change.
    ``weights`` may be a tuple (α, β, γ).
    """

    pipeline: Pipeline = field(repr=False)

    def __repr__(self) -> str:
        base = self.pipeline.knowledge_base
        return f"<MRRAG {self.pipeline.backbone.name}, {len(base)} documents>"

    def retrieve(
        self,
        image: Picture,
        question: str,
        *,
        settings: Settings | None = None,
        **options: Any,
    ) -> Evidence:
        """Retrieve similar cases by MCR, without asking the model.

        Returns
        -------
        Evidence
            ``retrieved`` holds the documents, best first, each with its score, the three
            cosines and the three weighted terms; ``warnings`` what to doubt about them.

        Raises
        ------
        ImageError, SettingsError
            For a file that cannot be read, or a setting outside what is allowed.
        """
        query = Query(_image(image), question)
        return find_evidence(self.pipeline, query, _settings(settings, options))

    def stream(
        self,
        image: Picture,
        question: str,
        *,
        settings: Settings | None = None,
        **options: Any,
    ) -> Iterator[Progress | CaseReport]:
        """Answer with RAG off, RAG and MR-RAG; yield texts as they grow, then the case.

        The last item is the :class:`CaseReport`, without influence and same-state trace,
        which :meth:`explain` adds. Closing the generator stops the model.

        Raises
        ------
        ImageError, SettingsError
            As :meth:`retrieve`.
        """
        chosen, query = _settings(settings, options), Query(_image(image), question)
        evidence = find_evidence(self.pipeline, query, chosen)
        for step in answer(self.pipeline, query, evidence, chosen):
            yield step if isinstance(step, Progress) else self._report(step, query.image)

    def ask(
        self,
        image: Picture,
        question: str,
        *,
        settings: Settings | None = None,
        explain: bool = True,
        **options: Any,
    ) -> CaseReport:
        """Answer with RAG off, RAG and MR-RAG.

        Parameters
        ----------
        explain
            Whether to measure what each report does to the answer, which takes about as long
            as the answers; see :meth:`explain`.

        Returns
        -------
        CaseReport
            ``answers`` by method ("rag_off", "rag", "mr_rag"), ``retrieved`` documents with
            scores, attention ``before`` and ``after`` IFA, ``notes`` and ``warnings``.

        Raises
        ------
        ImageError, SettingsError
            As :meth:`retrieve`.
        """
        *_, case = self.stream(image, question, settings=settings, **options)
        if not isinstance(case, CaseReport):  # for the type checker: the last item is the case
            raise TypeError("The stream ended without a case.")
        return self.explain(case) if explain else case

    def explain(self, case: CaseReport) -> CaseReport:
        """Return the case with each report's influence, and IFA's effect on equal states.

        A report's influence is the change of P(yes) or P(no) when the report is blocked.
        """
        query = Query(case.image, case.question)
        return self._report(explain_case(self.pipeline, query, case), case.image)

    def arena(self, case: CaseReport, methods: Sequence[str] = OFFERED) -> dict[str, ArenaAnswer]:
        """Answer a case's question by methods of the arena, with its reports and settings.

        Parameters
        ----------
        methods
            Keys of :data:`mrrag.study.arena.ARENA`; all of them by default.

        Returns
        -------
        dict
            By method: text, P(yes), P(no), seconds, and attention where the method changes it.

        Raises
        ------
        SettingsError
            For an unknown method, or a question that the model was not asked.
        """
        query = Query(case.image, case.question)
        return {a.method: a for a in answer_arena(self.pipeline, query, case, methods)}

    def _report(self, case: Case, image: Image | None) -> CaseReport:
        values = {f.name: getattr(case, f.name) for f in fields(Case)}
        return CaseReport(**values, image=image, knowledge_base=self.pipeline.knowledge_base)


def _image(image: Picture) -> Image | None:
    if image is None or isinstance(image, Image):
        return image
    return read_image(image) if isinstance(image, bytes) else load_image(image)


def _settings(settings: Settings | None, options: dict[str, Any]) -> Settings:
    if isinstance(options.get("weights"), tuple | list):
        options = options | {"weights": Weights(*options["weights"])}
    if options.get("layers") is not None:
        options = options | {"layers": tuple(options["layers"])}
    return replace(settings or Settings(), **options)
