"""The words by which reports name findings, and questions ask about them.

To add a finding, add an entry to ``FINDINGS``: the wordings that name it, and those that deny
it without a negation. This module holds patterns only, for texts in lower case.
"""

from __future__ import annotations

from typing import NamedTuple

__all__ = ["ELSEWHERE", "FINDINGS", "STRUCTURES", "Structure"]

_HEART = (
    r"(?:heart|cardiac(?: and mediastinal)?(?: silhouettes?| size| contours?| shadow)?"
    r"|cardi(?:o|a|ac)?[ -]?(?:mediastinal|pericardial|pulmonary|thymic)"
    r" (?:silhouettes?|contours?|structures|shadow|size))"
)
_NORMAL = r"(?:normal|unremarkable|not remarkable)"
# Words between a structure and "normal": "heart size and mediastinal contours are within normal".
_FILL = (
    r"(?:,? (?:and|or|the|of|in|at|to be|are|is|as|appears?|looks?|seems?|remains?|again|also|both"
    r"|has become|measures?|lies?|falls?|centrally|symmetric|grossly|overall|stable|within|near"
    r"|top|upper|limits?|size|silhouettes?|contours?|configuration|shape|borders?|shadow|mediastin\w+"
    r"|cardiomediastinal|hilar|hila|pulmonary|vascular\w*|vasculature|engorgement|pattern|aortic"
    r"|aorta|thoracic|caliber|appearance|xxxx|lungs?|pleura|osseous|bony|skeletal|structures|soft"
    r"|tissues?|visualized|abdomen))"
)
_CLEAR = (
    r"lungs?(?:,? (?:fields|zones|bases|volumes|parenchyma|xxxx|is|are|appears?|looks?|remains?|now"
    r"|both|all|completely|entirely|on the (?:left|right)|otherwise|which|they|believed|grossly"
    r"|relatively|low|well|and|but|the|pleural|costophrenic|spaces|angles|mildly|slightly|mild"
    r"|hypo\w+|hyper\w+|bilaterally|essentially|symmetrically|normally"
    r"|(?:well-)?(?:inflated|aerated|expanded)|to be|fully)){0,12}? clear\b(?! of)"
    r"|lungs?(?: (?:is|are|appears?|remains?|grossly|otherwise)){1,3} (?:normal|unremarkable)\b"
    r"(?! in)"
    r"|(?<!un)\bclear(?:,? (?:left|right|hyper\w+|hypo\w+|\w+-inflated)){0,2} lungs?\b(?! of)"
)
_PLEURA = (
    r"pleural spaces?(?: (?:is|are|appears?|remains?|grossly|otherwise|also)){0,3}"
    r" (?:clear|normal|unremarkable|shows? no acute abnormalit\w+)"
)
_VESSELS = r"(?:pulmonary vascula\w+|vascul(?:ature|arity)|vascular (?:markings|pattern))"
_BONES = r"(?:bones|(?:bony|osseous|skeletal)(?: (?:structures?|thorax|elements))?|skeleton)"
_AORTA = (
    r"(?:(?:thoracic |descending |ascending )?aort(?:a|ic(?: (?:arch|knob|contours?|xxxx))?)\b)"
)
_CALCIFIED = r"(?:calcifi(?:ed|c)|calcifications?|calcinosis|atheroscler\w+|atheromatous)"
# Words by which a degenerative change or osteophyte is elsewhere than in the spine.
_JOINT = (
    r"(?:shoulder|acromioclavicular|glenohumeral|costochondral|\bac\b|humer|sternoclavic"
    r"|\b(?:knees?|hips?|ankles?|(?:mid|fore|hind)?foot|wrists?|hands?|elbows?"
    r"|compartments?)\b)"
)
_NOT_SPINE = rf"(?!(?:(?!spin)[^.;\n]){{0,60}}{_JOINT}(?![^.;\n]{{0,40}}spin))"
_VEIN = r"(?:central(?: venous)?|venous|subclavian|jugular|ij|dialysis|tunneled|hemodialysis)"
_CAVA = (
    r"[^.;\n]{0,60}\b(?:svc|ivc|cava|cavo?-?atrial|caval|atriocaval|right atrium|azygos vein"
    r"|superior xxxx)\b"
)

