"""The `nokv` command and its manners: lazy subcommands, exit codes, one line what, one line why, one line next.

Exit codes: 0 ok, 1 failed, 2 usage or missing extra, 3 not found, 4 refused by state, 5 unavailable or timeout,
6 corruption, 130 interrupted. Errors go to stderr; a traceback only with `--debug` (or NOKV_DEBUG=1). SIGPIPE is
silent.
"""

from __future__ import annotations

import errno
import importlib
import os
import sys
from typing import TYPE_CHECKING, Any, NoReturn

try:
    import click
except ImportError:  # the one extra without which nothing here works
    sys.stderr.write("nokv: error: the command line needs the server extra\n  next: pip install 'nokv[server]'\n")
    raise SystemExit(2) from None

from nokv.errors import NoKVError, NotFound

if TYPE_CHECKING:
    from click.shell_completion import CompletionItem

__all__ = ["LazyGroup", "cli", "main", "run", "run_command"]


class LazyGroup(click.Group):
    """A group that imports a subcommand's module only when that subcommand runs or its own help is shown.

    `lazy` maps a name to ("module:attribute", one line of help), so that `nokv --help` and completion import nothing.
    """

    def __init__(
        self, *args: Any, lazy: dict[str, tuple[str, str]], hidden: tuple[str, ...] = (), **kwargs: Any
    ) -> None:
        super().__init__(*args, **kwargs)
        self.lazy = lazy
        self.hidden_names = hidden

    def list_commands(self, ctx: click.Context) -> list[str]:
        return [name for name in self.lazy if name not in self.hidden_names]

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in self.lazy:
            return None
        module, attribute = self.lazy[cmd_name][0].split(":")
        command = getattr(importlib.import_module(module), attribute)
        assert isinstance(command, click.Command)
        return command

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        if args and args[0] not in self.lazy and not args[0].startswith("-"):
            import difflib

            near = difflib.get_close_matches(args[0], self.lazy, n=1)
            hint = f" Did you mean `{near[0]}`?" if near else ""
            raise click.UsageError(f"no such command `{args[0]}`.{hint}", ctx)
        return super().resolve_command(ctx, args)

    def shell_complete(self, ctx: click.Context, incomplete: str) -> list[CompletionItem]:
        """Click would load every candidate for its line of help."""
        from click.shell_completion import CompletionItem

        names = [name for name in self.list_commands(ctx) if name.startswith(incomplete)]
        options = click.Command.shell_complete(self, ctx, incomplete)
        return [*(CompletionItem(name, help=self.lazy[name][1]) for name in names), *options]

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl([(name, self.lazy[name][1]) for name in self.list_commands(ctx)])


_OS_HINTS = {
    errno.ENOENT: "check the path",
    errno.ENOSPC: "free some space, then run the same command again",
    errno.EDQUOT: "free some space, then run the same command again",
    errno.EACCES: "check the permissions",
    errno.EPERM: "check the permissions",
    errno.EROFS: "the file system is read-only",
    errno.EMFILE: "raise the limit of open files: ulimit -n",
}

COMMANDS: dict[str, tuple[str, str]] = {
    "get": ("nokv.cli.data:get", "Print the value of one key."),
    "put": ("nokv.cli.data:put", "Write one key."),
    "del": ("nokv.cli.data:delete", "Delete one key."),
    "scan": ("nokv.cli.data:scan", "List keys and values in order."),
    "stats": ("nokv.cli.data:stats", "Figures of a directory or of a running process."),
    "check": ("nokv.cli.repair:check", "Read every byte of a directory; say what is damaged."),
    "repair": ("nokv.cli.repair:repair", "Make a damaged directory open again; nothing is deleted."),
    "import": ("nokv.cli.transfer:import_", "Load keys and values from JSON lines or CSV."),
    "export": ("nokv.cli.transfer:export", "Write keys and values as JSON lines or CSV."),
    "regions": ("nokv.cli.regions:regions", "Regions of a cluster, or of one store's directory."),
    "execution": ("nokv.cli.execution:execution", "What a store admitted, changed and restarted with."),
    "root": ("nokv.cli.root:root", "The rooted log: log, snapshot, status, verify, audit."),
    "serve": ("nokv.cli.server:serve", "Run a store."),
    "coordinator": ("nokv.cli.server:coordinator", "Run a coordinator (alias: pd)."),
    "meta-root": ("nokv.cli.server:meta_root", "Run one peer of the meta-root."),
    "migrate": ("nokv.cli.migrate:migrate", "From a standalone directory to a replicated cluster."),
    "cluster": ("nokv.cli.cluster:cluster", "A local cluster of real processes: up, status, kill, start, down."),
    "cert": ("nokv.cli.cert:cert", "Certificates for --tls-dir: init, issue."),
    "bench": ("nokv.cli.bench:bench", "How fast the engine is on this machine and disk."),
    "wal": ("nokv.cli.files:wal", "Look into a write-ahead log."),
    "manifest": ("nokv.cli.files:manifest", "Tables, value files and families of a directory."),
    "sst": ("nokv.cli.files:sst", "Look into a table."),
    "blob": ("nokv.cli.files:blob", "Look into a value file."),
    "config": ("nokv.cli.topology:config", "Check and show a topology file."),
    "version": ("nokv.cli.version:version", "Versions of NoKV and what it runs on."),
    "pd": ("nokv.cli.server:coordinator", "Alias of coordinator."),
}


