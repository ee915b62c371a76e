"""The benchmark's arithmetic, its worker on a tiny case, and what its arguments may be."""

from __future__ import annotations

import pytest

from benchmarks.speed import __main__ as command
from benchmarks.speed import ours, report, worker
from benchmarks.speed.contender import Contender


def record(number, who, values, what="compute", setting="off-float32", size=5):
    return {
        "round": number,
        "what": what,
        "who": who,
        "size": size,
        "setting": setting,
        "values": values,
    }


def compute(number, who, milliseconds):
    values = dict.fromkeys(report.NAMES, milliseconds)
    return record(number, who, {**values, "parameters": [1234]})


RECORDS = [
    compute(0, "peer", [400.0, 380.0, 900.0]),
    compute(0, "ours", [100.0, 90.0, 300.0]),
    compute(1, "peer", [600.0]),
    compute(1, "ours", [200.0]),
    record(
        0,
        "ours",
        {"plain": [100.0, 200.0, 100.0], "with heads": [104.0, 206.0, 150.0], "parameters": [99]},
        "heads",
    ),
    record(0, "ours", {"replay 10000": [0.5], "replay 10000 longest": [7.0]}, "replay", size=None),
    record(0, "ours", {"loop": [12.5]}, "loop"),
    record(0, "peer", {"memory 1": [500.0]}, "memory"),
    record(0, "ours", {"memory 1": [450.4]}, "memory"),
]


def test_medians_and_ratios():
    """Within each round first: one slow call moves nothing, one slow round shows."""
    records = report.Records(RECORDS)
    assert records.rounds("update", what="compute", who="ours") == {0: 100.0, 1: 200.0}
    assert records.ratio("update", size=5, setting="off-float32") == (3.5, 3.0, 4.0)
    assert records.heads(size=5) == pytest.approx((1.04, 1.04, 1.04))
    assert records.ratio("update", size=1, setting="off-float32") is None


def test_digits():
    texts = [report.digits(value) for value in (1635.2, 391.4, 72.44, 2.345)]
    assert texts == ["1,635", "391", "72.4", "2.35"]


def test_table_and_picture(tmp_path):
    results = {"machine": {"cores": "2"}, "rounds": 2, "repeats": 3, "records": RECORDS}
    path = report.write(results, tmp_path)
    text = path.read_text()
    for row in (
        "| update | 500 (400-600) | 150 (100-200) |",
        "| update | 3.50 (3.00-4.00) |",
        "| size 5 | 1.04 (1.04-1.04) | 99 |",
        "| 10,000 transitions | 0.50 (0.50-0.50) | 7.00 (7.00-7.00) |",
        "| agent steps a second | 12.5 (12.5-12.5) |",
        "plan and update alone | 0.10 (0.10-0.10) |",  # 80 ms over 400 + 400
        "| size 5 | 500 (500-500) | 450 (450-450) |  |  |",
        "Parameters: torchrl-nightly 1,234, ours 1,234.",
    ):
        assert row in text
    assert (tmp_path / "speed.png").stat().st_size > 5000
    assert (tmp_path / "speed.json").exists()


def test_calls_take_turns_and_warm_up_is_not_counted():
    calls = []
    functions = {name: lambda name=name: calls.append(name) for name in "ab"}
    times = worker.time_alternating(functions, repeats=3, warm_up=1)
    assert calls == list("abababab")
    assert [len(values) for values in times.values()] == [3, 3]


def test_worker_plans_and_updates():
    """The functions themselves, the planner with few samples."""
    made = ours.make(1, "off-float32")
    made.planner.num_samples, made.planner.iterations = 80, 1
    values = worker.compute(Contender(*made), envs=[1, 2], repeats=1, warm_up=0)
    assert values.keys() == {"plan 1", "plan 2", "update", "parameters"}
    assert all(value > 0 for (value,) in values.values())


def test_heads_have_the_parameters_of_a_joint_layer():
    _, parameters = ours.make_update_with_heads(5, "off-float32")
    assert parameters == 5 * 101 * (512 + 1) <= report.HEADS_PARAMETERS


def test_worker_writes_and_samples(monkeypatch):
    monkeypatch.setattr(worker, "EPISODE", 20)
    values = worker.replay(transitions=40, repeats=1)
    assert 0 < values["replay 40"][0] <= values["replay 40 longest"][0]


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ("--rounds 0", "--rounds is 0; it must be at least 1."),
        ("--repeats -1", "--repeats is -1; it must be at least 1."),
        ("--sizes 2", "--sizes has 2; the choices are 1, 5, 19, 48, 317."),
        ("--settings off", "--settings has off; the choices are off-float32, off-bfloat16, "),
    ],
)
def test_arguments_out_of_range_are_refused(arguments, sentence, capsys):
    with pytest.raises(SystemExit):
        command.parse(arguments.split())
    assert sentence in capsys.readouterr().err


def test_a_round_alternates_and_loops_at_size_1_only():
    jobs = list(command.one_round([5], command.parse([]).settings, repeats=10))
    assert [job.who for job in jobs[:5]] == ["peer", *4 * ["ours"]]
    assert not [job for job in jobs if job.what == "loop"]
