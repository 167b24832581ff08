"""The command `segment-anything`.

Every file in this folder whose name does not begin with an underscore is one command: it defines `command`, a function
as typer takes it (or `app`, a `typer.Typer` of sub-commands), and its docstring is the command's help. A file is read
for its first line when commands are listed, and imported only when it is called: `--help` does not wait for torch.
"""

import ast
import importlib
import pkgutil
import sys
import warnings
from pathlib import Path
from typing import Annotated, Any

import typer
from typer.core import TyperCommand, TyperGroup


class _Group(TyperGroup):
    """Lists commands without importing them, and turns a user's mistakes into one line and exit status 1."""

    def __init__(self, **settings: Any) -> None:
        super().__init__(**settings)
        for module in sorted(pkgutil.iter_modules(__path__), key=lambda module: module.name):
            if not module.name.startswith("_"):
                name = module.name.replace("_", "-")
                self.commands[name] = TyperCommand(name, help=_docstring(module.name).partition("\n")[0])

    def resolve_command(self, ctx: Any, args: list[str]) -> tuple[str | None, Any, list[str]]:
        name, listed, rest = super().resolve_command(ctx, args)
        return name, listed and _load(str(name)), rest

    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except BrokenPipeError:
            raise
        except (ValueError, OSError, ImportError) as error:
            if isinstance(error, ImportError) and "pip install" not in str(error):
                raise  # our own fault; one that names an extra is the user's to solve
            sys.stdout.flush()
            print(f"Error: {error}", file=sys.stderr)
            raise typer.Exit(1) from error


def _docstring(module: str) -> str:
    source = Path(__file__).with_name(f"{module}.py").read_text("utf-8")
    return ast.get_docstring(ast.parse(source)) or ""


def _load(name: str) -> Any:
    module = importlib.import_module(f"{__name__}.{name.replace('-', '_')}")
    single = typer.Typer(rich_markup_mode="markdown", add_completion=False, pretty_exceptions_show_locals=False)
    if not hasattr(module, "app"):
        single.command(name, help=module.__doc__)(module.command)
    return typer.main.get_command(getattr(module, "app", single))


app = typer.Typer(
    cls=_Group,
    rich_markup_mode="markdown",
    pretty_exceptions_show_locals=False,
    no_args_is_help=True,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _print_version(wanted: bool) -> None:
    if wanted:
        from segment_anything import __version__

        print(__version__)
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Show the version and exit.")
    ] = False,
) -> None:
    """Cut any object out of any image: Segment Anything on the command line."""


def main() -> None:
    """Run the command line; the process exits with its status: 0, 1 for failures, 2 for wrong usage."""
    # Pillow warns of odd files without naming them; whether a file can be read is said in our own words.
    warnings.filterwarnings("ignore", module=r"PIL\.")
    app(prog_name="segment-anything")
