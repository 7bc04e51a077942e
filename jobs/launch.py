"""Commands and their only dispatcher: in this process, in local processes, or as Slurm jobs.

Every command can be run again however it ended, and resumes from completed work. torch is
imported in ``run``, so that submitting stays fast.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import logging
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any, ClassVar, Self, TypeVar, cast

from jobs.config import ClusterConfig, Executor
from jobs.run_dir import JOB_FOLDER
from jobs.slurm.environment import RankEnvironment, current_rank, mark_rank_0_done
from jobs.slurm.requeue import requeued_if_stopped
from jobs.slurm.submit import check_submission, interpreter, scratch_lines, script, submit
from jobs.staging import SCRATCH
from preprocess.shards.atomic_io import write_json
from simclr.config import require, to_plain
from simclr.monitoring.metrics import METRICS_NAME, ProgressBar, read_metrics

POLL_S = 0.2
PEERS_S = 20.0  # how long the other ranks may take to notice that one has failed
_LOG_LINE = re.compile(r"\d\d:\d\d:\d\d [A-Z]+ ")
_EXCEPTION = re.compile(r"^(?P<name>[A-Za-z_][\w.]*): (?P<text>.*)", re.MULTILINE | re.DOTALL)
_log = logging.getLogger("simclr")
_Config = TypeVar("_Config")


class StoppedError(RuntimeError):
    """The work was stopped on request and is saved; the same command continues."""


class JobError(RuntimeError):
    """A process of a job failed or vanished; the message is from the process, with its log."""


@dataclass(frozen=True)
class Command(ABC):
    """Work with settings that can run anywhere; submitit pickles it and calls it in every process.

    The first paragraph of a subclass' docstring, its examples, the docstrings of its settings and
    ``results`` form the ``--help`` page.
    """

    config: Any  # settings of the work, an instance of Config

    name: ClassVar[str]  # as in simclr-NAME; also of its yaml file in jobs/conf and of its jobs
    Config: ClassVar[type[Any]]  # settings on the command line, besides cluster and debug
    groups: ClassVar[tuple[str, ...]] = ("cluster",)  # of configuration files that it accepts
    # the setting that names its folder, and the subfolder of records, logs and completion marks
    home: ClassVar[tuple[str, ...]] = ("run",)
    # the setting that names the folder for results, if there is one; each run of a sweep (-m) gets
    # its own folder inside it
    output_key: ClassVar[str] = ""
    uses_gpu: ClassVar[bool] = False  # False: on Slurm it requests the resources of cluster.cpu
    # ``run`` handles stop signals itself; otherwise they interrupt it anywhere, and a Slurm job is
    # requeued
    saves_at_stop: ClassVar[bool] = False
    examples: ClassVar[tuple[str, ...]] = ()  # complete commands
    main_settings: ClassVar[tuple[str, ...]] = ()  # commonly changed keys, listed by --help
    results: ClassVar[str] = ""  # where results go
    memory_fix: ClassVar[str] = "use a machine with more memory"

    @classmethod
    def from_settings(cls, settings: Any) -> Self:
        """Return the command for checked settings, which include those of ``Config``."""
        return cls(narrow(settings, cls.Config))

    @property
    def job_dir(self) -> Path:
        """Folder for submission records, logs and completion marks."""
        return Path(getattr(self.config, self.home[0]), *self.home[1:], JOB_FOLDER)

    def validate(self, cluster: ClusterConfig) -> None:  # noqa: B027 - a hook
        """Refuse invalid settings before anything starts; write nothing.

        Raises:
            ValueError: with the key, its value and the fix.
        """

    def preview(self) -> str:
        """Return what ``--dry-run`` prints if no job would be submitted; write nothing."""
        return f"{self.name} would run in this process"

    def prepare(self) -> None:  # noqa: B027 - a hook
        """Write initial files of the results, after validation and before submission or ``run``."""

    def split(self, cluster: ClusterConfig) -> tuple[list[Self], ClusterConfig]:
        """Return the tasks of a job array and the resources of each: one process by default."""
        return [self], replace(cluster, nodes=1, tasks_per_node=1)

    def follow_up(self) -> Command | None:
        """Return the command that Slurm runs after all tasks of the array, however they ended."""
        return None

    def incomplete(self, env: RankEnvironment) -> str:
        """Describe what is still missing if ``run`` returned nothing in this process."""
        return ""

    def inputs(self) -> str:
        """Identify inputs that may change under the same settings, such as a newest checkpoint."""
        return ""

    @abstractmethod
    def run(self, env: RankEnvironment) -> str:
        """Do this process' share of the work; one process returns the text for stdout."""

    def __call__(self) -> str:
        """Run with preemption handled, and mark completion; every process of a job calls it."""
        completion = self.completion  # of the inputs as they are before the work
        # the only place where the work of all commands is wrapped
        with nullcontext(current_rank()) if self.saves_at_stop else requeued_if_stopped() as env:
            result = self.run(env)
        if result:
            mark = {"command": self.name, "time": time.time(), "result": result}
            try:
                write_json(completion, mark)
            except OSError as error:  # others' shards, for example, are verified without writing
                _log.warning("success is not marked, so this may run again: %s", error)
        if env.log:  # from submitit, whose processes run one command each
            mark_rank_0_done()
        return result

    def checkpoint(self, *_: object) -> Any:
        """Tell submitit to run the same command again; it looks for either of two names."""
        from submitit.helpers import DelayedSubmission

        return DelayedSubmission(self)

    __submitit_checkpoint__ = checkpoint

    @property
    def completion(self) -> Path:
        """The file that marks success; other settings or inputs have other files."""
        digest = hashlib.sha256((self.settings + self.inputs()).encode()).hexdigest()[:16]
        return self.job_dir / "done" / f"{self.name}-{digest}.json"

    @property
    def is_done(self) -> bool:
        """Whether the work succeeded with these settings and inputs, and its results are there."""
        return self.completion.exists()

    @property
    def settings(self) -> str:
        """The settings of the work as text, by which two submissions are compared."""
        return json.dumps(to_plain(self.config), sort_keys=True)


