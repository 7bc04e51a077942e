"""Published archives: a record on a local server goes through the code of the real ones."""

import gzip
import hashlib
import io
import json
import shutil
import tarfile
import zipfile
from dataclasses import replace
from types import SimpleNamespace

import pytest
import zstandard
from make_scenes import tree
from stac_server import Server

from preprocess.config import FetchConfig, FetchTarget
from preprocess.fetch import archives, fetch, plan
from preprocess.fetch.archives import ARCHIVES, Archive, ArchiveFile, unpack
from preprocess.fetch.http import FetchError
from preprocess.fetch.scenes import STATE

NAMES = [f"Data/patch_{number:03d}/patch_{number:03d}_B{band:02d}.tif"
         for number in range(40) for band in (1, 2, 3)]  # fmt: skip


def content_of(name: str) -> bytes:
    return hashlib.sha256(name.encode()).digest() * 40


def tar_of(names, folder="Data", kind=tarfile.REGTYPE) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        tar.addfile(_entry(folder, tarfile.DIRTYPE, 0))
        for name in names:
            data = content_of(name) if kind == tarfile.REGTYPE else b""
            tar.addfile(_entry(name, kind, len(data)), io.BytesIO(data))
    return buffer.getvalue()


def _entry(name, kind, size) -> tarfile.TarInfo:
    entry = tarfile.TarInfo(name)
    entry.type, entry.size, entry.linkname = kind, size, "/etc/passwd"
    return entry


def archive_bytes(suffix: str) -> bytes:
    if suffix == "tar.zst":
        # two frames, as parallel compressors write them
        tar, compress = tar_of(NAMES), zstandard.ZstdCompressor().compress
        return compress(tar[:50_000]) + compress(tar[50_000:])
    if suffix == "tar.gz":
        return gzip.compress(tar_of(NAMES), mtime=0)
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as file:
        for name in NAMES:
            file.writestr(name, content_of(name))
    return buffer.getvalue()


@pytest.fixture(params=["tar.zst", "tar.gz", "zip"])
def record(request, tmp_path):
    """Yield a server, and the record of an archive and a table that it serves."""
    root = tmp_path / "record"
    root.mkdir()
    files = {f"Data.{request.param}": archive_bytes(request.param), "metadata.parquet": b"table"}
    for name, data in files.items():
        (root / name).write_bytes(data)
    with Server(root) as server:
        entries = tuple(
            ArchiveFile(
                name, hashlib.md5(data).hexdigest(), len(data), "made up",
                root="" if name.endswith("parquet") else "Data", files=len(NAMES),
            )
            for name, data in files.items()
        )  # fmt: skip
        yield server, Archive("https://nowhere.invalid/record", entries)


def config_of(server, tmp_path, **changes) -> FetchConfig:
    return FetchConfig(
        what=FetchTarget.eurosat, url=f"{server.url}/files", output=str(tmp_path / "out"), **changes
    )


EXPECTED = {name: content_of(name) for name in NAMES} | {"metadata.parquet": b"table"}


def test_an_archive_is_fetched_checked_and_unpacked(record, tmp_path):
    server, archive = record
    summary = fetch(config_of(server, tmp_path), archive)
    there = tree(tmp_path / "out")
    assert there.pop("fetch.json")
    assert there == EXPECTED
    assert summary.missing_bytes == sum(file.size for file in archive.files)
    before = len(server.state.requests)
    assert fetch(config_of(server, tmp_path), archive).missing_bytes == 0
    assert len(server.state.requests) == before + 1  # whether the network is there


def test_a_dry_run_tells_the_bytes_and_writes_nothing(record, tmp_path):
    server, archive = record
    summary = plan(config_of(server, tmp_path), archive)
    assert summary.missing_bytes == sum(file.size for file in archive.files)
    assert not (tmp_path / "out").exists()


