import json
import subprocess
import sys
import threading
import time

import matplotlib.image
import pytest
from rich.console import Console
from weightcast import routes, view
from weightcast.progress import Track, parse_status

TABLE = {
    "trainers": 2,
    "servers": 2,
    "pairs": [
        {"trainer": 0, "server": 0, "replica": 0, "bytes": 3_000_000, "tensors": 2, "puts": 4},
        {"trainer": 1, "server": 1, "replica": 1, "bytes": 1_000_000, "tensors": 1, "puts": 2},
    ],
    "bound": {"seconds": 0.002, "set_by": "server 0 in, 3.0 MB"},
}
STEP = {"trainer": 0, "recipe": "bf16", "count": 1, "box": "[4:8, 0:8]", "destinations": [{"server": 0}, {"server": 1}]}
SCALES = {"trainer": 1, "recipe": "fp8_e4m3_128x128_fp32", "count": 5, "blocks": "[0:1]", "destinations": [{"server": 1}]}
PLAN = {"steps": [STEP], "scale_steps": [SCALES], "trainer_bytes": [128, 20], "server_bytes": [64, 84]}


def status(state, done=None, **more):
    return json.dumps({"state": state, "version": 7, "bytes_done": done, "bytes_total": 1000} | more) + "\n"


def written(path, document):
    path.write_text(document if isinstance(document, str) else json.dumps(document))
    return path


def texts(figure):
    return [text.get_text() for axes in figure.axes for text in [*axes.texts, axes.title]]


def test_the_picture_names_every_rank_with_its_bytes(tmp_path):
    known = routes.read_routes(written(tmp_path / "table.json", TABLE))
    drawn = texts(routes.draw(known))
    for text in ("trainer 0", "trainer 1", "server 0 (replica 0)", "server 1 (replica 1)", "3.0 MB", "1.0 MB",
                 "2 trainers to 2 servers in 2 replicas: 4.0 MB", "bound: no less than 2.00 ms, set by server 0 in, 3.0 MB"):  # fmt: skip
        assert text in drawn


def test_a_whole_plan_is_counted_step_by_step(tmp_path):
    known = routes.read_routes(written(tmp_path / "plan.json", PLAN))
    assert known.bytes == {(0, 0): 64, (0, 1): 64, (1, 1): 20}


def test_many_ranks_are_a_heat_map_with_every_pair(tmp_path):
    pairs = {(t, s): (t + 1) * 1_000_000 for t in range(20) for s in range(4)}
    figure = routes.draw(routes.Routes(pairs, 20, 4, {0: 0, 1: 0, 2: 1, 3: 1}))
    cells = next(axes.images[0] for axes in figure.axes if axes.images).get_array()
    assert cells.shape == (20, 4)
    assert cells[19, 3] == 20


def test_the_command_writes_a_picture(tmp_path, capsys):
    output = tmp_path / "plan.png"
    assert view.main(["plan", str(written(tmp_path / "table.json", TABLE)), "-o", str(output)]) == 0
    picture = matplotlib.image.imread(output)
    assert picture.shape[0] > 300 and picture.std() > 0
    assert "4.0 MB over 2 pairs" in capsys.readouterr().out


@pytest.mark.parametrize("document", ["{", "[]", "{}", {"pairs": [{}]}, {"steps": 3}, {**TABLE, "pairs": []}])
def test_a_file_that_is_no_plan_is_refused_in_one_line(tmp_path, capsys, document):
    file = written(tmp_path / "bad.json", document)
    assert view.main(["plan", str(file), "-o", str(tmp_path / "x.png")]) == 2
    message = capsys.readouterr().err
    assert message.startswith(f"weightcast-view: {file}") and message.count("\n") == 1


def test_a_picture_that_cannot_be_written_is_an_error(tmp_path, capsys):
    file = written(tmp_path / "table.json", TABLE)
    assert view.main(["plan", str(file), "-o", str(tmp_path / "no/such/x.png")]) == 1
    assert view.main(["plan", str(tmp_path / "missing.json"), "-o", str(tmp_path / "x.png")]) == 1
    assert view.main(["plan", str(file), "-o", str(tmp_path / "x.unknown")]) == 2
    assert capsys.readouterr().err.count("weightcast-view: ") == 3


def test_rate_and_time_left_are_measured_where_they_are_not_told():
    track = Track("status")
    track.add(parse_status(status("moving", 100)), now_s=10.0)
    assert track.rate is None and track.left_s is None
    track.add(parse_status(status("moving", 300)), now_s=12.0)
    assert (track.rate, track.left_s) == (100, 7)
    track.add(parse_status(status("moving", 400, rate=50)), now_s=13.0)
    assert (track.rate, track.left_s) == (50, 12)
    track.add(parse_status(status("moving", 0, version=8)), now_s=14.0)
    assert track.rate is None


def test_a_controllers_status_is_understood_and_over_when_it_is_idle_again():
    track = Track("controller")
    for line, over in (
        ({"state": "idle", "version": 6}, False),
        ({"state": "moving", "version": 6, "update": {"version": 7, "bytes_done": 5}}, False),
        ({"state": "idle", "version": 7}, True),
    ):
        track.add(parse_status(json.dumps(line)), now_s=0.0)
        assert track.over == over
    assert track.status.version == 7


def test_watch_ends_with_the_update(tmp_path, capsys):
    file = written(tmp_path / "a.jsonl", status("moving", 500, rate=1e9) + "\n" + status("committed", 1000))
    assert view.main(["watch", str(file)]) == 0
    shown = capsys.readouterr().out
    assert "version 7, moving, 500 B of 1.0 kB, 1.00 GB/s" in shown and "committed" in shown


