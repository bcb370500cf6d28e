"""``cdm``: the commands, and how their errors are told.

Nothing here imports torch; each command imports what it needs when it runs.
"""

from __future__ import annotations

import signal
import sys
from types import FrameType
from typing import Annotated, Any

import typer

from cascaded_diffusion.cli.assemble import assemble_command
from cascaded_diffusion.cli.demo import demo_command
from cascaded_diffusion.cli.plan import plan_command
from cascaded_diffusion.cli.prepare import prepare_command
from cascaded_diffusion.cli.recipe import recipe_command
from cascaded_diffusion.cli.sample import sample_command
from cascaded_diffusion.cli.train import train_command
from cascaded_diffusion.errors import UserError
from cascaded_diffusion.version import VERSION

__all__ = ["app", "main"]

# typer re-exports only one member of this family; its bases are every error that the command line's parser raises.

_ParserError: Any = typer.BadParameter.__mro__[2]

app = typer.Typer(
    name="cdm",
    help="Cascaded diffusion models: prepare images, train each stage alone, chain the stages, sample.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _show_version(value: bool) -> None:
    if value:
        typer.echo(VERSION)
        raise typer.Exit


@app.callback()
def options(
    version: Annotated[
        bool, typer.Option("--version", callback=_show_version, is_eager=True, help="Print the version and exit.")
    ] = False,
    traceback: Annotated[bool, typer.Option("--traceback", help="Show where an unexpected error came from.")] = False,
) -> None:
    """Cascaded diffusion models: prepare images, train each stage alone, chain the stages, sample."""


for _name, _command in (
    ("demo", demo_command),
    ("recipe", recipe_command),
    ("prepare", prepare_command),
    ("plan", plan_command),
    ("train", train_command),
    ("assemble", assemble_command),
    ("sample", sample_command),
):
    app.command(_name)(_command)


def _end(number: int, frame: FrameType | None) -> None:
    raise SystemExit(128 + number)


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split()) or type(error).__name__


def main(arguments: list[str] | None = None) -> None:
    """Run ``cdm`` and exit: 0, 1 for a failure while running, 2 for what the user can put right, 130/143 for signals."""
    given = sys.argv[1:] if arguments is None else arguments
    signal.signal(signal.SIGTERM, _end)
    try:
        status = app(given, prog_name="cdm", standalone_mode=False)
    except UserError as error:
        status = _complain(_one_line(error), 2)
    except _ParserError as error:
        context = getattr(error, "ctx", None)
        where = f" ({context.command_path} --help shows what is allowed)" if context is not None else ""
        status = _complain(f"{' '.join(error.format_message().split())}{where}" if error.format_message() else "", 2)
    except (KeyboardInterrupt, typer.Abort):
        status = _complain("interrupted", 130)
    except Exception as error:
        if "--traceback" in given:
            raise
        hint = (
            f"{type(error).__name__}: {_one_line(error)}" if not isinstance(error, RuntimeError) else _one_line(error)
        )
        status = _complain(f"{hint} (cdm --traceback ... shows where)", 1)
    sys.exit(status if isinstance(status, int) else 0)


def _complain(line: str, status: int) -> int:
    if line:
        sys.stderr.write(f"cdm: {line}\n")
    return status
