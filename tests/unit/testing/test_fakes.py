from __future__ import annotations

import pytest

from nokv.env.ports import Clock, Executor
from nokv.testing.clock import FakeClock
from nokv.testing.executor import StepExecutor


def test_the_fake_clock_moves_only_when_told() -> None:
    fake = FakeClock()
    clock: Clock = fake
    start = clock.monotonic_ns(), clock.time_ms()
    assert (clock.monotonic_ns(), clock.time_ms()) == start
    fake.advance_ms(1500)
    assert (clock.monotonic_ns(), clock.time_ms()) == (start[0] + 1_500_000_000, start[1] + 1500)
    fake.jump_wall_ms(-5000)
    assert (clock.monotonic_ns(), clock.time_ms()) == (start[0] + 1_500_000_000, start[1] - 3500)
    with pytest.raises(ValueError):
        fake.advance_ns(-1)


@pytest.mark.parametrize("inline", [True, False])
def test_steps_never_overlap_and_keep_their_order(inline: bool) -> None:
    steps = StepExecutor(inline=inline)
    executor: Executor = steps
    seen: list[str] = []

    def outer() -> None:
        seen.append("outer begins")
        executor.submit(lambda: seen.append("inner"))
        seen.append("outer ends")

    executor.submit(outer)
    assert seen == (["outer begins", "outer ends", "inner"] if inline else [])
    executor.drain()
    assert seen == ["outer begins", "outer ends", "inner"]
    assert (steps.ran, steps.pending) == (2, 0)


def test_a_failing_step_does_not_wedge_the_executor() -> None:
    steps = StepExecutor()
    seen: list[int] = []

    def fail() -> None:
        raise RuntimeError("boom")

    steps.submit(fail)
    steps.submit(lambda: seen.append(1))
    with pytest.raises(RuntimeError):
        steps.run_one()
    assert steps.run_one()
    assert seen == [1]


def test_after_close_nothing_runs() -> None:
    steps = StepExecutor()
    seen: list[int] = []
    steps.submit(lambda: seen.append(1))
    steps.close()
    assert seen == [1]
    with pytest.raises(RuntimeError):
        steps.submit(lambda: seen.append(2))
