"""The command line. Standard output carries results only; logs and errors go to standard error."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Collection
from functools import wraps
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import unquote, urlsplit

import click

from upwell.app import logs
from upwell.errors import UpwellError

if TYPE_CHECKING:
    from upwell.app.stacks.guide import Kind
    from upwell.config import Pipeline

CONTEXT: Final = {"help_option_names": ["-h", "--help"], "max_content_width": 110}
PUBLISHER: Final = ("source", "destination", "masking")
SUBSCRIBER: Final = ("destination", "subscriber")


def main() -> None:
    """The `upwell` command."""
    logs.catch_crashes()
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
    from upwell.app.secret_store import from_secrets_manager
    from upwell.config import environment_secrets, load

    pipeline = load(file, os.environ, needs=needs, secret=from_secrets_manager)
    logs.hide([*pipeline.secrets, *environment_secrets(os.environ)])
    return pipeline


@click.group(context_settings=CONTEXT)
@click.version_option(package_name="upwell", message="%(prog)s %(version)s")
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
@click.option("--undo", is_flag=True, help="Remove all of it again; the publisher must be stopped.")
def track(file: Path, dry_run: bool, undo: bool) -> None:
    """Let the source database log what changes.

    PostgreSQL: a publication and a replication slot. SQLite: triggers and a table for the log. Only what is missing
    is done, so the command may be repeated; it prints what it executed. Undo it when nobody is to publish any more: a
    slot that is never read makes the server keep its log.

    \b
    Example:  upwell track --dry-run > track.sql
    """
    from upwell.app.track import track as run_it

    for statement in run_it(loaded(file, ["source"]), undo=undo, dry_run=dry_run):
        # To a file as it is, whatever is in its names: without `color`, click takes out what looks like a colour.
        click.echo(logs.visible(statement, lines=True) if sys.stdout.isatty() else statement, color=True)


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
@click.option("--fleet", is_flag=True, help="Share the stream with others, by Amazon's Kinesis Client Library.")
def subscribe(file: Path, once: bool, fleet: bool) -> None:
    """Run the change event subscriber.

    Reads the stream and applies the changes to the target database, each once and in order. SIGTERM or Ctrl-C: it
    finishes what is under way and ends.

    \b
    Example:  upwell subscribe -c /etc/upwell/shop.yaml
    """
    from upwell.app.subscribe import subscribe as run_it

    if fleet and once:
        raise click.UsageError("--once and --fleet exclude each other: a fleet has no end.")
    if fleet:
        from upwell.app.fleet import run_worker

        run_worker(loaded(file, SUBSCRIBER))
    else:
        run_it(loaded(file, SUBSCRIBER), once=once)


def _duration(_context: click.Context, _option: click.Parameter, value: str | None) -> float | None:
    from upwell.settings import seconds

    if value is None:
        return None
    try:
        return seconds(value)
    except ValueError as error:
        raise click.BadParameter(str(error)) from error


def _sql_server(_context: click.Context, _option: click.Parameter, value: str | None) -> str | None:
    if value is not None and not value.startswith(("mssql://", "sqlserver://")):
        raise click.BadParameter("the URL of a SQL Server begins with mssql://")
    return value


@upwell.command()
@options
@click.option("--relational", "ways", flag_value="relational", help="Only by Kinesis to a relational database.")
@click.option("--serverless", "ways", flag_value="serverless", help="Only to DynamoDB.")
@click.option("--no-browser", is_flag=True, help="For scripts; there is no view in a browser yet.")
@click.option("--for", "for_s", metavar="60s", callback=_duration, help="End by itself.")
@click.option(
    "--source",
    metavar="URL",
    envvar="UPWELL_DEMO_SOURCE",
    show_envvar=True,
    callback=_sql_server,
    help="A SQL Server for the shop's databases, mssql://sa:PASSWORD@HOST:1433/, where they are made and in the end "
    "dropped. Default: SQLite.",
)
def demo(file: Path, ways: str | None, no_browser: bool, for_s: float | None, source: str | None) -> int:
    """Watch changes travel, all on this machine.

    A legacy shop with its own database, an embedded AWS, a publisher and a subscriber; the network can be cut and the
    programs killed while you watch. Needs no account, no database, no configuration.

    \b
    Example:  upwell demo --for 60s
    """
    if source is not None:
        logs.hide([source, unquote(urlsplit(source).password or "")])
    from upwell.app.demo import demo as run_it

    which: Any = ways or "both"
    return run_it(which, for_s, not no_browser, source)


@upwell.command()
@options
@click.argument("source_url")
@click.option("--to", metavar="URL", help="kinesis://STREAM or dynamodb://PREFIX. Default: print the events.")
@click.option("--force", is_flag=True, help="Overwrite files that exist.")
def init(file: Path, source_url: str, to: str | None, force: bool) -> None:
    """Write a configuration for a database.

    Looks into the database and writes upwell.yaml with all its tables, grants.sql (a role with the least rights that
    publishing needs) and firewall.txt (which hosts must be reached). The password does not go into the file.

    \b
    Example:  upwell init postgresql://admin:secret@db01/shop --to kinesis://shop
    """
    from upwell.app.init import init as run_it
    from upwell.app.init import password_hint
    from upwell.config import passwords

    logs.hide(passwords(source_url))
    for path in run_it(source_url, to, file, force=force, environ=os.environ):
        click.echo(path)
    hint = password_hint(source_url)
    if hint is not None:
        click.echo(f"The password stays out of the file. First: {hint}", err=True)
    click.echo("Next: upwell doctor", err=True)


@upwell.command()
@options
@click.option("--json", "as_json", is_flag=True, help="For programs.")
def doctor(file: Path, as_json: bool) -> int:
    """Check everything that publish or subscribe will need.

    Each finding is pass, warn or fail, with a code for `upwell explain` and the next step. All are shown, not only the
    first. Exits with 3 where one is fail.

    \b
    Example:  upwell doctor --json | jq '.[] | select(.level == "fail")'
    """
    from upwell.app.doctor import findings, show_findings

    found = show_findings(findings(loaded(file, [])), as_json=as_json)
    return 3 if "fail" in found else 0


@upwell.command()
@options
@click.option("--json", "as_json", is_flag=True, help="For programs.")
def plan(file: Path, as_json: bool) -> None:
    """Show what would be read, written and created.

    For each column: its type at the source, its form on the wire and its type at the destination, with a warning
    where that can't hold all that the source's type can. Changes nothing.

    \b
    Example:  upwell plan
    """
    from upwell.app.plan import plan as made
    from upwell.app.plan import show_plan

    show_plan(made(loaded(file, ["source", "masking"])), as_json=as_json)


@upwell.command()
@options
@click.option("--json", "as_json", is_flag=True, help="For programs.")
@click.option("--watch", is_flag=True, help="Again every two seconds, until Ctrl-C.")
def status(file: Path, as_json: bool, watch: bool) -> None:
    """Show how the pipeline is.

    Per table: phase, lag, runway (how long until the source forgets what was not published), snapshot progress, events
    per second, dead letters, last error.

    \b
    Example:  upwell status --json | jq .publisher.lag_seconds
    """
    from upwell.app.status import status as run_it

    run_it(loaded(file, []), as_json=as_json, watch=watch)


@upwell.command()
@options
@click.argument("tables", nargs=-1, metavar="[TABLE]...")
@click.option("--reason", default="asked for by a person", show_default=True, help="For status and logs.")
def resync(file: Path, tables: tuple[str, ...], reason: str) -> None:
    """Have tables read again; all of them where none is named.

    The running publisher takes it up within a second, another one when it starts. Rows that the source no longer has
    are removed from the destination.

    \b
    Example:  upwell resync public.users
    """
    from upwell.app.resync import resync as run_it

    for table in run_it(loaded(file, ["source"]), tables, reason):
        click.echo(logs.visible(f"{table} will be read again"))


@upwell.command()
@options
@click.argument("tables", nargs=-1, metavar="[TABLE]...")
@click.option("--repair", is_flag=True, help="Have the tables that differ read again, as `upwell resync` does.")
@click.option(
    "--pause",
    "pause_s",
    metavar="5s",
    default="5s",
    show_default=True,
    callback=_duration,
    help="Before looking again at what differs; more than changes take to arrive.",
)
def verify(file: Path, tables: tuple[str, ...], repair: bool, pause_s: float) -> int:
    """Compare source and destination, row by row.

    Reads both in chunks and looks again after a pause at what differs, so that changes on their way are no false alarm.
    Lists the keys that differ, and exits with 1 where there are any.

    \b
    Example:  upwell verify public.users --repair
    """
    from upwell.app.resync import resync as read_again
    from upwell.app.verify import KEYS_SHOWN_MAX, sentences
    from upwell.app.verify import verify as compared
    from upwell.clock import SystemClock

    pipeline = loaded(file, ["source", "destination", "subscriber", "masking"])
    wrong = []
    for result in compared(pipeline, tables, SystemClock(), pause_s):
        for line in sentences(result, KEYS_SHOWN_MAX):
            click.echo(logs.visible(line))
        if not result.equal:
            wrong.append(result.table)
    if wrong and repair:
        for table in read_again(pipeline, wrong, "verify found differences"):
            click.echo(logs.visible(f"{table} will be read again by the publisher"))
    return 1 if wrong else 0


@upwell.command()
@options
@click.option("--learn", is_flag=True, help="Write the schema file from the source, and answer nothing.")
@click.option("--host", default="127.0.0.1", show_default=True, help="The address to listen on; 0.0.0.0: all.")
@click.option("--port", default=8080, show_default=True, type=click.IntRange(0, 65535), help="0: any that is free.")
def api(file: Path, learn: bool, host: str, port: int) -> None:
    """Answer reads of the synchronized data over HTTP.

    Shows the tables and columns that `api.tables` names, to callers that `api.authorization` knows. It is the
    application that also runs on Lambda. Behind a load balancer that ends TLS; SIGTERM or Ctrl-C: it answers what is
    under way and ends.

    \b
    Example:  upwell api --learn && upwell api --host 0.0.0.0 --port 8080
    """
    from upwell.app.api import learn as learned
    from upwell.app.api import serve

    if learn:
        click.echo(learned(loaded(file, ["source", "destination", "subscriber", "masking", "api"])))
    else:
        serve(loaded(file, ["destination", "subscriber", "api"]), host, port)


@upwell.group("dead-letters")
def dead_letters() -> None:
    """What could not be delivered or applied: list, show, replay, drop.

    Ids that begin with p- are the publisher's, those with s- the subscriber's.
    """


@dead_letters.command("list")
@options
@click.option("--json", "as_json", is_flag=True, help="For programs.")
def list_letters(file: Path, as_json: bool) -> None:
    """List them, the oldest first.

    \b
    Example:  upwell dead-letters list
    """
    from upwell.app.dead_letters import as_json_text, box
    from upwell.app.tables import show

    with box(loaded(file, [])) as letters:
        found = letters.all()
        if letters.unread is not None:
            click.echo(letters.unread, err=True)
    if as_json:
        fields = ("table", "key", "version", "reason", "time")
        click.echo(as_json_text([{"id": n} | {f: getattr(letter, f) for f in fields} for n, letter in found]))
    elif found:
        show(("ID", "TIME", "TABLE", "KEY", "REASON"), [(n, x.time, x.table, x.key, x.reason) for n, x in found])


@dead_letters.command("show")
@options
@click.argument("id_", metavar="ID")
def show_letter(file: Path, id_: str) -> None:
    """Show one with its row, as JSON.

    \b
    Example:  upwell dead-letters show s-7
    """
    from upwell.app.dead_letters import as_json_text, box, described

    with box(loaded(file, [])) as letters:
        click.echo(as_json_text(described(id_, letters.one(id_))))


@dead_letters.command("replay")
@options
@click.argument("ids", metavar="ID...", nargs=-1, required=True)
def replay_letters(file: Path, ids: tuple[str, ...]) -> None:
    """Have their tables read again, and forget them.

    Mend the cause first: what still can't be delivered becomes a dead letter again. The letter's own event is not sent
    again, since newer changes of its row may have arrived.

    \b
    Example:  upwell dead-letters replay p-1 p-2
    """
    from upwell.app.dead_letters import replay

    for table in replay(loaded(file, ["source"]), ids):
        click.echo(logs.visible(f"{table} will be read again"))


@dead_letters.command("drop")
@options
@click.argument("ids", metavar="ID...", nargs=-1, required=True)
def drop_letters(file: Path, ids: tuple[str, ...]) -> None:
    """Forget them.

    \b
    Example:  upwell dead-letters drop p-1
    """
    from upwell.app.dead_letters import box

    with box(loaded(file, [])) as letters:
        for id_ in ids:
            letters.drop(id_)


@upwell.command()
@options
@click.argument("kind", type=click.Choice(["serverless", "relational", "publisher-access"]))
@click.option("--out", metavar="DIR", type=click.Path(path_type=Path), help="Write template, package and guide there.")
@click.option("--estimate", is_flag=True, help="Say what it costs a month, about, at the load that follows.")
@click.option("--events", type=float, default=10.0, show_default=True, help="Changes a second, on average.")
@click.option("--row-bytes", type=int, default=500, show_default=True, help="Of a row.")
@click.option("--reads", type=float, default=10.0, show_default=True, help="Answers of the read API a second.")
@click.option("--gigabytes", type=float, default=10.0, show_default=True, help="Of rows at the destination.")
def stack(file: Path, kind: Kind, out: Path | None, estimate: bool, **load: Any) -> None:
    """Write what puts this pipeline's cloud side there: CloudFormation, with all that it needs.

    serverless: DynamoDB tables and the read API behind API Gateway. relational: the stream, the subscriber on Lambda,
    Aurora, and the read API on a fleet. publisher-access: a role with this pipeline's rights, for a certificate instead
    of keys. Without --out the template is printed.

    \b
    Example:  upwell stack serverless --out cloud
    """
    from upwell.app.stack import report, stack
    from upwell.app.stacks.estimate import Load

    made = stack(kind, file)
    logs.hide(made.pipeline.secrets)
    if estimate:
        report(made, Load(**load))
    elif out is None:
        click.echo(made.text(), nl=False)
    else:
        for path in made.write(out):
            click.echo(path)


@upwell.group()
def config() -> None:
    """About the configuration."""


@config.command()
@options
def schema(file: Path) -> None:
    """Print its JSON Schema, for editors.

    \b
    Example:  upwell config schema > upwell.schema.json
    """
    import orjson

    from upwell.settings import json_schema

    click.echo(orjson.dumps(json_schema(), option=orjson.OPT_INDENT_2))


@upwell.command()
@options
@click.argument("code")
def explain(file: Path, code: str) -> None:
    """Explain an error or finding code: its cause, and what to do.

    \b
    Example:  upwell explain UW-PG-020
    """
    from upwell.app.catalogue import explained

    click.echo(explained(code))
