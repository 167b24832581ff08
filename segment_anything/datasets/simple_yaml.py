"""The part of YAML that `data.yaml` files use, so that a YAML library is not needed.

Top-level keys with a plain or quoted value, a list (`[a, b]` or lines with dashes) or a one-level mapping
(`{0: a}` or indented `0: a`). Anything deeper is an error and not a guess.
"""

from pathlib import Path

Value = str | list[str] | dict[str, str]


def read_simple_yaml(path: Path) -> dict[str, Value]:
    """The top-level keys of a file.

    Raises:
        ValueError: for what lies outside that part of YAML, with the line number.
    """
    content: dict[str, Value] = {}
    current = ""
    for number, raw in enumerate(path.read_text(encoding="utf-8-sig").splitlines(), 1):
        line = _without_comment(raw).rstrip()
        if not line.strip() or line.strip() == "---":
            continue
        if not raw[0].isspace() and not line.startswith("-"):
            current, found, value = line.partition(":")
            if not found:
                raise ValueError(f"{path} line {number}: expected `key: value`, got {raw!r}.")
            content[current] = _value(value.strip(), path, number)
        else:
            content[current] = _extend(content.get(current, ""), line.strip(), path, number)
    return content


def _extend(value: Value, line: str, path: Path, number: int) -> Value:
    """Add an indented or dashed line to the value of the key above it."""
    if line.startswith("- ") and (isinstance(value, list) or value == ""):
        return [*value, _unquote(line[2:])]
    key, found, item = line.partition(":")
    if found and (isinstance(value, dict) or value == ""):
        return {**(value or {}), _unquote(key): _unquote(item)}  # type: ignore[dict-item]
    if isinstance(value, list) and value and value[0].startswith("["):
        raise ValueError(f"{path} line {number}: nested lists are not read.")
    raise ValueError(f"{path} line {number}: only lists and one-level mappings are read, got {line!r}.")


def _value(text: str, path: Path, number: int) -> Value:
    if text.startswith(("[", "{")):
        closing = {"[": "]", "{": "}"}[text[0]]
        if not text.endswith(closing):
            raise ValueError(f"{path} line {number}: a list or mapping over several lines in brackets is not read.")
        items = [item for item in _split_commas(text[1:-1]) if item.strip()]
        if text.startswith("["):
            return [_unquote(item) for item in items]
        pairs = (item.partition(":") for item in items)
        return {_unquote(key): _unquote(value) for key, _, value in pairs}
    return _unquote(text)


def _split_commas(text: str) -> list[str]:
    """Split at commas outside quotes."""
    items, quote = [""], ""
    for character in text:
        if character in "'\"" and (not quote or quote == character):
            quote = "" if quote else character
        if character == "," and not quote:
            items.append("")
        else:
            items[-1] += character
    return items


def _unquote(text: str) -> str:
    text = text.strip()
    if len(text) >= 2 and text[0] == text[-1] and text[0] in "'\"":
        return text[1:-1]
    return text


def _without_comment(line: str) -> str:
    quote = ""
    for position, character in enumerate(line):
        if character in "'\"" and (not quote or quote == character):
            quote = "" if quote else character
        if character == "#" and not quote and (position == 0 or line[position - 1].isspace()):
            return line[:position]
    return line
