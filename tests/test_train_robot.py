"""One command from recordings to a model: stages, what it refuses, how it goes on."""

import os
import re
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch

from ivideogpt.commands import robot_training, train_robot
from ivideogpt.commands.robot_input import Conversion, conversion
from ivideogpt.commands.train_robot import Preset, RobotArgs
from ivideogpt.data.catalog import dataset_info
from ivideogpt.data.formats.registry import find_episodes
from ivideogpt.errors import UserError
from ivideogpt.files import write_json
from ivideogpt.flags import parse
from ivideogpt.precision import BFLOAT16_SWITCH
from ivideogpt.world_model import WorldModel
from tests.commands import run_python
from tests.data.formats.lerobot_folder import write_folder
from tests.data.synthetic import record_video, square, write_episode, write_squares
from tests.datasets.scripts import load_script
from tests.documented import check
from tests.real_data import real_data

TINY = Preset(20, 2, 1, 8, 1, 2, 2, 1e-4, 1, False)


@pytest.fixture
def commands(monkeypatch):
    """Commands that were run, in processes forked from one that has imported torch; ``failing`` ones fail."""
    ran, failing = [], []

    def call(command):
        words = [Path(word).name if word.endswith(".py") else word for word in command[1:]]
        ran.append(words[0] if words[0] != "-m" else " ".join(words[1:3]))
        if failing and failing[0] in words:
            return 143
        done = run_python(*command[1:])
        print(done.stdout, done.stderr)
        return done.returncode

    monkeypatch.setattr(robot_training, "call", call)
    monkeypatch.setitem(train_robot.PRESETS, "try", TINY)
    return ran, failing


def train(tmp_path, model, *flags):
    start = ("--pretrained_model_name_or_path", model, "--output_path", tmp_path / "robot", "--preset", "try")
    train_robot.main([str(word) for word in (*start, *flags)])


def test_from_videos_to_a_model(commands, tiny_world_model, tmp_path, capsys, monkeypatch):
    """Stopped in the last training, it goes on there, in the same precision; finished, it does nothing again."""
    monkeypatch.setenv(BFLOAT16_SWITCH, "0")
    ran, failing = commands
    recordings = tmp_path / "recordings"
    recordings.mkdir()
    for number in (1, 2, 3):
        record_video(recordings, f"pick-{number}", number)
    flags = ("--recordings", recordings, "--fps", 5, "--skipped_actions", "sum", "--segment_length", 5)
    failing.append("train_gpt.py")
    with pytest.raises(UserError, match=r"was stopped; the same train_robot\.py goes on"):
        train(tmp_path, tiny_world_model, *flags)
    assert ran == [
        *("videos_to_npz.py", "ivideogpt.data preview", "videos_to_npz.py", "ivideogpt.evaluation tokenizer"),
        *("train_tokenizer.py", "ivideogpt.evaluation tokenizer", "ivideogpt.data tokenize", "ivideogpt.data tokenize"),
        "train_gpt.py",
    ]
    failing.clear()
    ran.clear()
    monkeypatch.setenv(BFLOAT16_SWITCH, "1")  # on another machine
    train(tmp_path, tiny_world_model, *flags)
    assert ran[:2] == ["train_gpt.py", "ivideogpt.training.export --tokenizer"]
    model = WorldModel.from_pretrained(tmp_path / "robot" / "model")
    assert (model.action_dim, model.metadata.segment_length) == (4, 5)
    (episodes,) = find_episodes(str(tmp_path / "robot" / "data"))
    opened = [episodes.episodes.open(number) for number in range(3)]
    actions = np.concatenate([episode.actions(np.arange(episode.num_frames - 1)) for episode in opened])
    scaled = model.metadata.encode_actions(torch.from_numpy(actions), model.metadata.find_space(None))[:, :4]
    torch.testing.assert_close(scaled.mean(0), torch.zeros(4), rtol=0, atol=1e-4)  # whatever the table counts in
    page = (tmp_path / "robot" / "index.html").read_text()
    pictures = re.findall(r'(?:src|href)="([^"]+)"', page)
    assert len(pictures) > 8
    assert not [name for name in pictures if not (tmp_path / "robot" / name).is_file()]
    assert "than copying the last frame" in page
    ran.clear()
    train(tmp_path, tiny_world_model, *flags)
    assert not ran
    with pytest.raises(UserError, match=r"fps was 5\.0, is 4\.0"):
        train(tmp_path, tiny_world_model, *flags, "--fps", 4)
    printed = re.findall(r"^\$ (.+)", capsys.readouterr().out, re.MULTILINE)
    assert len(printed) == 12
    for command in printed:
        check(shlex.split(command))
    assert re.findall(r"--mixed_precision (\S+)", "\n".join(printed)) == ["no"] * 3


