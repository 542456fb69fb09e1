"""Networks with barriers on workers: sums that do not follow from the pieces, and maps between passes."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from support import zarrs
from support.photographs import photograph

import overlap_tool
from overlap_tool.files import Codec
from overlap_tool.geometry import Span
from overlap_tool.rules.barriers import Tree, whole_nodes
from overlap_tool.runtime.passes import Banded

pytest.importorskip("distributed")

from overlap_tool.distributed import run

pytestmark = pytest.mark.usefixtures("one_thread", "small_chunks")


@given(st.integers(0, 300), st.lists(st.integers(0, 300)))
def test_nodes_add_up_to_the_tree_wherever_the_parts_end(length, ends) -> None:
    values = torch.randn(length + 1, generator=torch.Generator().manual_seed(length))
    cuts = sorted({0, *(end for end in ends if end <= length), len(values)})
    tree = Tree("sum", 0)
    for start, stop in pairwise(cuts):
        nodes = whole_nodes(Span(start, stop))
        assert [*range(start, stop)] == [place for node in nodes for place in range(*node)]
        for node in nodes:
            with overlap_tool.exact_kernels():
                tree.add_node(node.length, values[slice(*node)].sum(0, keepdim=True))
    with overlap_tool.exact_kernels():
        assert torch.equal(tree.total(), values.sum(0, keepdim=True))


@pytest.fixture(scope="module", params=["TwoBarriers", "Normed"])
def scene(request, tmp_path_factory) -> tuple[Codec, Path, np.ndarray]:
    return _made(tmp_path_factory.mktemp("scene"), request.param, 236, 301)


def _made(folder: Path, name: str, height: int, width: int) -> tuple[Codec, Path, np.ndarray]:
    """A network in a file, a scene, and what the untouched network makes of all of it at once."""
    from support import networks

    torch.manual_seed(5)
    network = getattr(networks, name)().eval()
    pixels = photograph("astronaut", height, width)
    zarrs.written(folder / "in.zarr", pixels, (50, 70, 3))
    with torch.no_grad(), overlap_tool.exact_kernels():
        whole = network(torch.from_numpy(pixels).float().div(255).permute(2, 0, 1)[None])
    tiled = overlap_tool.wrap(network, tile=32)
    overlap_tool.save(tiled, folder / "net.tiled.pt", f"support.networks:{name}", {})
    return Codec.load(folder / "net.tiled.pt", trust=True), folder, whole[0].permute(1, 2, 0).numpy()


@pytest.fixture(autouse=True)
def _small_pieces(monkeypatch) -> None:
    monkeypatch.setattr("overlap_tool.distributed.sums.SIDE", 100)


@pytest.mark.parametrize("piece", [100, 128, 1000])
def test_the_bits_are_those_of_the_whole(tmp_path, scene, address, piece, monkeypatch) -> None:
    """And no map is read by the process that began."""
    codec, folder, whole = scene
    monkeypatch.setattr(Banded, "bands", lambda self: pytest.fail("read here"))
    run(
        codec,
        folder / "in.zarr",
        tmp_path / "out.zarr",
        dtype="float32",
        dask=address,
        piece=piece,
        trust=True,
    )
    assert np.array_equal(zarrs.values_of(tmp_path / "out.zarr"), whole)
    assert [path.name for path in tmp_path.iterdir()] == ["out.zarr"]


@pytest.mark.parametrize(
    ("name", "size", "piece"), [("ExcitedBlocks", 120, 40), ("OfOtherTypes", 90, 40), ("CoarseFirst", 16, 2)]
)
def test_what_is_kept_between_passes(tmp_path, address, name, size, piece) -> None:
    """What others of its pass read around a piece was not computed; a float64 was rounded to a float32, and
    True to one; and pieces so small that a coarse map has nothing at their place could not be summed up."""
    codec, folder, whole = _made(tmp_path, name, size, size)
    how = {"dtype": "float32", "dask": address, "piece": piece, "trust": True}
    run(codec, folder / "in.zarr", folder / "out.zarr", **how)
    assert np.array_equal(zarrs.values_of(folder / "out.zarr"), whole)


@pytest.mark.parametrize("room", [2, 8, 11])
def test_a_run_that_stopped_goes_on(tmp_path, scene, address, disk, room) -> None:
    """In the middle of a pass, and between passes, when maps before are gone."""
    codec, folder, whole = scene
    disk.room = room
    how = {"dtype": "float32", "dask": address, "piece": 128, "trust": True}
    with pytest.raises(overlap_tool.ImageFileError, match="No space left"):
        run(codec, folder / "in.zarr", tmp_path / "out.zarr", **how)
    assert not (tmp_path / "out.zarr").exists()
    disk.room = 1000
    assert run(codec, folder / "in.zarr", tmp_path / "out.zarr", resume=True, **how).resumed
    pieces = [name for name, _ in disk.marked if name != "image"]
    assert len(set(pieces)) == len(pieces), "nothing is done twice"
    assert np.array_equal(zarrs.values_of(tmp_path / "out.zarr"), whole)