# Words like a finding's that are of something else; they are passed over.
ELSEWHERE = (
    r"(?<!pleural or )(?<!pleural and )(?<!pleural nor )(?:pericardial|joint|knee|suprapatellar)"
    r" effusions?|(?:soft tissue|subcutaneous|peripheral|marrow) edema|subcutaneous emphysema"
    r"|cystic fibrosis|reticul(?:o|ar)[ -]?nodular|\bnot (?:\w+ )?calcified|\bnon[ -]?calcified"
    rf"|\buncalcified|{_JOINT}(?:(?!spin)[^.;\n]){{0,40}}?\b(?:degenerative|osteophyt)\w*"
)

# Finding → (wordings that name it, wordings that deny it without a negation).
FINDINGS: dict[str, tuple[str, str]] = {
    "cardiomegaly": (
        rf"cardiomegaly|(?:enlarged|large) {_HEART}|{_HEART}(?: \w+){{0,6}}? enlarge\w*"
        rf"|enlargement of (?:the )?{_HEART}|{_HEART}(?: size)?(?: \w+){{0,2}}? increased in size"
        rf"|{_HEART}(?: size)?(?: (?:xxxx|is|appears|remains)){{1,2}}(?: \w+)? large\b"
        rf"|borderline(?: \w+)? {_HEART}|{_HEART}(?: size)?(?: (?:is|appears|remains))? borderline",
        rf"{_NORMAL} (?:size |sized |appearing |and stable )?{_HEART}(?: size)?"
        rf"|non-?enlarged {_HEART}"
        rf"|normal (?:size|contours?|configuration)(?: and \w+)? of the {_HEART}"
        rf"|{_HEART}{_FILL}{{0,12}} {_NORMAL}(?: in size| limits)?",
    ),
    "pleural effusion": (
        r"pleural (?:(?:and|or|nor) pericardial )?effusions?|effusions?"
        r"|pleural fluid|(?:hydro|ha?emo)pneumothora(?:x|ces)",
        r"costophrenic (?:angles|sulci|xxxx)(?: (?:is|are|appear|remain|grossly)){0,2}"
        rf" (?:sharp|clear)|{_PLEURA}",
    ),
    "pneumothorax": (r"(?:hydro|ha?emo)?pneuo?mothora(?:x|ces)", _PLEURA),
    "consolidation": (
        r"consolidat(?:ions?|ive)|infiltrates?|infiltration"
        r"|air ?space (?:and \w+ )?(?:opaci\w+|densit\w+|disease|process)",
        _CLEAR,
    ),
    "pneumonia": (r"pneumonias?\b", _CLEAR),
    "opacity": (r"opaci(?:ty|ties|fied|fications?)|opaque\b", _CLEAR),
    "nodule": (r"(?:micro)?nodul(?:es?|ar (?:[\w-]+ ){0,3}?(?:opacit|densit)\w+)", ""),
    "mass": (r"mass(?:es)?\b(?! effect)", ""),
    "granuloma": (
        r"granulom\w+|calcifi(?:ed|c)(?: [\w,-]+){0,4}?"
        r" (?:lymph|nod(?:es?|al|ul\w+)|hilar|hilum|mediastinal|foc(?:us|i)|lesions?)"
        r"|nodul\w+(?: [\w,]+){0,12}? (?:is|are|appears?)(?: (?:densely|partly|partially|also))?"
        r" calcified"
        r"|(?:hilar|mediastinal|nod(?:al|ular)|paratracheal|perihilar|lung|pulmonary|parenchymal)"
        r"(?: and \w+)? calcifications?"
        r"|calcifications?(?: \w+)? (?:in|on|within|of) the (?:\w+ ){0,2}?"
        r"(?:lung|lobe|hilum|mediastinum|nodes)",
        "",
    ),
    "pulmonary edema": (
        r"(?:pulmonary |interstitial )?o?edema"
        r"|(?:vascular|vasculature|venous|pulmonary)(?: \w+){0,3}? (?:congest\w+|engorge\w+)",
        r"normal (?:(?:heart|cardiac|mediastin\w+|hilar|hila|central|pulmonary|xxxx|size|contours?"
        rf"|caliber|distribution of the),? (?:and )?){{0,6}}{_VESSELS}|unremarkable {_VESSELS}"
        rf"|{_VESSELS}{_FILL}{{0,8}} {_NORMAL}",
    ),
    "atelectasis": (
        r"atelecta(?:sis|ses|tic)|collapse of the (?:\w+ ){0,3}(?:lung|lobe)"
        r"|(?:lobe|lobar) collapse",
        "",
    ),
    "hyperinflation": (
        r"hyper-?(?:inflat|expan|aerat)\w+|emphysem\w+",
        r"lung volumes are normal|normal lung volumes",
    ),
    "scar": (r"scar(?:s|red|ring)?\b|cicatri\w+", ""),
    "fibrosis": (r"fibro(?:sis|tic)", ""),
    "pleural thickening": (
        r"pleural(?:[ -]?parenchymal)? thickening|thickening of the pleura"
        r"|(?:(?<=fluid or )|(?<=effusion or )|(?<=effusions or )"
        r"|(?<=and/or )|(?<=effusion versus )|(?<=effusions versus ))thickening",
        "",
    ),
    "aortic abnormality": (
        rf"(?:tortuous|torturous|ectatic|ectasia of the|unfold\w+|dilat\w+|aneurysm\w*"
        rf"|tortuosity of the|uncoil\w+|{_CALCIFIED})"
        rf"(?: (?:and|or|and/or|of|in|to|along|the|within|throughout|involving|ectatic|ectasia"
        rf"|calcifi\w+|mildly|is|are|present|seen|noted|identified|changes?|disease|plaques?"
        rf"|tortuous|arch|thoracic|ascending|descending)|,|/\w+){{0,8}}? {_AORTA}"
        rf"|tortuosity {_AORTA}"
        rf"|{_AORTA}(?: [\w,-]+){{0,4}}? (?:tortu\w+|ecta\w+|unfold\w+|dilat\w+|aneurysm\w*"
        rf"|uncoil\w+|enlarge\w+|elongat\w+|{_CALCIFIED})(?:/\w+)?"
        r"|atherosclero(?:sis|tic (?:cardio)?vascular disease)",
        rf"{_NORMAL} {_AORTA}|(?:thoracic aorta|aortic(?: (?:arch|knob|contours?|xxxx))?)"
        rf"{_FILL}{{0,6}} {_NORMAL}|{_NORMAL}(?: [\w,]+){{0,4}} aortic contours?"
        r"|normal contours? of the (?:\w+ and )?aorta",
    ),
    "hernia": (r"hernias?\b", ""),
    "pacemaker": (
        r"pace ?makers?|pacing (?:device|leads?|wires?)|(?:cardiac|pulse)(?: xxxx)? generator",
        "",
    ),
    "central line": (
        rf"central (?:venous )?(?:line|catheter)s?|internal jugular (?:line|catheter)|picc\b"
        rf"|{_VEIN}(?: \w+){{0,2}}? (?:catheter|line|port)s?\b|(?:medi)?ports?\b|port-?a-?caths?"
        rf"|pic (?:line|catheter)|catheter(?={_CAVA})|(?<!lead )(?<!leads )tip\b(?={_CAVA})",
        "",
    ),
    "rib fracture": (
        r"rib fractures?|fractured ribs?"
        r"|fractures?(?=(?: deformit\w+)?(?: (?:is|are))?(?: (?:seen|present|noted|identified))?"
        r" (?:of|in|on|at|through|along|involving|the)\b[^.;\n]{0,40}\bribs?\b)"
        r"|ribs?\b(?: [\w-]+){0,6}? fractur\w+",
        r"ribs are(?: grossly)? intact",
    ),
    "fracture": (
        r"(?<!catheter )(?<!wire )(?<!lead )(?<!wires are )fractur(?:es?|ed)\b"
        r"(?! (?:of )?(?:\w+ ){0,3}(?:wires?|leads?|catheter|sternotomy|hardware|screws?)\b)",
        rf"(?:ribs|clavicles?|{_BONES})(?: [\w,]+){{0,4}}? (?:intact|{_NORMAL})|{_NORMAL} {_BONES}"
        rf"|{_BONES}(?:,? (?:and|the|visualized|upper|abdomen|soft|tissues?|have|a|are)){{0,6}}"
        rf" {_NORMAL}|intact {_BONES}"
        rf"|{_BONES}(?: of the thorax)? (?:is|are|reveals?|shows?|demonstrates?) (?:no|without)"
        r"(?: (?:any|evidence of|acute|significant|definite|focal)){0,3} abnormalit\w+"
        r"|(?:no|without) acute (?:bony|osseous|skeletal) changes?"
        r"|(?:no|without|negative(?: for)?)\b [\w ]{0,45}?(?:bony|osseous|skeletal|bone)"
        r"(?: \w+){0,3}? (?:abnormalit\w+|findings?|injur\w+|process)",
    ),
    "scoliosis": (
        r"(?:(?:dextro|levo|kypho|roto)-? ?){0,2}scolio(?:sis|tic)|(?:dextro|levo)[ -]?curvature"
        r"|curvature of the(?: \w+)? spine|spin(?:e|al) curvature",
        r"spine is straight",
    ),
    "spine degeneration": (
        r"degenerat(?:iv)?e (?:\w+ )?(?:changes?|disease|spurring|spondyl\w+|osteophyt\w+)"
        rf"{_NOT_SPINE}|spondylo(?:sis|tic)|dis[ck] space narrowing|osteophyt\w+{_NOT_SPINE}"
        r"|(?:spine|endplate|vertebral) spurr\w+|spurring (?:of|in|along) the(?: \w+)? spine"
        r"|degenerat\w+(?: (?!joint)\w+){0,3}? spine"
        r"|arthritic changes?(?: (?:of|in|throughout))? the(?: \w+)? spine"
        r"|(?:cervical|thoracic|lumbar)(?: \w+){0,2}? arthriti\w+",
        "",
    ),
}


