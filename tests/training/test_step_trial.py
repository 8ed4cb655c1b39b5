"""The faster kind of step is chosen by a clock, late enough, and remembered."""

import json

import pytest

from tf_dlrm.runtime import choices
from tf_dlrm.training.step_trial import PARTS, PROGRAM, StepTrial

COMPILE = 5.0


class Training:
    """A training by a clock of its own, whose steps take given seconds."""

    def __init__(self, parts, program, rows=128):
        self.now, self.kinds = 0.0, []
        self.seconds = {PARTS: parts, PROGRAM: program}
        self.trial = StepTrial(lambda: {"rows": rows}, clock=lambda: self.now)

    def step(self):
        kind = self.trial.kind
        is_first = kind not in self.kinds
        self.kinds.append(kind)
        self.now += self.seconds[kind] + COMPILE * is_first
        return len(self.kinds)

    def run(self, num_steps):
        for _ in range(num_steps):
            before = len(self.kinds)
            assert self.trial.run(self.step) == before + 1
        return self.kinds[-1]


@pytest.fixture
def file(tmp_path, monkeypatch):
    monkeypatch.setenv("TF_DLRM_CACHE", str(tmp_path))
    return tmp_path / "choices.json"


@pytest.mark.parametrize(
    "parts, program, expected",
    [(0.1, 0.08, PROGRAM), (0.1, 0.12, PARTS), (0.1, 0.099, PARTS)],
    ids=["faster", "slower", "by chance"],
)
def test_the_faster_kind_is_chosen(parts, program, expected):
    training = Training(parts, program)
    assert training.run(700) == expected
    assert training.trial.is_over
    assert set(training.kinds[650:]) == {expected}


def test_a_training_that_is_short_never_compiles_the_program():
    training = Training(0.1, 0.01)
    assert training.run(190) == PARTS  # 19 seconds, and those of compiling
    assert PROGRAM not in training.kinds and not training.trial.is_over
    training.run(20)
    assert PROGRAM in training.kinds


@pytest.mark.parametrize("seconds", [0.001, 0.1, 2.0])
def test_a_trial_takes_a_second_or_five_calls_of_each(seconds):
    training = Training(seconds, 0.9 * seconds)
    while not training.trial.is_over:
        training.run(1)
    num_calls = len(training.kinds) - training.kinds.index(PROGRAM)
    # Seven of the program, of which two are not timed, and six of the parts.
    assert num_calls >= 13 and (num_calls == 13 or (num_calls - 4) * seconds < 1.2)


def test_steps_that_wait_for_data_do_not_decide():
    training = Training(0.1, 0.08)
    while PROGRAM not in training.kinds:
        training.run(1)
    training.run(3)
    assert training.trial.kind == PROGRAM  # timed from here on

    def wait():
        training.now += 3.0
        training.step()

    training.trial.run(wait)
    training.run(100)
    assert training.trial.is_over and training.kinds[-1] == PROGRAM


@pytest.mark.parametrize("program, expected", [(0.08, PROGRAM), (0.12, PARTS)])
def test_a_later_process_knows_the_choice(file, program, expected):
    first = Training(0.1, program)
    first.run(700)
    assert first.kinds.count(PROGRAM) > 5
    (entry,) = json.loads(file.read_text())["choices"]
    assert entry["figures"] == pytest.approx(
        {PARTS: 0.1, PROGRAM: program, "compile": COMPILE}
    )
    later = Training(0.1, program)
    later.run(2)
    assert later.trial.is_over == (expected == PARTS)
    later.run(400)
    assert later.trial.is_over and later.kinds[-1] == expected
    # Compiling is paid for by then: 20 of 100 ms are saved in each of 250 steps.
    if expected == PROGRAM:
        assert later.kinds.index(PROGRAM) == pytest.approx(252, abs=2)
    else:
        assert PROGRAM not in later.kinds
    other = Training(0.1, program, rows=64)
    other.run(150)
    assert not other.trial.is_over and PROGRAM not in other.kinds


def test_a_broken_cache_is_ignored(file):
    file.write_text('{"format": 1, "choices": [{"key": ')
    training = Training(0.1, 0.08)
    assert training.run(700) == PROGRAM
    assert len(json.loads(file.read_text())["choices"]) == 1


def test_figures_of_another_kind_are_ignored(file):
    training = Training(0.1, 0.08)
    choices.keep({**choices.machine(), "rows": 128}, {"other": 1.0})
    assert training.run(150) == PARTS


def test_it_says_what_it_chose_and_why(monkeypatch, capsys):
    monkeypatch.setenv("TF_DLRM_LOG", "1")
    Training(0.1, 0.08).run(700)
    assert capsys.readouterr().err == (
        "tf_dlrm: XLA compiles the dense part of the step as one program: measured "
        "now, 100.00 ms for the small parts, 80.00 ms for the program, which takes "
        "5.0 s to compile\n"
    )


def test_a_step_that_fails_is_not_timed():
    training = Training(0.1, 0.08)
    training.run(5)

    def fail():
        training.now += 1000.0
        raise StopIteration

    with pytest.raises(StopIteration):
        training.trial.run(fail)
    assert training.run(150) == PARTS


def test_it_can_be_stopped():
    training = Training(0.1, 0.08)
    training.run(203)
    training.trial.stop()
    assert training.trial.is_over and training.run(9) == PARTS
