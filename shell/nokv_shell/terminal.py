"""The interactive prompt, on prompt-toolkit: history, completion while typing, highlighting, a toolbar."""

from __future__ import annotations

import hashlib
import os
import time
from pathlib import Path
from typing import Any

from prompt_toolkit import PromptSession
from prompt_toolkit.completion import ThreadedCompleter
from prompt_toolkit.formatted_text import HTML
from prompt_toolkit.history import FileHistory
from prompt_toolkit.key_binding import KeyBindings, KeyPressEvent
from prompt_toolkit.lexers import PygmentsLexer

from nokv.errors import NoKVError
from nokv_shell.completer import ShellCompleter
from nokv_shell.grammar import is_complete
from nokv_shell.lexer import NoKVLexer
from nokv_shell.main import report
from nokv_shell.session import Session, prefix_end

__all__ = ["history_path", "interact", "make_prompt"]


def history_path(target: str) -> Path:
    """A history of its own per target, in the user's state directory, readable by the user alone."""
    import platformdirs

    directory = Path(platformdirs.user_state_dir("nokv"))
    directory.mkdir(mode=0o700, parents=True, exist_ok=True)
    path = directory / f"shell-{hashlib.sha256(target.encode()).hexdigest()[:12]}.history"
    path.touch(mode=0o600, exist_ok=True)
    return path


def make_prompt(session: Session, **overrides: Any) -> PromptSession[str]:
    """The prompt of a session. `overrides` (input, output, history) are for tests."""

    def keys(prefix: bytes, limit: int) -> list[bytes]:
        return [key for key, _ in session.target.scan(prefix, prefix_end(prefix), reverse=False, limit=limit)]

    bindings = KeyBindings()

    @bindings.add("enter")
    def _(event: KeyPressEvent) -> None:
        buffer = event.current_buffer
        if is_complete(buffer.text):
            buffer.validate_and_handle()
        else:
            buffer.insert_text("\n")  # an open quote: the value goes on

    def toolbar() -> HTML:
        mode = "WRITE" if session.writable else "read-only"
        return HTML(" {} | <b>{}</b> | output {} | help, Tab, Ctrl-D ").format(
            session.target.name, mode, session.output
        )

    settings: dict[str, Any] = {
        "completer": ThreadedCompleter(ShellCompleter(keys, time.monotonic_ns)),
        "complete_while_typing": True,
        "lexer": PygmentsLexer(NoKVLexer),
        "bottom_toolbar": toolbar,
        "key_bindings": bindings,
        "multiline": True,
        "prompt_continuation": "  ... ",
    }
    if "history" not in overrides:
        settings["history"] = FileHistory(str(history_path(session.target.name)))
    return PromptSession(**{**settings, **overrides})


def interact(session: Session) -> int:
    """Prompt until the user leaves. Errors are printed and the prompt comes back. Returns the exit code."""
    prompt = make_prompt(session)
    status = session.target.status()
    print(f"nokv-shell {status.get('version', '')}  {session.target.name}  {status.get('mode', '')}")
    print("help lists the verbs; writes need \\writemode on")
    while True:
        colour = "ansired" if session.writable else "ansigreen"
        text = "nokv# " if session.writable else "nokv> "
        try:
            line = prompt.prompt(
                text if os.environ.get("NO_COLOR") else HTML(f"<{colour}>{{}}</{colour}>").format(text)
            )
        except KeyboardInterrupt:
            continue  # Ctrl-C drops the line
        except EOFError:
            return 0
        try:
            if not session.run(line):
                return 0
        except NoKVError as error:
            report(error)
        except KeyboardInterrupt:
            print("cancelled")
