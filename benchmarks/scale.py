"""Tables of the needs and costs of runs on 1 to 512 GPUs, from measured constants and inputs.

Usage: python benchmarks/scale.py [NAME=NUMBER ...]. The names are those of ``plan.Inputs``, the
assumed inputs. With any of them the page is printed; without, ``docs/scale.md`` is updated.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Callable, Sequence
from dataclasses import fields
from pathlib import Path

from interruptions import best_interval_s, mean_of_trials, overhead
from plan import Constants, Inputs, Plan, plan_of, read_constants

from jobs.slurm.heartbeat import period_s

PAGE = Path(__file__).parents[1] / "docs" / "scale.md"
# There is no recipe for 512 GPUs: more than about 8,000 pairs per step do not help.
SIZES = {
    1: ["recipe=recommended_1_gpu"],
    8: ["recipe=recommended_8_gpus"],
    64: ["recipe=recommended_64_gpus"],
    512: ["recipe=recommended_64_gpus", "data.global_batch_size=8192"],
}
DATA_SETS = {
    "BigEarthNet v2, all of it": 549_488,
    "California, patches of the study of 2021": 50_194,
    "California, 24 dates": 24 * 31_000,
}
INTERVALS_S = (60, 300, 600, 1800, 3600)
LIVES, DAYS = 100, 10  # simulated runs and their length
_BLOCK = re.compile(r"(<!-- (?!end)(\w+) -->\n).*?(?=<!-- end -->)", re.DOTALL)

Rows = list[Sequence[object]]


def main() -> None:
    """Update the page, or print it for the caller's inputs."""
    given = dict(argument.split("=", 1) for argument in sys.argv[1:])
    unknown = given.keys() - {field.name for field in fields(Inputs)}
    if unknown:
        names = ", ".join(field.name for field in fields(Inputs))
        raise SystemExit(f"{', '.join(unknown)}: no input; give some of {names}")
    page = filled(PAGE.read_text(), Inputs(**{name: float(text) for name, text in given.items()}))
    if given:
        sys.stdout.write(page)
    else:
        PAGE.write_text(page)


def filled(page: str, inputs: Inputs) -> str:
    """Return the page with every table replaced."""
    plans = [plan_of(gpus, settings, inputs) for gpus, settings in SIZES.items()]
    tables: dict[str, Callable[[], str]] = {
        "inputs": lambda: told(inputs),
        "constants": lambda: measured(read_constants()),
        "network": lambda: network(plans),
        "storage": lambda: storage(plans),
        "checkpoints": lambda: checkpoints(plans),
        "losses": lambda: losses(plans),
        "costs": lambda: costs(plans),
    }
    return _BLOCK.sub(lambda block: f"{block[1]}\n{tables[block[2]]()}\n", page)


def table(head: Sequence[str], rows: Rows) -> str:
    """Return a Markdown table; the first column contains text, the others numbers."""
    rule = ["---", *["---:"] * (len(head) - 1)]
    return "".join(f"| {' | '.join(map(str, cells))} |\n" for cells in (head, rule, *rows))


def told(inputs: Inputs) -> str:
    """Return the inputs with their meanings."""
    text = (Inputs.__doc__ or "").partition("Attributes:")[2]
    words = dict(re.findall(r"(\w+): (.+?)\.(?=\n)", re.sub(r"\n {12}", " ", text)))
    rows: Rows = [
        (f"`{field.name}`", f"{getattr(inputs, field.name):g}", words[field.name])
        for field in fields(Inputs)
    ]
    return table(("input", "value", "meaning"), rows).replace("---: | ---: |", "---: | --- |")


def measured(known: Constants) -> str:
    """Return the constants with their units."""
    rows: Rows = [
        ("a packed patch of 12 bands, bytes", f"{known.patch_bytes:,.0f}"),
        ("a save: written, flushed, checksummed, published, MiB/s", f"{known.save_mib_s:.0f}"),
        *(
            (f"a checkpoint for each byte of weights, {name}, bytes", f"{share:.3f}")
            for name, share in known.state_share.items()
        ),
        ("bytes sent in a step, over the formula", f"{known.sent:.3f}"),
        ("files that a rank loads before it trains", f"{known.files:,.0f}"),
        ("and their size, MB", f"{known.loaded_mb:,.0f}"),
        ("from sbatch to the first step of a resumed run, s", f"{known.start_s:.1f}"),
    ]
    return table(("constant", "measured"), rows)


