"""Block by block and wavefront by wavefront, the codec gives the bits that it gives on whole maps."""

from __future__ import annotations

import copy
from collections import Counter
from typing import Any

import pytest
import torch
from overlap_tool_kamisli import blocks
from overlap_tool_kamisli.blockwise import BlockByBlock, History
from overlap_tool_kamisli.causality import Reach, fronts
from overlap_tool_kamisli.codec import BlockCodec
from support.small_models import small_model
from support.textures import textured
from support.threads import on_threads
from torch import Tensor

from overlap_tool import exact_kernels
from overlap_tool.checkpoint import find, seeded_model
from overlap_tool.errors import CheckpointError, OptionError, WeightsError
from overlap_tool.planning.live_bytes import LiveBytes

NAMES = ["kamisli", "kamisli-hps2"]
ABOVE = [(-1, -1), (-1, 0), (-1, 1)]
FAIR_SHARE = 0.05

names = pytest.mark.parametrize("name", NAMES)
orders = pytest.mark.parametrize("together", [True, False], ids=["wavefront", "raster"])


pytestmark = pytest.mark.usefixtures("one_thread")


def paper(codec: BlockCodec, image: Tensor) -> dict[str, Any]:
    """The closed loop as the paper tells it: block after block, from the whole map as it stands by then."""
    model = codec.conditional_gaussian_model
    x = blocks.to_blocks(image - 0.5, codec.block)
    known, latents = torch.zeros_like(x), torch.zeros(x.shape[0], codec.latent_channels, *x.shape[2:]).to(x)
    likelihoods, indexes, means = (torch.zeros_like(latents) for _ in range(3))
    rounded = torch.zeros_like(latents)
    for row in range(x.shape[2]):
        for column in range(x.shape[3]):
            here = (..., slice(row, row + 1), slice(column, column + 1))
            scales, all_means = codec.mean_scale(known)
            latents[here] = codec.analysis(known, x)[here]
            means[here] = all_means[here]
            rounded[here], likelihoods[here] = model(latents[here], scales[here], means[here])
            indexes[here] = model.build_indexes(scales)[here].to(x.dtype)
            known[here] = codec.synthesis(known, rounded)[here]
    strings = [
        model.compress(*(part[:, :, row].transpose(1, 2) for part in (latents, indexes.int(), means)))
        for row in range(x.shape[2])
    ]
    return {
        "x_hat": blocks.to_image(known, codec.block) + 0.5,
        "likelihoods": likelihoods,
        "strings": strings,
        "symbols": rounded - means,
    }


@names
@torch.no_grad()
@pytest.mark.parametrize(("rows", "columns"), [(4, 5), (3, 2), (1, 4), (3, 1), (1, 1)])
def test_every_order_gives_the_bits_of_whole_maps(name: str, rows: int, columns: int) -> None:
    codec, image = small_model(name), textured(8 * columns, 8 * rows, images=2)
    with exact_kernels():
        expected = paper(codec, image)
        for run in (codec, BlockByBlock(codec, True), BlockByBlock(codec, False)):
            forward = run.forward(image)
            assert torch.equal(forward["x_hat"], expected["x_hat"])
            assert torch.equal(forward["likelihoods"]["y"], expected["likelihoods"])
            assert run.compress(image) == {"strings": expected["strings"], "shape": (rows, columns)}
            decoded = run.decompress(expected["strings"], (rows, columns))
            assert torch.equal(decoded["x_hat"], expected["x_hat"])


@names
@torch.no_grad()
def test_there_is_something_to_get_wrong(name: str) -> None:
    """Symbols that are not zero, blocks that are not grey, and neighbours that make a difference."""
    codec, image = small_model(name), textured(56, 40)
    with exact_kernels():
        found = paper(codec, image)
        alone = paper(codec, image[..., 8:16, 8:16])
    assert found["symbols"].abs().gt(0.5).float().mean() > FAIR_SHARE
    inside = (found["x_hat"] > 0) & (found["x_hat"] < 1)
    assert inside.float().mean() > 0.25
    assert not torch.equal(alone["x_hat"], found["x_hat"][..., 8:16, 8:16])


@names
@orders
@torch.no_grad()
def test_larger_images_and_images_of_a_batch(name: str, together: bool) -> None:
    codec, image = small_model(name), textured(72, 40, images=2)
    run = BlockByBlock(codec, together)
    with exact_kernels():
        expected = codec(image)
        strings = codec.compress(image)["strings"]
        found, alone = run.forward(image), run.forward(image[1:2])
        threads = on_threads(2, lambda: run.compress(image))
        decoded = run.decompress([row[1:2] for row in strings], (5, 9))
    assert torch.equal(found["x_hat"], expected["x_hat"])
    assert torch.equal(found["likelihoods"]["y"], expected["likelihoods"]["y"])
    assert torch.equal(alone["x_hat"], expected["x_hat"][1:2])
    assert threads["strings"] == strings
    assert torch.equal(decoded["x_hat"], expected["x_hat"][1:2])


