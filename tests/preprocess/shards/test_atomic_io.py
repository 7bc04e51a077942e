"""Files that are whole or absent."""

import errno
import os
import stat
import subprocess
import sys

import pytest

from preprocess.shards.atomic_io import (
    append_json_line,
    atomic_path,
    is_abandoned,
    read_json_lines,
    temporary_path,
    write_json,
    write_text,
)


def write_and_fail(path):
    with atomic_path(path) as temporary:
        temporary.write_text("new")
        raise RuntimeError


def test_a_failure_leaves_the_old_file_and_no_trace(tmp_path):
    write_text(tmp_path / "a.txt", "old")
    with pytest.raises(RuntimeError):
        write_and_fail(tmp_path / "a.txt")
    assert [path.name for path in tmp_path.iterdir()] == ["a.txt"]
    assert (tmp_path / "a.txt").read_text() == "old"


def test_until_it_is_whole_a_file_hides_from_patterns(tmp_path):
    with atomic_path(tmp_path / "shard-00000.h5") as temporary:
        temporary.touch()
        assert list(tmp_path.glob("shard-*")) == []
        assert list(tmp_path.glob("*.h5")) == []
    assert [path.name for path in tmp_path.iterdir()] == ["shard-00000.h5"]


def test_json_keeps_the_order_of_its_keys(tmp_path):
    write_json(tmp_path / "new" / "a.json", {"z": 1, "a": [2]})
    assert (tmp_path / "new" / "a.json").read_text().split() == [
        "{",
        '"z":',
        "1,",
        '"a":',
        "[",
        "2",
        "]",
        "}",
    ]


def test_a_line_that_a_full_disk_cut_spoils_no_other(tmp_path):
    path = tmp_path / "lines.jsonl"
    assert read_json_lines(path) == []
    append_json_line(path, {"n": 1})
    with path.open("a") as file:
        file.write('{"n": 2, "te')
    append_json_line(path, {"n": 3})
    append_json_line(path, {"n": 4})
    with path.open("ab") as file:
        file.write(b'{"n": 5, "text": "\xe9')
    assert read_json_lines(path) == [{"n": 1}, {"n": 3}, {"n": 4}]


def test_a_file_system_that_cannot_flush_folders_is_no_obstacle(tmp_path, monkeypatch):
    real = os.fsync

    def of_files_only(descriptor):
        if stat.S_ISDIR(os.fstat(descriptor).st_mode):
            raise OSError(errno.EINVAL, "Invalid argument")
        real(descriptor)

    monkeypatch.setattr(os, "fsync", of_files_only)
    write_text(tmp_path / "a.txt", "text")
    assert (tmp_path / "a.txt").read_text() == "text"


def test_a_file_that_cannot_be_flushed_is_named(tmp_path, monkeypatch):
    def failing(_descriptor):
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(os, "fsync", failing)
    with pytest.raises(OSError, match=r"Input/output error.*a\.txt"):
        write_text(tmp_path / "a.txt", "text")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("node", ["node1", "node-1", "gpu017.cluster.example.org"])
def test_what_the_dead_left_is_known_whatever_the_name_of_the_node(tmp_path, monkeypatch, node):
    dead = subprocess.Popen([sys.executable, "-c", ""])
    dead.wait()
    name = os.uname_result(("Linux", node, "6.1", "#1", "x86_64"))
    monkeypatch.setattr(os, "uname", lambda: name)
    living = temporary_path(tmp_path / "shard-00000.h5")
    monkeypatch.setattr(os, "getpid", lambda: dead.pid)
    left = temporary_path(tmp_path / "shard-00000.h5")
    elsewhere = left.with_name(left.name.replace(node, f"other-{node}"))
    assert [is_abandoned(path) for path in (living, left, elsewhere)] == [False, True, False]
