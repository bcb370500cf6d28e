"""``cdm``: the commands, and how their errors are told.

Nothing here imports torch; each command imports what it needs when it runs.
"""

from __future__ import annotations

import logging
import signal
import sys
from types import FrameType
from typing import Annotated, Any

import typer

from cascaded_diffusion.cli.assemble import assemble_command
from cascaded_diffusion.cli.demo import demo_command
from cascaded_diffusion.cli.evaluate import evaluate_command
from cascaded_diffusion.cli.export import export_command
from cascaded_diffusion.cli.import_ import import_command
from cascaded_diffusion.cli.once import is_ours_to_tell
from cascaded_diffusion.cli.plan import plan_command
from cascaded_diffusion.cli.prepare import prepare_command
from cascaded_diffusion.cli.push import push_command
from cascaded_diffusion.cli.recipe import recipe_command
from cascaded_diffusion.cli.report import report_command
from cascaded_diffusion.cli.sample import sample_command
from cascaded_diffusion.cli.search import search_command
from cascaded_diffusion.cli.train import train_command
from cascaded_diffusion.cli.train_classifier import train_classifier_command
from cascaded_diffusion.cli.ui import ui_command
from cascaded_diffusion.errors import UserError, one_line
from cascaded_diffusion.telling import tell
from cascaded_diffusion.version import VERSION

__all__ = ["app", "main"]

# typer re-exports only one member of this family; this base is every error that the parser raises.
_ParserError: Any = typer.BadParameter.__mro__[2]

app = typer.Typer(
    name="cdm",
    help="Cascaded diffusion models: prepare images, train each stage alone, chain the stages, sample.",
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,  # rich's import takes longer than everything else that help needs
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _show_version(value: bool) -> None:
    if value:
        typer.echo(VERSION)
        raise typer.Exit


@app.callback(invoke_without_command=True)
def options(
    context: typer.Context,
    version: Annotated[
        bool, typer.Option("--version", callback=_show_version, is_eager=True, help="Print the version and exit.")
    ] = False,
    traceback: Annotated[bool, typer.Option("--traceback", help="Show where an unexpected error came from.")] = False,
) -> None:
    """Cascaded diffusion models: prepare images, train each stage alone, chain the stages, sample."""
    if context.invoked_subcommand is None:
        typer.echo(context.get_help())


for _name, _command, _summary in (
    ("demo", demo_command, "The whole story in minutes, from what the package ships."),
    ("recipe", recipe_command, "List the packaged recipes, or print one to edit."),
    ("prepare", prepare_command, "Crop and resize images for training."),
    ("plan", plan_command, "What a recipe's stages cost, before anything runs."),
    ("train", train_command, "Train one stage; the same command resumes."),
    ("assemble", assemble_command, "Chain trained stages into a cascade."),
    ("sample", sample_command, "Sample images from a cascade, or enlarge given ones."),
    ("search", search_command, "Find the best s, steps or guidance of a stage by score."),
    ("evaluate", evaluate_command, "Score images, a cascade or a run against real data."),
    ("report", report_command, "One self-contained page about runs and cascades."),
    ("import", import_command, "Make a stage of guided-diffusion's or diffusers' weights."),
    ("export", export_command, "Write a cascade for diffusers."),
    ("ui", ui_command, "A page in the browser: sample, watch, compare, enlarge."),
    ("push", push_command, "Upload a cascade to the Hugging Face hub."),
    ("train-classifier", train_classifier_command, "Train a classifier on your data, to score samples with."),
):
    app.command(_name, short_help=_summary)(_command)


def _end(number: int, frame: FrameType | None) -> None:
    raise SystemExit(128 + number)


class _Warnings(logging.Handler):
    """Tells what the library warns of in one line on stderr, once a command and launch.

    Attributes:
        told: what the command has told.
    """

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.told: set[str] = set()

    def emit(self, record: logging.LogRecord) -> None:
        line = f"warning: {record.getMessage()}"
        if line not in self.told and is_ours_to_tell(line):
            tell(line)
        self.told.add(line)


_WARNINGS = _Warnings()


def _is_of_lost_process(error: BaseException) -> bool:
    return "LostRankError" in (type(error).__name__, type(error.__cause__).__name__)


def _behind(leaving: SystemExit) -> Exception | None:
    """The failure that was on its way here when torchrun's SIGTERM, which follows a lost process, overtook it."""
    error = leaving.__context__
    while error is not None and not (isinstance(error, Exception) and _is_of_lost_process(error)):
        error = error.__context__
    return error


def main(arguments: list[str] | None = None) -> None:
    """Run ``cdm`` and exit with 0, 1 for a failure while running, 2 for a user's error, 130 or 143 after a signal."""
    given = sys.argv[1:] if arguments is None else arguments
    signal.signal(signal.SIGTERM, _end)
    logging.getLogger("cascaded_diffusion").addHandler(_WARNINGS)  # which is there once, however often
    _WARNINGS.told.clear()
    try:
        status = app(given, prog_name="cdm", standalone_mode=False)
    except UserError as error:
        status = _complain(one_line(error), 2)
    except _ParserError as error:
        context = getattr(error, "ctx", None)
        where = f" ({context.command_path} --help shows what is allowed)" if context is not None else ""
        status = _complain(" ".join(error.format_message().split()).rstrip(".") + where, 2)
    except (KeyboardInterrupt, typer.Abort):
        status = _complain("interrupted", 130)
    except SystemExit as leaving:
        if (failure := _behind(leaving)) is not None:
            _tell(failure)
        raise
    except Exception as error:  # the last resort: any failure is told in one line
        if "--traceback" in given:
            raise
        status = _tell(error)
    sys.exit(status if isinstance(status, int) else 0)


def _tell(error: Exception) -> int:
    """Tell a failure in one line, and return its exit status."""
    if isinstance(error, PermissionError) and error.filename is not None:  # a place that the user can choose or open
        from cascaded_diffusion.files import reason

        return _complain(reason(error), 2)
    lost = _is_of_lost_process(error)
    if lost:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)  # torchrun's may come while this is told
    kind = "" if isinstance(error, RuntimeError) else f"{type(error).__name__}: "
    line = f"{kind}{one_line(error)} (cdm --traceback ... shows where)"
    return _complain(line, 1, about="a lost process" if lost else None)


def _complain(line: str, status: int, about: str | None = None) -> int:
    """Tell an error, once for all processes of a launch that have the same; of one ``about`` a thing, rank 0's."""
    if is_ours_to_tell(line if about is None else about, after_main=about is not None):
        tell(f"cdm: {line}")
    return status
