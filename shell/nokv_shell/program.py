"""Arguments of `nokv-shell`, by click."""

from __future__ import annotations

import sys

import click

from nokv.errors import NoKVError
from nokv_shell.main import open_target, read_script, report, run_lines
from nokv_shell.session import Session

__all__ = ["program"]


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.argument("target")
@click.option("-c", "--execute", "commands", multiple=True, help="Run this command and leave; may be repeated.")
@click.option("-f", "--file", "script", type=click.Path(exists=True, dir_okay=False), help="Run the lines of a file.")
@click.option("--output", type=click.Choice(["table", "json"]), default="table", show_default=True)
@click.option("--write", is_flag=True, help="Allow writes from the start (the same as \\writemode on).")
@click.option("--keep-going", is_flag=True, help="In scripts: go on after an error.")
@click.option("--tls-dir", envvar="NOKV_TLS_DIR", type=click.Path(), help="ca.crt, tls.crt, tls.key for a cluster.")
@click.version_option(package_name="nokv")
def program(
    target: str,
    commands: tuple[str, ...],
    script: str | None,
    output: str,
    write: bool,
    keep_going: bool,
    tls_dir: str | None,
) -> None:
    """Talk to TARGET: a directory, or nokv://HOST:PORT of a cluster's coordinator.

    Reads only, until \\writemode on (or --write). `help` lists the verbs, `help VERB` shows examples.
    """
    try:
        opened = open_target(target, tls_dir)
    except NoKVError as error:
        report(error)
        sys.exit(error.exit_code)
    session = Session(opened, lambda text: click.echo(text, nl=False), output=output)
    try:
        if write:
            opened.set_writable(True)
            session.writable = True
        if commands or script or not sys.stdin.isatty():
            lines = list(commands) or (read_script(script) if script else sys.stdin)
            code = run_lines(session, lines, stop_on_error=not keep_going)
        else:
            from nokv_shell.terminal import interact

            code = interact(session)
    except NoKVError as error:
        report(error)
        code = error.exit_code
    except KeyboardInterrupt:
        code = 130
    finally:
        opened.close()
    sys.exit(code)
