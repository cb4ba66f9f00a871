"""``python -m ivideogpt.evaluation``: what a report says, that it can be had again, and what is refused."""

import json
import math
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from ivideogpt.commands import evaluate
from ivideogpt.commands.evaluate import EvaluationArgs
from ivideogpt.commands.run_evaluation import clip_config, load_clips
from ivideogpt.data import catalog
from ivideogpt.data.clips.dataset import DataConfig
from ivideogpt.data.clips.evaluation_clips import EvaluationClips, build_benchmark_evaluation, build_evaluation_clips
from ivideogpt.data.clips.segments import SegmentSpec
from ivideogpt.errors import UserError
from ivideogpt.evaluation.rows import ClipRows
from ivideogpt.evaluation.scoring import read_with_others
from ivideogpt.evaluation.video_prediction import sample_futures
from ivideogpt.flags import parse
from ivideogpt.metadata import ModelMetadata
from ivideogpt.pretrained import TOKENIZER_WEIGHTS
from ivideogpt.utils.video_metric import Evaluator, FeatureStats
from ivideogpt.world_model import WorldModel
from tests.commands import run_in_two_processes
from tests.data.synthetic import write_dataset, write_episode
from tests.parity.networks import world_model

FILES = {"report.json", "report.md", "clips.jsonl", "curves.png"}
PICTURES = {f"clip-{rank}.{kind}" for rank in ("best", "median", "worst") for kind in ("png", "gif")}


@pytest.fixture(scope="module")
def bare_flags(tiny_world_model, episodes) -> list[str]:
    required = ["--pretrained_model_name_or_path", str(tiny_world_model), "--dataset_path", str(episodes)]
    return [*required, *["--split", "all", "--num_clips", "5", "--batch_size", "2", "--num_samples", "3"]]


@pytest.fixture(scope="module")
def flags(bare_flags, metric_weights) -> list[str]:
    """With LPIPS and FVD: fewer futures, as LPIPS takes most of the time."""
    return [*bare_flags, *metric_weights, "--num_clips", "3", "--num_samples", "2", "--batch_size", "1"]


@pytest.fixture(scope="module")
def whole(flags, tmp_path_factory) -> Path:
    """The report with all metrics."""
    folder = tmp_path_factory.mktemp("evaluation") / "whole"
    evaluate.main([*flags, "--output_path", str(folder)])
    return folder


@pytest.fixture(scope="module")
def without_lpips(bare_flags, metric_weights) -> list[str]:
    return [*bare_flags, *metric_weights[2:]]


