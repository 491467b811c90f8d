"""The policy of a level that follows the link: as a table, and in virtual time."""

from __future__ import annotations

import itertools
import random
from collections.abc import Sequence

import pytest
from virtual_link import NOISE, PACKET, REAL, Pages, World, migrate

from multifd.methods._adaptive import DOUBTED, SAMPLE_BYTES
from multifd.methods._adaptive_zstd import LADDER, SAMPLED
from multifd.methods.adapt import Policy
from multifd.methods.spent import Spent

GIGABIT = 1e9 / 8
KNOWN = [place for place, rung in enumerate(LADDER) if rung.level is not None and -7 <= rung.level <= 9]
FIXED = [place for place, rung in enumerate(LADDER) if rung.level in (-7, -3, 1, 3, 6, 9)]


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


def test_a_slow_link_is_known_before_anybody_waits_for_it():
    """The socket's buffer takes all of it, and the kernel says how fast it empties."""
    policy = Policy(LADDER, SAMPLED, DOUBTED[0])
    for _ in range(DOUBTED[0] + 2):
        packet = spent(policy.place, 1e-4, send_s=1e-4)
        packet.link_s = packet.payload_bytes / 12e6
        policy.note(policy.place, packet)
    assert policy.level is not None
    assert policy.level > 3


def test_a_fast_link_is_believed_after_two_packets():
    policy = Policy(LADDER, SAMPLED, DOUBTED[0])
    places = []
    for _ in range(4):
        packet = spent(policy.place, 1e-4, send_s=1e-4)
        packet.link_s = packet.payload_bytes / 4e9
        places.append(policy.place)
        policy.note(policy.place, packet)
    assert places == [SAMPLED] * DOUBTED[0] + [0] * (4 - DOUBTED[0])


def test_a_burst_that_was_no_link_costs_one_packet_as_it_is():
    """Afterwards nothing is tried for a second, however fast the next burst looks."""
    policy, raw = Policy(LADDER, SAMPLED, DOUBTED[0]), 0
    for _ in range(100):
        packet = spent(policy.place, 1e-4, send_s=1e-4)
        packet.link_s = packet.payload_bytes / (4e9 if policy.place else 60e6)
        raw += policy.place == 0
        policy.note(policy.place, packet)
    assert raw == 1


def test_a_wait_while_the_link_is_idle_is_not_the_links():
    """The receiver has no room, or the channel no processor; no level helps against that."""
    policy = Policy(LADDER, SAMPLED)
    for _ in range(100):
        packet = spent(policy.place, 0.02)
        packet.idle_s = packet.hook_s + packet.gap_s
        policy.note(policy.place, packet)
    assert policy.level is None


def test_a_probe_is_not_over_for_what_passes_while_the_link_is_idle():
    policy = Policy(LADDER, SAMPLED, DOUBTED[0])
    for _ in range(12):
        packet = spent(policy.place, 1e-4 if policy.place else 0.026, send_s=1e-4)
        packet.idle_s, packet.link_s = packet.hook_s + packet.gap_s, packet.payload_bytes / 4e9
        policy.note(policy.place, packet)
    assert policy.level is None


def test_a_probe_of_which_the_kernel_says_nothing_is_refuted_by_the_clock_alone():
    """As over a unix socket with TLS: sending takes much of a processor, and the receiver holds it up."""
    for gap in range(1, 40):
        policy = Policy(LADDER, SAMPLED, DOUBTED[0])
        for _ in range(200):
            packet = spent(policy.place, 0.0)
            packet.gap_s = packet.page_bytes * gap * 1e-10
            packet.gap_cpu_s = min(packet.gap_s, packet.payload_bytes * 1e-9)
            policy.note(policy.place, packet)
        assert 0 <= policy.place < len(LADDER)


def test_one_word_of_the_kernel_that_is_far_off_changes_nothing():
    policy = Policy(LADDER, SAMPLED, DOUBTED[0])
    levels = []
    for number in range(40):
        packet = spent(policy.place, 1e-4, send_s=1e-4)
        packet.idle_s = packet.hook_s + packet.gap_s
        packet.link_s = packet.payload_bytes / (20e6 if number % 8 == 7 else 4e9)
        policy.note(policy.place, packet)
        levels.append(policy.level)
    assert set(levels[DOUBTED[0] :]) == {None}


