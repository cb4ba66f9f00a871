from __future__ import annotations

import csv
import json
import math
import re
from pathlib import Path

import pytest

from ivideogpt.errors import UserError
from mbrl.tools.compare_runs import Run, compared_frames, curve, grouped, main, over_seeds, results


def write_run(folder: Path, success: dict[int, float], method="drq", task="hammer", seed=1, **settings) -> Path:
    path = folder / f"{method}-{task}-{seed}"
    path.mkdir(parents=True)
    shown = {
        "num_seed_frames": 8,
        "num_eval_episodes": 2,
        "demo": True,
        "batch_size": 4,
        "lr": 1e-4,
        "agent_update_times": 1,
    }
    named = {"task_name": task, "exp_name": method, "seed": seed, "run_dir": str(path)}
    (path / "run.json").write_text(json.dumps({"settings": shown | named | settings}))
    with (path / "eval.csv").open("w", newline="") as file:
        table = csv.DictWriter(file, ["frame", "episode_reward", "success_rate", "hours"])
        table.writeheader()
        for frame, rate in success.items():
            table.writerow({"frame": frame, "episode_reward": 100 * rate, "success_rate": rate, "hours": frame / 1000})
    return path


def test_means_and_intervals_over_seeds():
    """By hand: the mean of 0.2, 0.4, 0.9 is 0.5, their deviation 0.3606, t(0.975, 2) = 4.3027."""
    estimate = over_seeds([0.2, 0.4, 0.9])
    assert estimate.mean == pytest.approx(0.5)
    assert estimate.high - estimate.mean == pytest.approx(4.3027 * 0.3606 / math.sqrt(3), rel=1e-3)
    assert estimate.low == pytest.approx(2 * estimate.mean - estimate.high)
    alone = over_seeds([0.25])
    assert alone.text(2) == "0.25"
    assert math.isnan(alone.low)
    assert over_seeds([1.0, 1.0]).text(1) == "1.0 [1.0, 1.0]"


def test_curves_have_the_frames_that_all_seeds_have(tmp_path):
    paths = [
        write_run(tmp_path, {0: 0.0, 10: 0.5, 20: 1.0}, seed=1),
        write_run(tmp_path, {0: 0.0, 10: 0.7}, seed=2),
    ]
    points = curve([Run.read(path) for path in paths])
    assert list(points) == [0, 10]
    assert points[10].mean == pytest.approx(0.6)


def test_numbers_end_where_the_shortest_run_of_the_task_does(tmp_path):
    """Else a run that is still going on would be judged by what comes before it has learned."""
    success = {0: 0.9, 10: 0.8, 20: 0.1, 30: 0.2, 40: 0.3}
    paths = [
        write_run(tmp_path, success | {50: 1.0, 60: 1.0}, seed=1),
        write_run(tmp_path, success, method="mbpo"),
        write_run(tmp_path, {0: 0.5, 100: 0.7}, task="plate_slide"),
    ]
    groups = grouped(map(Run.read, paths))
    made = {group: results(runs, compared_frames(groups, group[0])) for group, runs in groups.items()}
    for method in ("drq", "mbpo"):
        assert made["hammer", method]["success, later half"].mean == pytest.approx(0.2)
        assert made["hammer", method]["success, last"].mean == pytest.approx(0.3)
        assert made["hammer", method]["reward, later half"].mean == pytest.approx(20.0)
    assert made["plate_slide", "drq"]["success, last"].mean == pytest.approx(0.7)


def test_runs_without_a_common_frame_are_refused(tmp_path):
    paths = [write_run(tmp_path, {10: 0.5}), write_run(tmp_path, {15: 0.5}, method="mbpo")]
    with pytest.raises(UserError, match="runs of hammer were never evaluated at the same frame"):
        compared_frames(grouped(map(Run.read, paths)), "hammer")


