import functools
import json
import os
import shutil
import stat
import subprocess

import pytest
from command_line import path, weightcast

FP8 = "fp8_e4m3_128x128_fp32"
COMMANDS = ("bench", "bound", "catalogs", "config", "diff", "explain", "keygen", "plan", "simulate")


def catalog(role, rank, entries, replica=0):
    bytes_ = sum(entry["extent"][0] * entry["extent"][1] * 2 for entry in entries)
    document = {"format": "weightcast.catalog/1", "role": role, "rank": rank, "entries": entries,
                "regions": [{"name": "weights", "bytes": bytes_}]}  # fmt: skip
    return document | ({"replica": replica} if role == "server" else {})


def rows(tensor, first, count, **kind):
    return {"tensor": tensor, "shape": [256, 64], "offset": [first, 0], "extent": [count, 64], "region": "weights"} | kind


@pytest.fixture
def catalogs(tmp_path):
    """Two trainers with half the rows each, two servers with all of them."""
    documents = {
        "trainer0": catalog("trainer", 0, [rows("w", 0, 128, dtype="bf16")]),
        "trainer1": catalog("trainer", 1, [rows("w", 128, 128, dtype="bf16")]),
        "server0": catalog("server", 0, [rows("w", 0, 256, recipe="bf16")], replica=0),
        "server1": catalog("server", 1, [rows("w", 0, 256, recipe="bf16")], replica=1),
    }
    files = []
    for name, document in documents.items():
        files.append(tmp_path / f"{name}.json")
        files[-1].write_text(json.dumps(document))
    return files


def refused(*arguments, code, **options):
    result = weightcast(*arguments, check=False, **options)
    assert result.returncode == code, result.stderr
    assert result.stderr.startswith("weightcast: ") and result.stderr.count("\n") == 1
    return result.stderr


def test_help_of_every_command_has_an_example_and_the_exit_codes():
    assert all(command in weightcast("--help").stdout for command in COMMANDS)
    for command in COMMANDS:
        text = weightcast(command, "--help").stdout
        assert f"Example:\n  weightcast {command}" in text
        assert "Exit codes: 0 done, 1 it failed, 2 wrong" in text
        assert "--json" in text


def test_version():
    assert weightcast("--version").stdout.startswith("weightcast 0.")


@pytest.mark.parametrize("arguments", [(), ("frobnicate",), ("plan",), ("plan", "--nonsense", "x"), ("config",), ("keygen",),
                                       ("config", "--print", "--schema"), ("explain", "--server-gbs", "-1", "x")])  # fmt: skip
def test_wrong_usage_is_one_line_and_exit_code_2(arguments):
    refused(*arguments, code=2)


def test_keygen_makes_a_private_file_and_never_overwrites_it(tmp_path):
    secret = tmp_path / "weightcast.secret"
    assert json.loads(weightcast("keygen", secret, "--json").stdout) == {"secret_file": str(secret)}
    assert stat.S_IMODE(secret.stat().st_mode) == 0o600
    before = secret.read_bytes()
    assert str(secret) in refused("keygen", secret, code=1)
    assert secret.read_bytes() == before
    assert before != (weightcast("keygen", tmp_path / "other"), (tmp_path / "other").read_bytes())[1]


def test_keygen_says_which_folder_it_cannot_write(tmp_path):
    assert str(tmp_path / "no/such") in refused("keygen", tmp_path / "no/such", code=1)


def test_config_print_shows_a_file_over_the_defaults(tmp_path):
    file = tmp_path / "cluster.json"
    file.write_text('{"run": "seven", "controller": {"trainers": 4}}')
    shown = json.loads(weightcast("config", "--print", file).stdout)
    assert (shown["run"], shown["controller"]["trainers"], shown["landing"]) == ("seven", 4, "staged")
    assert weightcast("config", "--check", file).stdout == f"{file} is valid\n"
    assert json.loads(weightcast("config", "--check", file, "--json").stdout) == {"file": str(file), "valid": True}


def test_config_check_says_file_pointer_and_nearest_key(tmp_path):
    file = tmp_path / "cluster.json"
    file.write_text('{"performance": {"windw": 4}}')
    message = refused("config", "--check", file, code=2)
    assert message == f"weightcast: {file}: /performance/windw: unknown key; the nearest known one is /performance/window\n"
    assert "No such file" in refused("config", "--check", tmp_path / "missing.json", code=1)


def test_plan_prints_the_table_and_its_proof(catalogs):
    text = weightcast("plan", *catalogs).stdout
    assert text.startswith("2 trainers to 2 servers in 2 replicas: 65.5 kB in 1 tensor\n")
    assert "proved: 65536 bytes" in text and "each written exactly once" in text
    assert weightcast("plan", *reversed(catalogs)).stdout == text
    assert max(map(len, text.splitlines())) <= 100


def test_plan_as_json_has_every_step(catalogs):
    plan = json.loads(weightcast("plan", "--steps", *catalogs).stdout)
    assert len(plan["steps"]) >= 2


