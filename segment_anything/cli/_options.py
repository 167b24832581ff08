"""Command-line options made from dataclasses: an option, its default, its help and its limits are written once."""

import ast
import inspect
import textwrap
from collections.abc import Callable
from dataclasses import MISSING, dataclass, fields, is_dataclass
from typing import Annotated, Any, get_args, get_origin, get_type_hints

import typer


@dataclass(frozen=True)
class Panel:
    """How the fields of a dataclass appear in the help: `parameter: Annotated[SomeOptions, Panel("Title")]`."""

    title: str
    without: tuple[str, ...] = ()
    """Fields that are no options; they keep their defaults."""


def expand_dataclasses(function: Callable[..., Any]) -> Callable[..., Any]:
    """Give `function` one keyword for each field of every parameter marked with a `Panel`.

    The result is for typer to read; it puts the dataclasses together again and calls `function`. A `ValueError` from a
    dataclass (they name the field) becomes a usage error.
    """
    plain: list[inspect.Parameter] = []
    groups: dict[str, tuple[type, dict[str, inspect.Parameter]]] = {}
    for parameter in inspect.signature(function, eval_str=True).parameters.values():
        options_class, panel = _marked(parameter.annotation)
        if options_class and panel:
            groups[parameter.name] = options_class, _field_parameters(options_class, panel)
        else:
            plain.append(parameter.replace(kind=inspect.Parameter.KEYWORD_ONLY))

    def wrapper(**values: Any) -> Any:
        for name, (options_class, parameters) in groups.items():
            given = {field: values.pop(field) for field in parameters}
            try:
                values[name] = options_class(**given)
            except ValueError as error:
                raise typer.BadParameter(str(error)) from error
        return function(**values)

    everything = [*plain, *(parameter for _, group in groups.values() for parameter in group.values())]
    wrapper.__name__, wrapper.__doc__, wrapper.__module__ = function.__name__, function.__doc__, function.__module__
    wrapper.__signature__ = inspect.Signature(everything)  # type: ignore[attr-defined]
    wrapper.__annotations__ = {parameter.name: parameter.annotation for parameter in everything}
    return wrapper


def _marked(annotation: Any) -> tuple[Any, Panel | None]:
    if get_origin(annotation) is Annotated:
        options_class, *marks = get_args(annotation)
        for mark in marks:
            if isinstance(mark, Panel) and is_dataclass(options_class):
                return options_class, mark
    return None, None


def _field_parameters(options_class: Any, panel: Panel) -> dict[str, inspect.Parameter]:
    types, helps = get_type_hints(options_class), field_docs(options_class)
    return {
        field.name: inspect.Parameter(
            field.name,
            inspect.Parameter.KEYWORD_ONLY,
            default=inspect.Parameter.empty if field.default is MISSING else field.default,
            annotation=Annotated[types[field.name], typer.Option(help=helps[field.name], rich_help_panel=panel.title)],
        )
        for field in fields(options_class)
        if field.name not in panel.without
    }


def field_docs(options_class: type) -> dict[str, str]:
    """The text below each field of a dataclass, on one line; python keeps it only in the source."""
    [definition] = ast.parse(textwrap.dedent(inspect.getsource(options_class))).body
    assert isinstance(definition, ast.ClassDef)
    docs = {}
    for field, below in zip(definition.body, definition.body[1:], strict=False):
        if isinstance(field, ast.AnnAssign) and isinstance(field.target, ast.Name):
            text = below.value.value if isinstance(below, ast.Expr) and isinstance(below.value, ast.Constant) else ""
            docs[field.target.id] = " ".join(str(text).split())
    return docs
