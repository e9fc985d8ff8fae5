"""The arena: IFA's rivals by their names, with their published settings.

A method is one line of :data:`ARENA`: which of the retrieved reports are read and in which
order, and how an answer is made of them. Every method gets the same retrieved reports.
What differs from the publication is said in ``docs/arena.md``.

It imports nothing heavy: the command line lists its names.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

from mrrag.types import METHODS, PLAIN, Emphasis, Mixture, Opera, Rival, Shift, Steering, Way


@dataclass(frozen=True)
class Method:
    """One method of the arena.

    Attributes
    ----------
    title : str
        Its name in tables.
    does : str
        What it does, in a short sentence.
    way : Steering, Rival, Opera or None
        How it answers. A steering acts in the learnt layers and rows; None is the learnt
        steering.
    strength : float
        Of the steering, in the place of its own; 0 for its own.
    reads : bool
        Whether it reads reports at all.
    order : str
        The order of the reports: "ranked" is best first, "reversed" best last.
    cut, cut_at, relevance, wrong_picture
        Which reports are read, with which λ and which picture, as in
        :class:`mrrag.study.plan.ReadingPlan`.
    all_irrelevant : bool
        Whether every report is drawn at random.
    heads : float
        In which share of the model's heads it acts, those that ``find-heads`` found best; 0 for
        what needs no such search.
    """

    title: str
    does: str
    way: Way | None = PLAIN
    strength: float = 0.0
    reads: bool = True
    order: str = "ranked"
    cut: str = ""
    cut_at: float | None = None
    relevance: str = "own"
    wrong_picture: bool = False
    all_irrelevant: bool = False
    heads: float = 0.0


PAI_ATTENTION = Emphasis("raise", "image", 0.2, first_layer=2)
PAI_CONTRAST = Mixture("no image", "plausible contrast", 1.1)
PASTA = math.log(0.01)
BOTH = "question+cue"
PASTA_REPORTS = Emphasis("add", "all but relevant reports", PASTA, BOTH)
ALFAR_ATTENTION = (
    Emphasis("scale", "image", -0.4),
    Emphasis("scale by question", "reports", 0.4),
)
ALFAR_CONTRAST = Mixture("no reports", "ratio contrast")


def _emphasis(*emphases: Emphasis) -> Rival:
    return Rival(emphases)


def _mixture(prompts: str, rule: str, amount: float = 0.0) -> Rival:
    return Rival(mixture=Mixture(prompts, rule, amount))


# One prompt, whose mean is itself.
TWICE = _mixture("question twice", "uniform")

ARENA: dict[str, Method] = {
    "rag_off": Method("RAG off", "Reads the picture and the question alone.", reads=False),
    "rag": Method("RAG (MCR)", "Reads the reports, best first, with attention as it is."),
    "mr_rag": Method(
        "MR-RAG (MCR + IFA)",
        "Reads the same reports and turns the question’s attention to the relevant ones.",
        None,
    ),
    "ifa": Method(
        "IFA as in the paper",
        "Raises the attention logits of each report by its relevance, in the learnt layers.",
        Steering(1.0),
    ),
    # Attention
    "pai": Method(
        "PAI",
        "Looks more at the image, and takes away what would be said without it.",
        Rival((PAI_ATTENTION,), PAI_CONTRAST),
    ),
    "pai_attention": Method(
        "PAI, attention alone",
        "Raises the image’s attention logits in the last token.",
        _emphasis(PAI_ATTENTION),
    ),
    "pai_contrast": Method(
        "PAI, contrast alone",
        "Takes away a tenth of what would be said without the image.",
        Rival(mixture=PAI_CONTRAST),
    ),
    "pai_reports": Method(
        "PAI's rule on reports, by relevance",
        "Raises the reports’ attention logits in the last token, each by its relevance.",
        _emphasis(Emphasis("raise", "relevance", 0.2, first_layer=2)),
    ),
    "pasta": Method(
        "PASTA, relevant reports",
        "Scales attention to all but the relevant reports down to a hundredth.",
        _emphasis(PASTA_REPORTS),
    ),
    "pasta_heads": Method(
        "PASTA, relevant reports, best heads",
        "The same in a quarter of the heads, those in which it helps most.",
        _emphasis(PASTA_REPORTS),
        heads=0.25,
    ),
    "pasta_image": Method(
        "PASTA, image and relevant reports",
        "Scales attention to all but the image and the relevant reports down to a hundredth.",
        _emphasis(Emphasis("add", "all but image and relevant reports", PASTA, BOTH)),
    ),
    "spotlight": Method(
        "SpotLight, reports",
        "Raises the reports’ share of the attention to 20 % where it is lower.",
        _emphasis(Emphasis("floor", "reports", 0.2, BOTH)),
    ),
    "spotlight_image": Method(
        "SpotLight, image",
        "Raises the image’s share of the attention to 20 % where it is lower.",
        _emphasis(Emphasis("floor", "image", 0.2, BOTH)),
    ),
    "alfar": Method(
        "ALFAR, as in its paper",
        "Looks less at the image and more at what is asked about, then contrasts as its code does.",
        Rival(ALFAR_ATTENTION, ALFAR_CONTRAST),
    ),
    "alfar_code": Method(
        "ALFAR, as in its code",
        "Takes away what would be said without reports, more where the image is looked at less.",
        Rival(mixture=ALFAR_CONTRAST),
    ),
    # The same while the answer is written, too
    "pai_writing": Method(
        "PAI, also while writing",
        "PAI, which also looks more at the image in every token of the answer.",
        Rival((replace(PAI_ATTENTION, writing=True),), PAI_CONTRAST),
    ),
    "pasta_writing": Method(
        "PASTA, also while writing",
        "PASTA, relevant reports, and the same in every token of the answer.",
        _emphasis(replace(PASTA_REPORTS, writing=True)),
    ),
    "spotlight_writing": Method(
        "SpotLight, reports, also while writing",
        "SpotLight, and the same floor in every token of the answer.",
        _emphasis(Emphasis("floor", "reports", 0.2, BOTH, writing=True)),
    ),
    # Contrasts with a prompt without reports
    "cad": Method(
        "CAD",
        "Makes twice as much of what the reports changed.",
        _mixture("no reports", "contrast", 1.0),
    ),
    "cad_half": Method(
        "CAD, α = 0.5",
        "Makes half as much again of what the reports changed.",
        _mixture("no reports", "contrast", 0.5),
    ),
    "cad_mean": Method(
        "CAD, α = −0.5 (a mean)",
        "Halves what the reports changed.",
        _mixture("no reports", "contrast", -0.5),
    ),
    "adacad": Method(
        "AdaCAD",
        "Makes more of what the reports changed, the more they changed.",
        _mixture("no reports", "adaptive contrast"),
    ),
    # Fusions of prompts with one report each
    "replug": Method(
        "REPLUG",
        "Reads each report alone and averages the answers by score.",
        _mixture("each report", "score", 1.0),
    ),
    "replug_sharp": Method(
        "REPLUG, τ = 0.05",
        "Reads each report alone and averages the answers, the best scores counting far more.",
        _mixture("each report", "score", 0.05),
    ),
    "uniform": Method(
        "Mean over reports",
        "Reads each report alone and averages the answers equally.",
        _mixture("each report", "uniform"),
    ),
    "entropy": Method(
        "Mean by entropy (LeEns)",
        "Reads each report alone and trusts the surest answers most.",
        _mixture("each report", "entropy", 1.0),
    ),
    "vote": Method(
        "Vote of the reports",
        "Reads each report alone; each has one vote.",
        _mixture("each report", "vote"),
    ),
    # Which reports, and in which order
    "best_last": Method(
        "RAG, best report last",
        "Plain RAG, with the best report nearest to the question.",
        order="reversed",
    ),
    "top_report": Method(
        "RAG, best report alone",
        "Plain RAG, with the best report and no other.",
        cut="count",
        cut_at=1,
    ),
    "mmed_gap": Method(
        "MMed-RAG's cut-off, paper",
        "Plain RAG, with the reports before the first steep fall of the score.",
        cut="gap",
        cut_at=0.1,
    ),
    "mmed_ratio": Method(
        "MMed-RAG's cut-off, code",
        "Plain RAG, with the reports whose score is close to the best.",
        cut="ratio",
        cut_at=1.5,
    ),
    "mmed_gap_ifa": Method(
        "MMed-RAG's cut-off, then MR-RAG",
        "MR-RAG, with the reports before the first steep fall of the score.",
        None,
        cut="gap",
        cut_at=0.1,
    ),
    # Prompt
    "mad_prompt": Method(
        "MAD-RAG, prompt alone",
        "Plain RAG, with the question also before the reports.",
        TWICE,
    ),
    "mad": Method(
        "MAD-RAG",
        "Asks before the reports, too, and mixes in where that question looks in the image.",
        Rival((Emphasis("mix", "all", 0.5),), TWICE.mixture),
    ),
    "few_shot": Method(
        "Few-shot with pictures",
        "Plain RAG, with each report’s own picture before it.",
        _mixture("pictures", "uniform"),
    ),
    # Beams
    "opera": Method(
        "OPERA",
        "Searches with five beams and rewards words that are read off the image.",
        Opera(),
    ),
    "opera_reports": Method(
        "OPERA, image and relevant reports",
        "The same, and rewards words that are read off a report, by its relevance.",
        Opera(looks=("image", "relevance")),
    ),
    "beams": Method(
        "Beam search",
        "Searches with five beams, as OPERA does, and rewards nothing.",
        Opera(weight=0.0),
    ),
    # Head outputs
    "iti": Method(
        "ITI",
        "Shifts the outputs of the best heads from wrong answers towards right ones.",
        Rival(shift=Shift(5.0)),
        heads=0.1,
    ),
    # Controls
    "iti_random": Method(
        "ITI, random directions",
        "Shifts the same heads’ outputs as far, in random directions.",
        Rival(shift=Shift(5.0, random=True)),
        heads=0.1,
    ),
    "lambda_shuffled": Method(
        "MR-RAG, λ shuffled",
        "MR-RAG, with each report’s relevance given to another report.",
        None,
        relevance="shuffled",
    ),
    "lambda_equal": Method(
        "MR-RAG, λ equal",
        "MR-RAG, with the mean relevance given to every report.",
        None,
        relevance="equal",
    ),
    "mr_rag_best_last": Method(
        "MR-RAG, best report last",
        "MR-RAG, with the best report nearest to the question.",
        None,
        order="reversed",
    ),
    "all_irrelevant": Method(
        "RAG, all reports irrelevant",
        "Plain RAG, with every report drawn at random.",
        all_irrelevant=True,
    ),
    "wrong_picture": Method(
        "RAG, wrong picture",
        "Plain RAG, shown another patient’s picture beside the same reports.",
        wrong_picture=True,
    ),
    "mr_rag_wrong_picture": Method(
        "MR-RAG, wrong picture",
        "MR-RAG, shown another patient’s picture beside the same reports.",
        None,
        wrong_picture=True,
    ),
}
GROUPS = (
    "The answers above",
    "Attention",
    "Contrasts with a prompt without reports",
    "One prompt for each report",
    "Which reports, and in which order",
    "Prompt, beams and head outputs",
    "Controls",
)
# Rows that only show why another row is as it is; on one case they mean nothing.
CONTROLS = (
    *("iti_random", "lambda_shuffled", "lambda_equal", "mr_rag_best_last"),
    *("all_irrelevant", "wrong_picture", "mr_rag_wrong_picture"),
)
# Rows that answer a yes or no as their namesakes do, since it is read at the first token.
WRITING = ("pai_writing", "pasta_writing", "spotlight_writing")
# Rows that :data:`EVERY` leaves out: these, and what few models were made for.
BY_NAME = (*WRITING, "few_shot")
RIVALS = tuple(name for name in ARENA if name not in METHODS)
EVERY = "arena"  # the name that stands for all of them


def prompts_of(way: Way, k: int) -> int:
    """Return how many prompts are read for one answer after k reports."""
    if not isinstance(way, Rival) or way.mixture is None:
        return 1
    return {"each report": max(1, k), "question twice": 1, "pictures": 1}.get(
        way.mixture.prompts, 2
    )


def group_of(name: str) -> str:
    """Return under which heading a method is offered, one of :data:`GROUPS`."""
    method = ARENA[name]
    rival = method.way if isinstance(method.way, Rival) else Rival()
    prompts = rival.mixture.prompts if rival.mixture else ""
    if name in METHODS:
        return GROUPS[0]
    if name in CONTROLS:
        return GROUPS[6]
    if method.cut or method.order != "ranked":
        return GROUPS[4]
    if prompts == "each report":
        return GROUPS[3]
    if prompts in ("question twice", "pictures") or isinstance(method.way, Opera) or rival.shift:
        return GROUPS[5]
    return GROUPS[2] if prompts == "no reports" and not rival.emphases else GROUPS[1]
