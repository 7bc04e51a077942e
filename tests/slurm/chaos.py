"""Random faults in a training on a real Slurm; its weights must be those of an undisturbed run.

``python tests/slurm/chaos.py [FAULTS] [SEED] [KIND ...]`` starts a cluster, trains once undisturbed
and once with faults, of the kinds that are named or of all, compares every bit, and prints what was
done and what it cost.
"""

from __future__ import annotations

import os
import random
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

if __name__ == "__main__":  # as a script it is started outside pytest, which knows the way
    sys.path[:0] = [str(Path(__file__).parents[1]), str(Path(__file__).parents[2])]

from slurm.cluster import NODES, Cluster, missing, running_cluster, wait_until
from slurm.runs import Run, assert_equal, preempt, submit

from preprocess.config import PackConfig
from preprocess.pack import pack
from preprocess.sources.simulated import SimulatedConfig

EVERY = 10  # steps between checkpoints
SETTINGS = (f"checkpoint.every_steps={EVERY}", "checkpoint.keep=3", "world.timeout_s=60")
ENDED = ("FAILED", "CANCELLED", "TIMEOUT", "NODE_FAIL")
LIMIT_S = 300  # for the run to train on after a fault
Fault = Callable[["DisturbedRun"], None]
MISSED_S = 120  # within which Slurm takes a silent node for lost: SlurmdTimeout and its rounds


@dataclass
class DisturbedRun:
    """The training that the faults hit, and what happened to it.

    Attributes:
        cluster: where it runs.
        shards: what it reads.
        run: its folder and present job.
        steps: of the whole run.
        rng: the only source of randomness.
        kinds: of faults that may come.
        faults: name of each fault, and the step at which it came.
    """

    cluster: Cluster
    shards: Path
    run: Run
    steps: int
    rng: random.Random
    kinds: Sequence[Fault]
    faults: list[tuple[str, int]] = field(default_factory=list)

    def state(self) -> str:
        return self.cluster.state(self.run.job_id)["JobState"]

    def some_ranks(self, count: int = 1) -> list[int]:
        """Return processes of so many ranks; fewer or none while it starts."""
        alive = list(self.cluster.ranks(self.run.job_id).values())
        return self.rng.sample(alive, min(count, len(alive)))

    def is_training(self) -> bool:
        """Say whether its latest attempt trains; put right what failed, as a person would."""
        self.recover()
        starts, trainings = self.run.events("start"), self.run.events("training")
        same = bool(starts and trainings) and starts[-1]["attempt"] == trainings[-1]["attempt"]
        ended = self.run.events("stop") + self.run.events("failed")
        over = bool(ended) and ended[-1]["attempt"] == starts[-1]["attempt"]
        return same and not over and self.state() == "RUNNING"

    def recover(self) -> None:
        """Do what a person would: release what is held, give the command again for what failed."""
        fields = self.cluster.state(self.run.job_id)
        if fields["JobState"] == "PENDING" and "held" in fields["Reason"].lower():
            self.cluster.run("scontrol", "release", self.run.job_id)
        elif fields["JobState"] in ENDED:
            self.run = submit(self.cluster, self.shards, self.run.folder, *settings(self.steps))


def kill_a_rank(disturbed: DisturbedRun) -> None:
    for pid in disturbed.some_ranks():
        send(pid, signal.SIGKILL)


def kill_all_ranks(disturbed: DisturbedRun) -> None:
    for pid in disturbed.some_ranks(4):
        send(pid, signal.SIGKILL)


def stop_a_rank(disturbed: DisturbedRun) -> None:
    for pid in disturbed.some_ranks():
        send(pid, signal.SIGSTOP)


def warn_a_rank(disturbed: DisturbedRun) -> None:
    for pid in disturbed.some_ranks():
        send(pid, signal.SIGUSR2)


def requeue(disturbed: DisturbedRun) -> None:
    disturbed.cluster.run("scontrol", "requeue", disturbed.run.job_id, check=False)


def preempt_it(disturbed: DisturbedRun) -> None:
    high = preempt(disturbed.cluster)
    disturbed.cluster.wait_for(high, "COMPLETED", timeout_s=60)


def take_a_node_down(disturbed: DisturbedRun) -> None:
    node = f"NodeName={disturbed.rng.choice(NODES[:2])}"
    disturbed.cluster.run("scontrol", "update", node, "State=DOWN", "Reason=chaos")


