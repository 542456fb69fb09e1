"""A refusal names the parameter to Python, and the option to whoever typed it."""

from __future__ import annotations

import re
import shlex

import pytest
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

import overlap_tool
from overlap_tool import cli
from overlap_tool.cli.spelling import as_typed
from overlap_tool.errors import OptionError, OverlapToolError


@pytest.mark.parametrize(
    ("told", "typed"),
    [
        ("tile=0", "--tile 0"),
        ("tile=(1024, 0)", "--tile 1024x0"),
        ("tiles=[64, (32, 16)]", "--tile 64,32x16"),
        ("architecture='mbt2018'", "--arch mbt2018"),
        ("images='a photo.png'", "--image 'a photo.png'"),
        ("trust=True", "--trust"),
        ("in_memory='1'", "--in-memory 1"),
        ("trust=False", "--trust False"),
        ("batch=0", "batch=0"),  # which only Python has
        ("tile=nobody's", "tile=nobody's"),  # no literal
        ("photo=1.png", "photo=1.png"),
        ("tile=3 of net.pt", "tile=3 of net.pt"),
    ],
)
def test_where_a_refusal_begins(told, typed) -> None:
    message = as_typed(OptionError(told, f"not `{told}`", f"Leave `{told.partition('=')[0]}` out"), cli.app)
    begin, _, rest = message.partition(": ")
    assert begin == typed
    assert rest.startswith(f"not {typed}" if typed.startswith("--") else f"not `{told}`")


def test_text_that_only_looks_alike_stays() -> None:
    reason = "its constructor is Net(width, size=3), with tile=4 and trust=True"
    assert as_typed(OverlapToolError("net.pt", reason, "Go"), cli.app) == f"net.pt: {reason}. Go"


@given(st.text(), st.text(), st.text())
def test_any_text_is_a_message(where, reason, way_out) -> None:
    as_typed(OverlapToolError(where, f"`tile={reason}`", way_out), cli.app)


@pytest.mark.parametrize(
    ("options", "told", "typed"),
    [
        ({"tile": 0}, "tile=0: ", "--tile 0"),
        ({"tile": (64, 0)}, "tile=(64, 0): ", "--tile 64x0"),
        ({"memory": "much"}, "memory='much': ", "--memory much"),
        ({"memory": "3"}, "memory=3: ", "--memory 3"),
        ({"uniform": True, "schedule": "stream"}, "uniform=True: ", "--uniform --schedule stream"),
    ],
)
def test_each_says_it_in_its_own_words(run, tmp_path, options, told, typed) -> None:
    with pytest.raises(ValueError, match=re.escape(told)) as caught:
        overlap_tool.plans(overlap_tool.wrap(nn.Conv2d(3, 3, 3, padding=1).eval(), **options), (64, 64))
    assert isinstance(caught.value, OptionError)
    assert str(caught.value).startswith(told)
    assert "--" not in str(caught.value)
    line = f"wrap --model torch.nn:Conv2d -o {tmp_path / 'it.pt'} {typed}"
    kwargs = ("--kwargs", '{"in_channels": 3, "out_channels": 3, "kernel_size": 3}')
    code, _, err = run(*shlex.split(line), *kwargs)
    assert code == 2
    assert err.startswith(f"error: {typed.partition(' --schedule stream')[0]}: ")
    assert "=" not in err
    assert "`" not in err


def test_no_refusal_of_the_library_speaks_command_line() -> None:
    """But where it says so: plugins are files only there."""
    import ast
    from pathlib import Path

    package = Path(overlap_tool.__file__).parent
    for path in package.rglob("*.py"):
        if path.parent.name == "cli":
            continue
        calls = [node for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Raise)]
        texts = [
            node.value
            for call in calls
            for node in ast.walk(call)
            if isinstance(node, ast.Constant) and isinstance(node.value, str)
        ]
        assert not [text for text in texts if "--" in text and "command line, --plugin" not in text], path


@pytest.mark.parametrize(
    ("options", "told"),
    [
        (["wrap", "x.pt", "--schedule", "foo"], "--schedule.*'foo' is not one of 'stream', 'tiles'"),
        (["wrap", "x.pt", "--tiel", "3"], "No such option: --tiel.*--tile"),
        (["wrpa"], "No such command 'wrpa'.*wrap"),
        (["wrap", "--tile"], "'--tile' requires an argument"),
    ],
)
def test_what_is_mistyped_is_one_line(run, options, told) -> None:
    """typer draws a box around it, and breaks its lines."""
    code, out, err = run(*options)
    assert (code, out) == (2, "")
    assert re.fullmatch(rf"error: .*{told}.* --help lists what there is\n", err), err