def test_a_cut_download_goes_on_where_it_was_cut(record, tmp_path, monkeypatch):
    server, archive = record
    monkeypatch.setattr("preprocess.fetch.archives._CHUNK_BYTES", 1000)
    server.state.fault = lambda path, number: "503" if number > 8 and "Data" in path else ""
    with pytest.raises(FetchError, match="HTTP 503, in 2 attempts"):
        fetch(config_of(server, tmp_path, retries=1, streams=1), archive)
    server.state.fault = lambda path, number: ""
    already = server.state.sent
    assert already > 3000
    fetch(config_of(server, tmp_path), archive)
    again = server.state.sent - already
    assert again < sum(file.size for file in archive.files) - 2000
    assert {
        name: data for name, data in tree(tmp_path / "out").items() if name in EXPECTED
    } == EXPECTED


def test_a_killed_unpacking_goes_on_behind_what_is_durable(record, tmp_path, monkeypatch):
    _, archive = record
    monkeypatch.setattr("preprocess.fetch.archives._SYNC_FILES", 10)
    path = tmp_path / "record" / archive.files[0].name
    written = []

    def die_late(target, stream):
        if len(written) == 35:
            raise KeyboardInterrupt
        written.append(target)
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(stream.read())

    with monkeypatch.context() as patch:
        patch.setattr("preprocess.fetch.archives._write_member", die_late)
        with pytest.raises(KeyboardInterrupt):
            unpack(path, tmp_path / "out" / "Data")
    assert not (tmp_path / "out" / "Data").exists()
    half = tmp_path / "out" / ".fetch" / NAMES[31]  # behind the last sync: may be half there
    half.write_bytes(b"half")
    first = tmp_path / "out" / ".fetch" / NAMES[0]
    stamp = first.stat().st_mtime_ns
    assert unpack(path, tmp_path / "out" / "Data") == len(NAMES)
    there = tree(tmp_path / "out" / "Data")
    assert there == {name.removeprefix("Data/"): content_of(name) for name in NAMES}
    assert (tmp_path / "out" / NAMES[0]).stat().st_mtime_ns == stamp


def test_a_folder_that_somebody_else_unpacked_is_refused_before_anything_is_fetched(
    record, tmp_path
):
    server, archive = record
    (tmp_path / "out" / "Data").mkdir(parents=True)
    with pytest.raises(FetchError, match="Data is there, but simclr-fetch did not unpack it"):
        fetch(config_of(server, tmp_path), archive)
    assert server.state.sent == 0
    (tmp_path / "out" / "Data").rmdir()
    fetch(config_of(server, tmp_path), archive)
    assert tree(tmp_path / "out" / "Data")


def interrupted(config, archive, monkeypatch, name, when):
    """Fetch, and stop when a function of archives.py is called for which ``when`` is true."""
    real = getattr(archives, name)

    def stopping(*args):
        if when(*args):
            raise KeyboardInterrupt
        return real(*args)

    with monkeypatch.context() as patch:
        patch.setattr(archives, name, stopping)
        with pytest.raises(KeyboardInterrupt):
            fetch(config, archive)


def test_a_kill_before_the_record_of_an_unpacked_archive_costs_no_count(
    record, tmp_path, monkeypatch
):
    server, archive = record
    config = config_of(server, tmp_path)
    interrupted(config, archive, monkeypatch, "write_json", lambda path, _: path.name == STATE)
    assert (tmp_path / "out" / "Data").exists()
    fetch(config, archive)
    state = json.loads((tmp_path / "out" / STATE).read_text())
    assert state["files"][archive.files[0].name]["rasters"] == len(NAMES)


