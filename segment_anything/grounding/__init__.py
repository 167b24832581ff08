"""What is it? Named boxes or phrases -> masks with names, behind one call.

`segment_detections` asks a detector, `segment` takes a phrase by one of three routes: boxes of an open-vocabulary
detector, ranking of automatic masks by CLIP, or a SAM trained with text. The networks are elsewhere; here is what is
kept and how it is returned.
"""

from segment_anything.grounding.boxes import segment_detections
from segment_anything.grounding.phrases import (
    DEFAULT_PHRASE_MODEL,
    PhraseFinder,
    Route,
    load_phrase_model,
    segment,
)
from segment_anything.grounding.values import Grounded, GroundingOptions, Seconds

__all__ = [
    "DEFAULT_PHRASE_MODEL",
    "Grounded",
    "GroundingOptions",
    "PhraseFinder",
    "Route",
    "Seconds",
    "load_phrase_model",
    "segment",
    "segment_detections",
]