@contextmanager
def side_work(what: str) -> Iterator[None]:
    """Log errors of work that follows the recorded result: a figure must not fail a job."""
    try:
        yield
    except Exception as error:
        _log.warning("%s: %s: %s", what, type(error).__name__, error)


def narrow(settings: Any, kind: type[_Config]) -> _Config:
    """Return an instance of a settings dataclass from an object that has all its fields."""
    return kind(**{entry.name: getattr(settings, entry.name) for entry in fields(cast(Any, kind))})


def run(command: Command, cluster: ClusterConfig) -> str:
    """Run a command where ``cluster`` says, and return the text for stdout.

    That is its result, its job id on Slurm, or with ``dry_run`` what would be done.

    Raises:
        ValueError: it cannot run there; nothing has been started.
        RuntimeError: it was started and failed.
    """
    (result,) = run_all([(command, cluster)], skip_done=False)
    return result


def run_all(
    commands: Sequence[tuple[Command, ClusterConfig]], *, skip_done: bool = True
) -> Iterator[str]:
    """Run commands in turn; on Slurm, consecutive ones with the same resources share a job array.

    All settings are validated before the first command starts, but the cluster's size per array.
    Yields each command's text for stdout; on Slurm, each array's job id. Raises as ``run``.
    """
    pairs = [(each, cluster if each.uses_gpu else cluster.for_cpu()) for each, cluster in commands]
    for command, cluster in pairs:
        # refuse a missing interpreter; other machines and containers cannot be checked from here
        if cluster.executor is Executor.local and cluster.python and not cluster.container:
            require(
                shutil.which(cluster.python) is not None,
                f"cluster.python is {cluster.python}, which is not a program of this machine; "
                "leave it out to take this interpreter",
            )
        command.validate(cluster)
    require(
        len({command.completion for command, _ in pairs}) == len(pairs),
        "two of the runs have the same settings and the same folder; name each value once",
    )
    queued: list[tuple[Command, ClusterConfig]] = []
    for command, cluster in pairs:
        if skip_done and command.is_done:
            yield f"{command.job_dir.parent}: done before, with the same settings"
        elif cluster.executor is Executor.slurm:
            queued.append((command, cluster))
        else:
            if not cluster.dry_run and current_rank().is_main:
                command.prepare()
            in_process = cluster.executor is Executor.here
            yield _run_here(command, cluster) if in_process else _run_local(command, cluster)
    yield from _submit(queued)