def test_watch_follows_a_file_as_it_grows_and_waits_for_whole_lines(tmp_path, capsys):
    file = written(tmp_path / "a.jsonl", status("moving", 1)[:-20])

    def grow():
        time.sleep(0.3)
        with file.open("a") as more:
            more.write(status("moving", 1)[-20:] + status("aborted", 2, reason="trainer 1 died"))

    writer = threading.Thread(target=grow)
    writer.start()
    assert view.main(["watch", str(file)]) == 1
    writer.join()
    assert "aborted" in (shown := capsys.readouterr().out) and "trainer 1 died" in shown


@pytest.mark.parametrize("line", ["oops", "[]", "{}", '{"state": 3}', status("moving", -1), status("moving", "9"),
                                  '{"state": "moving", "update": [1]}'])  # fmt: skip
def test_a_line_that_is_no_status_is_named(tmp_path, capsys, line):
    file = written(tmp_path / "a.jsonl", status("moving", 1) + line.strip() + "\n")
    assert view.main(["watch", str(file)]) == 2
    message = capsys.readouterr().err
    assert message.startswith(f"weightcast-view: {file}, line 2: not ") and message.count("\n") == 1


def test_silence_and_an_early_end_are_errors(tmp_path, capsys):
    file = written(tmp_path / "a.jsonl", status("moving", 1))
    assert view.main(["watch", str(file), "--wait-s", "0.2"]) == 1
    assert "said nothing for 0.2 s; the last was:" in capsys.readouterr().err
    result = subprocess.run([sys.executable, "-m", "weightcast.view", "watch", "-"], input=status("moving", 1), text=True,
                            capture_output=True, timeout=60)  # fmt: skip
    assert result.returncode == 2
    assert "- ended before its update was over" in result.stderr


def test_a_terminal_gets_bars(tmp_path):
    from weightcast.progress import watch

    file = written(tmp_path / "a.jsonl", status("moving", 500, rate=100) + status("committed", 1000))
    console = Console(force_terminal=True, width=100, record=True, file=(tmp_path / "screen").open("w"))
    with file.open() as source:
        assert watch({"a": source}, console, wait_s=5)
    assert "a version 7 committed" in (tmp_path / "screen").read_text()


@pytest.mark.parametrize("arguments", [[], ["plan"], ["watch"], ["frobnicate"]])
def test_wrong_usage_is_one_line(arguments, capsys):
    with pytest.raises(SystemExit) as end:
        view.main(arguments)
    assert end.value.code == 2
    assert capsys.readouterr().err.count("\n") == 1


SIMULATION = {"trainers": 1, "servers": 1, "bytes": 5_000_000, "makespan_s": 0.02, "bound_s": 0.018, "binding": "take of server 0",
              "spans": [["trainer", 0, "send", 0.0, 0.018], ["server", 0, "take", 0.001, 0.019], ["server", 0, "verify", 0.019, 0.02]]}  # fmt: skip


def test_the_routing_table_has_a_cell_for_each_pair_and_totals_on_its_margins(tmp_path):
    known = routes.read_routes(written(tmp_path / "table.json", TABLE))
    figure = routes.matrix(known)
    drawn = texts(figure)
    assert drawn.count("3.0 MB") == 2 and drawn.count("1.0 MB") == 2  # each row's and each column's total
    assert "3.0\nMB" in drawn and "1.0\nMB" in drawn
    assert figure.get_suptitle() == "2 trainers to 2 servers in 2 replicas: 4.0 MB"


def test_a_large_routing_table_has_bars_for_totals(tmp_path):
    pairs = {(t, s): 1_000_000_000 for t in range(128) for s in range(32)}
    figure = routes.matrix(routes.Routes(pairs, 128, 32, {}))
    bars = [patch.get_height() for patch in figure.axes[0].patches]
    assert bars == [128.0] * 32


def test_the_gantt_has_a_row_for_each_rank_and_marks_bound_and_end(tmp_path):
    from weightcast import gantt

    figure = gantt.draw(gantt.read_timeline(written(tmp_path / "simulation.json", SIMULATION)))
    (axes,) = figure.axes
    assert [label.get_text() for label in axes.get_yticklabels()] == ["trainer 0", "server 0"]
    named = [text.get_text() for text in figure.legends[0].get_texts()]
    assert "bound, 18 ms" in named and "verified everywhere, 20 ms" in named
    send = axes.collections[0].get_paths()[0].vertices
    assert send[:, 0].max() == pytest.approx(18) and 0 <= send[:, 1].min() < send[:, 1].max() <= 1


@pytest.mark.parametrize("kind, document", [("routing", TABLE), ("gantt", SIMULATION)])
@pytest.mark.parametrize("ending", ["png", "svg"])
def test_pictures_are_written_as_their_names_say(tmp_path, kind, document, ending):
    output = tmp_path / f"picture.{ending}"
    assert view.main([kind, str(written(tmp_path / "in.json", document)), "-o", str(output)]) == 0
    assert output.read_bytes()[:5] in (b"\x89PNG\r", b"<?xml")


@pytest.mark.parametrize("document", ["{", "[]", {"spans": []}, SIMULATION | {"spans": [["trainer", 0, "sleep", 0, 1]]},
                                      SIMULATION | {"spans": [[1, 2]]}])  # fmt: skip
def test_a_file_that_is_no_simulation_is_refused_in_one_line(tmp_path, capsys, document):
    file = written(tmp_path / "bad.json", document)
    assert view.main(["gantt", str(file), "-o", str(tmp_path / "x.png")]) == 2
    message = capsys.readouterr().err
    assert message.startswith(f"weightcast-view: {file}") and message.count("\n") == 1