def _print_version(ctx: click.Context, _param: click.Parameter, value: bool) -> None:
    if value and not ctx.resilient_parsing:
        from nokv import __version__

        click.echo(f"nokv {__version__}")
        ctx.exit()


@click.group(
    cls=LazyGroup,
    lazy=COMMANDS,
    hidden=("pd",),
    context_settings={"help_option_names": ["-h", "--help"], "auto_envvar_prefix": None},
)
@click.option("--debug", is_flag=True, envvar="NOKV_DEBUG", help="Show a traceback with an error.")
@click.option("--version", is_flag=True, is_eager=True, expose_value=False, callback=_print_version, help="Show it.")
def cli(debug: bool) -> None:
    """NoKV: a storage engine that starts as a Python library and grows into a replicated cluster, in the same
    directory.

    Data commands work on a directory (--workdir D) or on a cluster (--coordinator ADDR, or --dir of a local cluster).
    """
    if debug:
        os.environ["NOKV_DEBUG"] = "1"


def main(argv: list[str] | None = None) -> NoReturn:
    """Run one command and exit the process with the code of the module docstring."""
    sys.exit(run(argv))


def run(argv: list[str] | None = None) -> int:
    """Run one `nokv` command and return its exit code; every error has been printed."""
    return run_command(cli, argv, "nokv")


def run_command(command: click.Command, argv: list[str] | None = None, name: str | None = None) -> int:
    """Run any click command with the manners of this module."""
    os.environ.setdefault("GRPC_VERBOSITY", "ERROR")  # its own lines about failed handshakes; we say why ourselves
    try:
        result = command.main(args=argv, prog_name=name, standalone_mode=False)
        sys.stdout.flush()
        return result if isinstance(result, int) else 0
    except click.exceptions.Exit as stop:
        return stop.exit_code
    except (click.Abort, KeyboardInterrupt):
        _say("interrupted", "", "")
        return 130
    except click.ClickException as error:
        context = getattr(error, "ctx", None)
        _say(error.format_message(), "", f"{context.command_path} --help" if context is not None else "")
        return 2
    except NoKVError as error:
        _debug()
        _say(str(error), _why(error), error.hint)
        return error.exit_code
    except (BrokenPipeError, SystemExit) as stop:
        # click makes SystemExit(1) of a broken pipe, and leaves a stdout behind that bears one
        if isinstance(stop, SystemExit) and "PacifyFlush" not in type(sys.stdout).__name__:
            raise
        # The reader went away: say nothing, like every other filter, also not when the rest is flushed.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.__stdout__.fileno() if sys.__stdout__ is not None else 1)
        return 0
    except ModuleNotFoundError as error:
        _debug()
        if (error.name or "").partition(".")[0] == "nokv":
            _say(f"this build of nokv has no module {error.name}", "", "reinstall nokv, or build its extensions")
        else:
            _say(f"this command needs the package {error.name}", "", "pip install 'nokv[server]'")
        return 2
    except OSError as error:
        _debug()
        where = f"{error.filename}: " if error.filename else ""
        _say(f"{where}{error.strerror or error}", "", _OS_HINTS.get(error.errno or 0, ""))
        return NotFound.exit_code if error.errno == errno.ENOENT else 1
    except Exception as error:  # the outermost loop: our own bug, said in one line
        _debug()
        _say(f"{type(error).__name__}: {error}", "this is a bug in nokv", "run again with --debug and report it")
        return 1


def _why(error: BaseException) -> str:
    cause = error.__cause__
    text = "" if cause is None else f"{cause}".strip()
    return "" if text and text in str(error) else text


def _say(what: str, why: str, hint: str) -> None:
    lines = [f"nokv: error: {' '.join(what.split())}"]
    if why:
        lines.append(f"  why:  {' '.join(why.split())}")
    if hint:
        lines.append(f"  next: {hint}")
    try:
        sys.stderr.write("\n".join(lines) + "\n")
    except OSError:
        return


def _debug() -> None:
    if os.environ.get("NOKV_DEBUG", "") not in ("", "0"):
        import traceback

        traceback.print_exc()


if __name__ == "__main__":
    main()
