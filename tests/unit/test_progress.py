"""How far a study is, and the time that is left of it."""

from kd_jax.progress import Part, Tracker


class Clock:
    """Goes on when it is told."""

    def __init__(self):
        self.now = 100.0

    def __call__(self):
        return self.now


def tracker():
    clock = Clock()
    return Tracker(clock), clock


def begun(parts, title='student', place='seed 0', due=2):
    """A tracker whose run `title` trains 100 steps; the first two have taken 30 seconds."""
    found, clock = tracker()
    found.plan(parts)
    found.begin(title, parts[title])
    found.training(place, 0, 100, 10.0, due)
    clock.now += 30
    found.stepped(2)
    return found, clock


def step(found, clock, to, seconds):
    clock.now += seconds
    found.stepped(to)


def left(found, clock):
    """Rounded, of the run and of the study."""
    return found.status.ends and tuple(round(end - clock.now, 6) for end in found.status.ends)


def test_nothing_is_said_of_time_until_steps_were_timed():
    found, clock = begun({'student': Part(100, 2)})
    assert found.status.doing == '' and found.status.ends is None
    step(found, clock, 4, 0.4)
    assert found.status.ends is None
    step(found, clock, 6, 0.4)
    assert left(found, clock) == (94 * 0.2, 94 * 0.2)


def test_neither_compiling_nor_the_first_validation_counts_but_later_ones_do():
    found, clock = begun({'student': Part(100, 2)}, due=3)
    step(found, clock, 12, 1.0)
    found.doing('validating')
    clock.now += 20
    found.validated()
    step(found, clock, 22, 1.0)
    assert left(found, clock) == (7.8, 7.8)
    found.doing('validating')
    clock.now += 2
    found.validated()
    step(found, clock, 32, 1.0)
    assert left(found, clock) == (6.8 + 2, 6.8 + 2)


def test_a_resumed_training_counts_the_steps_of_this_process_only():
    found, clock = tracker()
    found.begin('student', Part(100))
    found.training('seed 0', 80, 100, 10.0, 0)
    clock.now += 5
    found.stepped(84)
    step(found, clock, 88, 2.0)
    assert left(found, clock) == (6.0, 6.0)


def test_seeds_to_come_and_other_runs_count():
    """A run without a pace is taken to have that of this one, and the sum is called a guess."""
    parts = {'teacher': Part(50, 0, 2), 'student': Part(100, 0, 3)}
    found, clock = begun(parts, 'teacher')
    step(found, clock, 12, 1.0)
    assert left(found, clock) == (8.8 + 5, 8.8 + 5 + 3 * 10) and found.status.guessed
    found.trained()
    found.trained()
    found.begin('student', Part(100, 0, 3))
    found.training('seed 0', 0, 100, 10.0, 0)
    clock.now += 9
    found.stepped(10)
    step(found, clock, 20, 2.0)
    assert left(found, clock) == (16 + 40, 16 + 40) and not found.status.guessed


def test_a_place_has_the_number_of_the_run_and_an_extraction_leaves_the_run_alone():
    parts = {'teacher': Part(0, 0, 0), 'student': Part(100)}
    found, clock = begun(parts, place='seed 3 (2 of 5)')
    assert list(found.status.place) == ['run 2 of 2', 'seed 3 (2 of 5)']
    found.counting('soft targets of teacher', 7)
    found.stepped(3)
    step(found, clock, 5, 2.0)
    assert left(found, clock) == (2.0, 2.0), 'the runs are not of its kind'
    found.stepped(3)
    assert (found.status.title, found.status.share) == ('soft targets of teacher', 3 / 7)
    found.training('seed 4', 0, 100, 10.0, 0)
    assert found.status.title == 'student'
    found.begin('trials', Part(10))
    assert list(found.status.place) == []


def test_one_who_is_told_nothing_but_steps_does_not_mind():
    found, _ = tracker()
    found.stepped(5)
    found.doing('validating')
    found.validated()
    found.trained()
    assert found.status is None