class Structure(NamedTuple):
    """A structure that a question may call normal or abnormal, and the findings it is about."""

    words: str
    normal: str
    abnormal: str
    findings: tuple[str, ...]


_FINE = r"normal\w*|unremarkable|healthy|intact|ok(?:ay)?\b"
_ILL = r"abnormal(?:it\w+)?\b|(?:anything|something) wrong|pathologic\w*|affected|enlarge\w*"

STRUCTURES = (
    Structure(
        rf"{_HEART}(?! failure)|cardio-?thoracic ratio",
        rf"(?<!image of )(?:{_FINE})|less than half|small\w*",
        rf"{_ILL}|increased|large\w*|big|dilated|wider|greater|exceed\w*|more than half",
        ("cardiomegaly",),
    ),
    Structure(
        r"lungs?\b(?! (?:volumes?|markings))",
        r"normal(?! in size)|unremarkable|healthy|clear",
        _ILL,
        ("consolidation", "pneumonia", "opacity"),
    ),
    Structure(r"pulmonary", r"(?!)", r"findings", ("consolidation", "pneumonia", "opacity")),
    Structure(r"fluid", r"(?!)", r"around the (?:\w+ )?lungs?", ("pleural effusion",)),
    Structure(
        r"fluid", r"(?!)", r"in the (?:\w+ )?lungs?", ("pleural effusion", "pulmonary edema")
    ),
    Structure(r"lungs?\b", r"(?!)", r"collaps\w+", ("pneumothorax", "atelectasis")),
    Structure(
        r"lung markings|visceral pleura",
        r"(?:extend|reach)\w*|present in the entire",
        r"pleura visible|pleura seen",
        ("pneumothorax",),
    ),
    Structure(
        r"costo(?:phren|vertebr)\w+ (?:angles?|sulc\w+)",
        rf"{_FINE}|sharp|clear|preserved|visuali\w+|visible",
        rf"{_ILL}|blunt\w*|obscured|obliterated|difficult to",
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
    Structure(
        r"lungs?\b",
        r"(?!)",
        r"increased in (?:size|volume)|(?:over-?|over |abnormally )inflated",
        ("hyperinflation",),
    ),
    Structure(r"lung volumes?", _FINE, r"increased|large", ("hyperinflation",)),
    Structure(r"(?:hemi)?diaphragms?", r"(?!)", r"flat\w*", ("hyperinflation",)),
    Structure(r"ribs?\b", _FINE, rf"{_ILL}|broken", ("rib fracture",)),
    Structure(rf"{_BONES}|clavicles?|bon(?:e|y)\b", _FINE, rf"{_ILL}|broken", ("fracture",)),
    Structure(r"spine|spinal column", r"straight", r"curved", ("scoliosis",)),
    Structure(r"spine|spinal|vertebra\w*", _FINE, _ILL, ("scoliosis", "spine degeneration")),
)
