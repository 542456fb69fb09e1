"""Models on a GPU, and between devices: on a real one, or else on `emulated_gpu`.

The emulated one shows that values and maps are where they belong. What the kernel computes on a real one, and
how streams of copies overlap, it does not.
"""

from __future__ import annotations

import copy
import gc

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from support.random_networks import Case, cases
from support.small_models import small_model
from support.ways import WAYS, in_tiles
from torch import nn
from torch.utils._pytree import tree_leaves

import overlap_tool
from overlap_tool import exact_kernels
from overlap_tool.graph.trace import trace
from overlap_tool.kernels.trial import fallbacks
from overlap_tool.planning.choose import Shape
from overlap_tool.wrapping.retrofit import tiled_stages

pytestmark = pytest.mark.usefixtures("gpu")

tiles_if_slow = pytest.mark.parametrize("schedule", ["stream", pytest.param("tiles", marks=pytest.mark.slow)])


def test_an_op_on_several_devices_is_refused() -> None:
    here, there = torch.ones(2), torch.ones(2, device="cuda")
    with pytest.raises(RuntimeError, match="same device"):
        here + there
    assert torch.equal(here.to("cuda") + there, torch.full((2,), 2.0, device="cuda"))


@pytest.mark.slow
@pytest.mark.parametrize("schedule", ["stream", "tiles"])
@pytest.mark.parametrize("store", ["auto", "device", "host", "disk"])
@pytest.mark.parametrize("input_on", ["cpu", "cuda"])
def test_results_equal_the_full_image(architecture: str, schedule: str, store: str, input_on: str) -> None:
    model = copy.deepcopy(small_model(architecture)).double().cuda()
    tiled = overlap_tool.wrap(model, tile=48, schedule=schedule, store=store)
    image = torch.rand(1, 3, 192, 256, dtype=torch.float64, device="cuda")
    with torch.no_grad():
        expected = model.g_a(image)
        found = tiled.g_a(image.to(input_on))
        assert found.device.type == ("cuda" if store in ("auto", "device") else "cpu")
        torch.testing.assert_close(found.cuda(), expected, rtol=1e-11, atol=1e-11)


@tiles_if_slow
@pytest.mark.parametrize("store", [pytest.param("device", marks=pytest.mark.slow), "host"])
@pytest.mark.parametrize("name", ["g_a", "g_s"])
def test_predicted_memory_is_the_allocators_peak(name: str, store: str, schedule: str) -> None:
    """With maps in host memory the device holds one tile, the caches and the packed weights."""
    tiled = overlap_tool.wrap(
        overlap_tool.checkpoint.load_checkpoint("zoo:mbt2018-mean").model.cuda(),
        tile=128,
        schedule=schedule,
        store=store,
        inplace=True,
    )
    stage = tiled_stages(tiled)[name]
    channels = stage.network.ops[0].channels
    height, width = int(288 * stage.input_scale), int(544 * stage.input_scale)
    whole = torch.rand(1, channels, height, width, device="cuda" if store == "device" else "cpu")
    stage(whole)  # compiles and tries the kernels
    gc.collect()  # what other tests left is not to go while this is measured
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated() - (whole.nbytes if store == "device" else 0)
    result = stage(whole)
    torch.cuda.synchronize()
    peak = torch.cuda.max_memory_allocated() - before
    plan = stage.plan(Shape(1, height, width))
    predicted = plan.peak_bytes if store == "device" else plan.working_bytes
    assert result.is_cuda == (store == "device")
    assert abs(predicted - peak) <= 0.15 * peak


def _tiles_on_the_gpu(case: Case) -> None:
    image = case.image()
    with torch.no_grad():
        full = case.network(image.clone())
    network = copy.deepcopy(case.network).to("cuda")
    traced = trace(network, "net", network.channels)
    for way, how in WAYS.items():
        with exact_kernels():  # a library may go by way of fractions, even where all numbers are whole
            found = in_tiles(traced, image, case.tile, *how, device="cuda", store="host")
        assert torch.equal(found, full), way


