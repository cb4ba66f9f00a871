"""The house rules that no other test would notice being broken: layers, optional packages, the public surface."""

import ast
import importlib
import io
import re
import subprocess
import sys
import tokenize
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "ivideogpt"

# From the ground up. A module imports modules of lower lines only; modules of one line do not know each other.
LAYERS = [
    {"errors"},
    {
        "files",
        "flags",
        "outputs",
        "paths",
        "precision",
        "devices",
        "pixel_range",
    },
    {"model_configs", "state_dicts", "web"},
    {"action_spaces", "layout", "video_io"},
    {"vq_model", "transformer", "data", "metrics", "runs"},
    {"losses"},
    {"metadata"},
    {"pretrained"},
    {"session", "released_api"},
    {"world_model"},
    {"evaluation", "envs", "planning"},
    {"training"},
    {"commands", "play", "utils"},
]
# Names of the released code whose contents live elsewhere now: they import across the layers, and nothing else.
REEXPORTS = {"vq_model/lpips.py"}
RANK = {room: rank for rank, rooms in enumerate(LAYERS) for room in rooms}

# Third-party package -> the only rooms that may know it.
KEPT_IN = {
    "accelerate": {"training"},
    "diffusers": set(),
    "transformers": {"transformer", "training"},
    "hydra": set(),
    "gymnasium": {"envs"},
    "stable_baselines3": {"envs"},
}
IMPORTED_WHERE_USED = {
    "av", "h5py", "kornia", "lance", "matplotlib", "metaworld", "mujoco", "peft", "pyarrow", "tensorflow",
    "tensorflow_datasets", "starlette", "trackio", "uvicorn", "wandb",
}  # fmt: skip


# The language is checked in these files and folders.
PLAIN_ENGLISH = [
    "benchmarks", "datasets", "examples", "inference", "ivideogpt", "mbrl",
    "train_gpt.py", "train_robot.py", "train_tokenizer.py",
]  # fmt: skip
CRYPTIC_NAMES = re.compile(r"_?(of(_\w+)?|its|those|aside|anew)")
CRYPTIC_OPENING = re.compile(
    r"(As|By|For|From|How|If|In|Of|One that|That|Those|To|What|When|Where|Which|Who|Whose|With)\b|[^.:]*\?"
)
# A help text or a comment behind code that begins so is half a sentence.
CRYPTIC_REMARK = re.compile(r"(of|its|their|those|that|whose|by which|what|how|which)\b")
# A word of this house -> the word that readers of the field know.
FIELD_TERMS = {
    "snapshot": "checkpoint",
    "Workspace": "Trainer",
    "film": "video",
    "adversary": "GAN loss",
    "averaged weights": "EMA",
    "stale tokens": "history corruption",
    "behaviour policies": "collection policies",
    "plain half": "context branch",
    "conditional half": "future branch",
    "halves": "branches",
}


def room_of(path: Path) -> str:
    """The part of the package that a file belongs to: its folder, or its own name at the top."""
    return path.relative_to(PACKAGE).with_suffix("").parts[0]


def modules() -> list[Path]:
    """Return all modules but the package's ``__init__``, ``__main__`` files and re-exports, which may reach up."""
    reaching_up = {PACKAGE / name for name in REEXPORTS}
    return [
        path
        for path in sorted(PACKAGE.rglob("*.py"))
        if room_of(path) != "__init__" and path.stem != "__main__" and path not in reaching_up
    ]


def imports(tree: ast.AST) -> Iterator[str]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports are absolute"
            assert node.module
            yield node.module
            if node.module == "ivideogpt":
                yield from (f"ivideogpt.{alias.name}" for alias in node.names)


def imports_at_module_level(tree: ast.Module) -> Iterator[str]:
    for statement in tree.body:
        if isinstance(statement, ast.Import | ast.ImportFrom):
            yield from imports(ast.Module([statement], []))


def test_every_room_has_a_layer_and_every_layer_a_room():
    """A new folder must say where it stands before anything can import it; a name without a folder misleads."""
    assert {room_of(path) for path in modules()} == set(RANK)


@pytest.mark.parametrize("path", modules(), ids=lambda path: str(path.relative_to(ROOT)))
def test_imports_point_down(path):
    """An upward import, also one hidden in a function, makes two parts one."""
    room = room_of(path)
    names = [name.split(".") for name in imports(ast.parse(path.read_text()))]
    known = {parts[1] for parts in names if parts[0] == "ivideogpt" and len(parts) > 1} - {room}
    upward = {other for other in known if RANK[other] >= RANK[room]}
    assert not upward, f"{room} must not import {sorted(upward)}"
    assert not {parts[0] for parts in names} & {"examples", "inference", "mbrl", "benchmarks", "tests"}


@pytest.mark.parametrize("path", modules(), ids=lambda path: str(path.relative_to(ROOT)))
def test_third_party_packages_stay_in_their_rooms(path):
    tree = ast.parse(path.read_text())
    for name in {name.split(".")[0] for name in imports(tree)} & set(KEPT_IN):
        assert room_of(path) in KEPT_IN[name], f"{name} is for {sorted(KEPT_IN[name])} only"
    optional = {name.split(".")[0] for name in imports_at_module_level(tree)} & IMPORTED_WHERE_USED
    assert not optional, f"import {sorted(optional)} where it is used: it may not be installed"


def plain_english_files() -> list[Path]:
    named = [ROOT / name for name in PLAIN_ENGLISH]
    return [path for entry in named for path in ([entry] if entry.suffix else sorted(entry.rglob("*.py")))]


