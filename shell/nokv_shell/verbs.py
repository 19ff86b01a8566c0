"""The table of verbs: names, arguments, options, help, examples. The parser, completer, lexer and help all read it."""

from __future__ import annotations

from dataclasses import dataclass, field

__all__ = ["VERBS", "Verb"]

_OUTPUT = {"output": True}


@dataclass(frozen=True, slots=True)
class Verb:
    name: str
    usage: str
    summary: str
    examples: tuple[str, ...]
    arguments: tuple[int, int] = (0, 0)
    options: dict[str, bool] = field(default_factory=dict)  # name -> takes a value
    writes: bool = False
    key_argument: bool = False  # the first argument is a key: complete it from the store

    @property
    def arguments_text(self) -> str:
        low, high = self.arguments
        count = str(low) if low == high else f"{low} to {high}"
        return f"{count} argument" + ("" if count == "1" else "s")


_RANGE = {"prefix": True, "start": True, "end": True}

VERBS: dict[str, Verb] = {
    verb.name: verb
    for verb in (
        Verb("get", "get KEY", "the value of a key", ("get user:1", "get 0x00ff"), (1, 1), _OUTPUT, key_argument=True),
        Verb(
            "put",
            "put KEY VALUE",
            "store a value",
            ("put user:1 Ada", 'put "a key" b"\\x00\\x01"'),
            (2, 2),
            writes=True,
            key_argument=True,
        ),
        Verb("del", "del KEY", "delete a key", ("del user:1", 'del "a key"'), (1, 1), writes=True, key_argument=True),
        Verb(
            "scan",
            "scan [PREFIX] [--start K] [--end K] [--limit N] [--reverse] [--keys]",
            "pairs in key order (20 unless --limit says otherwise)",
            ("scan user: --limit 5", "scan --start a --end m --reverse"),
            (0, 1),
            {**_RANGE, "limit": True, "reverse": False, "keys": False, **_OUTPUT},
            key_argument=True,
        ),
        Verb(
            "count",
            "count [PREFIX] [--start K] [--end K]",
            "how many keys a range holds",
            ("count", "count user:"),
            (0, 1),
            {**_RANGE, **_OUTPUT},
            key_argument=True,
        ),
        Verb(
            "status", "status", "what this target is and how it is", ("status", "status --output json"), options=_OUTPUT
        ),
        Verb("stats", "stats", "counters of the engine", ("stats", "stats --output json"), options=_OUTPUT),
        Verb(
            "regions",
            "regions",
            "regions, their peers and leaders",
            ("regions", "regions --output json"),
            options=_OUTPUT,
        ),
        Verb("stores", "stores", "stores of the cluster", ("stores", "stores --output json"), options=_OUTPUT),
        Verb(
            "execution",
            "execution [STORE_ADDRESS] [--region N]",
            "admission, topology and restart posture of one store, or of all",
            ("execution", "execution 127.0.0.1:20160 --region 1"),
            (0, 1),
            {"region": True, **_OUTPUT},
        ),
        Verb(
            "root-log",
            "root-log ROOT_ADDRESS [--from REVISION] [--limit N]",
            "events of the rooted log, oldest first, as one meta-root has them",
            ("root-log 127.0.0.1:2380", "root-log 127.0.0.1:2380 --from 10 --limit 5"),
            (1, 1),
            {"from": True, "limit": True, **_OUTPUT},
        ),
        Verb("help", "help [VERB]", "this list, or one verb with examples", ("help", "help scan"), (0, 1)),
        Verb(
            "\\writemode",
            "\\writemode [on|off]",
            "allow or refuse writes in this session (off at the start)",
            ("\\writemode on", "\\writemode"),
            (0, 1),
        ),
        Verb(
            "\\set",
            "\\set [output table|json]",
            "session settings",
            ("\\set output json", "\\set"),
            (0, 2),
        ),
        Verb("\\quit", "\\quit", "leave (Ctrl-D does too)", ("\\quit", "\\q")),
        Verb("\\q", "\\q", "leave", ("\\q", "\\quit")),
    )
}
