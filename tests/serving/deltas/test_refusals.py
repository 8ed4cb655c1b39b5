"""Each damaged, missing or foreign delta is refused by name; the model is untouched."""

import json
import shutil

import numpy as np
import pytest
from helpers import published

from tf_dlrm.serving import DeltaError, Replica
from tf_dlrm.serving.deltas import format as formats
from tf_dlrm.serving.deltas.channel import Channel


def replica_at(base_dir, sequence):
    """Return a replica at a state before HEAD, which is then put back."""
    channel = Channel(base_dir)
    head = channel.read_head()
    base = channel.read_base(1)
    channel.move_head((1, sequence) and formats.Position(1, sequence),
                      channel.identity_of(base, sequence), {})  # fmt: skip
    replica = Replica(base_dir)
    replica.in_place()
    channel.move_head(
        formats.Position(head["base"], head["sequence"]), head["state"], {}
    )
    return replica


def delta_of(base_dir, sequence):
    return base_dir / "deltas" / "1" / f"{sequence:08d}"


def edit(path, change):
    """Change a sealed JSON file, with a correct checksum."""
    content = json.loads(path.read_text())
    content.pop("sha256")
    change(content)
    text = {k: v for k, v in content.items() if k != "format"}
    sealed, _ = formats.seal(text)
    if content["format"] != formats.FORMAT:
        content["sha256"] = "0" * 64
        sealed = json.dumps(content).encode()
    path.write_bytes(sealed)


def missing(base_dir):
    shutil.rmtree(delta_of(base_dir, 2))


def missing_file(base_dir):
    (delta_of(base_dir, 2) / "dense.npz").unlink()


def reordered(base_dir):
    two, three = delta_of(base_dir, 2), delta_of(base_dir, 3)
    two.rename(two.with_name("x"))
    three.rename(two)
    two.with_name("x").rename(three)


def truncated(base_dir):
    path = delta_of(base_dir, 2) / "tables.npz"
    path.write_bytes(path.read_bytes()[:-1])


def truncated_manifest(base_dir):
    path = delta_of(base_dir, 2) / "manifest.json"
    path.write_bytes(path.read_bytes()[:200])


def flipped(base_dir):
    path = delta_of(base_dir, 2) / "tables.npz"
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def flipped_manifest(base_dir):
    path = delta_of(base_dir, 2) / "manifest.json"
    path.write_text(path.read_text().replace('"rows": "touched"', '"rows": "tOuched"'))


def foreign(base_dir):
    def change(content):
        content["base"]["sha256"] = "f" * 64

    edit(delta_of(base_dir, 2) / "manifest.json", change)


def other_history(base_dir):
    def change(content):
        content["parents"] = ["e" * 64]

    edit(delta_of(base_dir, 2) / "manifest.json", change)


def future(base_dir):
    def change(content):
        content["format"] = 2

    edit(delta_of(base_dir, 2) / "manifest.json", change)


def deleting(base_dir):
    """A delta that deletes ids of a table with a fixed vocabulary."""
    spoil_rows(base_dir, lambda arrays: arrays | {"deleted_0": np.array([3])})


def descending(base_dir):
    spoil_rows(base_dir, lambda arrays: arrays | {"ids_0": arrays["ids_0"][::-1]})


def out_of_range(base_dir):
    ids = np.array([200], np.uint8)
    spoil_rows(
        base_dir, lambda a: a | {"ids_0": ids, "rows_0": np.zeros((1, 4), "float32")}
    )


def spoil_rows(base_dir, change):
    folder = delta_of(base_dir, 2)
    with np.load(folder / "tables.npz") as file:
        arrays = change(dict(file))
    np.savez(folder / "tables.npz", **arrays)
    content = (folder / "tables.npz").read_bytes()

    def describe(manifest):
        facts = {"bytes": len(content), "sha256": formats.digest(content)}
        manifest["files"]["tables.npz"] = facts

    edit(folder / "manifest.json", describe)