def test_report_picture_and_numbers(tmp_path, capsys):
    runs = [
        *(write_run(tmp_path, {0: 0.0, 10: 0.1 * seed}, seed=seed) for seed in (1, 2, 3)),
        *(write_run(tmp_path, {0: 0.0, 10: 0.3 * seed}, method="mbpo", seed=seed) for seed in (1, 2, 3)),
        write_run(tmp_path, {0: 0.0, 10: 1.0}, task="plate_slide"),
    ]
    output = tmp_path / "out" / "mbrl.md"
    main([*map(str, runs), "--output", str(output)])
    text = output.read_text()
    assert "| hammer | drq | 1, 2, 3 | 10 | 0.20 [-0.05, 0.45] |" in text
    assert "| hammer | mbpo | 1, 2, 3 | 10 | 0.60" in text
    assert "| plate_slide | drq | 1 | 10 | 1.00 |" in text
    assert "mbrl.png" in text
    assert (output.parent / "mbrl.png").stat().st_size > 5000
    numbers = json.loads(output.with_suffix(".json").read_text())
    assert len(numbers) == 7
    assert str(tmp_path) not in output.with_suffix(".json").read_text()  # no paths of one machine
    assert "7 runs" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("lr", {"lr": 1.0}),
        ("agent.hidden_dim", {"agent": {"hidden_dim": 8}}),
        ("world_model.without_lpips", {"world_model": {"without_lpips": True}}),
    ],
)
def test_runs_of_other_settings_are_not_one_curve(tmp_path, name, change):
    runs = [write_run(tmp_path, {0: 0.0}, seed=1), write_run(tmp_path, {0: 0.0}, seed=2, **change)]
    with pytest.raises(UserError, match=f"differ in {re.escape(name)}:"):
        grouped(map(Run.read, runs))


@pytest.mark.parametrize(
    ("noted", "name"),
    [
        ({"contents": {"world_model.config_name": "other"}}, "the contents of world_model.config_name"),
        ({"changes": [{"step": 8, "lr": {"before": 1e-4, "now": 1e-3}}]}, "settings that were changed on the way"),
    ],
)
def test_runs_with_other_weights_or_changes_are_not_one_curve(tmp_path, noted, name):
    """The path of the weights was the same, and the last settings were."""
    runs = [write_run(tmp_path, {0: 0.0}, seed=seed) for seed in (1, 2)]
    record = json.loads((runs[1] / "run.json").read_text())
    (runs[1] / "run.json").write_text(json.dumps(record | noted))
    with pytest.raises(UserError, match=f"differ in {name}:"):
        grouped(map(Run.read, runs))
    (runs[1] / "run.json").write_text(json.dumps(record | {"changes": [{"step": 8, "use_tb": {}}]}))
    assert len(grouped(map(Run.read, runs))) == 1


def test_a_row_that_was_cut_short_does_not_count(tmp_path):
    run = write_run(tmp_path, {0: 0.0, 10: 0.5})
    with (run / "eval.csv").open("a") as file:
        file.write("20,3")
    assert list(Run.read(run).success) == [0, 10]


def test_runs_may_differ_in_what_decides_nothing(tmp_path):
    runs = [
        write_run(tmp_path, {0: 0.0}, seed=1, use_tb=True, save_video=True),
        write_run(tmp_path, {0: 0.0}, seed=2, use_tb=False, agent={"use_tb": True}),
    ]
    assert len(grouped(map(Run.read, runs))) == 1


def test_one_seed_twice_is_refused(tmp_path):
    runs = [write_run(tmp_path / "a", {0: 0.0}), write_run(tmp_path / "b", {0: 0.0})]
    with pytest.raises(UserError, match="have one seed"):
        grouped(map(Run.read, runs))


def test_a_run_of_one_evaluation_counts(tmp_path):
    main([str(write_run(tmp_path, {0: 0.5})), "--output", str(tmp_path / "report.md")])
    assert "| 0 | 0.50 | 0.50 |" in (tmp_path / "report.md").read_text()


def test_what_is_no_run_is_refused(tmp_path):
    with pytest.raises(UserError, match=r"run\.json is missing; name the folder of a run"):
        main([str(tmp_path)])
    empty = write_run(tmp_path, {})
    with pytest.raises(UserError, match="no evaluation yet"):
        main([str(empty)])
    with pytest.raises(UserError, match=r"name a \.md file"):
        main([str(empty), "--output", "report"])