def lose_a_node(disturbed: DisturbedRun) -> None:
    node = disturbed.rng.choice(NODES[:2])
    disturbed.cluster.lose_node(node)
    # Back at once, Slurm would miss nothing, and the ranks would train on.
    wait_until(lambda: disturbed.state() != "RUNNING", "Slurm to miss a node", MISSED_S)
    disturbed.cluster.start_node(node)


def cancel_it(disturbed: DisturbedRun) -> None:
    disturbed.cluster.run("scancel", disturbed.run.job_id)
    disturbed.cluster.wait_for(disturbed.run.job_id, *ENDED, "COMPLETED", timeout_s=60)


def restart_the_controller(disturbed: DisturbedRun) -> None:
    disturbed.cluster.restart_controller()


def damage_the_newest_checkpoint(disturbed: DisturbedRun) -> None:
    for pid in disturbed.some_ranks():
        send(pid, signal.SIGKILL)
    names = sorted((disturbed.run.folder / "checkpoints").glob("step-*/state.pt"))
    if len(names) > 1:  # the one before it is whole
        os.truncate(names[-1], names[-1].stat().st_size // 2)


def preempt_while_it_starts(disturbed: DisturbedRun) -> None:
    preempt_it(disturbed)
    disturbed.cluster.wait_for(disturbed.run.job_id, "RUNNING")
    preempt_it(disturbed)


def warn_while_no_controller_answers(disturbed: DisturbedRun) -> None:
    ranks = disturbed.some_ranks()
    with disturbed.cluster.without_controller():
        for pid in ranks:
            send(pid, signal.SIGUSR2)
        time.sleep(65)  # longer than clients retry


def block_heartbeats(disturbed: DisturbedRun) -> None:
    folder = disturbed.run.folder / "heartbeats"
    folder.rename(folder.with_suffix(".away"))
    folder.write_text("not a folder")
    time.sleep(3)
    folder.unlink()
    folder.with_suffix(".away").rename(folder)


def tear_the_log_of_attempts(disturbed: DisturbedRun) -> None:
    with (disturbed.run.folder / "attempts.jsonl").open("a") as file:
        file.write('{"event": "st')  # as a full disk leaves it
    kill_a_rank(disturbed)


# A fault, its weight, and the steps it may cost: announced ones none. What ends a rank costs the
# steps since the last checkpoint; with that one damaged, those of one more interval.
FAULTS: dict[Fault, tuple[int, int]] = {
    kill_a_rank: (6, EVERY),
    kill_all_ranks: (3, EVERY),
    stop_a_rank: (3, EVERY),
    warn_a_rank: (3, 0),
    requeue: (4, 0),
    preempt_it: (4, 0),
    take_a_node_down: (3, 0),
    lose_a_node: (1, EVERY),
    cancel_it: (2, 0),
    restart_the_controller: (1, 0),
    damage_the_newest_checkpoint: (2, 2 * EVERY),
    preempt_while_it_starts: (2, 0),
    warn_while_no_controller_answers: (1, 0),
    block_heartbeats: (2, 0),
    tear_the_log_of_attempts: (1, EVERY),
}
WITHOUT_RESTART = (restart_the_controller, block_heartbeats)


def settings(steps: int) -> tuple[str, ...]:
    """Return what disturbed and undisturbed run have in common."""
    return (*SETTINGS, f"max_steps={steps}")


def disturb(disturbed: DisturbedRun, count: int) -> None:
    """Cause so many faults, each after the run has trained some steps more; then let it finish."""
    for number, fault in enumerate(random_faults(disturbed.rng, count, disturbed.kinds)):
        wait_until(disturbed.is_training, "the run to train", LIMIT_S, disturbed.run.log)
        goal = disturbed.run.step() + disturbed.rng.randint(1, EVERY)
        wait_until(
            lambda goal=goal: disturbed.run.step() >= goal, "steps", LIMIT_S, disturbed.run.log
        )
        time.sleep(disturbed.rng.uniform(0, 0.5))  # anywhere in a step, or in a save
        disturbed.faults.append((fault.__name__, disturbed.run.step()))
        say(f"{number + 1:3d}  step {disturbed.run.step():4d}  {fault.__name__}")
        attempts = len(disturbed.run.events("start"))
        fault(disturbed)
        if fault not in WITHOUT_RESTART:
            wait_until(lambda n=attempts: has_restarted(disturbed, n), "its return", LIMIT_S)
    wait_until(lambda: is_finished(disturbed), "the end of the run", 2 * LIMIT_S, disturbed.run.log)


def random_faults(rng: random.Random, count: int, kinds: Sequence[Fault]) -> list[Fault]:
    """Return faults in random order: each kind once, further ones by their weights."""
    once = rng.sample(kinds, min(count, len(kinds)))
    weights = [FAULTS[kind][0] for kind in kinds]
    faults = [*once, *rng.choices(kinds, weights, k=count - len(once))]
    rng.shuffle(faults)
    return faults


def has_restarted(disturbed: DisturbedRun, attempts: int) -> bool:
    disturbed.recover()
    return len(disturbed.run.events("start")) > attempts


def is_finished(disturbed: DisturbedRun) -> bool:
    disturbed.recover()
    return disturbed.state() == "COMPLETED"


def costs(disturbed: DisturbedRun) -> list[int]:
    """Return the steps that each attempt had to train again, from the second one on."""
    return [event["lost_steps"] for event in disturbed.run.events("training")[1:]]


def chaos(
    cluster: Cluster, shards: Path, folder: Path, faults: int, seed: int, kinds: Sequence[Fault]
) -> DisturbedRun:
    """Train undisturbed, train with faults, and compare.

    Raises:
        AssertionError: a bit differs, or a fault has cost more steps than it may.
    """
    steps = 40 + (EVERY + 2) * faults
    reference = submit(cluster, shards, folder / "undisturbed", *settings(steps))
    cluster.wait_for(reference.job_id, "COMPLETED", *ENDED, timeout_s=900)
    run = submit(cluster, shards, folder / "with faults", *settings(steps))
    disturbed = DisturbedRun(cluster, shards, run, steps, random.Random(seed), kinds)
    disturb(disturbed, faults)
    assert_equal(disturbed.run, reference)
    allowed = {fault.__name__: cost for fault, (_, cost) in FAULTS.items()}
    assert max(costs(disturbed), default=0) <= max(allowed[name] for name, _ in disturbed.faults)
    return disturbed


def send(pid: int, number: int) -> None:
    """Send a signal to a process that may have ended by itself."""
    try:
        os.kill(pid, number)
    except ProcessLookupError:
        say(f"     {pid} had ended already")


def say(text: str) -> None:
    sys.stdout.write(text + "\n")
    sys.stdout.flush()


def report(disturbed: DisturbedRun, lasted_s: float) -> None:
    """Print how each attempt ended, and what all faults have cost together."""
    events = disturbed.run.events("stop") + disturbed.run.events("failed")
    for event in sorted(events, key=lambda event: float(event["time"])):
        words = event.get("cause") or event.get("error") or f"{event['signal']}: saved"
        say(f"attempt {event['attempt']}, after step {event.get('step', '?')}: {words}")
    lost = costs(disturbed)
    say(
        f"{len(disturbed.faults)} faults, {len(lost)} restarts, "
        f"{sum(lost)} of {disturbed.steps} steps trained again, at most {max(lost, default=0)} "
        f"at once; {lasted_s:.0f} s; "
        "weights, optimizer, generators and every loss: bit-identical"
    )


def main() -> int:
    """Start a cluster, do it all, and print what it cost."""
    if missing():
        sys.exit(f"no Slurm cluster here: {missing()}")
    numbers = [int(word) for word in sys.argv[1:3]]
    faults, seed = [*numbers, *(30, 0)[len(numbers) :]]
    named = set(sys.argv[3:])
    if unknown := named - {fault.__name__ for fault in FAULTS}:
        sys.exit(f"no such fault: {', '.join(unknown)}")
    kinds = [fault for fault in FAULTS if not named or fault.__name__ in named]
    with tempfile.TemporaryDirectory() as name, running_cluster() as cluster:
        source = SimulatedConfig(root=f"{name}/rasters", num_patches=48, bands=["B02", "B04"])
        pack(PackConfig(source=source, output=f"{name}/shards"), progress=False)
        start = time.monotonic()
        disturbed = chaos(cluster, Path(name, "shards"), Path(name), faults, seed, kinds)
        report(disturbed, time.monotonic() - start)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
