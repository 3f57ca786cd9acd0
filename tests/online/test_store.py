"""What every online store promises, asked of each."""

import asyncio
import json
import random
import re
from itertools import chain

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from recsys.online.store import LiveItem, OnlineStoreError, StoredEvent, open_accepted, open_online


def event(number, user="anna", item="lamp", at=None, what="view"):
    return StoredEvent(f"e{number}", user, item, number if at is None else at, what)


def test_the_newest_events_of_a_user_come_oldest_first(store, run):
    late, early, old = event(1, at=300), event(2, at=200, item="chair", what=None), event(3, at=-100)
    assert run(store.add_events([late, event(4, "ben", at=250), early])) == [True, True, True]
    assert run(store.add_events([old])) == [True]
    assert run(store.events_of("anna", 10)) == [old, early, late]
    assert run(store.events_of("anna", 2)) == [early, late]
    assert run(store.events_of("anna", 0)) == []
    assert run(store.events_of("ben", 10)) == [event(4, "ben", at=250)]
    assert run(store.events_of("nobody", 10)) == []
    assert run(store.add_events([])) == []


def test_events_of_one_moment_stand_as_they_were_accepted(store, run):
    events = [event(number, item=f"i{number}", at=7) for number in (3, 11, 1, 10, 2, 9, 8, 5, 7, 4, 6, 12)]
    run(store.add_events(events[:2]))
    run(store.add_events(events[2:]))
    assert run(store.events_of("anna", 20)) == events
    assert run(store.events_of("anna", 4)) == events[-4:]


def test_what_comes_twice_under_one_id_counts_once_as_it_came_first(store, run):
    first, again = event(1, item="lamp"), event(1, item="chair", at=5)
    assert run(store.add_events([first, again, event(2), first])) == [True, False, True, False]
    assert run(store.add_events([again, event(1, user="ben"), event(3)])) == [False, False, True]
    assert run(store.events_of("anna", 10)) == [first, event(2), event(3)]
    assert run(store.events_of("ben", 10)) == []


def test_another_replica_sees_at_once_what_one_has_accepted(store, opened, address, run):
    other = opened(address)
    for number in range(20):
        one, two = (store, other) if number % 2 else (other, store)
        assert run(one.add_events([event(number)])) == [True]
        assert run(two.events_of("anna", 1)) == [event(number)]
        assert run(two.add_events([event(number)])) == [False]
        run(one.put_item(LiveItem("lamp", {"price": number}, True, number)))
        assert run(two.items_changed(number)) == ([LiveItem("lamp", {"price": number}, True, number)], number + 1)


def test_everything_is_there_after_a_restart(store, opened, address, run):
    run(store.add_events([event(1)]))
    run(store.put_item(LiveItem("lamp", {"price": 1}, False, 5)))
    run(store.close())
    again = opened(address)
    assert run(again.events_of("anna", 10)) == [event(1)]
    assert run(again.items_changed(0)) == ([LiveItem("lamp", {"price": 1}, False, 5)], 1)


def test_items_are_told_by_the_order_of_their_last_change(store, run):
    features = {"name": "Lamp “ü”", "tags": ["a", "b"], "price": 1.5, "none": None, "none_of": [], "big": 2**60}
    assert run(store.items_changed(0)) == ([], 0)
    run(store.put_item(LiveItem("lamp", features, True, 1)))
    run(store.put_item(LiveItem("chair", None, False, 2)))
    both, newest = run(store.items_changed(0))
    assert both == [LiveItem("lamp", features, True, 1), LiveItem("chair", None, False, 2)]
    assert run(store.items_changed(newest)) == ([], newest)
    run(store.put_item(LiveItem("lamp", None, False, 3)))
    changed, later = run(store.items_changed(newest))
    assert (changed, later > newest) == ([LiveItem("lamp", features, False, 3)], True)
    run(store.put_item(LiveItem("lamp", {"name": "other"}, True, 4)))
    assert run(store.items_changed(later))[0] == [LiveItem("lamp", {"name": "other"}, True, 4)]
    assert [item.item_id for item in run(store.items_changed(0))[0]] == ["chair", "lamp"]


def test_thousands_of_items_are_told_whole(store, run):
    items = [LiveItem(f"i{number}", {"n": number}, True, number) for number in range(2_100)]

    async def put():
        await asyncio.gather(*(store.put_item(item) for item in items))

    run(put())
    told, newest = run(store.items_changed(0))
    assert (len(told), newest) == (2_100, 2_100)
    assert sorted(told, key=lambda item: item.changed) == items
    assert len(run(store.items_changed(600))[0]) == 1_500


def test_a_store_that_began_anew_tells_every_item_again(store, run):
    run(store.put_item(LiveItem("lamp", None, True, 1)))
    assert run(store.items_changed(500)) == ([LiveItem("lamp", None, True, 1)], 1)


@pytest.mark.parametrize(
    ("bad", "says"),
    [
        (StoredEvent("e", "anna", "lamp", 1 << 60), r"timestamp 1152921504606846976 of event 'e' is no time in milli"),
        (StoredEvent("e", "anna", "lamp", 1.5), r"timestamp 1.5 of event 'e'"),  # type: ignore[arg-type]
        (StoredEvent("e", "anna\ud800", "lamp", 1), r"user_id 'anna\\ud800' is no text"),
        (StoredEvent("e", "anna", 7, 1), r"item_id 7 is no text; write it as text"),  # type: ignore[arg-type]
    ],
)
def test_what_no_store_could_keep_is_refused_alone(store, run, bad, says):
    async def both():
        return await asyncio.gather(
            store.add_events([event(1), bad]), store.add_events([event(2)]), return_exceptions=True
        )

    refused, kept = run(both())
    assert kept == [True]
    assert isinstance(refused, ValueError)
    assert re.search(says, str(refused))
    assert run(store.events_of("anna", 10)) == [event(2)]


