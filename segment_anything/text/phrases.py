"""What a phrase may say, and the sentences it is put in before a text encoder reads it.

CLIP was trained on captions, so a bare word is better read inside one ("a photo of a dog"); several are averaged
(https://arxiv.org/abs/2103.00020, section 3.1.4).
"""

import re
import warnings
from collections.abc import Sequence

TEMPLATES = ("a photo of {}.", "a photo of the {}.", "a close-up of {}.", "{}")
BACKGROUND = ("something", "the background", "a texture", "a part of an object")
"""What a mask that is none of the things asked for may look like; a phrase has to beat them."""

_RELATION = re.compile(
    r"\b(first(?! aid)|second|third|fourth|fifth|\d+(?:st|nd|rd|th)|left(?:most)?|right(?:most)?|(?:top|bottom)most|"
    r"(?:at|on|to|from|in) the (?:top|bottom|middle|back|front|corner)|on top of|behind|beside|between|above|below|"
    r"under(?:neath)?|next to|in front of|near(?:est)?|closest|furthest|farthest|larg(?:er|est)|bigg(?:er|est)|"
    r"small(?:er|est)|tall(?:er|est)|without|except|not)\b",
    re.IGNORECASE,
)


class RelationWarning(UserWarning):
    """A phrase speaks of a relation between objects, which no method here understands."""


def check_phrases(phrases: str | Sequence[str], name: str = "phrase") -> list[str]:
    """The phrases as a list without surrounding space.

    Args:
        phrases: one phrase or several.
        name: the argument's name, for messages.

    Raises:
        ValueError: if there is none, or one is empty or no text.
    """
    given = [phrases] if isinstance(phrases, str) else list(phrases)
    if not given:
        raise ValueError(f"{name} must hold at least one phrase; got an empty list.")
    for phrase in given:
        if not isinstance(phrase, str) or not re.search(r"\w", phrase):
            raise ValueError(f'{name} must be a word or a few, such as "a red car"; got {phrase!r}.')
    return [phrase.strip() for phrase in given]


def check_labels(labels: str | Sequence[str]) -> list[str]:
    """Labels to choose from, as a list without surrounding space.

    Raises:
        ValueError: for no labels, an empty one, or one given twice.
    """
    names = check_phrases(labels, "labels")
    if len(set(names)) < len(names):
        twice = next(name for name in names if names.count(name) > 1)
        raise ValueError(f"labels must be different; {twice!r} is there twice.")
    return names


def warn_of_relations(phrases: Sequence[str]) -> None:
    """Warn if a phrase asks for a choice among objects by place, order, size or negation."""
    for phrase in phrases:
        words = list(dict.fromkeys(match.group(0).lower() for match in _RELATION.finditer(phrase)))
        if words:
            warnings.warn(
                f"the phrase {phrase!r} speaks of a relation ({', '.join(words)}). Every object is judged by itself, "
                f"so the relation is not understood: ask for the thing and choose among its masks by their boxes.",
                RelationWarning,
                stacklevel=3,
            )


def fill_templates(phrase: str, templates: Sequence[str]) -> list[str]:
    """The sentences that a phrase makes.

    Raises:
        ValueError: if a template has no place for the phrase.
    """
    for template in templates:
        if "{}" not in template:
            raise ValueError(f'templates: each must hold {{}} where the phrase goes; got "{template}".')
    return [template.replace("{}", phrase) for template in templates]
