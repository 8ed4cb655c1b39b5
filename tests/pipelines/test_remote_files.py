"""Files at an address: read as local ones are, or one line that says why not."""

import bz2
import gzip
import io
import lzma
import time
import zipfile

import pyarrow as pa
import pytest
from helpers import object_store

from pipelines import cli, files, prepare
from pipelines.formats.scanning import ChunkReader
from pipelines.schema import Schema
from pipelines.synthetic import Planted
from pipelines.whole_files import disk

OPTIONS = "?region=us-east-1"


@pytest.fixture
def store(monkeypatch):
    with object_store.serving() as (store, endpoint):
        for name, value in object_store.KEYS.items():
            monkeypatch.setenv(name, value)
        monkeypatch.setenv("AWS_ENDPOINT_URL", endpoint)
        monkeypatch.setenv("AWS_REGION", "us-east-1")
        monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
        # The file system, with the endpoint of the test before, is kept.
        from tf_dlrm.runtime import remote_files

        remote_files._from_uri.cache_clear()
        yield store


def read(path):
    reader, place, parts = ChunkReader(Schema.criteo()), 0, []
    while (chunk := reader.read(path, place)).size:
        parts.append(chunk.content)
        place += chunk.size
    return parts


def zipped(content):
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("day", content)
    return file.getvalue()


def by_arrow(codec):
    return lambda content: pa.compress(content, codec=codec, asbytes=True)


FORMS = {
    "plain": lambda content: content,
    "gzip": gzip.compress,
    "bzip2": bz2.compress,
    "xz": lzma.compress,
    "zip": zipped,
    "zstd": by_arrow("zstd"),
    "lz4": by_arrow("lz4"),
}


@pytest.mark.breadth(2)
@pytest.mark.parametrize("compress", FORMS.values(), ids=FORMS)
def test_every_compression_is_read(store, tmp_path, compress):
    Planted().write(tmp_path / "day", 3000)
    content = (tmp_path / "day").read_bytes()
    store.objects["/bucket/a b/day"] = compress(content)
    assert b"".join(read("s3://bucket/a%20b/day" + OPTIONS)) == content
    reader = files.BlockReader(10_000)
    first = reader.read("s3://bucket/a%20b/day", 0)
    assert files.BlockReader(10_000).read("s3://bucket/a%20b/day", len(first)) == (
        reader.read("s3://bucket/a%20b/day", len(first))
    )


def test_requests_are_few(store, tmp_path):
    Planted().write(tmp_path / "day.gz", 20_000)
    store.objects["/bucket/day.gz"] = (tmp_path / "day.gz").read_bytes()
    read("s3://bucket/day.gz")
    size = len(store.objects["/bucket/day.gz"])
    assert size > 1_000_000 and len(store.requests) <= 12


def test_a_preparation_equals_that_of_local_files(store, tmp_path):
    Planted().write(tmp_path / "day_0", 2000)
    Planted().write(tmp_path / "day_1.gz", 2000)
    Planted().write(tmp_path / "day_2.parquet", 2000)
    for path in tmp_path.iterdir():
        store.objects[f"/bucket/logs/{path.name}"] = path.read_bytes()
    store.objects["/bucket/logs/_day_3"] = b"hidden"
    store.objects["/bucket/logs/more/day_4"] = b"deeper"
    addresses = [f"s3://bucket/logs/day_{i}" for i in ("0", "1.gz", "2.parquet")]
    assert files.expand_paths("s3://bucket/logs/*") == addresses
    assert files.expand_paths("s3a://bucket/l*s/day_[1-2]*" + OPTIONS) == [
        address.replace("s3:", "s3a:") + OPTIONS for address in addresses[1:]
    ]
    local = [tmp_path / address.rpartition("/")[2] for address in addresses]
    prepare.prepare(local, tmp_path / "local")
    prepare.prepare("s3://bucket/logs/day_*", tmp_path / "remote")
    for path in sorted((tmp_path / "local").rglob("*.npy")):
        other = tmp_path / "remote" / path.relative_to(tmp_path / "local")
        assert path.read_bytes() == other.read_bytes()


def test_a_folder_of_parts(store):
    store.objects["/bucket/out/_SUCCESS"] = b""
    store.objects["/bucket/out/b.csv"] = store.objects["/bucket/other/b.csv"] = b"x"
    assert files.expand_paths("s3://bucket/out") == ["s3://bucket/out/b.csv"]
    with pytest.raises(ValueError, match="directory, but not one of part files"):
        files.expand_paths("s3://bucket/other/")


def test_content_tells_files_apart(store):
    store.objects["/bucket/day"] = b"1" * 9
    ((name, before),) = disk.fingerprints(["s3://bucket/day" + OPTIONS])
    store.objects["/bucket/day"] = b"2" * 9
    assert name == "day" and before.startswith("9:whole:")
    assert disk.fingerprints(["s3://bucket/day"]) != [[name, before]]


def test_what_cannot_be_read_is_one_line(store, capsys, tmp_path):
    store.objects["/bucket/day.gz"] = gzip.compress(b"x\n" * 99_999)[:-9]
    store.objects["/bucket/empty"] = b""
    store.objects["/bucket/text.gz"] = b"text\n"
    store.objects["/bucket/day.parquet"] = b"PAR1 and not more"
    password = "s3://key:secret@bucket/day"
    for address, match in (
        ("s3://bucket/none", "There is no file 's3://bucket/none'"),
        ("s3://bucket/x*", "No file matches the pattern 's3://bucket/x*'"),
        ("s3://bucket/empty", "The files are empty: 's3://bucket/empty'"),
        ("s3://bucket/day.gz", "s3://bucket/day.gz: the compressed file is truncated"),
        ("s3://bucket/text.gz" + OPTIONS, "named .gz, but does not contain gzip data"),
        ("s3://bucket/day.parquet", "s3://bucket/day.parquet: damaged Parquet file"),
        ("s3://bucket/a b", "s3://bucket/a b: cannot be read: Cannot parse URI"),
        (password, "An address must not contain a password"),
        ("hdfs://host/day", "hdfs://host/day: cannot be read: Unable to load lib"),
        ("ftp://host/day", "'ftp://host/day' is a remote address that cannot be re"),
    ):
        arguments = ["prepare", "--input", address, "--out", str(tmp_path / "out")]
        assert cli.main(arguments) == 2, address
        error = capsys.readouterr().err.splitlines()[-1]
        assert match in error and "secret" not in error and len(error) < 700
        assert "Traceback" not in error
    store.status = 403
    assert cli.main(["prepare", "--input", "s3://bucket/day", "--out", "x"]) == 2
    assert "ACCESS_DENIED" in (error := capsys.readouterr().err)
    assert error.count("\n") == 1


@pytest.mark.integration
def test_an_endpoint_that_is_not_there_is_told_within_seconds(monkeypatch):
    for name, value in object_store.KEYS.items():
        monkeypatch.setenv(name, value)
    start, options = time.monotonic(), "?endpoint_override=127.0.0.1:1&scheme=http"
    with pytest.raises(ValueError, match="cannot be read: .*connect.* Check the addr"):
        files.expand_paths(f"s3://bucket/day{options}&region=a")
    assert time.monotonic() - start < 30


def test_an_address_of_a_local_file(tmp_path):
    (tmp_path / "a b").write_text("x")
    assert files.expand_paths((tmp_path / "a b").as_uri()) == [str(tmp_path / "a b")]
