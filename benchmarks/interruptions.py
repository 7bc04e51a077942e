"""Estimate the time that a run loses to kills and announced stops, by formula and simulation.

The formula is Daly's (A higher order estimate of the optimum checkpoint interval, 2006, equation
20) for kills, plus a term for announced stops. The simulation draws random interruptions and
applies the rules of ``docs/preemption.md``. ``scale.py`` shows both results side by side.

Both count seconds in which GPUs are allocated; time in the queue is not counted.
"""

from __future__ import annotations

import math
import random
import statistics
from collections.abc import Iterator
from dataclasses import dataclass

DAY_S = 86_400.0


@dataclass(frozen=True, slots=True)
class Habits:
    """Checkpoint costs of a run and the frequency of its interruptions.

    Attributes:
        interval_s: training time between two checkpoints.
        save_s: time to write a checkpoint, during which all ranks wait.
        restart_s: from an interruption to the first new step: detection, start-up, loading.
        kills_a_day: interruptions without warning; work since the last checkpoint is repeated.
        stops_a_day: interruptions announced early enough to save; no work is repeated.
    """

    interval_s: float
    save_s: float
    restart_s: float
    kills_a_day: float
    stops_a_day: float = 0.0

    @property
    def between_kills_s(self) -> float:
        """Mean time between kills."""
        return DAY_S / self.kills_a_day if self.kills_a_day else math.inf


def overhead(run: Habits) -> float:
    """Return the seconds lost per second of useful training, by formula.

    With mean time M between kills, an interval t with its save C takes on average
    M e^(R/M) (e^((t + C)/M) - 1), since a kill repeats the interval and may also hit the restart R.
    Each stop adds a save and a restart. The formula ignores that a stop's save leaves less work to
    lose to kills, so with stops it is slightly too high.
    """
    between, span = run.between_kills_s, run.interval_s + run.save_s
    if math.isinf(between):
        taken = span
    else:
        taken = between * math.exp(run.restart_s / between) * math.expm1(span / between)
    lost = taken / run.interval_s - 1
    return lost + run.stops_a_day / DAY_S * (1 + lost) * (run.save_s + run.restart_s)


def best_interval_s(run: Habits) -> float:
    """Return the optimal interval: sqrt(2 C M) by Young (1974), refined by Daly (2006)."""
    share = run.save_s / (2 * run.between_kills_s)
    refined = 1 + math.sqrt(share) / 3 + share / 9
    return math.sqrt(2 * run.save_s * run.between_kills_s) * refined - run.save_s


def trial(run: Habits, work_s: float, seed: int) -> float:
    """Return the seconds lost per second of training in one simulated run.

    Checkpoints are due at multiples of the interval, as with ``checkpoint.every_steps``: a stop's
    own checkpoint does not move the next one.
    """
    draw = random.Random(seed)
    arrivals = _arrivals(run, draw)
    next_s, is_kill = next(arrivals)
    clock = 0.0
    for mark_s in _intervals(run.interval_s, work_s):
        saved_s = 0.0  # saved work of this interval
        while saved_s < mark_s:
            end = clock + mark_s - saved_s + run.save_s
            if next_s >= end:
                clock, saved_s = end, mark_s
                continue
            if not is_kill:
                saved_s += min(next_s - clock, mark_s - saved_s)
            clock = next_s + (0.0 if is_kill else run.save_s) + run.restart_s
            next_s, is_kill = next(arrivals)
            while next_s < clock:  # interrupted during the restart: restart again
                clock = max(clock, next_s + run.restart_s)
                next_s, is_kill = next(arrivals)
    return clock / work_s - 1


def _intervals(interval_s: float, work_s: float) -> Iterator[float]:
    """Yield the lengths of all intervals by index: summing could lose one to rounding."""
    for number in range(math.ceil(work_s / interval_s)):
        yield min(interval_s, work_s - number * interval_s)


def _arrivals(run: Habits, draw: random.Random) -> Iterator[tuple[float, bool]]:
    """Yield time of each interruption, from a Poisson process, and whether it is a kill."""
    rate = (run.kills_a_day + run.stops_a_day) / DAY_S
    moment = 0.0
    while rate:
        moment += draw.expovariate(rate)
        yield moment, draw.random() < run.kills_a_day / (run.kills_a_day + run.stops_a_day)
    yield math.inf, True


def mean_of_trials(run: Habits, days: float, lives: int) -> tuple[float, float]:
    """Return the mean loss over several simulated runs, and its standard error."""
    lost = [trial(run, days * DAY_S, seed) for seed in range(lives)]
    return statistics.fmean(lost), statistics.stdev(lost) / math.sqrt(lives)
