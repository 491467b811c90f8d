"""Make sample.json, a real result of small sources: python tests/bench/make_sample.py > tests/bench/sample.json

The bytes of `mix` and `files` are this machine's own programs and documents, so figures differ from machine to machine.
"""

from __future__ import annotations

import contextlib
import json

from multifd.bench import campaign
from multifd.bench.job import SourceSpec
from multifd.bench.measure import materialised

SOURCES = [SourceSpec(text, synthetic=text) for text in ("mix:16M", "text:4M")]
METHODS = ["none", "zlib", "zstd:level=3"]
LINKS = [None, 4_000_000_000, 1_000_000_000, 250_000_000]


def main() -> None:
    words = ["multifd", "bench", "--runs", "2"]
    for source in SOURCES:
        words += ["--synthetic", source.synthetic]
    evidence = campaign.Evidence(words)
    with contextlib.ExitStack() as stack:
        made = [stack.enter_context(materialised(source)) for source in SOURCES]
        evidence.sources = [campaign.describe_source(source) for source in made]
        evidence.methods = [campaign.describe_method(method) for method in METHODS]
        evidence.codec = [r for s in made for m in METHODS if (r := campaign.rate_codec(s, m))]
        campaign.gather(campaign.plan(made, METHODS, [2], LINKS, runs=2), evidence)
    print(json.dumps(evidence.document(), indent=1))


if __name__ == "__main__":
    main()