def test_misaligned_actions_stop_it(commands, tiny_world_model, tmp_path):
    """A model of them looks fine, and cannot be steered: hours would be lost."""
    ran, _ = commands
    recorded = write_squares(tmp_path / "squares", late=1)
    flags = ("--dataset", recorded, "--segment_length", 5)
    with pytest.raises(UserError, match=r"cannot make up for this: action\[i\+1\] goes with the motion.*--anyway"):
        train(tmp_path, tiny_world_model, *flags)
    assert ran == ["repack.py", "ivideogpt.data preview"]
    commands[1].append("ivideogpt.evaluation")
    with pytest.raises(UserError, match="was stopped"):
        train(tmp_path, tiny_world_model, *flags, "--anyway")
    assert ran[-1] == "ivideogpt.evaluation tokenizer"


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ([], "give one of --recordings"),
        (["--recordings", "a", "--camera", "front"], "--camera does nothing for videos: it goes with --dataset"),
        (["--dataset", "a", "--fps", "5"], "--fps does nothing for data sets: it goes with --recordings"),
        (
            ["--recordings", "a", "--skipped_actions", "sum", "--frame_step", "2"],
            "--skipped_actions sum needs --fps: without it --frame_step drops the actions in between",
        ),
        (["--recordings", "a", "--skipped_actions", "mean"], "--skipped_actions mean needs --fps"),
        (["--recordings", "nowhere", "--dry_run"], "--recordings nowhere: no such folder"),
        (["--dataset", ".", "--segment_length", "2"], "--segment_length 2: the model has 2 context frames"),
        (["--dataset", ".", "--camera", "front"], "--camera and --action_key do nothing for .npz episodes"),
        (["--dataset", "nowhere", "--dry_run"], "--dataset nowhere: no such folder; expected lerobot:"),
        (["--dataset", "nowhere", "--preset", "gpu"], "no GPU is available"),
    ],
)
def test_what_is_refused(flags, message, tmp_path, monkeypatch):
    """Before anything is converted or written."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    with pytest.raises(UserError, match=re.escape(message)):
        train_robot.main(flags)
    assert not list(tmp_path.iterdir())


def test_an_estimate_costs_nothing_but_time(commands, tiny_world_model, tmp_path, capsys):
    recorded = write_squares(tmp_path / "squares", number=2)
    train(tmp_path, tiny_world_model, "--dataset", recorded, "--segment_length", 5, "--dry_run")
    assert re.search(
        r"about \d+ min without conversion: train tokenizer \d+ min, train transformer .* min; \d+ min more if",
        capsys.readouterr().out,
    )
    assert not commands[0]
    assert not (tmp_path / "robot").exists()


def words(tmp_path, *flags):
    args = parse(RobotArgs, [*map(str, flags), "--output_path", str(tmp_path / "out")])
    script, *rest = map(str, conversion(args, args.folder / "data", 64).command)
    return script, rest


def test_every_form_of_recordings_has_its_converter(tmp_path):
    """The converters' own parsers read the flags that they are given."""
    lerobot = write_folder(tmp_path / "so100")
    rlds = tmp_path / "bridge" / "1.0.0"
    rlds.mkdir(parents=True)
    (rlds / "features.json").write_text("{}")
    npz = write_squares(tmp_path / "squares", number=1)
    for source, script, kind in (
        (("--dataset", f"lerobot:{lerobot}", "--camera", "front"), "lerobot_to_npz", "LeRobotArgs"),
        (("--dataset", lerobot, "--action_key", "action"), "lerobot_to_npz", "LeRobotArgs"),
        (("--dataset", rlds.parent, "--camera", "image_0"), "oxe_data_converter", "OxeArgs"),
        (("--dataset", rlds), "oxe_data_converter", "OxeArgs"),
        (("--dataset", npz), "repack", "RepackArgs"),
        (("--recordings", npz, "--fps", 5), "videos_to_npz", "VideosArgs"),
    ):
        found, rest = words(tmp_path, *source)
        assert found == f"datasets/{script}.py"
        parse(getattr(load_script(script), kind), rest)


