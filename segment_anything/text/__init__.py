"""Phrases and masks: encoders that compare text with pictures, ranking and labelling of masks, text as a prompt."""

from segment_anything.text.calibration import Calibration, fit_calibration
from segment_anything.text.crops import Crop, apply_style, square_crop
from segment_anything.text.encoders import TextImageEncoder, TransformersEncoder
from segment_anything.text.phrases import RelationWarning, check_phrases, warn_of_relations
from segment_anything.text.ranking import ScorerOptions, TextScorer, label_records, rank_records

__all__ = [
    "Calibration",
    "Crop",
    "RelationWarning",
    "ScorerOptions",
    "TextImageEncoder",
    "TextScorer",
    "TransformersEncoder",
    "apply_style",
    "check_phrases",
    "fit_calibration",
    "label_records",
    "rank_records",
    "square_crop",
    "warn_of_relations",
]