def assigned_names(tree: ast.AST) -> Iterator[str]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Name | ast.Attribute) and isinstance(node.ctx, ast.Store):
            yield node.id if isinstance(node, ast.Name) else node.attr
        elif isinstance(node, ast.arg):
            yield node.arg


def docstrings(tree: ast.Module) -> list[str]:
    documented = (ast.Module, ast.ClassDef, ast.FunctionDef)
    return [text for node in ast.walk(tree) if isinstance(node, documented) and (text := ast.get_docstring(node))]


def help_texts(tree: ast.AST) -> Iterator[str]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "option":
            yield from (text.value for text in node.args[1:2] if isinstance(text, ast.Constant))


def comments_behind_code(source: str) -> Iterator[str]:
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type == tokenize.COMMENT and not token.line.lstrip().startswith("#"):
            yield token.string.removeprefix("#").strip()


@pytest.mark.parametrize("path", plain_english_files(), ids=lambda path: str(path.relative_to(ROOT)))
def test_plain_english(path):
    """A strange name or a docstring that begins in mid-sentence can be decoded by its author alone."""
    tree = ast.parse(path.read_text())
    assert not [name for name in assigned_names(tree) if CRYPTIC_NAMES.fullmatch(name)]
    texts = docstrings(tree)
    assert not [text for text in texts if CRYPTIC_OPENING.match(text)], "begin with a verb or with what is returned"
    remarks = [*help_texts(tree), *comments_behind_code(path.read_text())]
    assert not [text for text in remarks if CRYPTIC_REMARK.match(text)], "say what the value is"
    if path.is_relative_to(PACKAGE):  # a snapshot of a simulator, in mbrl, is none of a run
        words = [word for word in FIELD_TERMS if any(re.search(rf"\b{word}", text, re.IGNORECASE) for text in texts)]
        assert not words, f"the field's terms are {[FIELD_TERMS[word] for word in words]}"


def test_plain_english_is_noticed_when_it_is_missing():
    """A pattern that matches nothing would let everything pass."""
    tree = ast.parse('"""Of a thing."""\nof_x = 1\ndef f(its):\n    """Is it so?"""')
    assert [name for name in assigned_names(tree) if CRYPTIC_NAMES.fullmatch(name)] == ["of_x", "its"]
    assert all(CRYPTIC_OPENING.match(text) for text in docstrings(tree))
    source = 'x = option(1, "of sampling")  # of a run'
    remarks = [*help_texts(ast.parse(source)), *comments_behind_code(source)]
    assert remarks == ["of sampling", "of a run"]
    assert all(CRYPTIC_REMARK.match(text) for text in remarks)


def test_datasets_folder_is_no_package():
    """An __init__.py there would shadow Hugging Face's datasets for everything run from the repository's root."""
    assert not (ROOT / "datasets" / "__init__.py").exists()


def test_importing_the_package_is_cheap_and_silent():
    """``import ivideogpt`` loads no model library and prints nothing."""
    code = "import sys, ivideogpt; print(sorted({'diffusers', 'transformers', 'accelerate'} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=True)
    assert (done.stdout.strip(), done.stderr) == ("[]", "")


@pytest.mark.parametrize(
    ("module", "names"),
    [
        ("ivideogpt", ["WorldModel", "Session", "Sampling", "__version__"]),
        ("ivideogpt.vq_model", ["CompressiveVQModel", "Discriminator", "LPIPS"]),
        ("ivideogpt.vq_model.lpips", ["LPIPS"]),
        ("ivideogpt.data.simple_dataloader", ["SimpleRoboticDataLoaderv2", "EvalDataLoader"]),
        ("ivideogpt.data.sthsth_dataloader", ["SomethingEpisodes"]),
        ("ivideogpt.data.lerobot", ["LeRobotEpisodes"]),
        ("ivideogpt.vq_model.compressive_vq_model", ["CompressiveVQModel"]),
        ("ivideogpt.transformer", ["HeadModelWithAction"]),
        ("ivideogpt.transformer.action_model", ["HeadModelWithAction"]),
        ("ivideogpt.world_model", ["WorldModel", "Session", "Step", "Rollout", "evaluating", "symlog", "symexp"]),
        ("ivideogpt.session", ["Session", "SessionOptions", "Step"]),
        ("ivideogpt.envs", ["Contexts", "Imagination", "RecordedContexts", "WorldModelEnv", "WorldModelVectorEnv"]),
        ("ivideogpt.layout", ["TokenLayout", "FrameTokens"]),
        ("inference.utils", ["NPZParser"]),
    ],
)
def test_public_surface(module, names):
    """Other people's code imports these names."""
    missing = [name for name in names if not hasattr(importlib.import_module(module), name)]
    assert not missing


def test_requirements_pin_what_pyproject_asks_for():
    """A dependency added to one file and not the other is missing either for users or for the tests."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    asked = project["dependencies"] + [
        requirement
        for extra in ("mbrl", "envs", "rl", "data", "lora", "play", "dev")
        for requirement in project["optional-dependencies"][extra]
    ]
    lines = [line for line in (ROOT / "requirements.txt").read_text().splitlines() if not line.startswith("#")]
    assert lines[-1] == "-e ."
    pinned = {line.split("==")[0] for line in lines[:-1]}
    assert {requirement.split(">=")[0] for requirement in asked} <= pinned
    assert "torch==2.13.0" in lines
    assert not any(line.startswith("tensorflow==") for line in lines)
