"""The words by which reports name findings, and questions ask about them.

To add a finding, add an entry to ``FINDINGS``: the wordings that name it, and those that deny
it without a negation. This module holds patterns only, for texts in lower case.
"""

from __future__ import annotations

from typing import NamedTuple

__all__ = ["FINDINGS", "STRUCTURES", "Structure"]

_HEART = (
    r"(?:heart|cardiac(?: and mediastinal)?(?: silhouettes?| size| contours?| shadow)?"
    r"|cardio-?(?:mediastinal|pericardial) (?:silhouette|contours?|structures))"
)
_NORMAL = r"(?:normal|unremarkable)"
# Words between a structure and "normal": "heart size and mediastinal contours are within normal".
_FILL = (
    r"(?:,? (?:and|or|the|of|in|at|to be|are|is|appears?|looks?|seems?|remains?|again|also|both"
    r"|grossly|overall|stable|within|upper|limits?|size|silhouettes?|contours?|configuration"
    r"|shape|borders?|shadow|mediastin\w+|cardiomediastinal|hilar|hila|pulmonary|vascular\w*"
    r"|vasculature|aortic|aorta|thoracic|caliber|appearance))"
)
_CLEAR = (
    r"lungs?(?: (?:fields|bases|xxxx))?(?: (?:is|are|appears?|remains?|both|xxxx|otherwise|grossly"
    r"|well|expanded|and|but|mildly|slightly|mild|hypo\w+|hyper\w+|bilaterally|essentially"
    r"|symmetrically|normally|inflated|aerated|to be|fully)){0,12}? clear\b(?! of)"
    r"|(?<!un)\bclear lungs?\b(?! of)"
)
_BONES = r"(?:bones|(?:bony|osseous|skeletal)(?: (?:structures?|thorax|elements))?|skeleton)"
_AORTA = r"(?:(?:thoracic |descending |ascending )?aort(?:a|ic(?: (?:arch|knob|contours?|xxxx))?))"
_CALCIFIED = r"(?:calcifi(?:ed|c)|calcifications?|calcinosis|atheroscler\w+|atheromatous)"
# Words by which a degenerative change or osteophyte is elsewhere than in the spine.
_JOINT = r"(?:shoulder|acromioclavicular|glenohumeral|costochondral|\bac\b|humer|sternoclavic)"
_VEIN = r"(?:central(?: venous)?|venous|subclavian|jugular|ij|dialysis|tunneled|hemodialysis)"
_CAVA = r"[^.;\n]{0,60}\b(?:svc|ivc|cava|cavo?-?atrial|caval|atriocaval|right atrium)\b"

