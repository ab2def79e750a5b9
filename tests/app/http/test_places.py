"""Places are held for as long as a block runs, up to a share per project, and given in the order of asking."""

import asyncio
import math

import pytest

from app.http import places
from app.http.places import NoPlace, Places


def three(share=2):
    return Places(3, share, of="things")


async def hold(of, project, begun, ended, **options):
    async with of.soon(project, **options):
        begun.append(project)
        await ended.wait()


async def settle():
    for _ in range(5):
        await asyncio.sleep(0)


def test_a_project_has_its_share_and_all_have_no_more_than_there_is():
    all_places = three()
    with all_places.at_once("a"), all_places.at_once("a"):
        assert (all_places.free("a"), all_places.free("b"), all_places.free()) == (0, 1, 1)
        with pytest.raises(NoPlace, match="this project has its share of things, 2 at once"), all_places.at_once("a"):
            pass
        with (
            all_places.at_once("b"),
            pytest.raises(NoPlace, match="as many things as it may, 3 at once"),
            all_places.at_once("b"),
        ):
            pass
    assert (all_places.free("a"), all_places.free()) == (2, 3)


def test_a_place_is_free_again_after_an_error():
    all_places = three()
    with pytest.raises(ZeroDivisionError), all_places.at_once("a"):
        raise ZeroDivisionError
    assert all_places.free() == 3


def test_places_come_in_the_order_of_asking_except_beyond_a_share():
    async def ask():
        all_places, begun, ended = three(), [], asyncio.Event()
        asked = [asyncio.create_task(hold(all_places, each, begun, ended)) for each in ("a", "a", "a", "b", "b", "c")]
        await settle()
        assert begun == ["a", "a", "b"]
        ended.set()
        await asyncio.gather(*asked)
        assert (begun[3:], all_places.free()) == (["a", "b", "c"], 3)

    asyncio.run(ask())


def test_one_that_waits_gives_up_in_time_and_leaves_nothing_behind(monkeypatch):
    monkeypatch.setattr(places, "PATIENCE_SECONDS", 0.01)

    async def ask():
        all_places = three()
        with all_places.at_once("a"), all_places.at_once("a"):
            with pytest.raises(NoPlace):
                await all_places.take("a")
            waiting = asyncio.create_task(all_places.take("a", seconds=math.inf))
            await settle()
            waiting.cancel()
            with pytest.raises(asyncio.CancelledError):
                await waiting
        assert all_places.free("a") == 2

    asyncio.run(ask())


def test_a_place_that_comes_as_the_wait_ends_is_given_back():
    async def ask():
        all_places = three(share=1)
        await all_places.take("a")
        waiting = asyncio.create_task(all_places.take("a", seconds=math.inf))
        await settle()
        all_places.give_back("a")
        assert all_places.free("a") == 0
        waiting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await waiting
        assert all_places.free("a") == 1

    asyncio.run(ask())


def test_those_who_wait_are_no_more_than_a_few_for_each_place():
    async def ask():
        all_places = three(share=1)
        await all_places.take("a")
        waiting = [asyncio.create_task(all_places.take("a")) for _ in range(places.WAITING_PER_PLACE)]
        await settle()
        with pytest.raises(NoPlace):
            await asyncio.wait_for(all_places.take("a"), 0.5)
        await all_places.take("b")
        for each in waiting:
            each.cancel()
        await asyncio.gather(*waiting, return_exceptions=True)

    asyncio.run(ask())