@pytest.fixture(scope="module")
def uninterrupted(without_lpips, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("evaluation") / "uninterrupted"
    evaluate.main([*without_lpips, "--output_path", str(folder)])
    return folder


def report_of(folder: Path) -> dict:
    return json.loads((folder / "report.json").read_text())


def numbers_in(report: dict) -> dict[str, float]:
    """All measured numbers, by their path."""
    found: dict[str, float] = {}

    def walk(value, path: str) -> None:
        if isinstance(value, dict):
            for name, inner in value.items():
                walk(inner, f"{path}/{name}")
        elif isinstance(value, list):
            for place, inner in enumerate(value):
                walk(inner, f"{path}/{place}")
        elif isinstance(value, int | float):
            found[path] = value

    for part in ("scores", "fvd", "findings", "per_frame"):
        walk(report[part], part)
    return found


def assert_equal_files(again: Path, whole: Path) -> None:
    assert {path.name for path in again.iterdir()} == FILES | PICTURES
    for file in whole.iterdir():
        assert file.read_bytes() == (again / file.name).read_bytes(), file.name


def test_an_interrupted_evaluation_goes_on_to_the_same_report(without_lpips, uninterrupted, tmp_path, monkeypatch):
    """Hours of sampling are not lost, nothing counts twice, and the same command writes the same bytes."""
    predict, calls = WorldModel.predict, []

    def stop_at_the_third_batch(self, *arguments, **kwargs):
        calls.append(kwargs["clip_numbers"])
        if len(calls) == 5:  # futures, and those under other actions, of each batch
            raise KeyboardInterrupt
        return predict(self, *arguments, **kwargs)

    monkeypatch.setattr(WorldModel, "predict", stop_at_the_third_batch)
    again = [*without_lpips, "--output_path", str(tmp_path / "again")]
    with pytest.raises(KeyboardInterrupt):
        evaluate.main(again)
    assert not (tmp_path / "again" / "report.json").exists()
    with (tmp_path / "again" / "clips.jsonl").open("a") as lines:
        lines.write('{"clip": 4, "sco')  # killed while it wrote
    evaluate.main(again)
    pictures = [[clip["clip"]] for clip in report_of(tmp_path / "again")["shown"]]
    assert [list(numbers) for numbers in calls[5:]] == [[4], [4], *pictures]
    assert_equal_files(tmp_path / "again", uninterrupted)


def test_rows_of_another_evaluation_are_not_continued(bare_flags, tmp_path, caplog, monkeypatch):
    """Scores of two models in one table would be read as those of one."""
    monkeypatch.setattr(ClipRows, "finish", lambda file: None)  # as if interrupted before it
    for seed in ("0", "1"):
        few = ["--num_clips", "2", "--num_samples", "1", "--protocol", "paper", "--seed", seed]
        evaluate.main([*bare_flags, *few, "--output_path", str(tmp_path)])
        assert set(report_of(tmp_path)["scores"]) == {"paper"}
    assert "beginning again: " in caplog.text
    assert "seed was 0, is 1)" in caplog.text
    assert len((tmp_path / "clips.jsonl").read_text().splitlines()) == 2


def test_rows_of_episodes_that_were_written_again_are_not_continued(tmp_path):
    """Under the same names, scores of frames and actions that no longer exist would count."""
    write_dataset(tmp_path / "robot")
    args = parse(EvaluationArgs, ["--pretrained_model_name_or_path", "unused", "--dataset_path", str(tmp_path)])
    config = clip_config(args, ModelMetadata(64, 2, 5, action_dim=2))

    def checksum():
        return build_evaluation_clips(config, "all", 5, seed=0).checksum()

    before = checksum()
    assert checksum() == before
    write_episode(tmp_path / "robot" / "00002.npz", action=np.ones((20, 2)))
    assert checksum() != before
    (tmp_path / "robot" / "00002.npz").write_bytes(b"nothing")  # reading its clips says so
    assert checksum() != before


def test_folders_of_other_commands_are_left_alone(bare_flags, tiny_world_model, episodes, tmp_path):
    """Their settings and reports were removed, after which they emptied their own rows."""
    plan = {"settings.json": '{"planner": "cem"}', "episodes.jsonl": "{}\n", "report.md": "plans"}
    for name, text in plan.items():
        (tmp_path / name).write_text(text)
    with pytest.raises(UserError, match=r"settings\.json is of something else than video prediction: name another"):
        evaluate.main([*bare_flags, "--num_clips", "1", "--output_path", str(tmp_path)])
    assert {name: (tmp_path / name).read_text() for name in plan} == plan
    shared = [*bare_flags[:2], "--dataset_path", str(episodes), "--split", "all", "--num_clips", "1"]
    evaluate.main(["tokenizer", *shared, "--output_path", str(tmp_path / "tokenizer")])
    with pytest.raises(UserError, match=r"report\.json is of something else than video prediction"):
        evaluate.main([*bare_flags, "--num_clips", "1", "--output_path", str(tmp_path / "tokenizer")])
    assert report_of(tmp_path / "tokenizer")["kind"] == "tokenizer"


def test_episodes_of_one_file_name_are_several(tmp_path):
    """VP2's tasks have the same names: all tasks' first episodes counted as one."""
    image, action = np.zeros((9, 64, 64, 3), np.uint8), np.zeros((9, 5), np.float32)
    names = [f"{task}/validation/{number}.npz" for task in ("push", "open") for number in range(2)]
    for name in names:
        write_episode(tmp_path / "vp2" / name, 9, image=image, action=action)
    (tmp_path / "paths.yaml").write_text(f"robodesk_dataset: {tmp_path / 'vp2'}\n")
    segment, mix = SegmentSpec(length=5), (("vp2_robodesk", 1.0),)
    config = DataConfig(mix=mix, segment=segment, image_size=64, dataset_yaml=str(tmp_path / "paths.yaml"))
    clips = build_benchmark_evaluation(config, None)
    assert clips.num_episodes == 4
    assert {clips.origin(number).episode for number in range(4)} == set(names)


def test_two_processes_and_other_batches_give_the_same_numbers(flags, whole, tmp_path):
    """Nothing counts twice, nothing is left out, and no clip or sample draws other numbers."""
    others = ["--batch_size", "2", "--max_generate_batchsize", "2", "--max_decode_batchsize", "3"]
    done = run_in_two_processes("-m", "ivideogpt.evaluation", *flags, *others, "--output_path", tmp_path / "two")
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("# Video prediction") == 1
    one, two = (numbers_in(report_of(folder)) for folder in (whole, tmp_path / "two"))
    assert len(one) > 300
    assert two == pytest.approx(one, abs=1e-5, rel=1e-5)


def test_published_protocol_equals_the_evaluator(flags, whole, tiny_world_model):
    """The report's numbers are those that other people's code gets from the same futures."""
    args = parse(EvaluationArgs, flags)
    model = WorldModel.from_pretrained(tiny_world_model)
    clips = load_clips(args, model.metadata)
    batch = clips.read(range(3))
    rollout = sample_futures(model, batch, seed=0, num_samples=2)
    context = rollout.context[:, None].expand(-1, 2, -1, -1, -1, -1)
    futures = torch.cat([context, rollout.frames], dim=2).transpose(0, 1).flatten(0, 1)
    evaluator = Evaluator(args.i3d_path, lpips_path=args.lpips_path)
    expected = dict(zip(("mse", "psnr", "ssim", "lpips"), evaluator(batch.frames, futures), strict=True))
    report = report_of(whole)
    for metric, value in expected.items():
        assert report["scores"]["paper"]["prediction"][metric]["mean"] == pytest.approx(float(value), rel=1e-5)
    real, generated = (FeatureStats(capture_mean_cov=True) for _ in range(2))
    real.append_torch(evaluator.features(batch.frames))
    generated.append_torch(evaluator.features(futures))
    assert report["fvd"]["paper"]["prediction"] == pytest.approx(evaluator.compute_fvd(real, generated), rel=1e-4)


def test_report_says_what_it_was_made_with(uninterrupted, tiny_world_model):
    report, text = report_of(uninterrupted), (uninterrupted / "report.md").read_text()
    assert report["settings"]["model"] == str(tiny_world_model)
    assert report["settings"]["num_samples"] == 3
    for checksum in (report["model"]["transformer_checksum"], report["clips"]["checksum"]):
        assert checksum in text
    questions = {finding["candidate"] for finding in report["findings"]}
    assert questions == {"copy_last_frame", "shuffled_actions"}
    lines = [json.loads(line) for line in (uninterrupted / "clips.jsonl").read_text().splitlines()]
    assert [line["clip"] for line in lines] == list(range(5))
    assert {line["dataset"] for line in lines} == {"left", "right"}
    shown = {clip["rank"]: clip["psnr"] for clip in report["shown"]}
    assert shown["worst"] <= shown["median"] <= shown["best"]


def test_missing_weights_leave_a_metric_out_and_say_where_they_belong(bare_flags, tmp_path, caplog):
    """A zero in the table would be read as a score."""
    missing = ["--lpips_path", str(tmp_path / "none"), "--i3d_path", str(tmp_path / "none.pt")]
    evaluate.main([*bare_flags, *missing, "--num_clips", "1", "--output_path", str(tmp_path / "out")])
    report = report_of(tmp_path / "out")
    assert report["fvd"] == {}
    assert "lpips" not in report["scores"]["paper"]["prediction"]
    assert len(report["left_out"]) == 2
    assert "shuffled_actions" not in report["scores"]["future"], "one clip has no others"
    assert "md5 d507d7349b931f0638a25a48a722f98a" in caplog.text
    assert str(tmp_path / "none.pt") in caplog.text


def test_greedy_checkpoints_are_sampled_once(bare_flags, tmp_path, caplog):
    evaluate.main([*bare_flags, "--num_clips", "2", "--top_k", "1", "--output_path", str(tmp_path)])
    assert "one sample of each clip" in caplog.text
    assert "future_best" not in report_of(tmp_path)["scores"]


@pytest.fixture
def benchmark(tmp_path, monkeypatch) -> list[str]:
    """Flags for the evaluation clips of BAIR."""
    for number in range(3):
        image = np.random.default_rng(number).integers(0, 255, (9, 64, 64, 3), dtype=np.uint8)
        action = np.zeros((9, 4), np.float32)
        write_episode(tmp_path / "bair" / f"{number}.npz", 9, image=None, aux1_image=image, action=action)
    listing = tmp_path / "DATASET.yaml"
    listing.write_text("bair_train_dataset: bair\nbair_test_dataset: bair\n")
    monkeypatch.setattr(catalog, "DATASET_YAML", listing)
    return ["--use_eval_dataset", "--oxe_data_mixes_type", "bair"]


def test_benchmarks_have_every_episode_once(bare_flags, benchmark, tmp_path):
    evaluate.main([*bare_flags[:2], *benchmark, "--output_path", str(tmp_path / "out")])
    report = report_of(tmp_path / "out")
    assert (report["clips"]["number"], report["clips"]["episodes"]) == (3, 3)
    assert report["findings"][0]["answer"] == "not to be said of fewer than 5 episodes"


def test_models_without_actions_and_with_a_goal(episodes, benchmark, tmp_path):
    world_model().save_pretrained(tmp_path / "act-free")
    model = ["--pretrained_model_name_or_path", str(tmp_path / "act-free")]
    shared = [*model, "--dataset_path", str(episodes), "--split", "all", "--segment_length", "6"]
    evaluate.main([*shared, "--goal_conditioned", "--output_path", str(tmp_path / "goal")])
    evaluate.main([*shared, "--separators", "sampled", "--num_clips", "1", "--output_path", str(tmp_path / "free")])
    for name, goal, number in (("goal", True, 6), ("free", False, 1)):
        report = report_of(tmp_path / name)
        assert "shuffled_actions" not in report["scores"]["future"]
        assert report["model"]["metadata"]["goal_conditioned"] is goal
        assert report["clips"]["number"] == number
    with pytest.raises(UserError, match="--goal_conditioned: --use_eval_dataset has its own clips"):
        evaluate.main([*model, *benchmark, "--goal_conditioned"])


def test_one_future_frame_has_no_later_half(bare_flags, tmp_path):
    evaluate.main([*bare_flags, "--segment_length", "3", "--output_path", str(tmp_path)])
    text = (tmp_path / "report.md").read_text()
    assert "Later half" not in text
    table = text.partition("## By dataset")[2].partition("##")[0]
    rows = [line for line in table.splitlines() if line.startswith(("| left |", "| right |"))]
    assert len(rows) == 2
    assert not any("[" in row for row in rows)  # an interval of three episodes says nothing


def test_other_actions_are_of_another_episode(episodes):
    """Of the same one they may be the very same."""
    args = parse(EvaluationArgs, ["--pretrained_model_name_or_path", "unused", "--dataset_path", str(episodes)])
    config = clip_config(args, ModelMetadata(64, 2, 5, action_dim=4))
    clips = build_evaluation_clips(config, "all", 20, seed=0)
    assert clips.num_episodes == 6
    for number in range(20):
        assert clips.origin(clips.next_of_another_episode(number)) != clips.origin(number)
    others = [clips.next_of_another_episode(number) for number in range(4, 9)]
    batch, actions = read_with_others(clips, range(4, 9), others)
    assert len(batch.frames) == len(actions) == 5
    assert torch.equal(actions, torch.stack([clips.read([other]).actions[0] for other in others]))
    one = build_evaluation_clips(replace(config, mix=(("left", 1.0),)), "test", 3, seed=0)
    assert one.next_of_another_episode(0) is None
    assert read_with_others(one, [0, 1], [])[1] is None


def test_the_other_episode_of_a_clip_is_looked_for_once(bare_flags, tmp_path, monkeypatch):
    """With many clips of one episode, each of them looks through all the others."""
    asked, find = [], EvaluationClips.next_of_another_episode
    monkeypatch.setattr(
        EvaluationClips, "next_of_another_episode", lambda clips, number: asked.append(number) or find(clips, number)
    )
    evaluate.main([*bare_flags, "--segment_length", "3", "--output_path", str(tmp_path)])
    assert sorted(asked) == list(range(len((tmp_path / "clips.jsonl").read_text().splitlines())))


# ---- what is refused


def test_refusals(bare_flags, episodes, tmp_path):
    (tmp_path / "text.pt").write_text("not a network")
    short, still = tmp_path / "short", tmp_path / "still"
    write_episode(short / "set" / "0.npz", 3, action=np.zeros((3, 4), np.float32))
    write_episode(still / "set" / "0.npz", 9)
    for wrong, message in (
        (["--i3d_path", str(tmp_path / "text.pt")], "no readable torchscript file"),
        (["--dataset_path", str(short)], "has 3 frames, fewer than the 5 of a clip"),
        (["--dataset_path", str(still)], "action"),
        (["--dataset_path", str(tmp_path / "nowhere")], "nowhere"),
        (["--split", "train", "--dataset_path", str(short)], "no episodes|no train"),
        (["--segment_length", "2"], "leave none to predict"),
        (["--segment_length", "0"], "--segment_length is 0: it must be at least 1"),  # it was taken for none given
        (["--context_length", "3"], "context_length 3"),
        (["--output_path", str(tmp_path / "scores.json")], "name a folder"),
        (["--use_eval_dataset"], "--dataset_path, --split: --use_eval_dataset has its own clips"),
    ):
        with pytest.raises(UserError, match=message):
            evaluate.main([*bare_flags, "--output_path", str(tmp_path / "out"), *wrong])
        assert not (tmp_path / "out").exists() or not (tmp_path / "out" / "report.json").exists()
    with pytest.raises(UserError, match="unknown command 'polices': expected compare, tokenizer, policies, or flags"):
        evaluate.main(["polices", *bare_flags])  # it asked for flags that were there
    with pytest.raises(UserError, match="needs the benchmark's name"):
        evaluate.main([*bare_flags[:2], "--use_eval_dataset", "--output_path", str(tmp_path / "out")])
    with pytest.raises(UserError, match="--dataset_path is missing"):
        parse(EvaluationArgs, ["--pretrained_model_name_or_path", "anything"])


def test_a_model_that_predicts_nan_is_no_result(bare_flags, tiny_world_model, tmp_path):
    """Its means would be NaN, and its best sample whichever is not."""
    model = WorldModel.from_pretrained(tiny_world_model)
    with torch.no_grad():
        model.tokenizer.cond_decoder.conv_out.bias[0] = math.nan
    shutil.copytree(tiny_world_model, tmp_path / "broken")
    tensors = {name: tensor.contiguous() for name, tensor in model.tokenizer.state_dict().items()}
    save_file(tensors, tmp_path / "broken" / "tokenizer" / TOKENIZER_WEIGHTS)
    broken = ["--pretrained_model_name_or_path", str(tmp_path / "broken"), "--output_path", str(tmp_path / "out")]
    with pytest.raises(
        UserError, match=r"is damaged, or its training went wrong; not finite.*: cond_decoder\.conv_out\.bias"
    ):
        evaluate.main([*bare_flags, *broken])


def test_an_error_is_one_line_also_with_two_processes(bare_flags, tmp_path):
    write_episode(tmp_path / "set" / "0.npz", 9, action=np.zeros((9, 4), np.float32))
    write_episode(tmp_path / "set" / "1.npz", 3, action=np.zeros((3, 4), np.float32))
    wrong = ["--dataset_path", str(tmp_path), "--batch_size", "1", "--output_path", str(tmp_path / "out")]
    done = run_in_two_processes("-m", "ivideogpt.evaluation", *bare_flags, *wrong)
    assert done.returncode != 0
    assert any(line.startswith("error: ") and "has 3 frames" in line for line in done.stderr.splitlines())


# ---- which clips


def numbered_clip(folder, metadata: ModelMetadata, *flags: str) -> list[int]:
    """The frame numbers of one clip that the command would score. Episodes have 20 frames, as their pixels say."""
    required = ("--pretrained_model_name_or_path", "unused", "--dataset_path", str(folder))
    config = clip_config(parse(EvaluationArgs, [*required, *flags]), metadata)
    clip = build_evaluation_clips(config, "all", 1, seed=0).read([0])
    return (clip.frames[0, :, 0, 0, 0] * 255).round().int().tolist()


def test_a_goal_comes_first_as_in_training(tmp_path):
    """Frame 0 in its place would tell the model to end where it began."""
    write_dataset(tmp_path / "robot")
    goal, *others = numbered_clip(tmp_path, ModelMetadata(8, 2, segment_length=5, goal_conditioned=True))
    assert others == list(range(others[0], others[0] + 4))
    assert goal == others[-1]


@pytest.mark.parametrize(("flags", "step"), [((), 4), (("--video_stepsize", "6"), 2)])
def test_frames_are_as_far_apart_as_in_training(tmp_path, flags, step):
    write_dataset(tmp_path / "robot")
    numbers = numbered_clip(tmp_path, ModelMetadata(8, 2, segment_length=5, dataset_step=4), *flags)
    assert set(np.diff(numbers)) == {step}


def test_frames_that_are_closer_than_asked_for_are_warned_of(tmp_path, caplog):
    """A report said --video_stepsize 21, which is seven frames here, of clips whose frames were four apart."""
    write_dataset(tmp_path / "hasty")
    numbers = numbered_clip(tmp_path, ModelMetadata(8, 2, segment_length=5), "--video_stepsize", "21")
    assert set(np.diff(numbers)) == {4}
    assert caplog.messages == ["hasty: in episodes with too few frames for 5 that are 7 apart they are closer"]


def test_few_clips_are_of_all_datasets(episodes):
    """The first ones in order would all be of the first data set."""
    args = parse(EvaluationArgs, ["--pretrained_model_name_or_path", "unused", "--dataset_path", str(episodes)])
    clips = build_evaluation_clips(clip_config(args, ModelMetadata(64, 2, 5)), "all", 4, seed=0)
    assert {clips.origin(number).dataset for number in range(4)} == {"left", "right"}
    assert len({(clips.origin(number)) for number in range(4)}) == 4
    alone, together = clips.read([2]), clips.read([0, 1, 2])
    assert torch.equal(alone.frames[0], together.frames[2])