# Finding → (wordings that name it, wordings that deny it without a negation).
FINDINGS: dict[str, tuple[str, str]] = {
    "cardiomegaly": (
        rf"cardiomegaly|(?:enlarged|large) {_HEART}|{_HEART}(?: \w+){{0,4}}? enlarge\w*"
        rf"|enlargement of the {_HEART}|{_HEART}(?: size)?(?: \w+){{0,2}}? increased in size",
        rf"{_NORMAL} (?:size |sized |appearing )?{_HEART}(?: size)?"
        rf"|{_HEART}{_FILL}{{0,9}} {_NORMAL}(?: in size| limits)?",
    ),
    "pleural effusion": (
        r"pleural (?:(?:and|or|nor) pericardial )?effusions?|(?<!pericardial )(?<!joint )effusions?"
        r"|pleural fluid|hydropneumothora(?:x|ces)",
        r"costophrenic (?:angles|sulci)(?: are| appear| remain) (?:sharp|clear)",
    ),
    "pneumothorax": (r"(?:hydro)?pneumothora(?:x|ces)", ""),
    "consolidation": (
        r"consolidat(?:ions?|ive)|infiltrates?|infiltration"
        r"|air ?space (?:opaci\w+|disease|process)",
        _CLEAR,
    ),
    "pneumonia": (r"pneumonias?\b", _CLEAR),
    "opacity": (r"opaci(?:ty|ties|fications?)", _CLEAR),
    "nodule": (r"(?:micro)?nodul(?:es?|ar (?:opacit|densit)\w+)", ""),
    "mass": (r"mass(?:es)?\b(?! effect)", ""),
    "granuloma": (
        r"granulom\w+|(?<!non)(?<!non-)calcifi(?:ed|c)(?: [\w,-]+){0,4}?"
        r" (?:nod(?:es?|al|ul\w+)|hilar|hilum|mediastinal|foc(?:us|i)|lesions?)"
        r"|(?:hilar|mediastinal|nod(?:al|ular)|paratracheal|perihilar|lung|pulmonary|parenchymal)"
        r"(?: and \w+)? calcifications?"
        r"|calcifications?(?: \w+)? (?:in|on|within|of) the (?:\w+ ){0,2}?"
        r"(?:lung|lobe|hilum|mediastinum|nodes)",
        "",
    ),
    "pulmonary edema": (
        r"(?:pulmonary |interstitial )?o?edema"
        r"|(?:vascular|vasculature|venous|pulmonary)(?: \w+){0,3}? (?:congest\w+|engorge\w+)",
        rf"{_NORMAL} pulmonary vascula\w+|pulmonary vascula\w+{_FILL}{{0,6}} {_NORMAL}",
    ),
    "atelectasis": (r"atelecta(?:sis|ses|tic)", ""),
    "hyperinflation": (
        r"hyper-?(?:inflat|expan|aerat)\w+|(?<!subcutaneous )emphysem\w+",
        r"lung volumes are normal|normal lung volumes",
    ),
    "scar": (r"scar(?:s|red|ring)?\b|cicatri\w+", ""),
    "fibrosis": (r"(?<!cystic )fibro(?:sis|tic)", ""),
    "pleural thickening": (r"pleural(?:[ -]?parenchymal)? thickening|thickening of the pleura", ""),
    "aortic abnormality": (
        rf"(?:tortuous|torturous|ectatic|ectasia of the|unfold\w+|dilat\w+|aneurysm\w*"
        rf"|tortuosity of the|uncoil\w+|{_CALCIFIED})"
        rf"(?: (?:and|or|of|in|along|the|within|involving|ectatic|calcifi\w+|mildly"
        rf"|changes?|disease|plaques?|tortuous|arch|thoracic|descending)|,|/\w+){{0,8}}? {_AORTA}"
        rf"|{_AORTA}(?: [\w,-]+){{0,4}}? (?:tortu\w+|ecta\w+|unfold\w+|dilat\w+|aneurysm\w*"
        rf"|uncoil\w+|enlarge\w+|elongat\w+|{_CALCIFIED})|atherosclerosis",
        rf"{_NORMAL} {_AORTA}|(?:thoracic aorta|aortic (?:arch|knob|contours?)){_FILL}{{0,6}} "
        rf"{_NORMAL}|{_NORMAL}(?: [\w,]+){{0,4}} aortic contours?",
    ),
    "hernia": (r"hernias?\b", ""),
    "pacemaker": (r"pace ?makers?|pacing (?:device|leads?|wires?)", ""),
    "central line": (
        rf"central (?:venous )?(?:line|catheter)s?|internal jugular (?:line|catheter)|picc\b"
        rf"|{_VEIN}(?: \w+){{0,2}}? (?:catheter|line|port)s?\b|(?:medi)?ports?\b|port-?a-?caths?"
        rf"|catheter(?={_CAVA})",
        "",
    ),
    "rib fracture": (
        r"rib fractures?|fractured ribs?"
        r"|fractures?(?= (?:of|in|on|at|through|along|involving)[^.;\n]{0,40}\bribs?\b)"
        r"|ribs?\b(?: [\w-]+){0,3}? fractur\w+",
        r"ribs are(?: grossly)? intact",
    ),
    "fracture": (
        r"(?<!catheter )(?<!wire )(?<!lead )(?<!wires are )fractur(?:es?|ed)\b"
        r"(?! (?:of )?(?:\w+ ){0,3}(?:wires?|leads?|catheter|sternotomy|hardware|screws?)\b)",
        rf"(?:ribs|{_BONES})(?: [\w,]+){{0,4}}? (?:intact|{_NORMAL})|{_NORMAL} {_BONES}"
        rf"|intact {_BONES}|no [\w ]{{0,30}}?(?:bony|osseous|skeletal|bone)(?: \w+)? "
        r"(?:abnormalit\w+|findings?|lesions?|injur\w+|process)",
    ),
    "scoliosis": (
        r"(?:(?:dextro|levo|kypho|roto)-? ?){0,2}scolio(?:sis|tic)|(?:dextro|levo)-?curvature"
        r"|curvature of the(?: \w+)? spine",
        r"spine is straight",
    ),
    "spine degeneration": (
        rf"degenerative (?:\w+ )?(?:changes?|disease|spurring|joint|spondyl\w+|osteophyt\w+)"
        rf"(?![^.;\n]{{0,40}}{_JOINT})|spondylo(?:sis|tic)|dis[ck] space narrowing"
        rf"|osteophyt\w+(?![^.;\n]{{0,60}}{_JOINT})|(?:spine|endplate|vertebral) spurr\w+",
        "",
    ),
}


