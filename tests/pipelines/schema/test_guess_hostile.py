"""Guesses of schemas from files that are no logs: one clear line, no traceback."""

import gzip

import numpy as np
import pytest

import pipelines
from pipelines.schema import guess as guesses


def save(folder, data, name="log.csv"):
    path = folder / name
    path.write_bytes(data)
    return path


def test_unclosed_quote_in_a_quoted_file(tmp_path):
    rows = [f'{n % 2},{n}.5,"s;{n % 5}"' for n in range(200)]
    rows[150] = '1,1.5,"open'
    guess = guesses.guess(
        save(tmp_path, "\n".join(["click,price,shop", *rows]).encode())
    )
    assert guess.schema.columns == ("click", "price", "shop")


LONG = b"1," + b"x" * (17 << 20)
HOSTILE = {
    "empty": (b"", "The files are empty"),
    "line ends": (b"\n\n\r\n", "contains no rows"),
    "header only": (b"click,price,shop\n", "has a header and no rows"),
    "header only, no line end": (b"click,price,shop", "has a header and no rows"),
    "binary": (bytes(range(256)) * 40, "binary data|zero|delimiter"),
    "one column": (b"click\n0\n1\n0\n", "found no delimiter"),
    "one bare column": (b"0\n1\n0\n1\n", "found no delimiter"),
    "only the label": (b"click,shop\n0,a\n1,a\n0,a\n", "found no category"),
    "all missing": (b"click,x\n" + b"0,\n1,\n" * 60, "found no category"),
    "no two values": (b"a,b\nx,y\nz,y\nw,q\n", "No column looks like the label"),
    "UTF-16": ("click,shop\n1,a\n0,b\n".encode("utf-16"), "UTF-16LE text"),
    "JSON": (b'{"click": 1}\n{"click": 0}\n', "looks like JSON"),
    "HTML": (b"<!doctype html>\n<p>", "looks like HTML"),
    "LibSVM": (b"1 3:0.5 7:1\n0 2:1 9:0.25\n" * 9, "LibSVM"),
    "carriage returns": (b"click,shop\r1,a\r0,b\r", "carriage return alone"),
    "two names": (b"click,x,x\n1,2,3\n0,2,3\n", "the column 'x' more than once"),
    "a long line": (LONG, "longer than 16,777,216 bytes"),
    "a header in Latin-1": (b"click,gr\xf6\xdfe\n1,2.5\n0,3.5\n", "not text in UTF-8"),
    "cut gzip": (gzip.compress(b"click,shop\n1,a\n" * 999)[:40], "truncated|damaged"),
    "cut Parquet": (b"PAR1" + b"x" * 40, "damaged Parquet"),
    "unequal": (
        b"\n".join(b",".join([b"1"] * (n * 7 % 5 + 1)) for n in range(60)),
        "number of columns|no delimiter|equally many",
    ),
}


@pytest.mark.parametrize("data, message", HOSTILE.values(), ids=HOSTILE)
def test_what_is_no_log_is_one_clear_line(data, message, tmp_path):
    path = save(tmp_path, data)
    with pytest.raises(ValueError, match=message) as raised:
        guesses.guess(path)
    assert "\n" not in str(raised.value) and len(str(raised.value)) < 500
    assert isinstance(raised.value, pipelines.runtime.UserError)


@pytest.mark.parametrize("seed", range(3))
def test_noise_never_ends_in_a_traceback(seed, tmp_path):
    rng = np.random.default_rng(seed)
    alphabet = np.frombuffer(b'01,,;|\t" \n\n\r.ab-\\\xff\0', "u1")
    for number in range(60):
        data = rng.choice(alphabet, rng.integers(1, 400)).tobytes()
        path = save(tmp_path, data, f"{number}.csv")
        try:
            guesses.guess(path).table()
        except pipelines.runtime.UserError as error:
            assert "\n" not in str(error)
