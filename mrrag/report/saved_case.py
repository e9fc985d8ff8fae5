"""What a saved case may hold, of what is read to ask it again and to compare the answers."""

from __future__ import annotations

from mrrag.case import MAX_STRENGTH
from mrrag.schema import Items, Kind, Nullable, Number, Record, Table, Text, Whole
from mrrag.types import METHODS

__all__ = ["SAVED_CASE"]

_WEIGHT = Number(-1000, 1000)
_IDS = Items(Text(), most=10_000)
# The fields of mrrag.case.Settings, as a finished case has them. What a knowledge base and a
# model allow beyond this is checked when the case is asked.
_SETTINGS: dict[str, Kind] = {
    "k": Whole(1, 10_000),
    "weights": Record({name: _WEIGHT for name in ("alpha", "beta", "gamma")}, closed=True),
    "strength": Number(0, MAX_STRENGTH),
    "layers": Items(Whole(0, 999), most=1000),
    "noise": Whole(0, 10_000),
    "max_new_tokens": Whole(1, 100_000),
    "seed": Whole(0, 2**63 - 1),
    "pinned": _IDS,
    "excluded": _IDS,
}
_ANSWER = Record(
    {"text": Text(most=1_000_000)},
    {name: Nullable(Number(0, 1)) for name in ("p_yes", "p_no")},
)
SAVED_CASE = Record(
    {
        "question": Text(most=100_000),
        "settings": Record(_SETTINGS, {"form": Text(1, 100)}, closed=True),
        "input": Nullable(
            Record({"frame": Whole(0, 1_000_000)}, {"sha256": Text(), "display_sha256": Text()})
        ),
        "retrieved": Items(Record({"id": Text()}), most=10_000),
        "answers": Record({method: _ANSWER for method in METHODS}),
        "versions": Table(Text(), Text(most=100_000)),
    }
)
