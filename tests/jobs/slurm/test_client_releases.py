"""Slurm's answers as releases from 19.05 to 25.11 write them are read alike.

Fields and their order are those of public listings of ``scontrol show job`` (years in the names);
names and numbers are made up. Where no listing was at hand the form is the one that the release's
manual pages describe, and the test says so. 22.05 is run for real in tests/slurm.
"""

from __future__ import annotations

import pytest

from jobs.slurm import client as slurm
from jobs.slurm.client import endings, parse_endings
from jobs.status.causes import why_waiting

_HEAD = "UserId=ann(1000) GroupId=ann(1000) MCS_label=N/A Priority=9 Nice=0 Account=a QOS=normal"
_TAIL = "Command=/home/ann/x.sh WorkDir=/home/ann StdErr=/runs/a run/err StdIn=/dev/null"

# one line each, as -o prints them: what stands between head and tail differs
LISTINGS = {
    # PreemptTime is always there, SuspendTime on the same line
    "2019, 18.08 and 19.05": "JobState=RUNNING Reason=None Dependency=(null) Requeue=1 Restarts=1 "
    "BatchFlag=1 Reboot=0 ExitCode=0:0 RunTime=1-05:11:18 TimeLimit=UNLIMITED TimeMin=N/A "
    "SubmitTime=2019-03-29T17:51:37 EligibleTime=2019-03-29T17:51:37 AccrueTime=Unknown "
    "StartTime=2019-03-29T17:51:37 EndTime=Unknown Deadline=N/A PreemptTime=None SuspendTime=None "
    "SecsPreSuspend=0 Partition=p AllocNode:Sid=fe:9 ReqNodeList=(null) ExcNodeList=(null) "
    "NodeList=n[1-2] BatchHost=n1 NumNodes=2 TRES=cpu=4,node=2",
    # PreemptEligibleTime before it, and only where preemption is on
    "2021, 20.11": "JobState=RUNNING Reason=None Dependency=(null) Requeue=1 Restarts=1 "
    "ExitCode=0:0 RunTime=00:01:34 TimeLimit=00:15:00 StartTime=2021-10-07T11:15:26 "
    "EndTime=2021-10-07T11:30:26 Deadline=N/A PreemptEligibleTime=2021-10-07T11:15:26 "
    "PreemptTime=None SuspendTime=None SecsPreSuspend=0 LastSchedEval=2021-10-07T11:15:26 "
    "Scheduler=Main Partition=p NodeList=n[1-2] BatchHost=n1 TRES=cpu=4,mem=7600M,node=2,billing=4",
    # no line on preemption; -d puts nodes between
    "2022, 21.08 with -d": "JobState=RUNNING Reason=None Dependency=(null) Requeue=1 Restarts=1 "
    "DerivedExitCode=0:0 RunTime=00:00:11 TimeLimit=05:00:00 StartTime=2022-07-10T21:55:45 "
    "Scheduler=Main Partition=p ReqNodeList=(null) ExcNodeList=(null) NodeList=n[1-2] "
    "BatchHost=n1 JOB_GRES=(null)   Nodes=n[1-2] CPU_IDs=0 Mem=179200 GRES= MinCPUsNode=1",
    # requested and given resources apart
    "2025, 23.11": "JobState=RUNNING Reason=None Dependency=(null) Requeue=1 Restarts=1 "
    "RunTime=5-21:51:00 TimeLimit=7-00:00:00 StartTime=2025-01-21T16:47:16 "
    "EndTime=2025-01-28T16:47:16 Deadline=N/A PreemptEligibleTime=2025-01-21T16:47:16 "
    "PreemptTime=None SuspendTime=None SecsPreSuspend=0 Scheduler=Backfill:* Partition=p "
    "NodeList=n[1-2] BatchHost=n1 ReqTRES=cpu=24,mem=120G,node=2 AllocTRES=cpu=24,mem=120G,node=2",
    # by the manual page: more fields, SubmitLine among them, which may hold anything
    "25.11, from its manual page": "JobState=RUNNING Reason=None Dependency=(null) Requeue=1 "
    "Restarts=1 SegmentSize=1 TimeLimit=1-00:00:00 StartTime=2026-01-21T16:47:16 Partition=p "
    "NodeList=n[1-2] LicensesAlloc=(null) SubmitLine=sbatch --comment Restarts=9 NodeList=x a.sh",
}

# sacct -n -P -X -D -o JobID,State,End; -D lists each start of a job
ACCOUNTS = """\
12|REQUEUED|2026-01-01T10:05:00
12|NODE_FAIL|2026-01-01T10:07:00
12|RUNNING|Unknown
40_3|CANCELLED by 1000|2026-01-01T10:08:00
41_[4-7%2]|PENDING|Unknown
42|OUT_OF_ME+|2026-01-01T10:09:00
"""


@pytest.mark.parametrize("listing", LISTINGS.values(), ids=LISTINGS.keys())
def test_every_release_says_the_same(listing):
    job = slurm.parse_job(f"JobId=12 JobName=simclr {_HEAD} {listing} {_TAIL}\n")
    assert (job.job_id, job.state, job.restarts, job.preempted) == ("12", "RUNNING", 1, False)
    assert job.nodes == "n[1-2]"


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("9:01", 541),
        ("1:00:00", 3600),
        ("2-03:04:05", 183845),
        ("UNLIMITED", None),
        ("NOT_SET", None),
        ("INVALID", None),
        ("N/A", None),
        ("", None),
    ],
)
def test_times_left_are_read_in_each_form(text, seconds):
    assert slurm.seconds_of(text) == seconds


def test_each_start_of_a_job_has_its_own_ending():
    found = parse_endings(ACCOUNTS)
    assert found["12"] == ["REQUEUED", "NODE_FAIL", ""]
    assert found["40_3"] == ["CANCELLED"]
    assert found["42"] == ["OUT_OF_ME"]  # cut by a narrow format; never taken for another


def test_a_site_without_accounts_has_no_endings(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    command = tmp_path / "sacct"
    command.write_text("#!/bin/sh\necho 'Slurm accounting storage is disabled' >&2; exit 1\n")
    command.chmod(0o755)
    assert endings(["12"]) == {}
    command.write_text("#!/bin/sh\necho 'Connection refused' >&2; exit 1\n")
    with pytest.raises(slurm.SlurmError, match="Connection refused"):
        endings(["12"])
    monkeypatch.setenv("PATH", "")
    assert endings(["12"]) == {}
    assert endings([]) == {}


@pytest.mark.parametrize(
    ("reason", "words", "is_stuck"),
    [
        ("Priority", "other jobs go first", False),
        ("(ReqNodeNotAvail, UnavailableNodes:n[1-4])", "nodes are down or reserved", False),
        ("DependencyNeverSatisfied", "the job that it waits for has failed", True),
        ("QOSMaxWallDurationPerJobLimit", "asks for more time than the QOS allows", True),
        ("AWordOfALaterRelease", "AWordOfALaterRelease", False),
        ("", "no reason given", False),
    ],
)
def test_reasons_are_told_in_words_and_those_that_never_pass_as_such(reason, words, is_stuck):
    text, fix = why_waiting(slurm.JobState("1", "PENDING", reason))
    assert (text, bool(fix)) == (words, is_stuck)


def test_an_expected_start_is_told():
    job = slurm.JobState("1", "PENDING", "Priority", start="2026-01-01T10:00:00")
    assert why_waiting(job)[0].endswith("expected to start 2026-01-01T10:00:00")
