"""Pre-shared keys, as QEMU's tls-creds-psk has them: a file of ``name:hexadecimal key`` lines (psktool writes it)."""

from __future__ import annotations

import os
import ssl
import sys

from multifd.errors import UsageError, about

_LONGEST = 1 << 20
"""Bytes of a file of keys."""
_MOST_KEY_BYTES = 256  # PSK_MAX_PSK_LEN of OpenSSL 3.0, TLS 1.2 and 1.3 alike


def configure(context: ssl.SSLContext, folder: str, username: str, *, is_server: bool) -> str:
    """Let a context use the keys of ``keys.psk`` instead of certificates; returns the file's path.

    Raises:
        UsageError: this Python cannot, or the file has no such key.
    """
    path = os.path.join(folder, "keys.psk")
    keys = _read(path)
    if sys.version_info < (3, 13):
        raise _unfit(path, "pre-shared keys need Python 3.13 or later; certificates work on all")
    context.verify_mode = ssl.CERT_NONE  # there are none: who has the key is who may connect
    # Suites that need a certificate are of no use; those of TLS 1.3 need none with a key.
    context.set_ciphers("PSK")
    if is_server:
        context.set_psk_server_callback(lambda identity: keys.get(identity or "", b""))
    elif username in keys:
        context.set_psk_client_callback(lambda hint: (username, keys[username]))
    else:
        raise about(UsageError(f"{path}: no key of {username!r}, it has {', '.join(map(repr, keys))}"), "tls_username")
    return path


def _read(path: str) -> dict[str, bytes]:
    try:
        with open(path, "rb") as file:
            text = file.read(_LONGEST + 1).decode()
    except OSError as e:
        raise _unfit(path, e.strerror or str(e)) from e
    except UnicodeDecodeError as e:
        raise _unfit(path, "not a text") from e
    keys = {}
    for number, line in enumerate(text.splitlines(), 1):
        entry = line.strip()
        if not entry or entry.startswith("#"):
            continue
        name, colon, digits = entry.rpartition(":")
        try:
            key = bytes.fromhex(digits)
        except ValueError:
            key = b""
        if not (name and colon and 0 < len(key) <= _MOST_KEY_BYTES):
            # Not quoted: it may be a secret.
            raise _unfit(path, f"line {number}: expected NAME:KEY, the key in hexadecimal digits")
        keys[name] = key
    if not keys or len(text) > _LONGEST:
        raise _unfit(path, "expected lines of NAME:KEY, at most 1 MiB")
    return keys


def _unfit(path: str, why: str) -> UsageError:
    return about(UsageError(f"{path}: {why}"), "tls_creds")
