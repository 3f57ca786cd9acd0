"""The served user tower against the one that was trained, over every switch of the architecture."""

import re
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from recsys.data.history import History, gap_buckets
from recsys.data.vocabulary import Input
from recsys.model.bag import Mean
from recsys.model.serving import UserEncoder
from recsys.model.towers import ENCODERS, Architecture, Sizes, Towers

START, HOUR = 1_700_000_000_000, 3_600_000  # milliseconds
every_encoder = pytest.mark.parametrize("kind", ENCODERS, ids=[kind.__name__ for kind in ENCODERS])
INPUTS = (Input("country", codes=5), Input("tags", codes=7), Input("age", width=2))
LENGTH = 9


def towers_of(seed=0, *, dimension=8, inputs=INPUTS, num_events=3, has_times=True, rotated=False, **said):
    """Towers whose every weight says something, norms' scales and shifts and biases too."""
    torch.manual_seed(seed)
    sizes = Sizes(10, user_inputs=inputs, num_events=num_events, has_times=has_times)
    towers = Towers(sizes, Architecture(dimension=dimension, max_length=LENGTH, **said)).eval()
    for name, weight in towers.user.named_parameters():
        if not name.startswith("profile"):  # whose row of what is unknown stays zeros
            weight.data += 0.3 * torch.randn_like(weight)
    if rotated:
        towers.rotate(np.linalg.qr(np.random.default_rng(seed).standard_normal((dimension, dimension)))[0])
    return towers


def history_of(towers, length, seed=0, *, times=True, events=True, asked=None):
    """Arguments for one user; as a list, since tests cut them."""
    random = np.random.default_rng(seed)
    profile = {
        "country": random.integers(0, 5, (1, 1)).astype(np.int32),
        "tags": random.integers(0, 3, (1, 4)).astype(np.int32) * random.integers(1, 3, (1, 4)).astype(np.int32),
        "age": random.standard_normal((1, 2)).astype(np.float32),
    }
    return (
        (0.4 * random.standard_normal((length, towers.architecture.dimension))).astype(np.float32),
        START + np.cumsum((10 ** random.uniform(0, 9, length)).astype(np.int64)) if times else None,
        random.integers(0, 3, length) if events else None,
        {given.name: profile[given.name] for given in towers.sizes.user_inputs},
        asked,
    )


@settings(max_examples=300, deadline=None)
@given(
    architecture=st.fixed_dictionaries(
        {
            "encoder": st.sampled_from(ENCODERS),
            "scaled": st.sampled_from([{}, {"unit": True}, {"unit": True, "item_bias": True}]),
            "recency": st.sampled_from([0.0, 1.5]),
            "blocks": st.integers(0, 3),
            "heads": st.sampled_from([1, 2, 4]),
            "timing": st.sampled_from([(False, False), (True, False), (True, True)]),
            "rotated": st.booleans(),
            "has_times": st.booleans(),
            "num_events": st.sampled_from([0, 1, 3]),
            "inputs": st.sampled_from([(), INPUTS[:1], INPUTS[1:2], INPUTS[2:], INPUTS]),
        }
    ),
    said=st.fixed_dictionaries(
        {
            "times": st.booleans(),
            "events": st.booleans(),
            "asked": st.none() | st.integers(START, START + 10**5 * HOUR),  # before the newest interaction, too
        }
    ),
    length=st.integers(1, LENGTH),
    seed=st.integers(0, 2**16),
)
def test_it_is_the_user_tower_whatever_the_architecture(architecture, said, length, seed):
    (use_times, query_time), scaled = architecture.pop("timing"), architecture.pop("scaled")
    if not issubclass(architecture["encoder"], Mean):
        architecture["recency"] = 0.0
    towers = towers_of(seed, use_times=use_times, query_time=query_time, **architecture, **scaled)
    asked = history_of(towers, length, seed, **said)
    before = [None if part is None else np.copy(part) for part in asked[:3]]
    expected, got = towers.user_now(*asked), UserEncoder(towers)(*asked)
    assert got.dtype == np.float32
    assert got.shape == expected.shape
    np.testing.assert_allclose(got, expected, rtol=0, atol=1e-5)
    for part, was in zip(asked[:3], before, strict=True):  # nothing that it was given is written to
        np.testing.assert_array_equal(part, was)
    # Where neither when nor what is told, all happened when asked, or at once, and was of the first kind.
    items, _, _, profile, moment = asked
    at_once = np.full(length, 0 if moment is None else moment) if architecture["has_times"] else None
    first = np.zeros(length, dtype=np.int64) if architecture["num_events"] else None
    untold = UserEncoder(towers).untold(items, profile, moment)
    np.testing.assert_allclose(untold, towers.user_now(items, at_once, first, profile, moment), rtol=0, atol=1e-5)
    np.testing.assert_array_equal(items, before[0])


def stacked(asked, place, behind=0):
    """One of the arguments of several users, aligned left, with something behind each one's end."""
    parts = [one[place] for one in asked]
    return np.stack(
        [np.concatenate([p, np.full_like(p, behind, shape=(LENGTH - len(p), *p.shape[1:]))]) for p in parts]
    )


