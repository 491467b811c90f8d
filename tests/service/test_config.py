"""relay.toml: what is taken, and one line for each thing that cannot be meant."""

from __future__ import annotations

import importlib.resources
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from multifd.errors import UsageError
from multifd.service.config import read
from multifd.transport.access import Access
from multifd.transport.address import Uri

GOOD = '[routes.a]\nlisten = "tcp:127.0.0.1:0"\nto = "unix:/x"\n'

SAME = "[routes.a]\nlisten = 'unix:/x'\nto = 'unix:/y'\n"


def write(tmp_path, text: str | bytes):
    path = tmp_path / "relay.toml"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return path


def test_everything_that_a_route_may_say(tmp_path):
    (route,) = read(
        write(
            tmp_path,
            '[routes."a.b-c_1"]\nlisten = "systemd:web"\nto = "tcp:[::1]:44"\nin = "zlib"\nout = "zstd:level=3"\n'
            "channels = 255\nconnect-timeout = 1\ntimeout = 2.5\nmax-bandwidth = 1_000\n"
            "allow = ['10.0.0.0/8', 'fd00::1']\nallow-uid = [107]\nsocket-mode = '0666'\nsocket-group = '0'\n",
        )
    )
    assert (route.name, route.listen) == ("a.b-c_1", "web")
    assert route.access == Access(("10.0.0.0/8", "fd00::1"), (107,), 0o666, "0")
    config = route.relay
    assert (config.to, config.in_method, config.out_method) == (Uri(host="::1", port=44), "zlib", "zstd:level=3")
    assert (config.channels, config.connect_timeout_s, config.timeout_s, config.max_bandwidth) == (255, 1, 2.5, 1000)


def test_what_is_not_said(tmp_path):
    config = read(write(tmp_path, GOOD))[0].relay
    assert (config.in_method, config.out_method, config.channels, config.max_bandwidth) == (None, "none", None, 0)
    assert (config.connect_timeout_s, config.timeout_s) == (10, 60)