def test_several_data_sets_of_rlds_are_named(tmp_path):
    """They were taken for npz episodes, of which there are none."""
    (tmp_path / "OXE" / "bridge" / "1.0.0").mkdir(parents=True)
    (tmp_path / "OXE" / "bridge" / "1.0.0" / "features.json").write_text("{}")
    with pytest.raises(UserError, match=r"holds several of RLDS; name one, such as .*OXE/bridge"):
        words(tmp_path, "--dataset", tmp_path / "OXE")


def test_odd_names_give_a_folder_that_is_found(tmp_path):
    """``a/b`` would be a folder in a folder, and ``.a`` a hidden one: neither is trained on."""
    npz = write_squares(tmp_path / "squares", number=1)
    assert words(tmp_path, "--dataset", npz, "--name", ".a/b c")[1][3].endswith("data/a-b-c")
    assert words(tmp_path, "--recordings", npz, "--name", ".a/b c")[1][5] == "a-b-c"


@pytest.mark.parametrize(
    ("flags", "refused"),
    [
        (("--recordings", "rec", "--name", "bridge"), "bridge"),
        (("--recordings", "toto"), "toto"),
        (("--recordings", "rec"), None),
        (("--dataset", "npz", "--name", "bridge"), "bridge"),
        (("--dataset", "lerobot:rec", "--name", "kuka"), "kuka"),
        (("--dataset", "lerobot:lerobot/viola"), None),
        (("--dataset", "bridge"), None),
        (("--dataset", "bridge", "--name", "bridge"), None),
    ],
)
def test_names_of_public_data_sets_are_theirs(flags, refused, tmp_path, monkeypatch):
    """Pace and camera follow from the name: every second frame of recordings called bridge was left out."""
    monkeypatch.chdir(tmp_path)
    for folder in ("rec", "toto", "npz", "bridge"):
        write_episode(tmp_path / folder / "0.npz")
    if refused is None:
        words(tmp_path, *flags)
    else:
        with pytest.raises(UserError, match=f"^{refused} is the name of a public data set.*: choose another with"):
            words(tmp_path, *flags)


def test_the_same_paths_written_otherwise_go_on(tmp_path, monkeypatch):
    """The shell's completion adds a slash."""
    write_squares(tmp_path / "squares", number=1)
    monkeypatch.chdir(tmp_path)
    noted = [
        parse(RobotArgs, ["--dataset", path, "--pretrained_model_name_or_path", path, *more]).noted()
        for path, *more in (("squares",), ("squares/", "--name", "squares"), (str(tmp_path / "squares"),))
    ]
    assert noted[0] == noted[1] == noted[2]


@pytest.mark.parametrize(
    ("folder", "arrays", "message"),
    [
        ("own", [{}], "own: 1 of 1 episodes have the 6 frames of a clip, expected at least two"),
        ("own", [{}, {"reward": None}], "only one of them has rewards"),
        ("own", [{}, {"action": np.full((20, 2), np.nan, np.float32)}], "holds NaN"),
        ("own", [{}, {"reward": np.full(20, np.nan)}], "array 'reward' holds NaN"),
        ("own", [{"success": np.zeros(20)}, {"success": np.full(20, np.nan)}], "array 'success' holds NaN"),
        ("a/own", [{}, {}], "a/own is a folder in a folder"),
    ],
)
def test_faults_are_found_before_any_training(folder, arrays, message, tmp_path):
    """Later stages would refuse such episodes, after hours."""
    for number, each in enumerate(arrays):
        write_episode(tmp_path / folder / f"{number}.npz", **each)
    with pytest.raises(UserError, match=message):
        robot_training.open_all(*find_episodes(str(tmp_path)), 1, 6)


