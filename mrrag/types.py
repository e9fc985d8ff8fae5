"""What crosses module borders: frozen dataclasses over numpy, and nothing that computes.

Shape suffixes on array names: L layer, H head, S span, X key position, N documents,
D embedding, Y/X image rows and columns.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

FloatArray = npt.NDArray[np.float32]

# The three answers, in the order in which every table, page and file shows them.
METHODS: tuple[str, ...] = ("rag_off", "rag", "mr_rag")

# The model that ships with the project, and the one of the paper.
BUNDLED = "bundled"
LLAVA_MED = "microsoft/llava-med-v1.5-mistral-7b"


@dataclass(frozen=True)
class Window:
    """A VOI window (DICOM PS3.3 C.11.2), in units of :attr:`Image.values`."""

    name: str
    center: float
    width: float


@dataclass(frozen=True)
class Image:
    """One picture, ready to be shown and read.

    Attributes
    ----------
    display : uint8 [rows, columns] or [rows, columns, 3]
        After modality LUT, VOI LUT or window, and MONOCHROME1 inversion. The encoders,
        the model and the page all start from this.
    values : float32 or integer [rows, columns], or None for colour
        After the modality LUT only, for windowing in a viewer.
    windows : tuple of Window
        The header's presets that apply to ``values``. The first one that leaves something to
        see made ``display``, unless a VOI LUT or an automatic window did (a note says so).
    voi_function : str
        How ``windows`` are meant: LINEAR, LINEAR_EXACT or SIGMOID (DICOM PS3.3 C.11.2.1.3).
    inverted : bool
        True where low ``values`` are shown bright (MONOCHROME1).
    padding : bool [rows, columns], or None where there is none
        The pixels outside the picture, which are always shown black.
    frame, frames : int
        Which frame this is, counted from 0, of how many.
    tags : mapping
        Technical attributes from an allow-list; never who the patient is.
    notes : tuple of str
        What was done to the file, in sentences a clinician can read.
    sha256 : str
        Of the file's bytes.
    patient : str
        The pseudonym of the patient, whose own documents are then never retrieved; empty for a
        file that somebody uploaded.
    """

    display: npt.NDArray[np.uint8]
    values: npt.NDArray[np.generic] | None = None
    windows: tuple[Window, ...] = ()
    voi_function: str = "LINEAR"
    inverted: bool = False
    padding: npt.NDArray[np.bool_] | None = None
    frame: int = 0
    frames: int = 1
    tags: Mapping[str, str] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    sha256: str = ""
    patient: str = ""


@dataclass(frozen=True)
class Query:
    """What a person asks: an image q_i, a question q_t, or both."""

    image: Image | None
    question: str


@dataclass(frozen=True)
class Document:
    """One case of a knowledge base: an image d_i and its report d_t.

    ``split`` is "train", "validation", "test", or empty where the data set has none; ``view``
    is "frontal", "lateral", or empty where it is not known.
    """

    id: str
    report: str
    patient: str
    study: str
    source: str = ""
    licence: str = ""
    split: str = ""
    view: str = ""


@dataclass(frozen=True)
class Weights:
    """The MCR weights: α image-report, β image-image, γ question-report."""

    alpha: float
    beta: float
    gamma: float


@dataclass(frozen=True)
class QueryVectors:
    """Unit vectors of a query, float32 [D]: v of its image, t of its question, or None."""

    v: FloatArray | None
    t: FloatArray | None


@dataclass(frozen=True)
class Retrieved:
    """A document with why it was chosen.

    Attributes
    ----------
    rank : int
        From 1, by score.
    score : float
        The fused similarity f(q, d).
    cosines, terms : (float, float, float)
        As α, β, γ: image-report, image-image, question-report. A term is weight × cosine,
        after the weights of absent pairs have been shared out; the terms sum to ``score``
        exactly. An absent pair has cosine NaN and term 0.
    relevance : float
        IFA's λ before its strength: (score − min) / (max − min) over the documents retrieved
        together.
    gap : float
        (score − min) / (|α| + |β| + |γ|), in cosine.
    drawn : bool
        Whether it was drawn at random, as noise.
    number : int
        Its place in the knowledge base; −1 where it comes from none.
    copies : int
        How many studies of the knowledge base have this report, word for word, itself included.
    """

    document: Document
    rank: int
    score: float
    cosines: tuple[float, float, float]
    terms: tuple[float, float, float]
    relevance: float
    gap: float
    drawn: bool = False
    number: int = -1
    copies: int = 1


@dataclass(frozen=True)
class Familiarity:
    """Whether a query's image is unlike the knowledge base, and the id of its twin there.

    ``outside`` is whether it is unlike the pictures that the model was trained on
    (:func:`mrrag.model.world.is_outside`).
    """

    unlike: bool
    twin: str | None
    outside: bool = False


@dataclass(frozen=True)
class Vote:
    """What the retrieved reports say of one finding.

    Attributes
    ----------
    affirm, deny, doubt : int
        Reports that affirm it, deny it, or are uncertain; the rest of ``reports`` is silent.
    base_rate : float
        Share of the knowledge base's reports that affirm it, 0 to 1; NaN where not counted.
    """

    finding: str
    affirm: int
    deny: int
    doubt: int
    reports: int
    base_rate: float


@dataclass(frozen=True)
class Steering:
    """How the question's attention on the reports is steered.

    Attributes
    ----------
    strength : float
        Multiplies λ. The paper has none, which is 1.
    layers : tuple of int
        The critical layers, counted from 0, in which λ acts.
    rows : str
        The tokens that count as the question, a key of :data:`mrrag.model.steering.ROWS`;
        empty means its default.
    masked : tuple of int
        Layers in which the reports of a relevance below the mean are hidden from the question
        (a hard mask, for comparison).
    form : str
        How relevance steers, a key of :data:`mrrag.forms.FORMS`.
    """

    strength: float = 0.0
    layers: tuple[int, ...] = ()
    rows: str = ""
    masked: tuple[int, ...] = ()
    form: str = "ifa"


PLAIN = Steering()  # stock attention


@dataclass(frozen=True)
class Emphasis:
    """A change of attention by a rival of IFA, in the prompt's last tokens or the answer's, too.

    Attributes
    ----------
    transform : str
        What happens to the logits, a key of :data:`mrrag.model.emphasis.TRANSFORMS`.
    columns : str
        The tokens that are looked at, a key of :data:`mrrag.model.emphasis.COLUMNS`.
    amount : float
        How much; it may be negative, and 0 changes nothing.
    rows : str
        The tokens that look, a key of :data:`mrrag.model.emphasis.LOOKING`.
    first_layer : int
        It acts in this layer, counted from 0, and in all that follow.
    heads : tuple of (int, int)
        The (layer, head) pairs in which it acts; empty for all heads.
    writing : bool
        Whether it also acts in every token of the answer, on the prompt's tokens.
    """

    transform: str
    columns: str
    amount: float
    rows: str = "last"
    first_layer: int = 0
    heads: tuple[tuple[int, int], ...] = ()
    writing: bool = False


@dataclass(frozen=True)
class Shift:
    """What is added to the outputs of chosen heads in the prompt's last token (ITI).

    Attributes
    ----------
    amount : float
        α; 0 changes nothing.
    random : bool
        Whether the directions are random, as a control.
    vectors : tuple of (int, int, tuple of float)
        Layer, head, and σ·θ: the direction times the spread of outputs along it. From
        :func:`mrrag.study.heads.shift_along`.
    """

    amount: float
    random: bool = False
    vectors: tuple[tuple[int, int, tuple[float, ...]], ...] = ()


@dataclass(frozen=True)
class Mixture:
    """One answer from the next-token probabilities of several prompts.

    Attributes
    ----------
    prompts : str
        "no reports" or "no image": the prompt, and the same without them. "each report": one
        prompt for each report. "question twice": one prompt, with the question before the reports
        and after them. "pictures": one prompt, with each report after its own picture.
    rule : str
        How they become one distribution, a key of :data:`mrrag.model.mixing.RULES`.
    amount : float
        The rule's one number.
    """

    prompts: str
    rule: str
    amount: float = 0.0


@dataclass(frozen=True)
class Rival:
    """A rival of IFA: changes of attention, a mixture of prompts, or both; or a shift."""

    emphases: tuple[Emphasis, ...] = ()
    mixture: Mixture | None = None
    shift: Shift | None = None


@dataclass(frozen=True)
class Opera:
    """OPERA's beam search (:mod:`mrrag.model.opera`), with its published numbers.

    Attributes
    ----------
    beams, candidates : int
        Beams, and tokens that are tried for each at each step.
    weight : float
        Of the penalty, which is taken off a candidate's logit.
    scale : float
        σ₀, which multiplies the attention on the answer's own tokens.
    threshold : int
        In how many steps all beams must lean on one token before the search goes back to it.
    looks : tuple of str
        What a candidate is rewarded for looking at, keys of
        :data:`mrrag.model.emphasis.COLUMNS`; the publication has the image alone.
    """

    beams: int = 5
    candidates: int = 5
    weight: float = 1.0
    scale: float = 50.0
    threshold: int = 15
    looks: tuple[str, ...] = ("image",)


Way = Steering | Rival | Opera  # how one answer is made of what is read


@dataclass(frozen=True)
class Span:
    """A named run of prompt tokens, ``start`` included and ``stop`` excluded.

    Names: "image", "report 1" ... "report K", "question", "cue" (the end of the user's
    turn, from which the answer is read), "other"; and "first question" where the question also
    stands before the reports.
    """

    name: str
    start: int
    stop: int


@dataclass(frozen=True)
class AttentionTrace:
    """What the question's tokens attended to in one branch, reduced while it ran.

    Attributes
    ----------
    spans : tuple of Span
        They tile the prompt; there are several called "other".
    mass_LHS : float32 [layers, heads, names]
        Attention probability summed over a span's keys, averaged over question rows.
        Columns follow ``names`` and sum to 1.
    names : tuple of str
        "image", "report 1" ..., "question", "cue", "other": spans of one name together.
    keys_LX : float32 [layers, prompt tokens]
        Attention probability on each key, averaged over heads and question rows.
    grid : (rows, columns)
        The image span's patches; (0, 0) without an image.
    layers : tuple of int
        Where the scores were steered; empty in a plain branch.
    padded : bool
        Whether the grid covers the picture padded to a square, or else the picture alone.
    """

    spans: tuple[Span, ...]
    names: tuple[str, ...]
    mass_LHS: FloatArray
    keys_LX: FloatArray
    grid: tuple[int, int]
    layers: tuple[int, ...] = ()
    padded: bool = True


@dataclass(frozen=True)
class Answer:
    """One branch's answer.

    Attributes
    ----------
    method : str
        One of :data:`METHODS`.
    p_yes, p_no : float
        Token probabilities at the first answer token, over the whole vocabulary; not a
        clinical confidence.
    prompt : str
        The exact prompt, with ``<image>`` for each of the image's tokens.
    tokens : int
        Of the answer, without its end token.
    seconds : float
        From the question to the answer's last token.
    """

    method: str
    text: str
    p_yes: float
    p_no: float
    prompt: str
    tokens: int
    seconds: float
