"""Every command of README and docs is understood by the command that it calls; what they name exists."""

import ast
import re
from argparse import Namespace

import pytest
from accelerate.commands.launch import _validate_launch_command, launch_command_parser

from tests.documented import ROOT, check, commands

PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
COMMANDS = [(page.name, command) for page in PAGES for command in commands(page.read_text())]


@pytest.mark.parametrize(("page", "command"), COMMANDS, ids=lambda value: " ".join(value)[:60] if value else "")
def test_command(page, command, monkeypatch):
    """A renamed flag or a moved script makes the first thing that a newcomer tries fail."""
    monkeypatch.chdir(ROOT)
    check(command)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_and_named_scripts(page):
    text = page.read_text()
    linked = [page.parent / path for path in re.findall(r"\]\(([\w/.-]+)(?:#[\w-]+)?\)", text)]
    named = re.findall(r"`(?:bash )?((?:scripts|configs|datasets|benchmarks)/[\w./-]+)[^`]*`", text)
    assert not [path for path in linked + [ROOT / path for path in named] if not path.exists()]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_python_examples_are_python(page):
    """An example that was cut short to fit a page is the first thing that a reader pastes."""
    for example in re.findall(r"^```python\n(.*?)^```", page.read_text(), re.MULTILINE | re.DOTALL):
        ast.parse(example)


@pytest.mark.parametrize("page", sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md")]), ids=lambda page: page.name)
def test_every_point_of_a_list_has_a_line(page):
    """Filling paragraphs anew had put the next point of some lists into the line before."""
    assert not re.findall(r"^.*[.;:] - [A-Z*`].*$", page.read_text(), re.MULTILINE)


def test_architecture_names_what_is_there():
    """The page is the map: a file that has moved sends its reader into the wrong room."""
    named = re.findall(r"`([\w/]+(?:\.py|/))`", (ROOT / "docs" / "architecture.md").read_text())
    files = [f"/{path.relative_to(ROOT)}" + "/" * path.is_dir() for path in ROOT.glob("[a-z]*/**/*")]
    assert len(named) > 50
    assert not [name for name in named if not any(file.endswith(f"/{name}") for file in files)]


@pytest.mark.parametrize("path", sorted((ROOT / "configs" / "accelerate").iterdir()), ids=lambda path: path.name)
def test_accelerate_reads_its_configurations(path):
    """Nothing here has the GPUs to run them."""
    args: Namespace = launch_command_parser().parse_args(["--config_file", str(path), "train_gpt.py"])
    args, _defaults, _ = _validate_launch_command(args)
    assert args.num_processes > 1
    if path.stem == "multi_gpu":
        assert args.multi_gpu
        return
    assert args.use_fsdp
    assert (args.fsdp_version, args.fsdp_transformer_layer_cls_to_wrap) == (2, "LlamaDecoderLayer")


def test_the_page_of_data_names_every_command():
    """What is not mentioned is not found."""
    named = commands((ROOT / "docs" / "data.md").read_text())
    scripts = {word for command in named for word in command if word.startswith("datasets/")}
    assert {str(path.relative_to(ROOT)) for path in (ROOT / "datasets").glob("*.py")} == scripts
    assert {command[3] for command in named if command[1:3] == ["-m", "ivideogpt.data"]} == {
        "inspect", "preview", "validate", "tokenize",
    }  # fmt: skip