@pytest.fixture
def training(tiny_world_model, tmp_path):
    def make(*flags, preset="try"):
        recorded = write_squares(tmp_path / "squares", number=1)
        start = ("--dataset", recorded, "--pretrained_model_name_or_path", tiny_world_model, *flags)
        return robot_training.RobotTraining(
            parse(RobotArgs, [*map(str, start), "--output_path", str(tmp_path / "robot")]), preset
        )

    return make


@pytest.fixture
def converted(monkeypatch):
    """A training whose episodes are in ``data/`` without a command."""
    monkeypatch.setattr(robot_training, "run_command", lambda *words: None)

    def make(training):
        training.conversion = Conversion(())
        return training

    return make


def test_short_episodes_are_left_out(training, converted, capsys):
    """One of them stopped everything; what it asked for, to remove it, did not help while its copy was there."""
    made = converted(training("--segment_length", 8, "--frame_step", 2))
    own = made.data / "own"
    for number, num_frames in enumerate((40, 15, 30, 40, 4)):
        write_episode(own / f"{number}.npz", num_frames, **square(num_frames, number))
    made.look()
    said = f"2 episodes ({own / '1.npz'}, {own / '4.npz'}) shorter than a clip of 8 frames"
    assert f"will be left out: {said}" in capsys.readouterr().out
    done = made.convert()
    assert (done["segment_length"], done["num_frames"]) == (8, 110)
    assert f"left out, to {made.folder / 'left_out'}: {said}" in capsys.readouterr().out
    assert [file.name for file in sorted(own.iterdir())] == ["0.npz", "2.npz", "3.npz"]
    assert [file.name for file in sorted((made.folder / "left_out" / "own").iterdir())] == ["1.npz", "4.npz"]


def test_clips_may_be_made_shorter_where_too_few_episodes_are_long(training, converted):
    """The length was settled before anything was known of the episodes, and the advice could not be taken."""
    made = converted(training())
    made.folder.mkdir()
    write_json(made.folder / "settings.json", made.settings)
    for number, num_frames in enumerate((40, 5, 4)):
        write_episode(made.data / "own" / f"{number}.npz", num_frames)
    with pytest.raises(
        UserError, match=r"own: 1 of 3 episodes have the 6 frames of a clip, .* change --segment_length"
    ):
        made.convert()
    assert len(list((made.data / "own").iterdir())) == 3
    made = converted(training("--segment_length", 4))
    assert made.convert()["segment_length"] == 4
    assert len(list((made.data / "own").iterdir())) == 3
    (made.folder / "stages.json").write_text('{"convert": {}}')
    with pytest.raises(UserError, match="segment_length was None, is 5"):
        training("--segment_length", 5)


@pytest.mark.parametrize(
    ("flag", "recorded", "removed", "kept"),
    [
        ("--dataset", ["0.npz", "1.npz", "2.npz"], ["1.npz"], ["rec/0.npz", "rec/2.npz"]),
        ("--dataset", ["a/0.npz", "b/0.npz"], ["b/0.npz"], ["a/0.npz"]),
        ("--recordings", ["0.mp4", "1.MOV", "a/0.avi"], ["0.mp4"], ["rec/1.npz", "rec/a_0.npz"]),
        ("--recordings", ["0.mp4", "0.csv", "1.mp4", "1.npy"], ["1.mp4"], ["rec/0.npz"]),
        ("--recordings", ["0.mp4", "0.csv", "1.mp4", "1.npy"], ["1.npy"], ["rec/0.npz"]),
    ],
)
def test_copies_of_what_is_gone_are_left_out(
    tiny_world_model, tmp_path, flag, recorded, removed, kept, monkeypatch, capsys
):
    """Recordings that had been taken out, as a message asked for, were trained on nevertheless."""
    for name in recorded:
        (tmp_path / "rec" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "rec" / name).touch()
    flags = (flag, tmp_path / "rec", "--pretrained_model_name_or_path", tiny_world_model)
    args = parse(RobotArgs, [*map(str, flags), "--output_path", str(tmp_path / "robot")])
    made = robot_training.RobotTraining(args, "try")
    copies = made.conversion.expected()
    for copy in copies:
        write_episode(copy)
    monkeypatch.setattr(robot_training, "run_command", lambda *words: None)
    made.convert_first(None)
    assert set(made.data.rglob("*.npz")) == copies
    for name in removed:
        (tmp_path / "rec" / name).unlink()
    made.convert_first(None)
    assert sorted(str(file.relative_to(made.data)) for file in made.data.rglob("*.npz")) == kept
    assert f"left out, to {made.folder / 'left_out'}: 1 episode (" in capsys.readouterr().out
    assert len(list((made.folder / "left_out").rglob("*.npz"))) == 1


