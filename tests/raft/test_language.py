"""Every command and option of the data-driven language is understood; anything else is an error that names its line."""

from __future__ import annotations

import pytest

from nokv.testing.raft_datadriven import ScriptError, run_text

GROUP = "add-nodes 3 voters=(1,2,3) index=10\n----\n\nlog-level none\n----\n\ncampaign 1\n----\n\nstabilize\n----\n\n"
COMMANDS = [
    "add-nodes 1",
    "add-nodes 2 voters=(4,5) learners=(6) index=10 content=foo",
    "add-nodes 1 inflight=3 prevote=true checkquorum=true async-storage-writes=true",
    "add-nodes 1 max-committed-size-per-ready=10 disable-conf-change-validation=true step-down-on-removal=true",
    "add-nodes 1 read-only=safe",
    "add-nodes 1 checkquorum=true read-only=lease-based",
    "campaign 2",
    "tick-election 2",
    "tick-heartbeat 1",
    "set-randomized-election-timeout 2 timeout=5",
    "propose 1 data",
    "propose-conf-change 1\nv3 l4 r2",
    "propose-conf-change 1 v1=true\nv3",
    "propose-conf-change 1 transition=auto\nv3 l2",
    "propose-conf-change 1 transition=implicit\nl2",
    "propose-conf-change 1 transition=explicit\nl2",
    "propose-conf-change 1",
    "process-ready 1 2",
    "process-append-thread 1",
    "process-apply-thread 1",
    "deliver-msgs 1 2",
    "deliver-msgs 1 2 drop=(3)",
    "deliver-msgs 1 type=MsgApp",
    "stabilize",
    "stabilize 1 2",
    "stabilize 1 log-level=none",
    "raft-log 1",
    "status 1",
    "raft-state",
    "compact 1 11",
    "transfer-leadership from=1 to=2",
    "forget-leader 2",
    "report-unreachable 1 2",
    "send-snapshot 1 3",
    *(f"log-level {level}" for level in ("debug", "info", "warn", "error", "fatal", "none")),
]


@pytest.mark.parametrize("command", COMMANDS)
def test_understood(command: str) -> None:
    result = run_text("interaction", f"{GROUP}{command}\n----\n")
    assert result.cases == 5
    assert not result.text.endswith("----\n")  # it printed something, if only `ok`


@pytest.mark.parametrize(
    ("kind", "script", "reason"),
    [
        ("interaction", "fly 1\n----\n", "line 1: fly: unknown command"),
        ("interaction", "# first\n\nadd-nodes 1 wings=2\n----\n", "line 3: add-nodes: .*wings"),
        ("interaction", "add-nodes 1 read-only=never\n----\n", "never"),
        ("interaction", "add-nodes\n----\n", "argument 1 is missing"),
        ("interaction", "campaign 7\n----\n", "7"),
        ("interaction", "campaign x\n----\n", "x"),
        ("interaction", "log-level loud\n----\n", "log levels are DEBUG"),
        ("interaction", GROUP + "propose-conf-change 1 transition=never\nl2\n----\n", "never"),
        ("interaction", GROUP + "propose-conf-change 1\nz2\n----\n", "z2"),
        ("interaction", GROUP + "deliver-msgs 1 type=MsgNone\n----\n", "MsgNone"),
        ("confchange", "simple\nz1\n----\n", "z1"),
        ("quorum", "fly cfg=(1) votes=(y)\n----\n", "line 1: fly: unknown command"),
        ("quorum", "vote cfg=(1) votes=(maybe)\n----\n", "maybe"),
    ],
)
def test_refused(kind: str, script: str, reason: str) -> None:
    with pytest.raises(ScriptError, match=reason):
        run_text(kind, script)
