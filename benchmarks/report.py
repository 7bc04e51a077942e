"""Timing of benchmarks, and reports of medians, spreads and claims as committed tables.

Each benchmark in this folder is a script: it calls ``alternate`` on the candidates, passes the
timings to a ``Report`` and ends with ``report.write()``, which prints the table and writes
``results/NAME.md`` and ``results/NAME.json`` beside the scripts.
"""

from __future__ import annotations

import json
import os
import platform
import shlex
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

RESULTS = Path(__file__).parent / "results"
_REPOSITORY = Path(__file__).parents[1]


@dataclass(frozen=True, slots=True)
class Timing:
    """One candidate, timed several times."""

    name: str
    amount: float  # units of work per round (patches, views, steps)
    wall_s: tuple[float, ...]  # wall-clock time of each round
    cpu_s: tuple[float, ...]  # CPU time of all threads per round, without worker processes

    @property
    def rate(self) -> float:
        """Units per second of wall-clock time, median over the rounds."""
        return self.amount / statistics.median(self.wall_s)

    @property
    def spread(self) -> float:
        """Half the interquartile range of the wall-clock times, as a share of the median."""
        if len(self.wall_s) < 3:
            return 0.0
        first, middle, third = statistics.quantiles(self.wall_s, n=4, method="inclusive")
        return (third - first) / 2 / middle

    def times(self, other: Timing, clock: str = "wall_s") -> float:
        """Return the speed-up over another timing: median over the rounds.

        Rounds of both alternated, so their ratios cancel other load on the machine; ratios of
        medians would not.
        """
        pairs = zip(getattr(other, clock), getattr(self, clock), strict=True)
        return statistics.median(
            (theirs / other.amount) / (own / self.amount) for theirs, own in pairs
        )


def alternate(
    work: Mapping[str, Callable[[], object]],
    amount: float | Mapping[str, float],
    *,
    rounds: int = 7,
    warm_up: int = 1,
) -> dict[str, Timing]:
    """Time candidates in alternation, so that other load on the machine affects all of them.

    Args:
        work: functions to time, by name; each does the same work in every call.
        amount: units of work per call, for all or by name.
        rounds: timed calls per candidate.
        warm_up: untimed first calls per candidate.
    """
    for _ in range(warm_up):
        for run in work.values():
            run()
    taken: dict[str, list[tuple[float, float]]] = {name: [] for name in work}
    for _ in range(rounds):
        for name, run in work.items():
            wall, cpu = time.perf_counter(), time.process_time()
            run()
            taken[name].append((time.perf_counter() - wall, time.process_time() - cpu))
    return {
        name: Timing(
            name,
            amount[name] if isinstance(amount, Mapping) else amount,
            tuple(wall for wall, _ in seconds),
            tuple(cpu for _, cpu in seconds),
        )
        for name, seconds in taken.items()
    }


@dataclass(frozen=True, slots=True)
class Claim:
    """A measured number with its description, and optional bounds between which it holds."""

    text: str
    value: float
    at_least: float | None = None
    at_most: float | None = None

    @property
    def holds(self) -> bool:
        """True if the value is within its bounds."""
        above = self.at_least is None or self.value >= self.at_least
        return above and (self.at_most is None or self.value <= self.at_most)

    def __str__(self) -> str:
        bounds = [("at least", self.at_least), ("at most", self.at_most)]
        wanted = ", ".join(f"{word} {bound:g}" for word, bound in bounds if bound is not None)
        verdict = f" ({wanted}: {'holds' if self.holds else 'FALLS SHORT'})" if wanted else ""
        return f"{self.text}: {self.value:.3g}{verdict}"