class Structure(NamedTuple):
    """A structure that a question may call normal or abnormal, and the findings it is about."""

    words: str
    normal: str
    abnormal: str
    findings: tuple[str, ...]


_FINE = r"normal\w*|unremarkable|healthy|intact"
_ILL = r"abnormal(?:it\w+)?\b|anything wrong|pathologic\w*|affected|enlarge\w*"

STRUCTURES = (
    Structure(
        rf"{_HEART}(?! failure)",
        rf"{_FINE}|less than half|small\w*",
        rf"{_ILL}|increased|large\w*|big|dilated|wider|greater|exceed\w*|more than half",
        ("cardiomegaly",),
    ),
    Structure(
        r"lungs?\b(?! (?:volumes?|markings))",
        r"normal(?! in size)|unremarkable|healthy|clear",
        _ILL,
        ("consolidation", "pneumonia", "opacity"),
    ),
    Structure(
        r"costo(?:phren|vertebr)\w+ (?:angles?|sulc\w+)",
        rf"{_FINE}|sharp|clear|preserved",
        rf"{_ILL}|blunt\w*|obscured",
        ("pleural effusion",),
    ),
    Structure(
        r"pleural (?:spaces?|cavit\w+)",
        rf"{_FINE}|clear",
        _ILL,
        ("pleural effusion", "pneumothorax"),
    ),
    Structure(
        r"(?:pulmonary )?vascul\w+(?: markings)?",
        _FINE,
        rf"{_ILL}|increased|prominent",
        ("pulmonary edema",),
    ),
    Structure(_AORTA, _FINE, rf"{_ILL}|wide\w*|dissect\w+", ("aortic abnormality",)),
    Structure(r"lung volumes?", _FINE, r"increased|large", ("hyperinflation",)),
    Structure(r"(?:hemi)?diaphragms?", r"(?!)", r"flat\w*", ("hyperinflation",)),
    Structure(r"ribs?\b", _FINE, rf"{_ILL}|broken", ("rib fracture",)),
    Structure(rf"{_BONES}|clavicles?|bon(?:e|y)\b", _FINE, rf"{_ILL}|broken", ("fracture",)),
    Structure(r"spine|spinal column", r"straight", r"curved", ("scoliosis",)),
    Structure(r"spine|spinal|vertebra\w*", _FINE, _ILL, ("scoliosis", "spine degeneration")),
)
