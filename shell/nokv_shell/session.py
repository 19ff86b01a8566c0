"""One session: runs commands against a target and prints what they answer. No terminal in here: text in, text out."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from typing import Any, Protocol

from nokv.errors import NotFound, ReadOnly, UsageError
from nokv.literal import format_literal, json_bytes
from nokv_shell.grammar import Command, parse
from nokv_shell.verbs import VERBS

__all__ = ["Session", "Target"]

SCHEMA_VERSION = 1
SCAN_LIMIT = 20
VALUE_CHARACTERS = 200
Pair = tuple[bytes, bytes]


class Target(Protocol):
    """What the shell talks to: a directory or a cluster. Errors are `nokv.errors`."""

    name: str

    def get(self, key: bytes) -> bytes | None: ...
    def put(self, key: bytes, value: bytes) -> None: ...
    def delete(self, key: bytes) -> None: ...
    def scan(self, start: bytes | None, end: bytes | None, *, reverse: bool, limit: int | None) -> Iterable[Pair]: ...
    def set_writable(self, writable: bool) -> None: ...
    def status(self) -> dict[str, Any]: ...
    def stats(self) -> dict[str, Any]: ...
    def regions(self) -> list[dict[str, Any]]: ...
    def stores(self) -> list[dict[str, Any]]: ...
    def execution(self, address: str, region_id: int) -> list[dict[str, Any]]: ...
    def root_log(self, address: str, from_revision: int, limit: int) -> list[dict[str, Any]]: ...
    def close(self) -> None: ...


class Session:
    """`write(text)` prints one chunk of output. `run(line)` returns False when the session should end."""

    def __init__(self, target: Target, write: Callable[[str], None], *, output: str = "table") -> None:
        self.target = target
        self.output = output
        self.writable = False
        self._write = write
        self._actions: dict[str, Callable[[Command], None]] = {
            "get": self._get,
            "put": self._put,
            "del": self._delete,
            "scan": self._scan,
            "count": self._count,
            "status": lambda c: self._emit(c, "status", self.target.status()),
            "stats": lambda c: self._emit(c, "stats", self.target.stats()),
            "regions": lambda c: self._emit_rows(c, "regions", self.target.regions()),
            "stores": lambda c: self._emit_rows(c, "stores", self.target.stores()),
            "execution": self._execution,
            "root-log": self._root_log,
            "help": self._help,
            "\\writemode": self._writemode,
            "\\set": self._set,
        }

    def run(self, line: str) -> bool:
        """Run one line. NoKVError if it fails; nothing has been written to the store then, except as the error says."""
        command = parse(line)
        if command is None:
            return True
        if command.verb.name in ("\\quit", "\\q"):
            return False
        if command.verb.writes and not self.writable:
            raise ReadOnly("this session does not write", hint="\\writemode on")
        self._actions[command.verb.name](command)
        return True

    # -- data ---------------------------------------------------------------------------------------------------------
    def _get(self, command: Command) -> None:
        key = command.arguments[0]
        value = self.target.get(key)
        if value is None:
            raise NotFound(f"no key {format_literal(key, limit=VALUE_CHARACTERS)}")
        if self._json(command):
            self._document("get", {"key": json_bytes(key), "value": json_bytes(value)})
        else:
            self._write(format_literal(value) + "\n")

    def _put(self, command: Command) -> None:
        self.target.put(*command.arguments)
        self._write("ok\n")

    def _delete(self, command: Command) -> None:
        self.target.delete(command.arguments[0])
        self._write("ok\n")

    def _range(self, command: Command) -> tuple[bytes | None, bytes | None]:
        prefix = command.arguments[0] if command.arguments else command.literal("prefix")
        start, end = command.literal("start"), command.literal("end")
        if prefix is None:
            return start, end
        if start is not None or end is not None:
            raise UsageError("a prefix and --start / --end exclude each other", hint=command.verb.usage)
        return prefix, prefix_end(prefix)

    def _scan(self, command: Command) -> None:
        start, end = self._range(command)
        limit = command.number("limit", SCAN_LIMIT)
        pairs = self.target.scan(start, end, reverse="reverse" in command.options, limit=limit + 1)
        rows: list[Pair] = []
        more = False
        for pair in pairs:
            if len(rows) == limit:
                more = True
                break
            rows.append(pair)
        keys_only = "keys" in command.options
        if self._json(command):
            shown = [
                {"key": json_bytes(k)} if keys_only else {"key": json_bytes(k), "value": json_bytes(v)} for k, v in rows
            ]
            self._document("scan", {"rows": shown, "more": more})
            return
        width = max((len(format_literal(k, limit=60)) for k, _ in rows), default=0)
        for key, value in rows:
            name = format_literal(key, limit=60)
            self._write(name + "\n" if keys_only else f"{name.ljust(width)}  {format_literal(value, limit=80)}\n")
        self._write(f"({len(rows)} shown{', more follow: --limit' if more else ''})\n")

    def _count(self, command: Command) -> None:
        start, end = self._range(command)
        count = sum(1 for _ in self.target.scan(start, end, reverse=False, limit=None))
        if self._json(command):
            self._document("count", {"count": count})
        else:
            self._write(f"{count:,}\n")

    # -- cluster ------------------------------------------------------------------------------------------------------
    def _execution(self, command: Command) -> None:
        address = command.arguments[0].decode("utf-8", "replace") if command.arguments else ""
        rows = self.target.execution(address, command.number("region", 0))
        if self._json(command):
            self._document("execution", {"rows": rows})
            return
        for row in rows:
            self._write(f"[{row.get('address', '')}]\n")
            self._tree(row, 1)

    def _root_log(self, command: Command) -> None:
        address = command.arguments[0].decode("utf-8", "replace")
        rows = self.target.root_log(address, command.number("from", 0), command.number("limit", SCAN_LIMIT))
        self._emit_rows(command, "root-log", rows)

    # -- session ------------------------------------------------------------------------------------------------------
    def _help(self, command: Command) -> None:
        if not command.arguments:
            width = max(len(v.usage) for v in VERBS.values() if len(v.usage) < 40)
            for verb in VERBS.values():
                self._write(f"  {verb.usage.ljust(width)}  {verb.summary}\n")
            return
        name = command.arguments[0].decode("utf-8", "replace")
        found = VERBS.get(name) or VERBS.get("\\" + name)
        if found is None:
            raise UsageError(f"unknown verb {name!r}", hint="help lists the verbs")
        self._write(f"{found.usage}\n  {found.summary}\n" + "".join(f"  > {example}\n" for example in found.examples))

    def _writemode(self, command: Command) -> None:
        if command.arguments:
            wanted = command.arguments[0]
            if wanted not in (b"on", b"off"):
                raise UsageError("\\writemode takes on or off")
            self.target.set_writable(wanted == b"on")
            self.writable = wanted == b"on"
        self._write(f"writemode {'on' if self.writable else 'off'}\n")

    def _set(self, command: Command) -> None:
        if command.arguments:
            if len(command.arguments) != 2 or command.arguments[0] != b"output":
                raise UsageError("unknown setting", hint="\\set output table|json")
            if command.arguments[1] not in (b"table", b"json"):
                raise UsageError("output is table or json")
            self.output = command.arguments[1].decode()
        self._write(f"output {self.output}\n")

    # -- printing -----------------------------------------------------------------------------------------------------
    def _json(self, command: Command) -> bool:
        wanted = command.literal("output")
        if wanted is not None and wanted not in (b"json", b"table"):
            raise UsageError("--output is table or json")
        return (wanted or self.output.encode()) == b"json"

    def _document(self, kind: str, payload: dict[str, Any]) -> None:
        self._write(json.dumps({"schema_version": SCHEMA_VERSION, "kind": kind, **payload}) + "\n")

    def _emit(self, command: Command, kind: str, payload: dict[str, Any]) -> None:
        if self._json(command):
            self._document(kind, payload)
        else:
            self._tree(payload, 0)

    def _emit_rows(self, command: Command, kind: str, rows: list[dict[str, Any]]) -> None:
        if self._json(command):
            self._document(kind, {"rows": rows})
            return
        if not rows:
            self._write("(none)\n")
            return
        columns = list(rows[0])
        cells = [columns, *([_cell(row.get(column)) for column in columns] for row in rows)]
        widths = [max(len(row[i]) for row in cells) for i in range(len(columns))]
        for row in cells:
            self._write("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() + "\n")

    def _tree(self, value: dict[str, Any], depth: int) -> None:
        for name, item in value.items():
            indent = "  " * depth
            if isinstance(item, dict):
                self._write(f"{indent}{name}\n")
                self._tree(item, depth + 1)
            else:
                self._write(f"{indent}{name}: {_cell(item)}\n")


def _cell(value: object) -> str:
    if isinstance(value, dict) and "b64" in value:
        return str(value.get("text", value["b64"])) or '""'
    if isinstance(value, (list, tuple)):
        return ", ".join(_cell(item) for item in value) or "-"
    if isinstance(value, dict):
        return " ".join(f"{name}={_cell(item)}" for name, item in value.items())
    text = "-" if value is None else str(value)
    return "".join(c if c.isprintable() else f"\\x{ord(c):02x}" for c in text)


def prefix_end(prefix: bytes) -> bytes | None:
    """The first key after every key that starts with `prefix`; None if there is none."""
    trimmed = prefix.rstrip(b"\xff")
    return trimmed[:-1] + bytes([trimmed[-1] + 1]) if trimmed else None