@every_encoder
@pytest.mark.parametrize(
    "said",
    [{"query_time": True}, {"unit": True, "blocks": 1}, {"blocks": 0}, {"rotated": True, "blocks": 3}],
    ids=["query_time", "one block", "none", "rotated"],
)
def test_many_at_once_are_each_alone_whatever_stands_behind_their_ends(kind, said):
    towers = towers_of(1, encoder=kind, **said)
    encoder = UserEncoder(towers)
    asked = [
        history_of(towers, length, seed=length, asked=START + length * 10**3 * HOUR)
        for length in (LENGTH, 1, 4, 4, LENGTH - 1)
    ]
    lengths, moments = (np.array(values) for values in ([len(one[0]) for one in asked], [one[4] for one in asked]))
    profiles = {name: np.concatenate([one[3][name] for one in asked]) for name in asked[0][3]}
    alone = np.stack([towers.user_now(*one) for one in asked])
    for behind in (0, 1):
        items, times, events = (stacked(asked, place, behind) for place in range(3))
        got = encoder.many(items, times, events, profiles, lengths, moments)
        np.testing.assert_allclose(got, alone, rtol=0, atol=1e-5)
    as_soon = np.stack([towers.user_now(*one[:4]) for one in asked])
    np.testing.assert_allclose(encoder.many(items, times, events, profiles, lengths), as_soon, rtol=0, atol=1e-5)
    assert np.allclose(alone, as_soon, atol=1e-3) != ("query_time" in said)  # when one asks says something


@every_encoder
def test_one_profile_speaks_for_many(kind):
    towers = towers_of(2, encoder=kind)
    encoder, one = UserEncoder(towers), history_of(towers, 5)
    items, times, events = (np.stack([part, part]) for part in one[:3])
    got = encoder.many(items, times, events, one[3], np.array([5, 3]))
    shorter = towers.user_now(*(part[:3] for part in one[:3]), one[3])
    np.testing.assert_allclose(got, [towers.user_now(*one), shorter], rtol=0, atol=1e-5)


def test_nobody_is_no_vectors():
    towers = towers_of()
    nothing = np.empty((0, 3), dtype=np.int64)
    items = np.empty((0, 3, 8), dtype=np.float32)
    assert UserEncoder(towers).many(items, nothing, nothing, {}, np.empty(0, dtype=np.int64)).shape == (0, 8)


@pytest.mark.parametrize("length", [0, LENGTH + 1])
def test_a_history_that_does_not_fit_is_refused(length):
    towers = towers_of()
    message = f"a history has {length} interactions; give the newest of them, 1 to {LENGTH}"
    with pytest.raises(ValueError, match=re.escape(message)):
        UserEncoder(towers)(*history_of(towers, length))
    items = np.zeros((2, 3, 8), dtype=np.float32)
    with pytest.raises(ValueError, match="a history is empty, and has no newest interaction; leave it out"):
        UserEncoder(towers).many(items, None, None, history_of(towers, 3)[3], np.array([3, 0]))


@every_encoder
def test_training_on_changes_nothing_that_was_taken(kind):
    towers = towers_of(encoder=kind)
    encoder, asked = UserEncoder(towers), history_of(towers, 6)
    before = encoder(*asked)
    for weight in towers.parameters():
        weight.data += 1
    np.testing.assert_array_equal(encoder(*asked), before)


@every_encoder
def test_towers_that_are_being_trained_serve_without_dropout(kind):
    towers = towers_of(encoder=kind, dropout=0.5)
    asked = history_of(towers, 6)
    expected = towers.user_now(*asked)
    np.testing.assert_allclose(UserEncoder(towers.train())(*asked), expected, rtol=0, atol=1e-5)


@every_encoder
def test_many_threads_get_what_one_gets(kind):
    towers = towers_of(encoder=kind)
    encoder = UserEncoder(towers)
    asked = [history_of(towers, 1 + number % LENGTH, seed=number) for number in range(60)]
    alone = [encoder(*one) for one in asked]
    with ThreadPoolExecutor(6) as threads:
        together = list(threads.map(lambda one: encoder(*one), asked))
    np.testing.assert_array_equal(together, alone)


@every_encoder
@pytest.mark.parametrize("query_time", [True, False])
def test_a_batch_as_training_sees_it_ends_in_the_same_vectors(kind, query_time):
    towers = towers_of(3, unit=True, encoder=kind, query_time=query_time)
    items, times, events, profile, _ = history_of(towers, 7)
    asked = np.append(times[1:], times[-1] + 50 * HOUR)  # each question when the next thing happened, the last later
    history = History(
        items_BL=torch.zeros((1, 7), dtype=torch.int64),
        lengths_B=torch.tensor([7]),
        events_BL=torch.from_numpy(events)[None],
        gaps_BL=torch.from_numpy(gap_buckets(times))[None],
        users={name: torch.from_numpy(values) for name, values in profile.items()},
        times_BL=torch.from_numpy(times)[None],
        asked_BL=torch.from_numpy(asked)[None],
    )
    with torch.inference_mode():
        along = towers.user(torch.from_numpy(items)[None], history)[0].numpy()
    encoder = UserEncoder(towers)
    for end in range(1, 8):
        now = encoder(items[:end], times[:end], events[:end], profile, int(asked[end - 1]))
        np.testing.assert_allclose(now, along[end - 1], rtol=0, atol=1e-5)


@pytest.mark.parametrize("length", [1, 2, 6])
def test_where_all_happened_at_once_or_nobody_knows_when(length):
    towers = towers_of(7, use_times=True)
    items, times, events, profile, asked = history_of(towers, length)
    for same in (np.full_like(times, START), np.full_like(times, -1)):
        expected = towers.user_now(items, np.zeros_like(times), events, profile, asked)
        np.testing.assert_allclose(
            UserEncoder(towers)(items, same, events, profile, asked), expected, rtol=0, atol=1e-5
        )
