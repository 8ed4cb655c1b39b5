"""What the README tells people to type does what it says."""

import pathlib
import re

import keras
import pytest

import pipelines
from pipelines.synthetic import SchemaLog

pytestmark = pytest.mark.integration

README = (pathlib.Path(__file__).parents[1] / "README.md").read_text()


def test_the_python_lines_train_a_model_that_ranks(tmp_path, monkeypatch):
    code = re.search(r"```python\n(import keras, pipelines.*?)```", README, re.S)
    schema = pipelines.Schema("click", ["age", "price"], ["country", "item", "user"])
    log = SchemaLog(schema, num_values=100)
    log.write(tmp_path / "day_0.csv", 60_000)
    best_auc = log.write(tmp_path / "day_1.csv", 10_000, first_row=60_000).best_auc
    monkeypatch.chdir(tmp_path)
    names = {}
    exec(code.group(1), names)
    result = names["model"].evaluate(
        pipelines.read("day_1.csv", names["parser"]),
        verbose=0,
        return_dict=True,
    )
    assert 0.7 < result["auc"] < best_auc + 0.01
    assert result["normalized_entropy"] < 1
    assert (tmp_path / "saved_models" / "ctr" / "1" / "saved_model.pb").exists()
    assert isinstance(names["model"], keras.Model)


def test_commands_that_the_readme_names_exist():
    from pipelines.commands import COMMANDS

    named = set(re.findall(r"`tf-dlrm ([a-z-]+)", README))
    assert named <= set(COMMANDS)
    assert "python -m pip install -e . && tf-dlrm demo" in README
    assert "python -m pip install -e '.[test]' && python -m pytest" in README