@pytest.mark.parametrize(
    ("frame_step", "apart"),
    [
        *((3, {"own": 3}), (3, {"reach-v3": 3}), (1, {"bridge": 2}), (2, {"bridge": 3}), (2, {"own": 2, "mine": 2})),
        *((1, {"bridge": 2, "own": 1}), (1, {"bridge": 2, "berkeley_autolab_ur5": 1}), (2, {"bridge": 3, "toto": 20})),
        *((2, {"bridge": 3, "own": 2}), (3, {"bridge": 5, "berkeley_autolab_ur5": 3})),
    ],
)
def test_frames_are_as_far_apart_as_asked(training, frame_step, apart):
    """Meta-World's frames stayed neighbours. A public data set has a pace of its own, also beside others."""
    made = training("--frame_step", frame_step)
    for name in apart:
        write_episode(made.data / name / "0.npz")
    if frame_step > 1 and len({dataset_info(name).base_step > 1 for name in apart}) > 1:
        listed = ", ".join(f"{step} of {name}" for name, step in sorted(apart.items()))
        with pytest.raises(UserError, match=f"--frame_step {frame_step} means every {listed}"):
            _ = made.video_stepsize
    else:
        assert {name: dataset_info(name).step(made.video_stepsize) for name in apart} == apart


@pytest.mark.parametrize(("gpus", "first"), [(1, "train_gpt.py"), (2, "-m")])
def test_one_gpu_needs_no_launcher(training, gpus, first, monkeypatch):
    """The launcher dies of a signal, and the training would go on alone, beside the next one."""
    ran = []
    monkeypatch.setattr("torch.cuda.device_count", lambda: gpus)
    monkeypatch.setattr(robot_training, "run_command", lambda *words: ran.append(words))
    training(preset="gpu").train("train_gpt.py")
    assert ran[0][0] == first


def test_commands_find_the_package_from_any_directory(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("PYTHONPATH", raising=False)
    assert robot_training.call([sys.executable, "-c", "import ivideogpt"]) == 0


@pytest.mark.parametrize("name", ["rlds/bridge_dataset", "lerobot_v21_g1"])
def test_real_recordings_are_recognised(name, tmp_path):
    script, _ = words(tmp_path, "--dataset", real_data(name))
    assert script == {"rlds": "datasets/oxe_data_converter.py"}.get(name[:4], "datasets/lerobot_to_npz.py")


COUNTING = """
import signal, sys, time
came = []
signal.signal(signal.SIGINT, lambda *_: came.append(1))
print("ready", flush=True)
while not came:
    time.sleep(0.01)
time.sleep(0.3)
sys.exit(len(came))
"""


def test_a_signal_reaches_the_command_once():
    """A second one would end a training at once, without a checkpoint. A terminal sends Ctrl-C to the whole group."""
    code = "import sys; from ivideogpt.commands.robot_training import call; sys.exit(call(sys.argv[1:]))"
    parent = subprocess.Popen(
        [sys.executable, "-c", code, sys.executable, "-c", COUNTING], stdout=subprocess.PIPE, text=True, process_group=0
    )
    assert parent.stdout.readline() == "ready\n"
    time.sleep(0.1)
    os.killpg(parent.pid, signal.SIGINT)
    assert parent.wait(60) == 1