CASES = {
    missing: ("missing", "Delta 2 of base 1 is missing"),
    missing_file: ("missing", "There is no file .*00000002/dense.npz"),
    reordered: ("reordered", "is delta 3, but its folder is named 00000002"),
    truncated: ("truncated", r"tables.npz has [\d,]+ bytes, not [\d,]+"),
    truncated_manifest: ("damaged", "manifest.json is damaged or truncated"),
    flipped: ("damaged", "tables.npz does not match its checksum"),
    flipped_manifest: ("damaged", "manifest.json does not match its checksum"),
    foreign: ("foreign", "belongs to base 1 .ffffffff., not to base 1"),
    other_history: ("reordered", "was made for state eeeeeeee"),
    future: ("future format", "has format 2, and this release reads format 1"),
    deleting: ("foreign", "deletes ids of table 'C0', whose vocabulary is fixed"),
    descending: ("damaged", "table 'C0' must have ascending rows below 11"),
    out_of_range: ("damaged", "table 'C0' must have ascending rows below 11"),
}


@pytest.mark.breadth(6)
@pytest.mark.parametrize("spoil", CASES, ids=lambda case: case.__name__)
def test_a_bad_delta_is_refused(spoil, base_dir, answers):
    kind, message = CASES[spoil]
    replica = replica_at(base_dir, 1)
    spoil(base_dir)
    with pytest.raises(DeltaError, match=message) as refused:
        replica.in_place()
    assert refused.value.kind == kind
    assert replica.position == (1, 1)
    answer = replica.predict(published.REQUEST)
    np.testing.assert_array_equal(answer.probabilities, answers[1])


def test_a_repeated_delta_and_one_too_early(base_dir, answers):
    replica = replica_at(base_dir, 1)
    with pytest.raises(DeltaError, match="Delta 1 was applied already: .* sequence 1"):
        replica.apply("00000001")
    with pytest.raises(
        DeltaError, match="Delta 3 follows 2, but .* apply delta 2 first"
    ):
        replica.apply("00000003")
    assert replica.position == (1, 1)
    assert replica.apply("00000002") == (1, 2)
    answer = replica.predict(published.REQUEST)
    np.testing.assert_array_equal(answer.probabilities, answers[2])


@pytest.mark.parametrize(
    "change, message",
    [
        (lambda text: text[:-40], "HEAD.json is damaged or truncated"),
        (lambda text: text.replace("healthy", "heaLthy"), "HEAD.json does not match"),
    ],
    ids=["truncated", "flipped"],
)
def test_a_damaged_head(change, message, base_dir, answers):
    replica = Replica(base_dir)
    assert replica.in_place() == (1, 3)
    path = base_dir / "HEAD.json"
    path.write_text(change(path.read_text()))
    with pytest.raises(DeltaError, match=message):
        replica.in_place()
    answer = replica.predict(published.REQUEST)
    np.testing.assert_array_equal(answer.probabilities, answers[3])


@pytest.mark.parametrize("name", ["variables/variables.index", "saved_model.pb"])
def test_a_damaged_base(name, base_dir):
    path = base_dir / "1" / name
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    with pytest.raises(DeltaError, match="does not match its checksum"):
        Replica(base_dir).in_place()


def test_nothing_is_released(tmp_path):
    with pytest.raises(
        FileNotFoundError, match="has no HEAD.json: nothing is released"
    ):
        Replica(tmp_path).in_place()
    assert Replica(tmp_path).materialize(tmp_path / "served") is None


def test_a_bad_delta_is_not_materialized(base_dir, tmp_path):
    replica = Replica(base_dir)
    flipped(base_dir)
    with pytest.raises(DeltaError, match="does not match its checksum"):
        replica.materialize(tmp_path / "served")
    assert not (tmp_path / "served").exists()
    with pytest.raises(ValueError, match="must not be the folder of the published"):
        replica.materialize(base_dir)
