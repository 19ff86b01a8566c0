"""The ports: clock, randomness, files, executor; and their real versions.

Owns: the `typing.Protocol` contracts in `ports.py` and the versions that talk to the operating system (`clock.py`,
`files.py`, `executor.py`). Does not own: any decision. The network port belongs to `nokv.multiraft` (it speaks Raft
messages). Test versions (CrashFiles, FaultFiles, FakeClock, StepExecutor) are in `nokv.testing`. Read `ports.py` first.
"""

from nokv.env.ports import Clock, Executor, Files, LogFile, WritableFile

__all__ = ["Clock", "Executor", "Files", "LogFile", "WritableFile"]
