"""What a source's pages are made of, counted on images whose pages are known."""

from __future__ import annotations

import contextlib
import random
from pathlib import Path

import pytest
from mapped_files import build

from multifd.bench import anatomy, campaign, codec_rate, sample, synthetic
from multifd.bench.job import SourceSpec
from multifd.errors import MultifdError, UsageError
from multifd.ram.image import open_source

PAGE = 4096
RNG = random.Random(7)
NOISE = [RNG.randbytes(PAGE) for _ in range(20)]
HALF = [RNG.randbytes(PAGE // 2) + bytes(PAGE // 2) for _ in range(10)]
PAGES = [bytes(PAGE)] * 30 + [b"\x5a" * PAGE] * 4 + NOISE + NOISE[:5] + HALF + [bytes(PAGE - 1) + b"\1"]


def write(path: Path, pages: list[bytes]) -> Path:
    path.write_bytes(b"".join(pages))
    return path


@pytest.fixture
def image(tmp_path):
    pages = list(PAGES)
    random.Random(3).shuffle(pages)
    return write(tmp_path / "ram", pages)


def dissected(path: Path) -> dict:
    with contextlib.closing(open_source(path, format="raw" if path.suffix == ".ram" else "auto")) as source:
        return anatomy.dissect(source)


def test_kinds_are_counted(image):
    found = dissected(image)
    total = found["total"]
    assert found["sample"] == {"pages": 36, "read_pages": 70, "of_pages": 70, "error": 0.0}
    assert [total[k] for k in ("pages", "zero", "same", "repeated", "other")] == [70, 30, 4, 5, 31]
    assert sum(total["compressed"]) == sum(total["entropy"]) == 36
    assert total["compressed"][-1] == 25  # noise
    assert sum(total["compressed"][7:10]) == 10  # half noise, half zero
    assert total["compressed"][0] == 1
    assert total["entropy"][-1] == 25
    assert total["entropy"][0] == 1
    assert 1 < total["ratio"] < 2


def test_blocks_are_told_apart_and_pages_are_found_again_in_another(tmp_path):
    path = tmp_path / "capture"
    path.write_bytes(build([(b"pc.ram", b"".join(NOISE[:8])), (b"vga", b"".join([*NOISE[:3], bytes(PAGE)]))]))
    found = dissected(path)
    assert [(b["idstr"], b["pages"], b["zero"], b["repeated"], b["other"]) for b in found["blocks"]] == [
        ("pc.ram", 8, 0, 0, 8),
        ("vga", 4, 1, 3, 0),
    ]
    assert found["total"]["other"] == 8


def test_nothing_but_zero(tmp_path):
    found = dissected(write(tmp_path / "ram", [bytes(PAGE)] * 9))
    assert found["total"]["zero"] == 9
    assert found["total"]["ratio"] is None
    assert found["sample"]["error"] == 0.0


def test_a_large_source_is_sampled_and_says_so(tmp_path, monkeypatch):
    monkeypatch.setattr(anatomy, "MOST_READ", 512)
    monkeypatch.setattr(anatomy, "MOST_COMPRESSED", 64)
    path = tmp_path / "text.ram"
    synthetic.write_image(path, 2048 * PAGE, "text")
    found = dissected(path)
    assert found["sample"]["of_pages"] == 2048
    assert found["sample"]["read_pages"] == 512
    assert found["sample"]["pages"] == 64
    assert 0.05 < found["sample"]["error"] <= 1
    assert found["total"]["read_pages"] == 512


def test_progress_ends_at_one(image):
    shares: list[float] = []
    with contextlib.closing(open_source(image)) as source:
        anatomy.dissect(source, shares.append)
    assert shares == sorted(shares)
    assert shares[-1] == 1.0


@pytest.mark.parametrize("most", [128, 300, 10**6])
def test_a_sample_is_whole_packets_from_all_of_ram_each_once(tmp_path, most):
    path = tmp_path / "ram"
    path.touch()
    with path.open("r+b") as file:
        file.truncate(1000 * PAGE)
    with contextlib.closing(open_source(path)) as source:
        chosen, of = sample.spread(source, most)
        starts = [int(p.offsets[0]) // PAGE for p in chosen]
    assert of == 8
    assert len(chosen) == min(max(most // 128, 1), 8)
    assert starts == sorted(set(starts))
    assert all(start % 128 == 0 for start in starts)


def test_errors_shrink_with_the_sample_and_vanish_with_all():
    assert sample.error_of_mean([1.0, 2.0], 2) == 0
    assert sample.error_of_mean([1.0], 2) == float("inf")
    assert sample.error_of_mean([5.0] * 9, 100) == 0
    few, many = (sample.error_of_mean([0.0, 1.0] * n, 10**6) for n in (5, 500))
    assert few > 5 * many > 0
    assert sample.error_of_share(0, 10) == 1
    assert sample.error_of_share(10, 10) == 0
    assert sample.error_of_share(2401, 10**9) == pytest.approx(0.02, rel=0.01)


@pytest.mark.parametrize("method", ["zlib", "zstd", "zstd:level=3"])
def test_the_bare_codec_gives_back_what_it_was_given(image, method):
    with contextlib.closing(open_source(image)) as source:
        rate = codec_rate.measure("here", source, method)
    assert rate is not None
    assert rate["pages"] == 40
    assert rate["ratio"] > 1
    assert rate["compress_bytes_per_s"] > 0
    assert rate["decompress_bytes_per_s"] > 0


def test_there_is_no_bare_codec_where_nothing_is_compressed(tmp_path, image):
    zero = write(tmp_path / "zero", [bytes(PAGE)] * 3)
    assert campaign.rate_codec(SourceSpec("zero", str(zero)), "zlib") is None
    assert campaign.rate_codec(SourceSpec("image", str(image)), "none") is None


@pytest.mark.parametrize("kind", synthetic.KINDS)
def test_synthetic_images_have_their_size_and_are_the_same_again(tmp_path, kind):
    for name in ("a", "b"):
        synthetic.write_image(tmp_path / name, 40 * synthetic.PAGE, kind)
    first = (tmp_path / "a").read_bytes()
    assert len(first) == 40 * synthetic.PAGE
    assert first == (tmp_path / "b").read_bytes()
    assert any(first) == (kind != "zero")


@pytest.mark.parametrize("text", ["", "mix", "mix:", "mix:0", "mix:1", "x:1M", "mix:1Mx", "mix:-1M", "mix:1.5M", ":1M"])
def test_a_synthetic_source_that_cannot_be_is_refused(text):
    with pytest.raises(UsageError, match="expected KIND:SIZE"):
        synthetic.parse(text)


def test_sources_are_described(tmp_path, image):
    path = tmp_path / "capture"
    path.write_bytes(build([(b"pc.ram", b"".join(NOISE[:8]))]))
    described = [campaign.describe_source(SourceSpec(str(p), str(p))) for p in (image, path)]
    described.append(campaign.describe_source(SourceSpec("text:64K", synthetic="text:64K")))
    assert [d["format"] for d in described] == ["raw", "mapped-ram", "synthetic"]
    assert [d["machine_type"] for d in described] == ["none", "pc-q35-9.0", "none"]
    assert [d["ram_bytes"] for d in described] == [len(PAGES) * PAGE, 8 * PAGE, 1 << 16]


def test_a_source_that_is_too_large_for_the_machine_is_refused(monkeypatch, image):
    monkeypatch.setattr("multifd.bench.machine.free_memory_bytes", lambda: 1000)
    with pytest.raises(UsageError, match="MiB are free here"):
        campaign.check_source(SourceSpec("image", str(image)))
    with pytest.raises(UsageError, match="MiB are free here"):
        campaign.check_source(SourceSpec("text:64K", synthetic="text:64K"))
    with pytest.raises(MultifdError):
        campaign.check_source(SourceSpec("none", "/nowhere"))
