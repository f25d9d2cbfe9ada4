"""What runs beside the encoder: in order, one behind, and without losing work."""

import threading

import pytest

from vlscore_lib.pipeline import finish_behind


def test_results_come_in_order_and_are_made_in_another_thread():
    here = threading.get_ident()
    threads = []

    def finish(item):
        threads.append(threading.get_ident())
        return item * item

    assert list(finish_behind(iter(range(20)), finish)) == [n * n for n in range(20)]
    assert here not in threads
    assert list(finish_behind([], finish)) == []


def test_an_item_is_finished_while_the_next_one_is_made():
    """Each waits for the other, which one after the other could not end."""
    is_made = [threading.Event() for _ in range(4)]

    def make():
        for n in range(4):
            is_made[n].set()
            yield n

    def finish(n):
        assert n == 3 or is_made[n + 1].wait(20)
        return n

    assert list(finish_behind(make(), finish)) == [0, 1, 2, 3]


def test_at_most_two_items_are_held():
    made, finished = [], []

    def make():
        for n in range(10):
            assert len(made) - len(finished) <= 2
            made.append(n)
            yield n

    for each in finish_behind(make(), lambda n: n):
        finished.append(each)
    assert finished == list(range(10))


def test_what_was_made_before_an_error_is_not_lost():
    def make():
        yield 1
        yield 2
        raise ValueError("the third")

    found = []
    with pytest.raises(ValueError, match="the third"):
        for each in finish_behind(make(), lambda n: 10 * n):
            found.append(each)
    assert found == [10, 20]


def test_an_error_of_the_second_step_reaches_the_caller():
    def finish(n):
        if n == 1:
            raise KeyError("one")
        return n

    found = []
    with pytest.raises(KeyError, match="one"):
        for each in finish_behind(range(5), finish):
            found.append(each)
    assert found == [0]
