"""The command line. Standard output carries results only; logs and errors go to standard error."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Collection
from functools import wraps
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import click

from upwell import __version__
from upwell.app import logs
from upwell.errors import UpwellError

if TYPE_CHECKING:
    from upwell.config import Pipeline

CONTEXT: Final = {"help_option_names": ["-h", "--help"], "max_content_width": 110}
PUBLISHER: Final = ("source", "destination", "masking")
SUBSCRIBER: Final = ("destination", "subscriber")


def main() -> None:
    """The `upwell` command."""
    sys.exit(run(sys.argv[1:]))


def run(arguments: list[str]) -> int:
    """Run a command; the exit code: 0 done, 1 failed, 2 configuration or usage wrong, 3 environment not ready."""
    logs.set_up("text")
    try:
        result = upwell.main(args=arguments, prog_name="upwell", standalone_mode=False)
    except click.exceptions.Exit as end:
        return end.exit_code
    except click.ClickException as wrong:
        wrong.show()
        return 2
    except (click.Abort, KeyboardInterrupt):
        click.echo("interrupted", err=True)
        return 1
    except UpwellError as error:
        logs.failed(error)
        return error.exit_code
    except BrokenPipeError:
        # Nobody reads our output any more; so that the interpreter's own flush does not complain:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except Exception:
        logs.crashed()
        return 1
    return result if isinstance(result, int) else 0


def _log_format(_context: click.Context, _option: click.Parameter, value: logs.Format) -> logs.Format:
    logs.set_up(value)
    return value


def options(command: Callable[..., Any]) -> Callable[..., Any]:
    """The options that every command takes; the command itself gets `file`."""

    @click.option(
        "-c",
        "--config",
        "file",
        type=click.Path(path_type=Path),
        default="upwell.yaml",
        envvar="UPWELL_CONFIG",
        show_default=True,
        show_envvar=True,
        help="The configuration.",
    )
    @click.option(
        "--log-format",
        type=click.Choice(["text", "json"]),
        default="text",
        show_default=True,
        is_eager=True,
        callback=_log_format,
        help="Of the lines on standard error.",
    )
    @wraps(command)
    def with_options(*args: Any, log_format: str, **kwargs: Any) -> Any:
        return command(*args, **kwargs)

    return with_options


def loaded(file: Path, needs: Collection[str]) -> Pipeline:
    """The configuration, its secrets hidden from here on. Raises ConfigError."""
    from upwell.config import load

    pipeline = load(file, os.environ, needs=needs)
    logs.hide(pipeline.secrets)
    return pipeline


@click.group(context_settings=CONTEXT)
@click.version_option(__version__, message="%(prog)s %(version)s")
def upwell() -> None:
    """Event-based data sync from an on-premises database to AWS.

    \b
    See it work, with nothing but this program:
      upwell demo
    Set up a pipeline:
      upwell init postgresql://user:password@host/shop --to kinesis://shop
      upwell doctor
      upwell track
      upwell publish

    Shell completion, for bash (zsh and fish alike): eval "$(_UPWELL_COMPLETE=bash_source upwell)"
    """


@upwell.command()
@options
@click.option("--dry-run", is_flag=True, help="Print the SQL, and execute nothing.")
def track(file: Path, dry_run: bool) -> None:
    """Let the source database log what changes.

    PostgreSQL: a publication and a replication slot. SQLite: triggers and a table for the log. Only what is missing
    is done, so the command may be repeated; it prints what it executed.

    \b
    Example:  upwell track --dry-run > track.sql
    """
    from upwell.app import build

    parts = build.source_parts(loaded(file, ["source"]))
    for statement in parts.track_sql() if dry_run else parts.track():
        click.echo(statement)


@upwell.command()
@options
@click.option("--once", is_flag=True, help="Publish what there is now, existing rows included, and end.")
def publish(file: Path, once: bool) -> None:
    """Run the change event publisher.

    Reads the changes of the configured tables, and first the rows that exist already, and sends them to the
    destination. SIGTERM or Ctrl-C: it finishes what is under way, saves how far it came and ends.

    \b
    Example:  upwell publish -c /etc/upwell/shop.yaml --log-format json
    """
    from upwell.app.publish import publish as run_it

    run_it(loaded(file, PUBLISHER), once=once)


@upwell.command()
@options
@click.option("--once", is_flag=True, help="Apply what the stream holds now, and end.")
def subscribe(file: Path, once: bool) -> None:
    """Run the change event subscriber.

    Reads the stream and applies the changes to the target database, each once and in order. SIGTERM or Ctrl-C: it
    finishes what is under way and ends.

    \b
    Example:  upwell subscribe -c /etc/upwell/shop.yaml
    """
    from upwell.app.subscribe import subscribe as run_it

    run_it(loaded(file, SUBSCRIBER), once=once)