def _submit(commands: Sequence[tuple[Command, ClusterConfig]]) -> Iterator[str]:
    """Submit consecutive commands of equal resources as one array; yield job ids, or scripts."""
    job_dirs = [command.job_dir for command, _ in commands]
    parents = [str(job_dir.parent.parent.absolute()) for job_dir in job_dirs]
    for cluster, group in itertools.groupby(commands, lambda pair: pair[1]):
        members = [command for command, _ in group]
        # for scripts and logs: a single command's own folder, or a common one
        several = len(commands) > 1
        folder = Path(os.path.commonpath(parents), JOB_FOLDER) if several else job_dirs[0]
        tasks: list[Command] = []
        needs = cluster
        for command in members:
            parts, needs = command.split(cluster)
            tasks += parts
        if cluster.dry_run:
            yield script(tasks, folder, needs)
            continue
        last = [after for command in members if (after := command.follow_up())]
        unknown = [check_submission(each, needs) for each in (tasks, last) if each]
        for command in members:
            command.prepare()
        job = submit(tasks, folder, needs)
        if last:
            # afterany: with afterok, a failed task would leave the last job waiting forever
            extra = {**cluster.extra, "dependency": f"afterany:{job}"}
            alone = replace(cluster, nodes=1, tasks_per_node=1, after=None, extra=extra)
            job = submit(last, folder, alone)
        if unknown[0]:
            _log.warning("%s; the cluster's size was not checked", unknown[0])
        yield job


def _run_here(command: Command, cluster: ClusterConfig) -> str:
    if cluster.dry_run:
        return command.preview()
    outer = os.environ.get(SCRATCH, "")  # as a batch script may have exported it
    os.environ[SCRATCH] = cluster.scratch or outer
    try:
        return command() or command.incomplete(current_rank())
    finally:
        os.environ[SCRATCH] = outer  # not for the next command


def _run_local(command: Command, cluster: ClusterConfig) -> str:
    import submitit

    (task, *_), needs = command.split(cluster)
    python = " ".join(filter(None, (_devices(needs), needs.container, interpreter(needs))))
    if needs.dry_run:
        return f"{task.name} would run as {needs.tasks_per_node} processes of: {python}"
    executor = submitit.LocalExecutor(str(task.job_dir.absolute()), python=python)
    executor.update_parameters(
        tasks_per_node=needs.tasks_per_node,
        # submitit needs a limit, here a year; training ends by itself
        timeout_min=60 * 24 * 365,
        setup=[*needs.setup, *scratch_lines(needs)],
    )
    # the processes ignore Ctrl-C: this one tells them to save and stop
    previous = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        job = executor.submit(task)
    finally:
        signal.signal(signal.SIGINT, previous)
    return _wait_for_local_job(job, task)


def _devices(cluster: ClusterConfig) -> str:
    """Return a command that exposes the GPUs to the ranks; submitit alone would hide them."""
    wanted, there = cluster.gpus_per_node, num_gpus()
    if wanted is None and 0 < there < cluster.tasks_per_node:
        text = "%d GPU for %d ranks: they run on the CPU; cluster.tasks_per_node=%d uses it"
        _log.warning(text, there, cluster.tasks_per_node, there)
        wanted = 0
    if wanted == 0:
        return "env CUDA_VISIBLE_DEVICES="
    chosen = os.environ.get("CUDA_VISIBLE_DEVICES")
    if chosen is None:
        return "env -u CUDA_VISIBLE_DEVICES"
    return shlex.join(["env", f"CUDA_VISIBLE_DEVICES={chosen}"])


def num_gpus() -> int:
    """Count the NVIDIA GPUs that this process may use, without torch."""
    chosen = os.environ.get("CUDA_VISIBLE_DEVICES")
    if chosen is not None:
        return len([name for name in chosen.split(",") if name.strip()])
    try:
        done = subprocess.run(
            ["nvidia-smi", "-L"], capture_output=True, text=True, timeout=30, check=False
        )
    except (FileNotFoundError, subprocess.TimeoutExpired):
        return 0
    return sum(line.startswith("GPU ") for line in done.stdout.splitlines())


def _wait_for_local_job(job: Any, command: Command) -> str:
    """Show a local job's progress until it ends, and return its result.

    Ctrl-C lets the ranks save and stop; a second one kills them. Raises a ValueError or
    StoppedError of a process again, and JobError for any other failure.
    """
    screen = _Screen(job, command)
    try:
        _until_done(job, screen)
    except KeyboardInterrupt:
        print("\nsaving; press Ctrl-C again to quit immediately", file=sys.stderr)  # noqa: T201
        if not job.done():
            os.kill(int(job.job_id), signal.SIGTERM)  # submitit's controller, which passes it on
        try:
            _until_done(job, screen)
        except KeyboardInterrupt:
            _kill_ranks(job)
            raise
    finally:
        screen.refresh()
    return _result(job)