@pytest.mark.parametrize("keep", [False, True])
def test_a_disk_that_was_large_enough_is_so_after_an_interruption(
    record, tmp_path, monkeypatch, keep
):
    server, archive = record
    packed, table = archive.files
    unpacked = len(NAMES) * 4096
    archive = replace(archive, files=(replace(packed, unpacked_bytes=unpacked), table))
    out, config = tmp_path / "out", config_of(server, tmp_path, keep_archives=keep)
    room = -(-packed.size // 4096) * 4096 + unpacked + 4096 * keep  # blocks of the file system

    def usage(_path):
        files = [path for path in out.rglob("*") if path.is_file() and path.suffix != ".json"]
        return SimpleNamespace(free=room - sum(path.stat().st_blocks * 512 for path in files))

    monkeypatch.setattr(shutil, "disk_usage", usage)
    monkeypatch.setattr(archives, "_SYNC_FILES", 7)  # the last but one ends a round
    last = NAMES[-1].rpartition("/")[2]
    interrupted(config, archive, monkeypatch, "_write_member", lambda path, _: path.name == last)
    fetch(config, archive)
    assert len(tree(out / "Data")) == len(NAMES)


def test_an_archive_of_unknown_size_counts_with_the_size_it_had(record, tmp_path):
    server, archive = record
    archive = replace(archive, files=tuple(replace(file, size=0) for file in archive.files))
    first = fetch(config_of(server, tmp_path), archive)
    assert fetch(config_of(server, tmp_path), archive).bytes == first.bytes > 0


def test_another_file_than_was_published_is_refused_and_removed(record, tmp_path):
    server, archive = record
    path = tmp_path / "record" / archive.files[0].name
    data = bytearray(path.read_bytes())
    data[100] ^= 1
    path.write_bytes(data)
    with pytest.raises(FetchError, match="has another md5 than the published"):
        fetch(config_of(server, tmp_path), archive)
    assert not (tmp_path / "out" / path.name).exists()
    path.write_bytes(bytes(data) + b"more")
    with pytest.raises(FetchError, match=r"has \d+ bytes, published are \d+"):
        fetch(config_of(server, tmp_path), archive)


def test_an_archive_that_is_there_is_used_if_it_is_sound(record, tmp_path):
    server, archive = record
    name = archive.files[0].name
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / name).write_bytes((tmp_path / "record" / name).read_bytes())
    fetch(config_of(server, tmp_path, keep_archives=True), archive)
    assert (tmp_path / "out" / name).exists()
    asked = zip(server.state.requests, server.state.headers, strict=True)
    ranges = [headers.get("Range") for path, headers in asked if name in path]
    assert ranges == ["bytes=0-0"]


def test_a_foreign_file_of_that_name_is_not_overwritten(record, tmp_path):
    server, archive = record
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / archive.files[0].name).write_bytes(b"mine")
    with pytest.raises(FetchError, match="its size or md5 is not the published one; remove it"):
        fetch(config_of(server, tmp_path), archive)
    assert (tmp_path / "out" / archive.files[0].name).read_bytes() == b"mine"


@pytest.mark.parametrize(
    ("names", "kind"),
    [
        (["../outside.tif"], tarfile.REGTYPE),
        (["Data/../../outside.tif"], tarfile.REGTYPE),
        (["/outside.tif"], tarfile.REGTYPE),
        (["Other/inside.tif"], tarfile.REGTYPE),
        (["Data/link.tif"], tarfile.SYMTYPE),
        (["Data/link.tif"], tarfile.LNKTYPE),
    ],
)
def test_names_and_links_that_lead_out_of_the_folder_are_refused(tmp_path, names, kind):
    path = tmp_path / "evil.tar.gz"
    path.write_bytes(gzip.compress(tar_of(names, kind=kind)))
    with pytest.raises(FetchError, match=r"evil\.tar\.gz holds"):
        unpack(path, tmp_path / "out" / "Data")
    assert not list(tmp_path.rglob("*.tif"))


def test_a_full_disk_is_told_before_anything_is_fetched(record, tmp_path, monkeypatch):
    server, archive = record
    monkeypatch.setattr("shutil.disk_usage", lambda path: type("Usage", (), {"free": 10})())
    with pytest.raises(FetchError, match=r"0\.0 GB free"):
        fetch(config_of(server, tmp_path), archive)
    assert server.state.sent <= 2


def test_the_table_states_a_source_for_every_figure():
    for what, archive in ARCHIVES.items():
        assert archive.url.startswith("https://zenodo.org/records/"), what
        for file in archive.files:
            assert len(file.md5) == 32
            assert file.source
            assert file.size or "not found" in file.source
    metadata = ARCHIVES[FetchTarget.bigearthnet_v2].files[0]
    assert (metadata.name, metadata.size) == ("metadata.parquet", 3_616_349)


def test_the_published_checksums_of_the_tables_are_those_of_real_copies(real_data):
    for file in ARCHIVES[FetchTarget.bigearthnet_v2].files[:2]:
        data = (real_data / "bigearthnet_v2" / file.name).read_bytes()
        assert (len(data), hashlib.md5(data).hexdigest()) == (file.size, file.md5)
