"""Documents and their schemas: what is written is as they say, and what is not is refused in words."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from multifd.bench import schema
from multifd.bench.job import Figures, Row, summarise
from multifd.errors import UsageError

jsonschema = pytest.importorskip("jsonschema", reason="the test extra is not installed")
SAMPLE = Path(__file__).with_name("sample.json")


@pytest.fixture
def sample():
    return json.loads(SAMPLE.read_text())


@pytest.mark.parametrize("kind", [schema.RESULT, schema.ADVICE])
def test_the_schemas_are_schemas(kind):
    jsonschema.Draft202012Validator.check_schema(schema.schema(kind))


def test_what_both_documents_have_is_the_same_in_both():
    result, advice = (schema.schema(kind)["$defs"] for kind in (schema.RESULT, schema.ADVICE))
    for name in result.keys() & advice.keys():
        assert result[name] == advice[name], name


def test_a_stored_result_is_read(sample):
    assert schema.read(SAMPLE) == sample


def test_keys_of_later_releases_are_ignored(sample):
    sample["later"] = sample["runs"][0]["later"] = sample["runs"][0]["figures"]["later"] = 1
    schema.check(sample)


def wrong_documents():
    yield "another kind", lambda d: d.update(schema="multifd-advice"), "multifd-advice"
    yield "a later version", lambda d: d.update(version=2), "version 2"
    yield "no runs", lambda d: d.pop("runs"), "runs"
    yield "a status", lambda d: d["runs"][0].update(status="good"), "$.runs[0].status"
    yield "a negative time", lambda d: d["runs"][0]["figures"].update(total_time_ms=-1), "total_time_ms"
    yield "a figure is missing", lambda d: d["runs"][0]["figures"].pop("ratio"), "$.runs[0]"
    yield "text for a number", lambda d: d["sources"][0].update(ram_bytes="1"), "$.sources[0].ram_bytes"
    yield "too few buckets", lambda d: d["sources"][0]["anatomy"]["total"]["entropy"].pop(), "$.sources[0]"
    yield "channels", lambda d: d["rows"][0].update(channels=256), "$.rows[0].channels"


@pytest.mark.parametrize(("change", "place"), [c[1:] for c in wrong_documents()], ids=[c[0] for c in wrong_documents()])
def test_a_wrong_document_is_refused_with_the_place(sample, change, place):
    change(sample)
    with pytest.raises(UsageError) as e:
        schema.check(sample, "here.json")
    assert str(e.value).startswith("here.json: ")
    assert place in str(e.value)


@pytest.mark.parametrize("document", [None, [], 1, "x", {}, {"schema": 1}])
def test_what_is_no_document_is_refused(document):
    with pytest.raises(UsageError, match="expected 'multifd-bench'"):
        schema.check(document)


@pytest.mark.parametrize("text", ["", "{", "\x00", "nan?", "[" * 100_000])
def test_a_file_that_is_no_json_is_refused(tmp_path, text):
    path = tmp_path / "result.json"
    path.write_text(text)
    with pytest.raises(UsageError, match="not JSON"):
        schema.read(path)
    with pytest.raises(UsageError, match="No such file"):
        schema.read(tmp_path / "none.json")


def figures(total: float) -> Figures:
    return Figures(total, 1.0, 2.0, 3.0, 4.0, 5.0, 6, 7, 8, 9, 10.0, 0.5, 0.6, 11, 12)


def test_rows_are_medians_of_the_verified_runs_in_the_order_of_the_first():
    made = [("b", 3.0), ("a", 5.0), ("b", 1.0), ("a", None), ("b", 2.0)]
    runs = [
        Row("s", method, 2, None, "here", 1, "", "verified" if ms else "failed", figures=figures(ms) if ms else None)
        for method, ms in made
    ]
    rows = summarise(runs)
    assert [(r["method"], r["runs"], r["failed"]) for r in rows] == [("b", 3, 0), ("a", 1, 1)]
    assert rows[0]["figures"]["total_time_ms"] == {"median": 2.0, "low": 1.0, "high": 3.0}


def test_rows_of_other_links_channels_and_machines_are_others():
    one = Row("s", "none", 2, None, "here", 1, "", "failed", error="x")
    keys = [(3, None, "here"), (2, 8, "here"), (2, None, "there")]
    others = [Row("s", "none", channels, link, host, 1, "", "failed") for channels, link, host in keys]
    assert len(summarise([one, *others, one])) == 4
    assert summarise([one])[0]["figures"] is None


def test_the_sample_is_what_its_own_runs_say(sample):
    keys = ("source", "method", "channels", "link_bits_per_s", "machine", "run", "started", "status", "error")
    runs = [Row(*(r[k] for k in keys), figures=Figures(**r["figures"])) for r in sample["runs"]]
    assert summarise(runs) == sample["rows"]
    assert sample["status"] == "completed"