class _Screen:
    """A progress bar from the run's metrics on a terminal; elsewhere the main rank's log lines."""

    def __init__(self, job: Any, command: Command) -> None:
        self._log: Path = job.task(0).paths.stderr
        self._offset = self._log.stat().st_size if self._log.exists() else 0
        self._metrics = command.job_dir.parent / METRICS_NAME
        self._bar = ProgressBar() if sys.stderr.isatty() and command.name == "pretrain" else None
        self._seen = time.time()

    def refresh(self) -> None:
        """Show new metrics or log lines."""
        if self._bar:
            for record in read_metrics(self._metrics)[-1:] if self._metrics.exists() else []:
                if record["time"] > self._seen:
                    self._seen = record["time"]
                    self._bar.write(record)
        elif self._log.exists():
            with self._log.open("rb") as file:
                file.seek(self._offset)
                text = file.read()
            text = text[: text.rfind(b"\n") + 1]  # an incomplete line is read next time
            self._offset += len(text)
            sys.stderr.write(log_lines(text.decode(errors="replace")))
            sys.stderr.flush()


def _until_done(job: Any, screen: _Screen) -> None:
    complete, failed_at = False, None
    while not job.done():
        screen.refresh()
        alive = len(_processes(job))  # first, as a rank writes its result before it ends
        complete = complete or alive == job.num_tasks
        unfinished = sum(not rank.paths.result_pickle.exists() for rank in _ranks(job))
        if failed_at is None and complete and (alive < unfinished or _failures(job)):
            failed_at = time.monotonic()
        if failed_at is not None and time.monotonic() - failed_at > PEERS_S:
            _kill_ranks(job)
        time.sleep(POLL_S)


def _result(job: Any) -> str:
    if failures := _failures(job):
        name, text = last_exception(failures[0])
        for kind in (ValueError, StoppedError):
            if name == kind.__name__:
                raise kind(text)
        raise JobError(f"{name}: {text} (log {_ranks(job)[0].paths.stderr})")
    for rank in _ranks(job):
        if not rank.paths.result_pickle.exists():
            raise JobError(
                f"rank {rank.task_id} ended without an error: killed, perhaps by the "
                f"out-of-memory killer; log {rank.paths.stderr}"
            )
    return next((text for text in (rank.result() for rank in _ranks(job)) if text), "")


def _ranks(job: Any) -> list[Any]:
    return [job.task(k) for k in range(job.num_tasks)]


def _failures(job: Any) -> list[str]:
    """Return the tracebacks of the failed ranks, in order of failure."""
    # submitit's API waits for the entire job, but a rank with a written result is done
    from submitit.core.utils import pickle_load

    paths = [rank.paths.result_pickle for rank in _ranks(job)]
    written = sorted(filter(Path.exists, paths), key=lambda path: path.stat().st_mtime_ns)
    return [str(result) for outcome, result in map(pickle_load, written) if outcome == "error"]


def last_exception(trace: str) -> tuple[str, str]:
    """Return class name and message of the exception that a traceback ends with."""
    final = trace.rstrip().rpartition("\n  ")[2].partition("\n")[2] or trace.rstrip()
    found = _EXCEPTION.search(final)
    if not found:
        return "error", trace.strip().splitlines()[-1] if trace.strip() else "no traceback"
    return found["name"].rpartition(".")[2], found["text"].strip()


def log_lines(text: str) -> str:
    """Keep only our log lines; tracebacks stay in the file, as their last line is reported."""
    return "".join(line for line in text.splitlines(keepends=True) if _LOG_LINE.match(line))


def _kill_ranks(job: Any) -> None:
    for process in _processes(job):
        with suppress(ProcessLookupError):  # it ended by itself meanwhile
            os.kill(process, signal.SIGKILL)


def _processes(job: Any) -> list[int]:
    """Return the ids of the live ranks: the children of submitit's controller."""
    children = Path(f"/proc/{job.job_id}/task/{job.job_id}/children")
    try:
        return [int(child) for child in children.read_text(encoding="ascii").split()]
    except (FileNotFoundError, ProcessLookupError):
        return []  # the controller has ended