@settings(
    max_examples=12,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(case=cases())
def test_random_networks_give_what_they_give_on_the_cpu(case: Case) -> None:
    """Every rule makes its tensors where its map is."""
    _tiles_on_the_gpu(case)


@pytest.mark.slow
@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(case=cases())
def test_hundreds_of_random_networks_give_what_they_give_on_the_cpu(case: Case) -> None:
    _tiles_on_the_gpu(case)


@tiles_if_slow
def test_a_wrapped_model_gives_the_bits_of_the_exact_model(architecture: str, schedule: str) -> None:
    model = copy.deepcopy(small_model(architecture)).cuda()
    image = torch.rand(2, 3, 64, 128, device="cuda")
    with torch.no_grad(), fallbacks() as slow:
        found = overlap_tool.wrap(model, tile=48, schedule=schedule)(image)
        with exact_kernels():
            expected = model(image)
    assert not slow
    assert [*found] == [*expected]
    for one, other in zip(tree_leaves(found), tree_leaves(expected), strict=True):
        assert torch.equal(one, other)


PORTABLE = (nn.Conv2d, nn.ConvTranspose2d, nn.ReLU, nn.LeakyReLU, nn.PixelShuffle, nn.Identity)
"""Made of sums, products and comparisons: the same bits on any device."""


def hyper_decoders(model: nn.Module) -> list[nn.Module]:
    return [
        module
        for name, module in model.named_modules()
        if name.rpartition(".")[2] == "h_s"
        and all(isinstance(leaf, PORTABLE) for leaf in module.modules() if not [*leaf.children()])
    ]


def test_a_hyper_decoder_gives_the_same_bits_on_cpu_and_gpu(architecture: str) -> None:
    decoders = hyper_decoders(small_model(architecture))
    if not decoders:
        pytest.skip("no hyper-decoder of convolutions and ReLUs")
    for decoder in decoders:
        first = next(m for m in decoder.modules() if isinstance(m, nn.Conv2d | nn.ConvTranspose2d))
        latent = torch.randn(2, first.in_channels, 5, 7).mul(4).round()
        with torch.no_grad(), exact_kernels():
            expected = decoder(latent)
            found = copy.deepcopy(decoder).cuda()(latent.cuda())
        assert torch.equal(found.cpu(), expected)


STREAMS = ["bmshj2018-hyperprior", "mbt2018-mean", "mbt2018", "cheng2020-anchor", "cheng2020-attn"]
"""What these need to read a stream, next to the stream itself, are convolutions and ReLUs."""


@pytest.mark.parametrize("written_on", ["cpu", "cuda"])
@pytest.mark.parametrize("architecture", STREAMS)
def test_a_stream_written_on_one_device_is_read_on_the_other(architecture: str, written_on: str) -> None:
    here = copy.deepcopy(small_model(architecture))
    here.update(force=True)  # the tables of the entropy coder are part of the model, made once
    models = {"cpu": here, "cuda": copy.deepcopy(here).cuda()}
    image = torch.rand(1, 3, 64, 64)
    with torch.no_grad(), exact_kernels():
        written = models[written_on].compress(image.to(written_on))
        on_cpu, on_gpu = (m.decompress(written["strings"], written["shape"]) for m in models.values())
    # A stream that is read wrongly gives another image. The transform that makes the image may use more than
    # portable operations, so that last bits may differ here.
    torch.testing.assert_close(on_gpu["x_hat"].cpu(), on_cpu["x_hat"], rtol=1e-3, atol=1e-3)


def test_verify_holds_on_a_gpu() -> None:
    certificate = overlap_tool.verify(
        small_model("mbt2018-mean"), tiles=[32], schedules=["stream"], device="cuda"
    )
    assert certificate.holds
    assert certificate.machine.device == torch.cuda.get_device_name()
