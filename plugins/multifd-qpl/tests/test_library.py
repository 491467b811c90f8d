"""Opening libqpl: what is refused, and in which words."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from multifd_qpl import library
from multifd_qpl.library import LibraryUnavailable, describe_status


def load(monkeypatch: pytest.MonkeyPatch, path: str) -> library.Library:
    monkeypatch.setenv(library.ENVIRONMENT, path)
    return library.load()


def test_loads_and_passes_its_self_test(libqpl: str) -> None:
    found = library.load()
    assert found.path == libqpl
    assert found.version.startswith("1.")
    assert library.self_test(found) == found.has_crc


def test_crc_is_reported(standin_library: object) -> None:
    assert library.load().has_crc


def test_without_crc_it_is_used_but_not_verified(
    monkeypatch: pytest.MonkeyPatch, compile_library: Callable[..., str]
) -> None:
    assert not load(monkeypatch, compile_library(None, "-DNO_CRC")).has_crc


def test_not_found(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    with pytest.raises(LibraryUnavailable, match=r"not found.*absent"):
        load(monkeypatch, str(tmp_path / "absent.so"))


def test_not_a_library(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "text.so").write_text("not ELF")
    with pytest.raises(LibraryUnavailable, match="not found"):
        load(monkeypatch, str(tmp_path / "text.so"))


def test_another_library(monkeypatch: pytest.MonkeyPatch, compile_library: Callable[..., str]) -> None:
    with pytest.raises(LibraryUnavailable, match="is not libqpl"):
        load(monkeypatch, compile_library("int nothing;"))


@pytest.mark.parametrize("version", ["0.1.4", "2.0.0", ""])
def test_other_versions(monkeypatch: pytest.MonkeyPatch, compile_library: Callable[..., str], version: str) -> None:
    source = f'const char *qpl_get_library_version(void) {{ return "{version}"; }}'
    with pytest.raises(LibraryUnavailable, match=r"1\.x is needed"):
        load(monkeypatch, compile_library(source))


def test_a_missing_function(monkeypatch: pytest.MonkeyPatch, compile_library: Callable[..., str]) -> None:
    source = 'const char *qpl_get_library_version(void) { return "1.6.0"; }'
    with pytest.raises(LibraryUnavailable, match="has no qpl_get_job_size"):
        load(monkeypatch, compile_library(source))


@pytest.mark.parametrize(
    ("defines", "word"),
    [
        ("-Dqpl_get_job_size=hidden -DSELF_TEST_SIZE=1", "job size"),
        ("-Dqpl_get_job_size=hidden -DSELF_TEST_SIZE=1048577", "job size"),  # 128 of them are made for a channel
        ("-DSELF_TEST_STATUS", "status of compression"),
        ("-DSELF_TEST_BYTES", "inflate"),
        ("-DSELF_TEST_POINTER", "next_in"),
        ("-DSELF_TEST_INIT", "no software job"),
    ],
)
def test_self_test_refuses(
    monkeypatch: pytest.MonkeyPatch, compile_library: Callable[..., str], defines: str, word: str
) -> None:
    """Libraries with one fault each: the self-test names what is wrong."""
    with pytest.raises(LibraryUnavailable, match=word):
        load(monkeypatch, compile_library(None, *defines.split()))


def test_unknown_statuses_have_words() -> None:
    assert describe_status(424242) == "unexpected answer (status 424242)"
    assert "deflate" in describe_status(206)