@names
@torch.no_grad()
def test_in_double_precision(name: str) -> None:
    codec = seeded_model(find(name), find(name).small).double()
    image = textured(40, 32).double()
    run = BlockByBlock(codec, together=True)
    with exact_kernels():
        expected = paper(codec, image)
        found = run.compress(image)
        assert found["strings"] == expected["strings"]
        assert torch.equal(run.decompress(**found)["x_hat"], expected["x_hat"])


@names
@orders
@torch.no_grad()
def test_with_the_librarys_kernels_streams_are_decoded_in_the_order_they_were_made(
    name: str, together: bool
) -> None:
    run, image = BlockByBlock(small_model(name), together), textured(56, 40)
    coded = run.compress(image)
    assert torch.equal(run.decompress(**coded)["x_hat"], run.forward(image)["x_hat"])


@names
@torch.no_grad()
def test_the_reach_is_what_brute_force_finds(name: str) -> None:
    """Every block of the reconstruction is changed by itself, and what changes is what reads it."""
    codec = seeded_model(find(name), find(name).small).double()
    known, latents = torch.rand(1, 192, 7, 7).double(), torch.rand(1, 8, 7, 7).double()
    pixels = torch.rand(1, 192, 7, 7).double()
    networks = {
        "analysis": lambda known: codec.networks["analysis"](torch.cat([known, pixels], 1)),
        "mean_scale": codec.networks["mean_scale"],
        "synthesis": lambda known: codec.networks["synthesis"](torch.cat([known, latents], 1)),
    }
    for network, compute in networks.items():
        before, found = compute(known)[..., 3, 3], set()
        for row in range(7):
            for column in range(7):
                other = known.clone()
                other[..., row, column] += 1000
                if not torch.equal(compute(other)[..., 3, 3], before):
                    found.add((row - 3, column - 3))
        assert found == codec.reaches[network].taps, network


def test_the_reaches_in_blocks() -> None:
    near = Reach(frozenset({(0, -1), *ABOVE}))
    far = Reach(
        frozenset({*((-2, column) for column in range(-2, 3)), *((-1, column) for column in range(-2, 2))})
        | {(0, -2), (0, -1)}
    )
    assert small_model("kamisli").reaches == dict.fromkeys(("analysis", "mean_scale", "synthesis"), near)
    hps2 = small_model("kamisli-hps2").reaches
    assert hps2 == {"analysis": near, "mean_scale": far, "synthesis": near}
    assert (near.left, near.right, near.up, near.slope) == (1, 1, 1, 2)
    assert (far.left, far.right, far.up, far.slope) == (2, 2, 2, 2)


@names
@pytest.mark.parametrize(("height", "width"), [(6, 9), (9, 2), (3, 1), (1, 4)])
def test_fronts(name: str, height: int, width: int) -> None:
    """Every block once, and nothing before what it reads; one column less between rows, and something is."""
    reach = small_model(name).reach

    def broken(slope: int) -> int:
        done: Counter[tuple[int, int]] = Counter()
        missing = 0
        for front in fronts(height, width, slope):
            here = [(row, front.column(row)) for row in front.rows]
            for row, column in here:
                read = {(row + down, column + right) for down, right in reach.taps}
                missing += sum(r >= 0 and 0 <= c < width and not done[r, c] for r, c in read)
            done.update(here)
        assert done == {(row, column): 1 for row in range(height) for column in range(width)}
        return missing

    assert broken(reach.slope) == broken(reach.slope + 1) == broken(max(width, 1)) == 0
    if height > 1 and width > 1:
        assert broken(reach.slope - 1) > 0


@names
@orders
@torch.no_grad()
def test_one_block_less_of_the_reach_changes_the_result(name: str, together: bool, monkeypatch) -> None:
    codec, image = small_model(name), textured(40, 24)
    run = BlockByBlock(codec, together)
    with exact_kernels():
        expected = run.forward(image)
        histories: list[History] = []
        around = History.around

        def noted(self: History, front: Any) -> Tensor:
            if self not in histories:
                histories.append(self)
            return around(self, front)

        monkeypatch.setattr(History, "around", noted)
        run.forward(image)
        lists = [history.taps for history in histories]
        assert [len(taps) for taps in lists] == ([4] if name == "kamisli" else [4, 5])
        for number, taps in enumerate(lists):
            for place, tap in enumerate(taps):
                seen: list[History] = []

                def short(self: History, front: Any, number=number, place=place, seen=seen) -> Tensor:
                    seen.extend([] if self in seen else [self])
                    read = around(self, front)
                    if seen.index(self) == number:
                        read[:, :, place] = 0
                    return read

                monkeypatch.setattr(History, "around", short)
                found = run.forward(image)
                changed = [
                    not torch.equal(found["x_hat"], expected["x_hat"]),
                    not torch.equal(found["likelihoods"]["y"], expected["likelihoods"]["y"]),
                ]
                assert any(changed), tap


