"""The policy of a level that follows the link: as a table, and in virtual time."""

from __future__ import annotations

import pytest
from virtual_link import NOISE, PACKET, REAL, World, migrate

from multifd.methods._adaptive_zstd import LADDER, SAMPLED
from multifd.methods.adapt import Policy, Spent

GIGABIT = 1e9 / 8
KNOWN = [place for place, rung in enumerate(LADDER) if rung.level is not None and -7 <= rung.level <= 9]


def spent(
    place: int, gap_s: float, *, saving: float | None = None, contention: float = 1.0, send_s: float = 0.0
) -> Spent:
    """What a packet takes that costs as the ladder says."""
    rung = LADDER[place]
    cost = rung.cost * PACKET
    payload = PACKET * (1 - (rung.saving if saving is None else saving))
    return Spent(cost * contention, cost, gap_s, send_s, PACKET, payload)


def rest(waits_s: float, packets: int = 200, **pages: float) -> int | None:
    """The level at which a channel comes to rest that waits so long for each payload byte."""
    policy = Policy(LADDER, SAMPLED)
    for _ in range(packets):
        packet = spent(policy.place, 0.0, **pages)
        packet.gap_s = max(0.0, packet.payload_bytes * waits_s - packet.hook_s)
        policy.note(policy.place, packet)
    return policy.level


@pytest.mark.parametrize(
    ("waits_s", "levels"),
    [
        (0.0, {None}),  # nobody waits for anything
        (1e-9, {None}),
        (6e-9, {-7, -3, -1, 1}),
        (16e-9, {1, 2, 3}),
        (60e-9, {5, 6, 7}),
        (160e-9, {9, 10}),
        (1000e-9, {10, 12}),
    ],
)
def test_the_level_rests_where_compressing_takes_as_long_as_sending(waits_s, levels):
    assert rest(waits_s) in levels


def test_pages_that_do_not_shrink_go_as_they_are():
    assert rest(1e-9, saving=0.0) is None


def test_others_who_want_the_processor_make_compressing_dearer():
    assert LADDER.index(next(r for r in LADDER if r.level == rest(60e-9, contention=4.0))) < KNOWN[-3]


def test_a_look_brings_a_channel_back_from_pages_as_they_are():
    policy = Policy(LADDER, SAMPLED)
    for _ in range(60):
        policy.note(policy.place, spent(policy.place, 1e-9 * PACKET, saving=0.0))
    assert policy.level is None
    for _ in range(300):
        policy.note(0, spent(0, 30e-9 * PACKET))
    assert policy.wants_look
    for _ in range(12):
        policy.look(SAMPLED, LADDER[SAMPLED].cost * 65536, 65536, 65536 * (1 - LADDER[SAMPLED].saving))
    assert policy.level is not None


def test_looks_take_a_small_share_of_the_time():
    policy = Policy(LADDER, 0)
    policy.look(SAMPLED, 2e-4, 65536, 65536)
    looks = 1
    for _ in range(1000):
        policy.note(0, spent(0, 4e-9 * PACKET, saving=0.0))
        if policy.wants_look:
            looks += 1
            policy.look(SAMPLED, 2e-4, 65536, 65536)
    assert 0 < looks * 2e-4 < 0.06 * 1000 * 4e-9 * PACKET


def run(world: World, memory: list) -> tuple[float, dict[int, float], float]:
    """Seconds: of the policy, of each known level, and of pages as they are."""
    fixed = {place: migrate(world, memory, place)[0] for place in KNOWN}
    return migrate(world, memory, None)[0], fixed, migrate(world, memory, 0)[0]


CONSTANT = [
    pytest.param(
        World(((0, rate * GIGABIT),), LADDER, channels=channels), mib, id=f"{rate} Gbit/s, {channels} channels"
    )
    for rate, mib in ((0.3, 400), (1, 300), (2.5, 300), (10, 400))
    for channels in (1, 2)
]


@pytest.mark.parametrize(("world", "mib"), CONSTANT)
def test_a_constant_link_takes_hardly_longer_than_the_best_level(world, mib):
    auto, fixed, _ = run(world, [REAL] * (2 * mib))
    assert auto < 1.1 * min(fixed.values())


def test_a_link_without_limits_takes_hardly_longer_than_pages_as_they_are():
    auto, _, none = run(World(((0, 100 * GIGABIT),), LADDER), [REAL] * 1000)
    assert auto < 1.15 * none


def test_noise_takes_hardly_longer_than_pages_as_they_are():
    auto, _, none = run(World(((0, 2.5 * GIGABIT),), LADDER), [NOISE] * 600)
    assert auto < 1.05 * none


@pytest.mark.parametrize("channels", [1, 2])
def test_a_link_that_changes_is_used_as_well_as_by_the_best_level(channels):
    world = World(((0, 0.1 * GIGABIT), (3, 1 * GIGABIT)), LADDER, period_s=4, channels=channels)
    auto, fixed, none = run(world, [REAL] * 768)
    assert auto < 1.05 * min(*fixed.values(), none)


@pytest.mark.parametrize("channels", [1, 2])
def test_a_link_that_changes_much_is_used_better_than_by_any_level(channels):
    world = World(((0, 0.2 * GIGABIT), (2, 10 * GIGABIT)), LADDER, period_s=2.5, channels=channels)
    auto, fixed, _ = run(world, [REAL] * 2048)
    assert auto < 0.8 * min(fixed.values())