def network(plans: Sequence[Plan]) -> str:
    """Return network traffic and duration of a step."""
    head = ("GPUs", "pairs a GPU", "arithmetic, ms", "gradients, MB", "gathered, MB")
    head += ("network, ms", "step, ms", "arithmetic's share")
    rows: Rows = [
        (
            plan.gpus,
            plan.pairs,
            f"{plan.compute_s * 1e3:.0f}",
            f"{plan.gradient_bytes / 1e6:.0f}",
            f"{plan.gathered_bytes / 1e6:.1f}",
            f"{plan.network_s * 1e3:.1f}",
            f"{plan.step_s * 1e3:.0f}",
            f"{plan.compute_s / plan.step_s:.0%}",
        )
        for plan in plans
    ]
    return table(head, rows)


def storage(plans: Sequence[Plan]) -> str:
    """Return the load on the shared file system."""
    head = ("GPUs", "shards, GB/s", "of the file system", "staged once, GB", "takes, min")
    head += ("files loaded at a start", "GB of them", "small files/s")
    size = max(DATA_SETS.values())
    rows: Rows = []
    for plan in plans:
        known, inputs = plan.known, plan.inputs
        read = plan.patches_s * known.patch_bytes / 1e9
        nodes = max(1, plan.gpus / inputs.gpus_per_node)
        staged = nodes * size * known.patch_bytes / 1e9
        rows.append(
            (
                plan.gpus,
                f"{read:.2f}",
                f"{read / inputs.file_system_gb_s:.0%}",
                f"{staged:,.0f}",
                f"{staged / inputs.file_system_gb_s / 60:.0f}",
                f"{plan.gpus * known.files:,.0f}",
                f"{plan.gpus * known.loaded_mb / 1e3:,.1f}",
                f"{plan.gpus / period_s(plan.gpus):.0f}",
            )
        )
    return table(head, rows)


def checkpoints(plans: Sequence[Plan]) -> str:
    """Return the size of checkpoints and the best interval between them."""
    head = ("GPUs", "a checkpoint, MB", "a save, s", "kills a day", "best interval, min")
    head += ("that is `checkpoint.every_steps`", "written, MB/s", "lost")
    rows: Rows = []
    for plan in plans:
        best = best_interval_s(plan.habits())
        rows.append(
            (
                plan.gpus,
                f"{plan.checkpoint_bytes / 1e6:.0f}",
                f"{plan.save_s:.2f}",
                f"{plan.habits().kills_a_day:.2f}",
                f"{best / 60:.1f}",
                f"{best / plan.step_s:,.0f}",
                f"{plan.checkpoint_bytes / 1e6 / best:.2f}",
                f"{overhead(plan.habits(best)):.2%}",
            )
        )
    return table(head, rows)


def losses(plans: Sequence[Plan]) -> str:
    """Return the share of time lost by interval: by formula, and by simulation in brackets."""
    rows: Rows = []
    for interval in INTERVALS_S:
        cells = [f"{interval / 60:g} min"]
        for plan in plans:
            habits = plan.habits(interval)
            mean, error = mean_of_trials(habits, DAYS, LIVES)
            cells.append(f"{overhead(habits):.2%} ({mean:.2%} ± {2 * error:.2%})")
        rows.append(cells)
    return table(
        ("a checkpoint every", *(f"{plan.gpus} GPU{'s' * (plan.gpus > 1)}" for plan in plans)), rows
    )


def costs(plans: Sequence[Plan]) -> str:
    """Return steps, hours and price of entire runs, each with its best interval."""
    head = ("data", "GPUs", "steps", "hours", "lost", "GPU hours", "price")
    rows: Rows = []
    for name, patches in DATA_SETS.items():
        for plan in plans:
            lost = overhead(plan.habits(best_interval_s(plan.habits())))
            hours = plan.num_steps(patches) * plan.step_s * (1 + lost) / 3600
            rows.append(
                (
                    name,
                    plan.gpus,
                    f"{plan.num_steps(patches):,}",
                    f"{hours:.2f}",
                    f"{lost:.1%}",
                    f"{hours * plan.gpus:,.0f}",
                    f"{hours * plan.gpus * plan.inputs.price:,.0f}",
                )
            )
    return table(head, rows)


if __name__ == "__main__":
    main()
