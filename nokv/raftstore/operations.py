"""What a coordinator asks this store to do, and what became of it: every operation is applied, or counted and reported
as why not (RS-16).

Owns: the checks before an operation runs (deadline, era, burst, cooldown, seen before), counters, and the outcomes that
the next heartbeat carries back. Does not own: what an operation does. One thread; times come from the clock given.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Sequence

from nokv.env import Clock
from nokv.errors import NoKVError
from nokv.raftstore.control import OperationOutcome, StoreOperation

__all__ = ["OperationRunner"]

SEEN_MAX = 4096
OUTCOMES_MAX = 1024
OUTCOMES = ("applied", "refused", "expired", "throttled", "stale", "unknown", "duplicate", "unreported")


class OperationRunner:
    """`burst`: operations started within `window_ms`. `cooldown_ms`: between two for one region."""

    def __init__(
        self,
        transfer_leader: Callable[[int, int], None],
        clock: Clock,
        *,
        burst: int = 32,
        window_ms: int = 1_000,
        cooldown_ms: int = 2_000,
    ) -> None:
        self._transfer_leader = transfer_leader
        self._clock = clock
        self._burst = burst
        self._window_ns = window_ms * 1_000_000
        self._cooldown_ns = cooldown_ms * 1_000_000
        self._window_start_ns = 0
        self._started = 0
        self._era = 0
        self._seen: OrderedDict[int, None] = OrderedDict()
        self._rested: OrderedDict[int, int] = OrderedDict()  # region -> when it may move again
        self._outcomes: list[OperationOutcome] = []
        self.counts = dict.fromkeys(OUTCOMES, 0)
        self.last_refusal = ""

    def run(self, operations: Sequence[StoreOperation]) -> None:
        """What an answer to a heartbeat carries. Never raises a NoKVError: a refusal is an outcome."""
        for operation in operations:
            if operation.operation_id in self._seen:  # sent again until the coordinator knows how it ended
                self.counts["duplicate"] += 1
                continue
            self._seen[operation.operation_id] = None
            if len(self._seen) > SEEN_MAX:
                self._seen.popitem(last=False)
            outcome, detail = self._run(operation)
            self.counts[outcome] += 1
            if detail:
                self.last_refusal = detail
            self._report(OperationOutcome(operation.operation_id, outcome, detail))

    def _run(self, operation: StoreOperation) -> tuple[str, str]:
        now = self._clock.monotonic_ns()
        if operation.era:
            if operation.era < self._era:
                return "stale", f"era {operation.era} is over: era {self._era} schedules"
            self._era = operation.era
        if operation.deadline_ms and self._clock.time_ms() >= operation.deadline_ms:
            return "expired", f"operation {operation.operation_id} came after its deadline"
        if operation.kind != "transfer-leader":
            return "unknown", f"this store knows no operation {operation.kind!r}"
        if self._rested.get(operation.region_id, 0) > now:
            return "throttled", f"region {operation.region_id} has just moved its leader"
        if now - self._window_start_ns >= self._window_ns:
            self._window_start_ns, self._started = now, 0
        if self._started >= self._burst:
            return "throttled", f"more than {self._burst} operations at once"
        try:
            self._transfer_leader(operation.region_id, operation.target_peer_id)
        except NoKVError as error:
            return "refused", str(error)
        self._started += 1
        self._rested[operation.region_id] = now + self._cooldown_ns
        self._rested.move_to_end(operation.region_id)
        if len(self._rested) > SEEN_MAX:
            self._rested.popitem(last=False)
        return "applied", ""

    # -- for the next heartbeat ---------------------------------------------------------------------------------------
    def outcomes(self) -> list[OperationOutcome]:
        """What has not been reported yet; `reported` forgets it once a coordinator has it."""
        return list(self._outcomes)

    def reported(self, count: int) -> None:
        del self._outcomes[:count]

    def _report(self, outcome: OperationOutcome) -> None:
        self._outcomes.append(outcome)
        if len(self._outcomes) > OUTCOMES_MAX:  # nobody has listened for long: the deadline tells the coordinator
            del self._outcomes[0]
            self.counts["unreported"] += 1
