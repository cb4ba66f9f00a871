"""A run's record and its end, whatever happened before."""

import dataclasses
import io
import json
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image
from tensorboard.backend.event_processing.event_file_loader import LegacyEventFileLoader

from ivideogpt import devices
from ivideogpt.devices import OF_TORCHRUN, check_launcher
from ivideogpt.errors import UserError
from ivideogpt.training.common.args import GptArgs, TokenizerArgs, parse
from ivideogpt.training.common.checkpoints import TOKENIZER_CHECKPOINTS, Checkpoints
from ivideogpt.training.common.run import RULES, build_run, recorded_run
from tests.data.synthetic import write_episode


@pytest.fixture
def args(tmp_path):
    flags = f"--output_dir {tmp_path} --report_to none --disc_start 1000005"
    return parse(TokenizerArgs, flags.split())


def test_a_failed_process_does_not_wait_for_the_others(args, monkeypatch):
    """They may be waiting for its gradients: nobody would ever see its error."""
    run = build_run(args, TOKENIZER_CHECKPOINTS)
    waited = []
    with pytest.raises(UserError), run:  # noqa: PT012
        monkeypatch.setattr(run.accelerator, "wait_for_everyone", lambda: waited.append(True))
        raise UserError("a bad episode")
    assert waited == []


def test_float16_on_the_cpu_is_refused(args, tmp_path):
    """Accelerate would train in float32 without a word."""
    half = parse(TokenizerArgs, f"--output_dir {tmp_path} --mixed_precision fp16 --disc_start 1000005".split())
    with pytest.raises(UserError, match="--mixed_precision fp16 needs an accelerator"):
        build_run(half, TOKENIZER_CHECKPOINTS)


@pytest.mark.parametrize(("flags", "slow"), [("flags : avx2", True), ("flags : avx2 avx512_bf16", False)])
def test_emulated_bfloat16_is_warned_of(flags, slow, args, monkeypatch, caplog):
    """Such a run is 15 times slower than one in float32, and nothing else says so."""
    monkeypatch.setattr(devices, "processor_flags", lambda: flags)
    build_run(dataclasses.replace(args, mixed_precision="bf16"), TOKENIZER_CHECKPOINTS)
    assert ("no bfloat16 units" in caplog.text) == slow


@pytest.mark.parametrize(
    ("variables", "named"),
    [
        ({"OMPI_COMM_WORLD_SIZE": "4", "OMPI_COMM_WORLD_RANK": "0"}, "OMPI_COMM_WORLD_SIZE=4"),
        ({"PMI_SIZE": "4", "PMI_RANK": "0", "SLURM_NTASKS": "4"}, "PMI_SIZE=4"),
        ({"SLURM_STEP_NUM_TASKS": "2", "SLURM_PROCID": "0"}, "SLURM_STEP_NUM_TASKS=2"),
        (dict.fromkeys(OF_TORCHRUN, "0") | {"WORLD_SIZE": "4"}, "WORLD_SIZE=4"),
        ({"WORLD_SIZE": "many"}, "WORLD_SIZE=many"),
        ({"LOCAL_RANK": "0"}, "LOCAL_RANK=0"),
    ],
)  # fmt: skip
def test_what_another_launcher_left_is_refused(args, monkeypatch, variables, named):
    """Accelerate takes such variables for its own, and waited for processes that never came."""
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(UserError, match=f"{named}, and neither torchrun nor accelerate launch"):
        build_run(args, TOKENIZER_CHECKPOINTS)
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "none")
    check_launcher()  # torchrun's own processes may run within any of these


@pytest.mark.parametrize(
    "variables",
    [
        {},
        {"SLURM_JOB_ID": "77", "SLURM_NTASKS": "4", "SLURM_PROCID": "0", "SLURM_STEP_NUM_TASKS": "1", "PMIX_RANK": "0"},
        dict.fromkeys(OF_TORCHRUN, "0") | {"WORLD_SIZE": "1"},
    ],
)
def test_one_process_runs_in_an_allocation(monkeypatch, variables):
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    check_launcher()


def test_a_drawn_seed_and_the_precision_are_on_record(args):
    """What was left open must be the same when the run is resumed."""
    run = build_run(args, TOKENIZER_CHECKPOINTS)
    with run:
        recorded, _ = recorded_run(run.directory)
    assert recorded["seed"] == run.seed
    assert recorded["mixed_precision"] == "no"


def test_a_run_without_a_record_is_not_resumed(tmp_path):
    with pytest.raises(UserError, match=r"run\.json is missing; start a new run"):
        recorded_run(tmp_path)


def test_what_may_change_are_flags():
    """A renamed flag would be refused on resuming."""
    flags = set(TokenizerArgs.__dataclass_fields__) | set(GptArgs.__dataclass_fields__)
    assert not {*RULES.may_change, *RULES.data, *RULES.weights} - flags


