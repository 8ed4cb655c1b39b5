"""Plain English: phrases that a native speaker would not write are in no file."""

import pathlib
import re
import subprocess

import pytest

ROOT = pathlib.Path(__file__).parents[1]
SUFFIXES = (".py", ".md", ".ipynb", ".yml", ".toml", ".cff")
# What a reader stumbles over, and what to write instead.
PHRASES = {
    r"goes? on where it|was cut\b": "resumes where it was interrupted; truncated",
    r"begin anew|started afresh|\banew\b": "restart, start over, rebuild",
    r"is there already": "already exists",
    r"(?<![Tt]here )is no (row|run|file|line|folder|schema|number)\b": "is not a",
    r"no row is good": "contains no valid rows",
    r"are not whole": "incomplete",
    r"ends too early": "truncated",
    r"\b[Ss]hall\b": "should, must",
    r"\bWhoever\b": "you, anyone who",
    r"Numbers to believe": "Results you can trust",
    r"[Ee]xperiments that people know": "published experiments",
    r"measure ourselves by": "benchmarks",
    r"what you give": "the options you pass",
    r"\b[Aa]s of `": "repeat the half sentence",
    r"\bours\b": "tf_dlrm",
}
FIRST_WORDS = (
    r'^\s*(def|class) [^\n]*(\n[^"\n]*)*?\n\s*r?"""(What|Whether|Where|How|As of) '
)


def written_files():
    if not (ROOT / ".git").exists():
        pytest.skip("not a clone")
    names = subprocess.run(
        ["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout.split()
    return [
        name
        for name in names
        if name.endswith(SUFFIXES) and not name.startswith("tests/")
    ]


@pytest.fixture(scope="module")
def texts():
    names = written_files()
    assert len(names) > 200
    return {
        name: (ROOT / name).read_text(encoding="utf-8")
        for name in names
        if (ROOT / name).exists()
    }


@pytest.mark.parametrize("phrase", PHRASES)
def test_a_phrase_is_in_no_file(phrase, texts):
    found = [
        f"{name}:{text[: match.start()].count(chr(10)) + 1}: {match.group(0)}"
        for name, text in texts.items()
        for match in re.finditer(phrase, text)
    ]
    assert not found, f"Write: {PHRASES[phrase]}"


def test_docstrings_open_with_a_verb_or_a_noun(texts):
    for name, text in texts.items():
        if name.endswith(".py"):
            match = re.search(FIRST_WORDS, text, re.M)
            assert match is None, f"{name}: {match.group(0)[:200]}"