@names
@torch.no_grad()
def test_memory_is_that_of_the_reach(name: str) -> None:
    """In raster order it does not grow with the height of the image, and in wavefronts not with its width."""
    codec = small_model(name)

    def peak(together: bool, width: int, height: int) -> int:
        image = textured(width, height)
        # the weights, made ready, are there in any case
        BlockByBlock(codec, together).compress(image[..., :8, :8])
        with LiveBytes(image, *codec.parameters(), *codec.buffers()) as live:
            BlockByBlock(codec, together).compress(image)
        return live.peak

    assert peak(False, 32, 160) == peak(False, 32, 64)
    assert peak(True, 192, 32) == peak(True, 128, 32)


@torch.no_grad()
def test_symbols_past_what_the_coder_can_code_are_refused() -> None:
    """It went on for ever: masks come with the weights, and these made latents of ten digits."""
    codec = copy.deepcopy(small_model("kamisli"))
    codec.prtr_inverse3[3].mask.fill_(65536)
    for run in (codec, BlockByBlock(codec, True)):
        with pytest.raises(WeightsError, match="symbol"):
            run.compress(torch.rand(1, 3, 16, 16, generator=torch.Generator().manual_seed(0)))


@torch.no_grad()
def test_what_cannot_be_coded_is_refused() -> None:
    codec = small_model("kamisli")
    for run in (codec, BlockByBlock(codec, True)):
        with pytest.raises(OptionError, match="RGB blocks of 8x8"):
            run.compress(torch.rand(1, 3, 20, 16))
        with pytest.raises(OptionError, match="RGB blocks"):
            run.forward(torch.rand(1, 1, 16, 16))
        coded = run.compress(torch.rand(1, 3, 16, 16))
        for shape in ((3, 2), (2,), (2, -2), (2, 2.0)):
            with pytest.raises(OptionError, match=r"strings|numbers of blocks"):
                run.decompress(coded["strings"], shape)
        with pytest.raises(OptionError, match="one string per image"):
            run.decompress([coded["strings"][0], []], (2, 2))


@orders
@torch.no_grad()
def test_strings_that_were_cut_short_do_not_crash(together: bool) -> None:
    codec = small_model("kamisli")
    run, image = BlockByBlock(codec, together), textured(64, 32)
    coded = run.compress(image)
    for left in (0, 1, 5, 9):
        cut = [[string[:left] for string in row] for row in coded["strings"]]
        assert run.decompress(cut, coded["shape"])["x_hat"].isfinite().all()


def test_cdfs_that_are_not_computed_are_asked_for() -> None:
    codec = find("kamisli").build(**find("kamisli").small).eval()
    with pytest.raises(CheckpointError, match="update"):
        BlockByBlock(codec, True).compress(torch.rand(1, 3, 16, 16))


@pytest.mark.parametrize("layer", ["prtr_forward2", "prtr_inverse2", "get_meanscale.0"])
def test_masks_that_are_not_causal_are_refused(layer: str) -> None:
    codec = seeded_model(find("kamisli"), find("kamisli").small)
    codec.get_submodule(layer).mask.fill_(1)
    with pytest.raises(WeightsError, match=layer.partition(".")[0].rstrip("2")):
        _ = codec.reach


def test_blocks_are_put_back_where_they_were() -> None:
    image = torch.rand(2, 3, 16, 24)
    channels = blocks.to_blocks(image, 8)
    assert channels.shape == (2, 192, 2, 3)
    # row, column and colour within the block, as the authors order them
    assert channels[1, (5 * 8 + 6) * 3 + 2, 1, 2] == image[1, 2, 8 + 5, 16 + 6]
    assert torch.equal(blocks.to_image(channels, 8), image)
    again = torch.zeros_like(image)
    for front in fronts(2, 3, 2):
        values = blocks.take(image, 8, front)
        for n, row in enumerate(front.rows):
            assert torch.equal(values[0, :, 0, 2 * n : 2 * n + 2].T, channels[:, :, row, front.column(row)])
        blocks.put(values, again, 8, front)
    assert torch.equal(again, image)


@pytest.mark.slow
@names
@torch.no_grad()
def test_full_width(name: str) -> None:
    known = find(name)
    codec, image = seeded_model(known), textured(96, 64)
    run = BlockByBlock(codec, True)
    with exact_kernels():
        expected = codec(image)
        strings = codec.compress(image)
        found = run.compress(image)
        assert found == strings == BlockByBlock(codec, False).compress(image)
        assert torch.equal(run.forward(image)["x_hat"], expected["x_hat"])
        assert torch.equal(run.decompress(**found)["x_hat"], expected["x_hat"])
