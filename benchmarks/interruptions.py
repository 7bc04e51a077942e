"""How a run meets kills and stops comes in; what it loses goes out, by formula and by trial.

The formula is Daly's (A higher order estimate of the optimum checkpoint interval, 2006, equation
20) for kills, with announced stops beside it. The trial lets a run live through
random ones by the rules of ``docs/preemption.md``. ``scale.py`` shows one beside the other.

Both count seconds in which the GPUs are allotted. Waiting in a queue costs none of those.
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
    """How a run meets interruptions, and how often they come.

    Attributes:
        interval_s: of training between two checkpoints.
        save_s: all ranks wait while one is written.
        restart_s: from an end to the first new step: until the loss is noticed, start-up, loading.
        kills_a_day: without warning: what was done since the last checkpoint is done again.
        stops_a_day: announced early enough for a save: nothing is done again.
    """

    interval_s: float
    save_s: float
    restart_s: float
    kills_a_day: float
    stops_a_day: float = 0.0

    @property
    def between_kills_s(self) -> float:
        """Mean time from a kill to the next."""
        return DAY_S / self.kills_a_day if self.kills_a_day else math.inf


def overhead(run: Habits) -> float:
    """Return the seconds lost for each second of training that counts, by formula.

    With M between kills, an interval t with its save C takes (M e^(R/M) (e^((t + C)/M) - 1)) on
    average, since a kill in its middle sends it back to its start, and a restart R may be hit too.
    Each stop adds a save and a restart. That a stop also leaves less to be killed is not in it:
    with stops it says a little too much.
    """
    between, span = run.between_kills_s, run.interval_s + run.save_s
    if math.isinf(between):
        taken = span
    else:
        taken = between * math.exp(run.restart_s / between) * math.expm1(span / between)
    lost = taken / run.interval_s - 1
    return lost + run.stops_a_day / DAY_S * (1 + lost) * (run.save_s + run.restart_s)


def best_interval_s(run: Habits) -> float:
    """Return the interval that loses least: sqrt(2 C M) by Young (1974), refined by Daly (2006)."""
    share = run.save_s / (2 * run.between_kills_s)
    refined = 1 + math.sqrt(share) / 3 + share / 9
    return math.sqrt(2 * run.save_s * run.between_kills_s) * refined - run.save_s


def trial(run: Habits, work_s: float, seed: int) -> float:
    """Return the seconds lost for each second of training, in one life of a run.

    Checkpoints are due at whole intervals of the work, as ``checkpoint.every_steps`` counts them:
    a stop's own checkpoint does not move the next one.
    """
    draw = random.Random(seed)
    arrivals = _arrivals(run, draw)
    next_s, is_kill = next(arrivals)
    clock = 0.0
    for mark_s in _intervals(run.interval_s, work_s):
        saved_s = 0.0  # of this interval
        while saved_s < mark_s:
            end = clock + mark_s - saved_s + run.save_s
            if next_s >= end:
                clock, saved_s = end, mark_s
                continue
            if not is_kill:
                saved_s += min(next_s - clock, mark_s - saved_s)
            clock = next_s + (0.0 if is_kill else run.save_s) + run.restart_s
            next_s, is_kill = next(arrivals)
            while next_s < clock:  # hit while it was coming back: it comes back anew
                clock = max(clock, next_s + run.restart_s)
                next_s, is_kill = next(arrivals)
    return clock / work_s - 1


def _intervals(interval_s: float, work_s: float) -> Iterator[float]:
    """Yield the lengths of all intervals, counted: sums would lose one to rounding."""
    for number in range(math.ceil(work_s / interval_s)):
        yield min(interval_s, work_s - number * interval_s)


def _arrivals(run: Habits, draw: random.Random) -> Iterator[tuple[float, bool]]:
    """Yield the time of each interruption, a Poisson process, and whether it is a kill."""
    rate = (run.kills_a_day + run.stops_a_day) / DAY_S
    moment = 0.0
    while rate:
        moment += draw.expovariate(rate)
        yield moment, draw.random() < run.kills_a_day / (run.kills_a_day + run.stops_a_day)
    yield math.inf, True


def mean_of_trials(run: Habits, days: float, lives: int) -> tuple[float, float]:
    """Return the mean loss over several lives of a run, and its standard error."""
    lost = [trial(run, days * DAY_S, seed) for seed in range(lives)]
    return statistics.fmean(lost), statistics.stdev(lost) / math.sqrt(lives)
