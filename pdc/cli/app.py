"""The group of commands, and the report of errors: one line, without a traceback and without secrets."""

from __future__ import annotations

import io
import os
import sys
from collections.abc import Sequence
from importlib import import_module, metadata
from typing import Any

import click

from ..delivery import NotConfigured
from ..options import OptionError
from ..storage import StorageError
from ..storage.redaction import without_secrets
from .terminal import printable

COMMANDS = {
    "run": "run",
    "serve": "serve",
    "show": "show",
    "get": "get",
    "dump": "dump",
    "check": "check",
    "options": "options",
    "delete": "delete",
    "clear": "delete",
    "copy": "copy",
    "top": "top",
    "migrate": "migrate",
}
"""The commands in the order of the help, each with its module."""
FAILED, WRONG_CALL, INTERRUPTED = 1, 2, 130
"""Exit codes."""
FAILURES = (StorageError, NotConfigured, OSError, click.ClickException)
"""Exceptions whose message is all that a user needs."""
WRONG_CALLS = (click.UsageError, OptionError)
OWN = (StorageError, NotConfigured, OptionError)
"""Exceptions of pdc, whose messages show no secrets. Others may repeat a URL that somebody gave in a wrong place."""


class Commands(click.Group):
    """Imports the module of a command when the command is needed."""

    def list_commands(self, ctx: click.Context) -> list[str]:  # noqa: ARG002 - click calls it with its context
        """The names of the commands."""
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:  # noqa: ARG002 - the same
        """The command of that name."""
        if cmd_name not in COMMANDS:
            return None
        command: click.Command = getattr(import_module(f"{__package__}.{COMMANDS[cmd_name]}"), cmd_name)
        return command

    def resolve_command(self, ctx: click.Context, args: list[str]) -> tuple[str | None, click.Command | None, list[str]]:
        """The command of these arguments. Raises UsageError, with the name that is the closest to an unknown one."""
        import difflib

        name = args[0]
        if name in COMMANDS or name.startswith("-") or ctx.resilient_parsing:
            return super().resolve_command(ctx, args)
        close = difflib.get_close_matches(name, COMMANDS, n=1)
        raise click.UsageError(f"there is no command {name!r}{f'; did you mean {close[0]!r}?' if close else ''}", ctx)


def _print_version(context: click.Context, _: click.Parameter, is_wanted: bool) -> None:
    if is_wanted:
        click.echo(f"pdc {metadata.version('prometheus-distributed-client')}")
        context.exit()


COMPLETION = """\b
Completion in bash (zsh_source and fish_source are for the other two):
  eval "$(_PDC_COMPLETE=bash_source pdc)"
"""


@click.group(
    cls=Commands, epilog=COMPLETION, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100}
)
@click.option("--version", is_flag=True, is_eager=True, expose_value=False, callback=_print_version, help="Show the version.")
def app() -> None:
    """Serve, show and change the metrics in a Redis or SQLite storage, and run programs that count there.

    Each command takes --redis URL or --sqlite PATH. Without them it uses the storage that PDC_REDIS_URL or PDC_SQLITE_PATH
    names, or metrics.db, as pdc.setup_from_environ does.
    """


def run(arguments: Sequence[str] | None = None) -> int:
    """Run a command, and return its exit code."""
    given = list(sys.argv[1:] if arguments is None else arguments) or ["--help"]
    _prepare_streams()
    try:
        result: Any = app.main(given, prog_name="pdc", standalone_mode=False)
        sys.stdout.flush()
    except WRONG_CALLS as error:
        return _report(error, WRONG_CALL)
    except BrokenPipeError:
        return _go_quietly()
    except FAILURES as error:
        code = _report(error, FAILED)
        return code if _can_flush() else _go_quietly(code)
    except click.exceptions.Abort:
        click.echo("", err=True)
        return INTERRUPTED
    except SystemExit as left:  # click has found the pipe broken
        return _go_quietly() if left.code == 1 else int(left.code or 0)
    return result if isinstance(result, int) else 0


def _prepare_streams() -> None:
    """Open the null device for streams that the caller has closed; spell characters out that a terminal does not have."""
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:
            setattr(sys, name, os.fdopen(os.open(os.devnull, os.O_RDWR), mode, closefd=False))
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


def _can_flush() -> bool:
    """False where the output cannot be written, as on a full disk; Python would report that once more at its end."""
    try:
        sys.stdout.flush()
    except OSError:
        return False
    return True


def _go_quietly(code: int = 0) -> int:
    """End without a word about output that nobody reads any more, as after ``| head``, or that has no room."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return code


def _report(error: BaseException, code: int) -> int:
    """Write the message of the error in one line."""
    text = error.format_message() if isinstance(error, click.ClickException) else str(error)
    message = text if isinstance(error, OWN) else without_secrets(text)
    context = error.ctx if isinstance(error, click.UsageError) else None
    hint = f" (see {context.command_path} --help)" if context is not None else ""
    click.echo(f"pdc: {printable(' '.join(message.split())).rstrip('.')}{hint}", err=True)
    return code
