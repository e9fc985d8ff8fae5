"""Turns: fair by visitor, answers before what each report adds, bounded, and always given on."""

from __future__ import annotations

import math
import threading
from collections.abc import Generator
from contextlib import ExitStack
from contextvars import ContextVar

import pytest

from app.waiting import Room, RoomFullError, Turn, in_words, step_by_step


def order(room: Room, turns: dict[str, tuple[ExitStack, Turn]]) -> list[str]:
    """Let each turn end as it comes; return the names in that order."""
    served = []
    while turns:
        (name,) = [name for name, (_, turn) in turns.items() if turn.runs]
        served.append(name)
        turns.pop(name)[0].close()
    return served


def enter(room: Room, visitor: str, *, later: bool = False) -> tuple[ExitStack, Turn]:
    stack = ExitStack()
    return stack, stack.enter_context(room.turn(visitor, later=later))


def test_nobody_waits_behind_another_s_ten() -> None:
    room = Room(own=10)
    turns = {f"a{n}": enter(room, "a") for n in range(10)}
    turns |= {f"b{n}": enter(room, "b") for n in range(2)} | {"c0": enter(room, "c")}
    served = order(room, turns)
    assert served[:6] == ["a0", "b0", "c0", "a1", "b1", "a2"]
    assert len(served) == 13


def test_newcomers_do_not_overtake_who_waits_for_a_second_turn() -> None:
    room = Room()
    turns = {"a0": enter(room, "a"), "a1": enter(room, "a"), "b0": enter(room, "b")}
    turns.pop("a0")[0].close()  # b's turn
    turns["new"] = enter(room, "new")
    assert order(room, turns) == ["b0", "a1", "new"]


def test_who_has_answers_lets_those_without_go_first() -> None:
    room = Room()
    turns = {"a": enter(room, "a"), "explains": enter(room, "b", later=True)}
    turns |= {"c": enter(room, "c"), "d": enter(room, "d")}
    assert order(room, turns) == ["a", "c", "d", "explains"]


def test_a_turn_is_shared_with_one_case_of_each_other_visitor_in_their_order() -> None:
    room = Room()
    turns = {name: enter(room, name[0]) for name in ("a0", "a1", "b0", "b1", "c0")}
    turns["explains"] = enter(room, "d", later=True)
    own = turns["a0"][1]
    assert room.others(own) == [turns["b0"][1], turns["c0"][1]]
    turns.pop("b0")[0].close()  # gone before being called
    room.call(own, {turn: turn.visitor for turn in (turns["c0"][1], turns["b1"][1])})
    running = {name: turn.share for name, (_, turn) in turns.items() if turn.runs}
    assert running == {"a0": None, "b1": "b", "c0": "c"}
    assert room.ahead(turns["a1"][1]) == 3
    for name in ("c0", "a0"):
        turns.pop(name)[0].close()
    assert not turns["a1"][1].runs  # the next turn comes after all who share this one
    turns.pop("b1")[0].close()
    assert order(room, turns) == ["a1", "explains"]


def test_who_left_is_not_called() -> None:
    room = Room()
    first, (stack, second) = enter(room, "a"), enter(room, "b")
    stack.close()
    room.call(first[1], {second: "share"})
    assert not second.runs
    first[0].close()
    with room.turn("c") as turn:
        assert turn.runs


def test_a_full_room_says_when_to_come_back() -> None:
    room = Room(places=3, own=2)
    with ExitStack() as stack:
        for who in ("a", "a", "b"):
            stack.enter_context(room.turn(who))
        with pytest.raises(RoomFullError, match=r"Many questions wait.*Ask again in a minute"):
            stack.enter_context(room.turn("c"))
        with pytest.raises(RoomFullError, match="2 of your questions wait"):
            stack.enter_context(room.turn("a"))
        stack.enter_context(room.turn("c", later=True))  # answers are never lost
    # Now the time of a turn is known, and it was short.
    with ExitStack() as stack:
        for who in range(3):
            stack.enter_context(room.turn(who))
        with pytest.raises(RoomFullError, match="Ask again in about 5 seconds"):
            stack.enter_context(room.turn("c"))
    with room.turn("c") as turn:
        assert turn.runs


@pytest.mark.parametrize(
    ("seconds", "words"),
    [
        (math.nan, "a minute"),
        (0.2, "about 5 seconds"),
        (21.0, "about 25 seconds"),
        (58.0, "about 1 minute"),
        (61.0, "about 2 minutes"),
    ],
)
def test_a_time_to_come_back_is_rounded_up(seconds: float, words: str) -> None:
    assert in_words(seconds) == words


def test_one_alone_waits_for_nothing_and_the_others_learn_their_place() -> None:
    room = Room()
    with room.turn("a") as first:
        assert list(room.waiting(first, lambda: False)) == []
        with room.turn("b"), room.turn("c") as third:
            lines = room.waiting(third, lambda: False)
            assert next(lines) == room.ahead(third) == 2
            assert room.ahead(first) == 0
        with room.turn("d") as gone:
            assert list(room.waiting(gone, lambda: True)) == []
            assert not gone.runs


def test_a_turn_comes_to_who_waits_in_another_thread() -> None:
    room, came = Room(), threading.Event()

    def wait() -> None:
        with room.turn("b") as turn:
            room.wait(turn)
            came.set()

    with room.turn("a"):
        thread = threading.Thread(target=wait)
        thread.start()
        assert not came.wait(0.05)
    assert came.wait(10)
    thread.join()


def test_an_error_or_a_visitor_who_leaves_gives_the_turn_on() -> None:
    room = Room()
    with pytest.raises(ValueError, match="bad"), room.turn("a"):
        raise ValueError("bad")

    def run() -> Generator[object, None, None]:
        with room.turn("b") as turn:
            yield turn.runs
            yield "more"

    left = run()
    assert next(left)
    left.close()
    with room.turn("c") as turn:
        assert turn.runs


def test_all_turns_are_worked_out_in_one_thread_with_their_results_and_errors() -> None:
    room, threads = Room(), set()

    def two(name: str) -> Generator[str, None, int]:
        threads.add(threading.get_ident())
        yield name
        threads.add(threading.get_ident())
        if name == "bad":
            raise ValueError("bad layer")
        return 7

    def run(name: str) -> Generator[str, None, int]:
        return (yield from room.steps(two(name)))

    good, bad = run("good"), run("bad")
    assert (next(good), next(bad)) == ("good", "bad")
    with pytest.raises(ValueError, match="bad layer"):
        next(bad)
    with pytest.raises(StopIteration) as ended:
        next(good)
    assert ended.value.value == 7
    assert room.work(threading.get_ident) in threads
    asker = ContextVar("asker", default="")
    asker.set("who asks")
    assert room.work(asker.get) == "who asks"
    assert len(threads) == 1
    assert threading.get_ident() not in threads


def test_long_work_lets_answers_come_between_its_steps() -> None:
    room = Room()
    steps = step_by_step(room, "a", iter("xy"), lambda ahead: f"{ahead} ahead")
    with room.turn("b"):
        assert next(steps) == "1 ahead"
    assert next(steps) == "x"
    with room.turn("b") as turn:
        assert turn.runs  # though the work is not done
    assert list(steps) == ["y"]