def test_the_example_in_the_distribution():
    with importlib.resources.as_file(importlib.resources.files("multifd.service") / "share/relay.toml") as path:
        assert [route.name for route in read(path)] == ["out", "in"]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "no routes; expected a table [routes.NAME] for each"),
        ("routes = 3", "no routes"),
        ("[routes]", "no routes"),
        ("[routes.a", "not TOML: "),
        (b"\xff", "not TOML: "),
        ("a = " + "[" * 100000, "not TOML: "),
        ("x = 1\n" + GOOD, "unknown key 'x'; known are routes"),
        ("[route.a]\n", "unknown key 'route'; did you mean 'routes'?"),
        ("[routes]\na = 3", "route 'a': expected a table [routes.a]"),
        ('[routes."a b"]\n', "route 'a b': expected a name of letters"),
        ('[routes.""]\n', "route '': expected a name"),
        (f"[routes.{'a' * 64}]\n", "at most 63"),
        ("[routes.a]\nto = 'unix:/x'", "route 'a': 'listen' is missing"),
        ("[routes.a]\nlisten = 'unix:/x'", "route 'a': 'to' is missing"),
        (GOOD + "chanels = 3", "route 'a': unknown key 'chanels'; did you mean 'channels'?"),
        (GOOD + "channels = 0", "route 'a': channels: 0 channels, expected 1 to 255"),
        (GOOD + "channels = true", "route 'a': channels: got True, expected a whole number"),
        (GOOD + "channels = '3'", "route 'a': channels: got '3', expected a whole number"),
        (GOOD + "timeout = 0", "route 'a': timeout: a timeout of 0 s"),
        (GOOD + "timeout = nan", "route 'a': timeout: a timeout of nan s"),
        (GOOD + "connect-timeout = -1", "route 'a': connect-timeout: a timeout of -1 s"),
        (GOOD + "max-bandwidth = -1", "route 'a': max-bandwidth: a bandwidth of -1 bytes/s"),
        (GOOD + "max-bandwidth = '1G'", "route 'a': max-bandwidth: got '1G', expected a whole number"),
        (GOOD + "out = 'zstdd'", "route 'a': out: no method 'zstdd' is installed"),
        (GOOD + "in = 'zlib:level=99'", "route 'a': in: method 'zlib': option 'level'"),
        (GOOD.replace("tcp:127.0.0.1:0", "fd:3"), "route 'a': listen: a route may have to listen anew"),
        (SAME.replace("/y", "/x"), "route 'a': to: unix:/x is where the relay listens"),
        (GOOD.replace("unix:/x", "fd:3"), "route 'a': to: fd:3: a relay connects anew for each migration"),
        (GOOD + "allow = '10.0.0.0/8'", "route 'a': allow: got '10.0.0.0/8', expected a list of texts"),
        (GOOD + "allow = [3]", "route 'a': allow: got [3], expected a list of texts"),
        (GOOD + "allow = ['10.0.0.1/8']", "route 'a': allow: network '10.0.0.1/8' has bits behind its length"),
        (GOOD + "allow-uid = [true]", "route 'a': allow-uid: got [True], expected a list of whole numbers"),
        (GOOD + "allow-uid = [7]", "route 'a': allow-uid: that is for a unix socket"),
        (SAME + "allow-uid = [-1]", "route 'a': allow-uid: user -1, expected 0 to"),
        (SAME + "allow = ['10.0.0.0/8']", "route 'a': allow: networks say who may connect over tcp"),
        (SAME + "socket-mode = 0o660", "route 'a': socket-mode: got 432, expected text"),
        (SAME + "socket-mode = '0o660'", "route 'a': socket-mode: got '0o660', expected octal digits"),
        (SAME + "socket-mode = '0666'", "route 'a': socket-mode: mode 0666 opens the socket to others"),
        (SAME + "socket-group = '0'", "route 'a': socket-group: a socket of a group: say which users"),
        (GOOD + "in = 'same'", "route 'a': in: no method 'same' is installed"),
        (GOOD + "out = 3", "route 'a': out: got 3, expected text"),
        (GOOD.replace("unix:/x", "/x"), "URI '/x': expected tcp:HOST:PORT"),
        (GOOD.replace("tcp:127.0.0.1:0", "systemd:"), "expected systemd:NAME"),
        (SAME + SAME.replace("routes.a", "routes.b"), "route 'b': listen: unix:/x is that of route 'a', too"),
        ("#" * (1 << 20) + "\n", "longer than 1048576 bytes"),
    ],
)  # fmt: skip
def test_what_cannot_be_meant(tmp_path, text, words):
    path = write(tmp_path, text)
    with pytest.raises(UsageError) as caught:
        read(path)
    assert str(caught.value).startswith(f"{path}: ")
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_file_that_cannot_be_read(tmp_path):
    for path in (tmp_path / "none.toml", tmp_path):
        with pytest.raises(UsageError, match=f"cannot read {path}: "):
            read(path)


def test_no_more_routes_than_can_be(tmp_path):
    text = "".join(GOOD.replace("routes.a", f"routes.a{i}") for i in range(257))
    with pytest.raises(UsageError, match="257 routes, expected at most 256"):
        read(write(tmp_path, text))


@given(
    st.dictionaries(
        st.sampled_from(["listen", "to", "in", "out", "channels", "timeout", "other"]),
        st.one_of(
            st.integers(), st.booleans(), st.floats(), st.sampled_from(["none", "unix:/x", "tcp:a:1", "systemd:x"])
        ),
    )
)
def test_any_values_end_as_routes_or_in_one_line(tmp_path_factory, table):
    lines = [
        f"{key} = {str(value).lower() if not isinstance(value, str) else repr(value)}" for key, value in table.items()
    ]
    path = write(tmp_path_factory.mktemp("any"), "\n".join(["[routes.a]", *lines]))
    try:
        said = str(read(path)[0].name)
    except UsageError as e:
        said = str(e)
    assert said.isprintable()


def test_the_page_shows_the_example_as_it_is():
    page = (Path(__file__).parent.parent.parent / "docs/relay-service.md").read_text()
    example = (importlib.resources.files("multifd.service") / "share/relay.toml").read_text()
    assert f"```toml\n{example}```" in page
