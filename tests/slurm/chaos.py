"""Random blows to a training on a real Slurm; its weights must be those of an undisturbed one.

``python tests/slurm/chaos.py [BLOWS] [SEED]`` starts a cluster, trains once in peace and once under
blows, compares every bit, and prints what was done and what it cost.
"""

from __future__ import annotations

import os
import random
import signal
import sys
import tempfile
import time
from collections.abc import Callable
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
SETTINGS = (f"checkpoint.every_steps={EVERY}", "checkpoint.keep=3", "world.timeout_s=20")
ENDED = ("FAILED", "CANCELLED", "TIMEOUT", "NODE_FAIL")
LIMIT_S = 300  # for the run to get on after a blow
MISSED_S = 120  # within which Slurm takes a silent node for lost: SlurmdTimeout and its rounds


@dataclass
class Victim:
    """The training that is beaten, and what happened to it.

    Attributes:
        cluster: where it runs.
        shards: what it reads.
        run: its folder and present job.
        steps: of the whole run.
        draw: all chance there is.
        blows: name of each blow, and the step it met.
    """

    cluster: Cluster
    shards: Path
    run: Run
    steps: int
    draw: random.Random
    blows: list[tuple[str, int]] = field(default_factory=list)

    def state(self) -> str:
        return self.cluster.state(self.run.job_id)["JobState"]

    def some_ranks(self, count: int = 1) -> list[int]:
        """Return processes of so many ranks; fewer or none while it starts."""
        alive = list(self.cluster.ranks(self.run.job_id).values())
        return self.draw.sample(alive, min(count, len(alive)))

    def is_training(self) -> bool:
        """Say whether its latest attempt has come to train, and what failed has been put right."""
        self.help_up()
        starts, trainings = self.run.events("start"), self.run.events("training")
        same = bool(starts and trainings) and starts[-1]["attempt"] == trainings[-1]["attempt"]
        ended = self.run.events("stop") + self.run.events("failed")
        over = bool(ended) and ended[-1]["attempt"] == starts[-1]["attempt"]
        return same and not over and self.state() == "RUNNING"

    def help_up(self) -> None:
        """Do what a person would: release what is held, give the command again for what failed."""
        fields = self.cluster.state(self.run.job_id)
        if fields["JobState"] == "PENDING" and "held" in fields["Reason"].lower():
            self.cluster.run("scontrol", "release", self.run.job_id)
        elif fields["JobState"] in ENDED:
            self.run = submit(self.cluster, self.shards, self.run.folder, *settings(self.steps))


def kill_a_rank(victim: Victim) -> None:
    for pid in victim.some_ranks():
        send(pid, signal.SIGKILL)


def kill_all_ranks(victim: Victim) -> None:
    for pid in victim.some_ranks(4):
        send(pid, signal.SIGKILL)


def stop_a_rank(victim: Victim) -> None:
    for pid in victim.some_ranks():
        send(pid, signal.SIGSTOP)


def warn_a_rank(victim: Victim) -> None:
    for pid in victim.some_ranks():
        send(pid, signal.SIGUSR2)


def requeue(victim: Victim) -> None:
    victim.cluster.run("scontrol", "requeue", victim.run.job_id, check=False)


def preempt_it(victim: Victim) -> None:
    high = preempt(victim.cluster)
    victim.cluster.wait_for(high, "COMPLETED", timeout_s=60)


def take_a_node_down(victim: Victim) -> None:
    node = f"NodeName={victim.draw.choice(NODES[:2])}"
    victim.cluster.run("scontrol", "update", node, "State=DOWN", "Reason=chaos")


def lose_a_node(victim: Victim) -> None:
    node = victim.draw.choice(NODES[:2])
    victim.cluster.lose_node(node)
    # Back at once, Slurm would miss nothing, and the ranks would train on.
    wait_until(lambda: victim.state() != "RUNNING", "Slurm to miss a node", MISSED_S)
    victim.cluster.start_node(node)


def cancel_it(victim: Victim) -> None:
    victim.cluster.run("scancel", victim.run.job_id)
    victim.cluster.wait_for(victim.run.job_id, *ENDED, "COMPLETED", timeout_s=60)


def restart_the_controller(victim: Victim) -> None:
    victim.cluster.restart_controller()