def test_pictures_and_gifs_reach_tensorboard_as_they_are(tmp_path):
    args = parse(TokenizerArgs, f"--output_dir {tmp_path} --disc_start 1000005".split())
    run = build_run(args, TOKENIZER_CHECKPOINTS)
    frames = [Image.new("RGB", (8, 4), colour) for colour in ("red", "green", "blue")]
    film = tmp_path / "film.gif"
    frames[0].save(film, save_all=True, append_images=frames[1:])
    with run:
        run.log_image(3, "grid", frames[0])
        run.log_video(3, "film", film)
    logged = {
        value.tag: (event.step, value.image.encoded_image_string)
        for events in run.directory.rglob("events.out.tfevents*")
        for event in LegacyEventFileLoader(str(events)).Load()
        for value in event.summary.value
    }
    assert logged["film"] == (3, film.read_bytes())
    step, picture = logged["grid"]
    assert (step, Image.open(io.BytesIO(picture)).getpixel((0, 0))) == (3, (255, 0, 0))


def test_two_starts_in_one_second_get_two_folders(args, monkeypatch):
    """Both found the name free, and wrote into one folder."""
    runs = [build_run(args, TOKENIZER_CHECKPOINTS) for _ in range(2)]
    assert runs[0].directory.parent == runs[1].directory.parent
    runs[1].directory = runs[0].directory
    with runs[0], runs[1]:
        assert runs[0].directory != runs[1].directory
        assert [recorded_run(run.directory)[0]["seed"] for run in runs] == [run.seed for run in runs]


def test_only_data_sets_of_the_mix_are_compared(tmp_path):
    """Another data set, converted beside those that a run reads, would keep it from going on."""
    for name in ("own", "other"):
        write_episode(tmp_path / name / "0.npz")
    some, every = ({"dataset_path": str(tmp_path), "oxe_data_mixes_type": mix} for mix in ("folder:own", "folder:*"))
    digests = [RULES.digests(settings) for settings in (some, every)]
    write_episode(tmp_path / "new" / "0.npz")
    changes = [RULES.changes(settings, settings, found) for settings, found in zip((some, every), digests)]
    assert [found.keys() for found in changes] == [set(), {"dataset_path"}]
    write_episode(tmp_path / "own" / "0.npz", action=np.ones((20, 2), np.float32))
    assert RULES.changes(some, some, digests[0]).keys() == {"dataset_path"}


def test_a_run_that_is_training_is_not_resumed(args, tmp_path):
    """Two processes would write each other's checkpoints; when the first has ended, it may be."""
    run = build_run(args, TOKENIZER_CHECKPOINTS)
    with run:
        folder = Checkpoints(run.directory, TOKENIZER_CHECKPOINTS, lambda folder: None, {}, {}).save(1)
        again = dataclasses.replace(args, resume_from_checkpoint="latest", exp_name=run.args.exp_name, seed=run.seed)
        with pytest.raises(UserError, match=r"another process is running in .*: wait for it, or start a new run"):
            build_run(again, TOKENIZER_CHECKPOINTS)
    assert build_run(again, TOKENIZER_CHECKPOINTS).checkpoint == folder


def test_a_full_disk_does_not_end_training_for_a_line(args, caplog, no_room_for_files):
    """Training goes on after a checkpoint that could not be saved, and then died of the next line of its record."""

    def refuse(*_):
        raise OSError("no room for the tracker")

    told = []
    run = build_run(args, TOKENIZER_CHECKPOINTS)
    with run:
        run.log(1, "train", {"loss": 0.5})
        with no_room_for_files():
            run.log(2, "train", {"loss": 0.5})
            run.log_image(2, "grid", Image.new("RGB", (8, 8)))
        run.log(3, "train", {"loss": 0.5})
        run.trackers = [SimpleNamespace(log_gif=refuse), SimpleNamespace(log_gif=lambda *given: told.append(given))]
        run.log_video(3, "film", Path("film.gif"))
    assert told == [("film", Path("film.gif"), 3)]  # by the other tracker
    assert [json.loads(line)["step"] for line in (run.directory / "metrics.jsonl").read_text().splitlines()] == [1, 3]
    assert sum("File too large" in line and line.endswith("going on without") for line in caplog.messages) == 2
    assert "no room for the tracker; going on without" in caplog.messages


def test_accumulation_is_the_flag_s_alone(args, monkeypatch):
    """A variable that accelerate reads divided all gradients a second time."""
    monkeypatch.setenv("ACCELERATE_GRADIENT_ACCUMULATION_STEPS", "4")
    assert build_run(args, TOKENIZER_CHECKPOINTS).accelerator.gradient_accumulation_steps == 1


def test_an_output_folder_that_leads_nowhere_is_an_error(args, tmp_path):
    """It was tried again for ever."""
    (tmp_path / "gone").symlink_to(tmp_path / "unmounted" / "disk")
    run = build_run(dataclasses.replace(args, output_dir=str(tmp_path / "gone")), TOKENIZER_CHECKPOINTS)
    with pytest.raises(FileExistsError, match="gone"), run:
        pass