def test_explain_gives_the_bound_and_the_steps_of_a_tensor(catalogs):
    assert "bound 32.768 ms (server 0 in, 32.77 kB), plan 32.768 ms, gap 0.0 %" in weightcast(
        "explain", "--server-gbs", "0.001", *catalogs).stdout  # fmt: skip
    table = json.loads(weightcast("explain", "--json", "--server-gbs", "0.001", *catalogs).stdout)
    assert (table["bytes"], table["bound"]["set_by"]) == (65536, "server 0 in, 32.77 kB")
    steps = weightcast("explain", "--tensor", "w*", *catalogs).stdout
    assert steps.startswith("w\n  trainer 0 sends [0:128, 0:64] as bf16 to server")
    assert "no tensor of the plan matches x*" in refused("explain", "--tensor", "x*", *catalogs, code=2)


def test_catalogs_that_do_not_fit_together_are_refused(catalogs, tmp_path):
    assert "no catalog is of a server" in refused("plan", *catalogs[:2], code=2)
    assert "are both of trainer 0" in refused("plan", *catalogs, catalogs[0], code=2)
    assert "the catalog of trainer 0 is missing" in refused("plan", *catalogs[1:], code=2)
    (tmp_path / "broken.json").write_text('{"format": ')
    assert "broken.json: " in refused("plan", *catalogs, tmp_path / "broken.json", code=2)
    assert "No such file" in refused("plan", *catalogs, tmp_path / "missing.json", code=1)


def change_entry(file, **values):
    document = json.loads(file.read_text())
    document["entries"][0] |= values
    file.write_text(json.dumps(document))


@pytest.mark.parametrize("rank, values, words, named", [
    (1, {"tensor": "v"}, "of which no trainer holds [128:256, 0:64]; some trainer must hold", ("server0",)),
    (0, {"offset": [64, 0]}, "[64:192, 0:64] of trainer 0 overlaps [128:256, 0:64] of trainer 1", ("trainer0", "trainer1")),
    (1, {"shape": [512, 64]}, "trainer 0 has the shape [0:256, 0:64], trainer 1 has [0:512, 0:64]", ("trainer0", "trainer1")),
    (1, {"dtype": "fp16"}, "all trainers must hold the same type", ("trainer0", "trainer1")),
    (2, {"tensor": "v"}, "missing tensor v: server 0 (replica 0) takes it, no trainer holds it", ("server0",)),
    (2, {"extent": [100, 64], "recipe": FP8, "scales": {"region": "weights", "byte_offset": 8192}},
     "the box [0:100, 0:64] cuts blocks of 128x128", ("server0",)),
])  # fmt: skip
@pytest.mark.parametrize("command", ["plan", "explain", "bound"])
def test_what_is_wrong_between_catalogs_names_tensor_ranks_and_their_files(catalogs, command, rank, values, words, named):
    if rank == 1 and "tensor" in values:  # else a tensor that nobody takes is named first
        change_entry(catalogs[3], tensor="v")
    change_entry(catalogs[rank], **values)
    error = refused(command, *catalogs, code=2)
    assert words in error and "tensor " in error
    for name in named:
        assert f"{name}.json" in error


def test_a_tensor_that_no_server_takes_needs_saying_so(catalogs):
    extra = json.loads(catalogs[0].read_text())
    extra["entries"].append(rows("extra", 0, 256, dtype="bf16", byte_offset=0))
    extra["regions"][0]["bytes"] = 256 * 64 * 2
    catalogs[0].write_text(json.dumps(extra))
    assert "extra" in refused("plan", *catalogs, code=2)
    weightcast("plan", "--unused", "ext*", *catalogs)


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="the system has no /dev/full")
def test_output_that_cannot_be_written_is_an_error(catalogs):
    for command in (("config", "--print"), ("config", "--schema"), ("plan", *catalogs), ("--help",), ("--version",),
                    ("explain", "--json", *catalogs)):  # fmt: skip
        with open("/dev/full", "w") as full:
            message = refused(*command, code=1, stdout=full)
        assert message == "weightcast: cannot write standard output: No space left on device\n"


def test_output_that_is_closed_is_an_error():
    result = weightcast("config", "--print", check=False, stdout=None, preexec_fn=lambda: os.close(1))
    assert result.returncode == 1
    assert "cannot write standard output" in result.stderr


def test_bench_runs_programs_of_the_build_and_hands_everything_behind_the_name_over(tmp_path):
    program = tmp_path / "plugin/weightcast"
    program.parent.mkdir()
    shutil.copy(path(), program)
    (tmp_path / "bench").mkdir()
    bench = tmp_path / "bench/echo_bench"
    bench.write_text('#!/bin/sh\necho "got $@"\nexit 3\n')
    bench.chmod(0o755)
    run = functools.partial(subprocess.run, capture_output=True, text=True, timeout=30)
    assert run([program, "bench"]).stdout == "echo\n"
    assert json.loads(run([program, "bench", "--json"]).stdout) == ["echo"]
    result = run([program, "bench", "echo", "--json", "--rows", "5"])
    assert (result.returncode, result.stdout) == (3, "got --json --rows 5\n")
    unknown = run([program, "bench", "nope"])
    assert unknown.returncode == 2
    assert unknown.stderr == "weightcast: there is no bench nope; in this build there are: echo\n"