def damage_the_newest_checkpoint(victim: Victim) -> None:
    for pid in victim.some_ranks():
        send(pid, signal.SIGKILL)
    names = sorted((victim.run.folder / "checkpoints").glob("step-*/state.pt"))
    if len(names) > 1:  # the one before it is whole
        os.truncate(names[-1], names[-1].stat().st_size // 2)


# A blow, how often it is drawn, and the steps it may cost: announced ones none. What ends a rank
# costs those since the last checkpoint; with that one damaged, those of one more interval.
BLOWS: dict[Callable[[Victim], None], tuple[int, int]] = {
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
}


def settings(steps: int) -> tuple[str, ...]:
    """Return what disturbed and undisturbed training have in common."""
    return (*SETTINGS, f"max_steps={steps}")


def beat(victim: Victim, count: int) -> None:
    """Deal so many blows, each after the run has come some steps further; then let it finish."""
    for number in range(count):
        wait_until(victim.is_training, "the run to train", LIMIT_S, victim.run.log)
        goal = victim.run.step() + victim.draw.randint(1, EVERY)
        wait_until(lambda goal=goal: victim.run.step() >= goal, "steps", LIMIT_S, victim.run.log)
        time.sleep(victim.draw.uniform(0, 0.5))  # anywhere in a step, or in a save
        blow = draw_blow(victim.draw)
        victim.blows.append((blow.__name__, victim.run.step()))
        say(f"{number + 1:3d}  step {victim.run.step():4d}  {blow.__name__}")
        attempts = len(victim.run.events("start"))
        blow(victim)
        if blow is not restart_the_controller:
            wait_until(lambda n=attempts: comes_back(victim, n), "its return", LIMIT_S)
    wait_until(lambda: is_finished(victim), "the end of the run", 2 * LIMIT_S, victim.run.log)


def draw_blow(draw: random.Random) -> Callable[[Victim], None]:
    """Return one of the blows, by their weights."""
    weights = [weight for weight, _ in BLOWS.values()]
    return draw.choices(list(BLOWS), weights)[0]


def comes_back(victim: Victim, attempts: int) -> bool:
    victim.help_up()
    return len(victim.run.events("start")) > attempts


def is_finished(victim: Victim) -> bool:
    victim.help_up()
    return victim.state() == "COMPLETED"


def costs(victim: Victim) -> list[int]:
    """Return the steps that each attempt had to take again, from the second one on."""
    return [event["lost_steps"] for event in victim.run.events("training")[1:]]


def chaos(cluster: Cluster, shards: Path, folder: Path, blows: int, seed: int) -> Victim:
    """Train in peace, train under blows, and compare.

    Raises:
        AssertionError: a bit differs, or a blow has cost more steps than it may.
    """
    steps = 40 + (EVERY + 2) * blows
    reference = submit(cluster, shards, folder / "in peace", *settings(steps))
    cluster.wait_for(reference.job_id, "COMPLETED", *ENDED, timeout_s=900)
    run = submit(cluster, shards, folder / "under blows", *settings(steps))
    victim = Victim(cluster, shards, run, steps, random.Random(seed))
    beat(victim, blows)
    assert_equal(victim.run, reference)
    allowed = {blow.__name__: cost for blow, (_, cost) in BLOWS.items()}
    assert max(costs(victim), default=0) <= max(allowed[name] for name, _ in victim.blows)
    return victim


def send(pid: int, number: int) -> None:
    """Send a signal to a process that may have ended by itself."""
    try:
        os.kill(pid, number)
    except ProcessLookupError:
        say(f"     {pid} had ended already")


def say(text: str) -> None:
    sys.stdout.write(text + "\n")
    sys.stdout.flush()


def report(victim: Victim, lasted_s: float) -> None:
    """Print how each attempt ended, and what all blows have cost together."""
    events = victim.run.events("stop") + victim.run.events("failed")
    for event in sorted(events, key=lambda event: float(event["time"])):
        words = event.get("cause") or event.get("error") or f"{event['signal']}: saved"
        say(f"attempt {event['attempt']}, after step {event.get('step', '?')}: {words}")
    lost = costs(victim)
    say(
        f"{len(victim.blows)} blows, {len(lost)} restarts, {sum(lost)} of {victim.steps} steps "
        f"taken again, at most {max(lost, default=0)} at once; {lasted_s:.0f} s; "
        "weights, optimizer, generators and every loss: bit-identical"
    )


def main() -> int:
    """Start a cluster, do it all, and print what it cost."""
    if missing():
        sys.exit(f"no Slurm cluster here: {missing()}")
    blows, seed = (int(word) for word in [*sys.argv[1:], "30", "0"][:2])
    with tempfile.TemporaryDirectory() as name, running_cluster() as cluster:
        source = SimulatedConfig(root=f"{name}/rasters", num_patches=48, bands=["B02", "B04"])
        pack(PackConfig(source=source, output=f"{name}/shards"), progress=False)
        start = time.monotonic()
        victim = chaos(cluster, Path(name, "shards"), Path(name), blows, seed)
        report(victim, time.monotonic() - start)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