def test_features_that_are_no_json_are_refused(store, run):
    for features, says in (({"price": float("nan")}, "not JSON"), ({"when": {1}}, "set is not JSON")):
        with pytest.raises(ValueError, match=rf"the features of item 'lamp' cannot be kept as JSON: .*{says}"):
            run(store.put_item(LiveItem("lamp", features, True, 1)))
    assert run(store.items_changed(0)) == ([], 0)


def test_many_at_once_accept_each_id_once(store, opened, address, run):
    stores = [store, opened(address)]
    draw = random.Random(0)
    calls = [[event(draw.randrange(300), user=f"u{draw.randrange(5)}") for _ in range(5)] for _ in range(100)]

    async def add():
        return await asyncio.gather(*(stores[n % 2].add_events(call) for n, call in enumerate(calls)))

    new = [is_new for call in run(add()) for is_new in call]
    accepted = [one for one, is_new in zip(chain.from_iterable(calls), new, strict=True) if is_new]
    assert sorted(one.event_id for one in accepted) == sorted({one.event_id for call in calls for one in call})
    kept = [one for user in range(5) for one in run(store.events_of(f"u{user}", 1_000))]
    assert sorted(kept, key=str) == sorted(accepted, key=str)


def test_who_gives_up_waiting_does_not_disturb_others(store, run):
    async def give_up():
        task = asyncio.create_task(store.add_events([event(1)]))
        await asyncio.sleep(0)
        task.cancel()
        others = await asyncio.gather(*(store.add_events([event(number)]) for number in range(2, 10)))
        with pytest.raises(asyncio.CancelledError):
            await task
        return others

    assert run(give_up()) == [[True]] * 8
    assert run(store.events_of("anna", 8)) == [event(number) for number in range(2, 10)]


def test_what_was_accepted_is_read_back_in_order(store, address, run):
    with open_accepted(address) as accepted:
        assert (accepted.newest, list(accepted.rows(0, 100))) == (0, [])
    run(store.add_events([event(5), event(3, "ben", what=None)]))
    run(store.add_events([event(5), event(4)]))
    with open_accepted(address) as accepted:
        rows = [row for part in accepted.rows(0, accepted.newest) for row in part]
        assert rows == [
            (1, "e5", "anna", "lamp", 5, "view"),
            (2, "e3", "ben", "lamp", 3, None),
            (3, "e4", "anna", "lamp", 4, "view"),
        ]
        assert [row for part in accepted.rows(1, 2) for row in part] == rows[1:2]
        assert accepted.store


@pytest.mark.parametrize("scheme", ["http", "postgresql", "file"])
def test_other_addresses_are_refused(scheme):
    with pytest.raises(OnlineStoreError, match=f"{scheme}:// is no online store; give a folder, or redis://"):
        open_online(f"{scheme}://somewhere")


IDS = st.sampled_from(["a", "b", "c", "", "ü{}:\n\0", "a "])
EVENTS = st.builds(
    StoredEvent,
    event_id=IDS | st.text(max_size=3),
    user_id=IDS,
    item_id=st.text(max_size=3),
    timestamp=st.integers(-3, 3) | st.integers(-(1 << 53), 1 << 53),
    event=st.none() | st.text(max_size=3),
)
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=3),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=5,
)
ITEMS = st.builds(
    LiveItem,
    item_id=IDS,
    features=st.none() | st.dictionaries(st.text(max_size=3), JSON, max_size=3),
    available=st.booleans(),
    changed=st.integers(0, 1 << 53),
)
STEPS = st.lists(
    st.tuples(st.just("add"), st.lists(EVENTS, max_size=4))
    | st.tuples(st.just("of"), st.tuples(IDS, st.integers(0, 5)))
    | st.tuples(st.just("put"), ITEMS)
    | st.tuples(st.just("changed"), st.integers(0, 3)),
    max_size=12,
)


class Model:
    """The store as dictionaries."""

    def __init__(self):
        self.events, self.items, self.number = {}, {}, 0

    def add(self, events):
        return [self.events.setdefault(one.event_id, one) is one for one in (StoredEvent(*parts(e)) for e in events)]

    def of(self, said):
        user, limit = said
        kept = sorted((one for one in self.events.values() if one.user_id == user), key=lambda one: one.timestamp)
        return kept[-limit:] if limit else []

    def put(self, item):
        self.number += 1
        _, before = self.items.pop(item.item_id, (0, LiveItem("", None, True, 0)))
        features = before.features if item.features is None else json.loads(json.dumps(item.features))
        self.items[item.item_id] = self.number, LiveItem(item.item_id, features, item.available, item.changed)

    def changed(self, back):
        """Since a few changes ago."""
        after = max(self.number - back, 0)
        return [item for number, item in self.items.values() if number > after], self.number


def parts(one):
    return one.event_id, one.user_id, one.item_id, one.timestamp, one.event


@given(STEPS)
@settings(max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
def test_it_is_a_dictionary_that_everybody_shares(places, run, steps):
    address, model = places(), Model()

    async def go():
        store = open_online(address)
        for step, said in steps:
            expected = getattr(model, step)(said)
            if step == "add":
                assert await store.add_events(said) == expected
            elif step == "of":
                assert await store.events_of(*said) == expected
            elif step == "put":
                await store.put_item(said)
            else:
                assert await store.items_changed(max(model.number - said, 0)) == expected
        await store.close()

    run(go())
    with open_accepted(address) as accepted:
        rows = [row[1:] for part in accepted.rows(0, accepted.newest) for row in part]
    assert rows == [parts(one) for one in model.events.values()]