@dataclass(slots=True)
class Report:
    """Results of one benchmark."""

    name: str  # name of the script, without suffix
    title: str  # subject of the comparison, one line
    unit: str  # unit of the amounts: patch, view
    against: str = ""  # name of the reference timing, shown as 1.00
    packages: Sequence[str] = ("numpy",)  # packages whose versions matter
    timings: list[Timing] = field(default_factory=list)  # rows of the table
    claims: list[Claim] = field(default_factory=list)
    # facts that a reader must know: sizes, absent peers, limits of the comparison
    notes: list[str] = field(default_factory=list)

    def write(self) -> None:
        """Print and save the report."""
        keep(self.name, self.to_markdown(), {**asdict(self), "origin": origin(self.packages)})

    def to_markdown(self) -> str:
        """Return the report as a Markdown document."""
        lines = [f"# {self.title}", "", *([*self._table(), ""] if self.timings else [])]
        lines += [f"- {claim}" for claim in self.claims]
        lines += [f"- {note}" for note in self.notes]
        lines += ["", *(f"{key}: {value}  " for key, value in origin(self.packages).items()), ""]
        return "\n".join(lines)

    def _table(self) -> list[str]:
        others = [timing for timing in self.timings if timing.name == self.against]
        limit = others[0] if others else None
        head = ["", f"{self.unit}/s", "spread", "rounds"]
        head += [f"times {self.against}"] if limit else []
        rows = [
            [
                timing.name,
                f"{timing.rate:,.4g}" if timing.rate < 1000 else f"{timing.rate:,.0f}",
                f"± {timing.spread:.0%}",
                str(len(timing.wall_s)),
                *([f"{timing.times(limit):.2f}"] if limit else []),
            ]
            for timing in self.timings
        ]
        rule = ["---", *["---:"] * (len(head) - 1)]
        return [f"| {' | '.join(cells)} |" for cells in (head, rule, *rows)]


def keep(name: str, text: str, plain: object) -> None:
    """Print a page; save it in ``results`` as Markdown, and its data as JSON."""
    sys.stdout.write(text)
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / f"{name}.md").write_text(text, encoding="utf-8")
    (RESULTS / f"{name}.json").write_text(json.dumps(plain, indent=1) + "\n", encoding="utf-8")


def measured(work: Callable[[], float]) -> dict[str, float]:
    """Return the result of work, its wall-clock and CPU time, and this process's memory."""
    imports_mib, wall, cpu = peak_mib(), time.perf_counter(), time.process_time()
    found = work()
    wall_s, cpu_s = time.perf_counter() - wall, time.process_time() - cpu
    memory = {"imports_mib": imports_mib, "peak_mib": peak_mib()}
    return {"wall_s": wall_s, "cpu_s": cpu_s, "found": found, **memory}


def measured_by_child(*words: str) -> dict[str, float]:
    """Run this script in a child process, which must print the result of ``measured`` as JSON."""
    command = [sys.executable, sys.argv[0], "child", *words]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    return dict(json.loads(done.stdout))


def peak_mib() -> float:
    """Return the peak memory of this process."""
    # not ru_maxrss, which a child inherits from the larger process that started it
    lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
    return int(next(line for line in lines if line.startswith("VmHWM")).split()[1]) / 1024


def origin(packages: Sequence[str]) -> dict[str, str]:
    """Return machine, versions, commit and command, without which numbers are worthless."""
    versions = {name: _version(name) for name in packages}
    memory_gib = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    return {
        "machine": f"{_processor()}, {os.cpu_count()} cores, {memory_gib:.0f} GiB{_gpu()}",
        "system": f"{platform.system()} {platform.release()}, Python {platform.python_version()}",
        "versions": ", ".join(f"{name} {number}" for name, number in versions.items()),
        "commit": _commit(),
        "command": f"python {shlex.join([_relative(sys.argv[0]), *map(_portable, sys.argv[1:])])}",
    }


def _relative(script: str) -> str:
    path = Path(script).absolute()
    return str(path.relative_to(_REPOSITORY) if path.is_relative_to(_REPOSITORY) else path.name)


def _portable(argument: str) -> str:
    """Return an argument without the folders of this machine."""
    return Path(argument).name if Path(argument).is_absolute() else argument


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "absent"


def _processor() -> str:
    lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    models = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return models[0] if models else platform.machine()


def _gpu() -> str:
    torch = sys.modules.get("torch")  # a benchmark without torch does not use a GPU either
    if torch is None or not torch.cuda.is_available():
        return ""
    return f", {torch.cuda.get_device_name()}"


def _commit() -> str:
    done = subprocess.run(
        ["git", "-C", str(_REPOSITORY), "describe", "--always", "--dirty", "--abbrev=12"],
        capture_output=True, text=True, timeout=30, check=False,
    )  # fmt: skip
    return done.stdout.strip() or "unknown"