@pytest.mark.parametrize("too_dear", [1, 10])
def test_a_look_says_what_pages_save_and_not_what_they_cost(too_dear):
    """A few pages in a new frame take up to ten times as long, each, as the packets that follow would."""
    policy = Policy(LADDER, SAMPLED)
    for number in range(200):
        is_noise = number % 20 < 10
        packet = spent(policy.place, 0.0, saving=0.0 if is_noise else None)
        packet.gap_s = max(0.0, packet.payload_bytes * 16e-9 - packet.hook_s)
        policy.note(policy.place, packet)
        if policy.wants_look:
            rung = LADDER[SAMPLED]
            left = 1.0 if is_noise else 1 - rung.saving
            policy.look(SAMPLED, rung.cost * too_dear * SAMPLE_BYTES, SAMPLE_BYTES, left * SAMPLE_BYTES)
    assert policy.level is not None
    assert policy.level >= 1


def test_noise_says_nothing_of_what_pages_cost_that_shrink():
    levels = []
    for runs in (0, 20):
        policy = Policy(LADDER, SAMPLED)
        for number in range(40 + runs):
            is_noise = 20 <= number < 20 + runs
            packet = spent(policy.place, 0.0, saving=0.0 if is_noise else None)
            packet.gap_s = max(0.0, packet.payload_bytes * 60e-9 - packet.hook_s)
            if is_noise:
                packet.hook_cpu_s /= 10
            policy.note(policy.place, packet)
            if not is_noise and policy.wants_look:
                rung = LADDER[SAMPLED]
                policy.look(SAMPLED, rung.cost * SAMPLE_BYTES, SAMPLE_BYTES, (1 - rung.saving) * SAMPLE_BYTES)
        levels.append(policy.level)
    assert levels[0] == levels[1]


def mixed(packets: int) -> list[Pages]:
    """Runs of 1 to 16 MiB of both kinds."""
    rng, found = random.Random(3), []
    for kind in itertools.cycle((REAL, NOISE)):
        found += [kind] * rng.randint(2, 32)
        if len(found) >= packets:
            return found[:packets]
    raise AssertionError


def run(world: World, memory: Sequence[Pages]) -> tuple[float, float, float]:
    """Seconds: of the policy, of the best fixed level, and of pages as they are."""
    fixed = min(migrate(world, memory, place)[0] for place in FIXED)
    return migrate(world, memory, None)[0], fixed, migrate(world, memory, 0)[0]


MIB = {0.1: 16, 0.3: 48, 1: 85, 2.5: 170, 10: 170}
"""What goes over a link of so many Gbit/s in some tenths of a second: of short images the start is a good part."""
CONSTANT = [(rate, channels) for rate in MIB for channels in (1, 2)] + [(0.3, 8), (1, 8)]


@pytest.mark.parametrize("kind", ["real", "mixed"])
@pytest.mark.parametrize(("rate", "channels"), CONSTANT)
def test_a_constant_link_takes_hardly_longer_than_the_best_level(rate, channels, kind):
    world, packets = World(((0, rate * GIGABIT),), LADDER, channels=channels), 2 * MIB[rate]
    auto, fixed, _ = run(world, [REAL] * packets if kind == "real" else mixed(packets))
    assert auto < 1.05 * fixed


@pytest.mark.parametrize("channels", [1, 2, 8])
def test_a_link_without_limits_takes_hardly_longer_than_pages_as_they_are(channels):
    auto, _, none = run(World(((0, 100 * GIGABIT),), LADDER, channels=channels), [REAL] * 512)
    assert auto < 1.25 * none


def test_noise_takes_hardly_longer_than_pages_as_they_are():
    auto, _, none = run(World(((0, 2.5 * GIGABIT),), LADDER), [NOISE] * 600)
    assert auto < 1.05 * none


@pytest.mark.parametrize(
    ("slow", "fast", "channels"),
    [(*rates, channels) for rates in (((0.1, 3), (1, 1)), ((0.2, 2), (10, 0.5))) for channels in (1, 2)]
    + [((0.1, 3), (1, 1), 8)],
)
def test_a_link_that_changes_is_used_better_than_by_any_level(slow, fast, channels):
    """Each rate, in Gbit/s, for so many seconds."""
    rates = (0, slow[0] * GIGABIT), (slow[1], fast[0] * GIGABIT)
    world = World(rates, LADDER, period_s=slow[1] + fast[1], channels=channels)
    auto, fixed, none = run(world, [REAL] * 768)
    assert auto < fixed
    assert auto < 1.05 * none
