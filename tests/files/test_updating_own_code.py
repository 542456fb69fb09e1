"""Codecs with code of their own between their stages: an update follows what it makes of a change."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from compressai.entropy_models import EntropyBottleneck, GaussianConditional
from support.photographs import photograph
from torch import Tensor, nn

import overlap_tool
from overlap_tool.errors import ContainerError, OptionError
from overlap_tool.files import Codec, compress, update
from overlap_tool.files.formats import container
from overlap_tool.settings import Engine

pytestmark = pytest.mark.usefixtures("one_thread")

SCALES = [0.2, 1.0, 8.0]
BEFORE = photograph("chelsea", 96, 64)
REGION = (4, 4, 8, 8)


class Hyper(nn.Module):
    """A codec of one layer a stage."""

    def __init__(self) -> None:
        super().__init__()
        self.entropy_bottleneck = EntropyBottleneck(2)
        self.gaussian_conditional = GaussianConditional(SCALES)
        self.g_a = nn.Conv2d(3, 2, 4, 4)
        self.h_a = nn.Conv2d(2, 2, 3, 2, 1)
        self.h_s = nn.ConvTranspose2d(2, 2, 4, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        y = self.g_a(x)
        z_hat, _ = self.entropy_bottleneck(self.h_a(y))
        y_hat, _ = self.gaussian_conditional(y, torch.ones_like(y), means=self.h_s(z_hat))
        return y_hat

    def decompress(self, strings: Any, shape: Any) -> Tensor:
        raise NotImplementedError

    def strings(self, y: Tensor) -> list[bytes]:
        raise NotImplementedError

    def compress(self, x: Tensor) -> dict[str, Any]:
        return {"strings": self.strings(x), "shape": [x.shape[2] // 4, x.shape[3] // 4]}

    def indexes(self, y: Tensor) -> Tensor:
        return self.gaussian_conditional.build_indexes(y * 0 + 1)

    def hyper(self, y: Tensor) -> tuple[list[bytes], Tensor]:
        z = self.h_a(y)
        strings = self.entropy_bottleneck.compress(z)
        return strings, self.h_s(self.entropy_bottleneck.decompress(strings, z.shape[2:]))


class DecodedWithMeans(Hyper):
    """What is coded stays as it is where the means change; what is decoded does not."""

    def strings(self, x: Tensor) -> list[bytes]:
        y = self.g_a(x)
        first, means = self.hyper(y)
        indexes, means = self.indexes(y), means * 0.01
        second = self.gaussian_conditional.compress(y * 0, indexes, means=means)
        y_hat = self.gaussian_conditional.decompress(second, indexes, means=means)
        return [*first, *second, *self.gaussian_conditional.compress(y_hat * 3000, indexes)]


class MeansWrittenTo(Hyper):
    def strings(self, x: Tensor) -> list[bytes]:
        y = self.g_a(x)
        first, means = self.hyper(y)
        indexes = self.indexes(y)
        second = self.gaussian_conditional.compress(y, indexes, means=means)
        y_hat = self.gaussian_conditional.decompress(second, indexes, means=means)
        means.mul_(0.0)
        return [*first, *second, *self.gaussian_conditional.compress(y_hat * 9, indexes)]


class NumberOfSeveralImages(Hyper):
    def strings(self, x: Tensor) -> list[bytes]:
        number = self.g_a(torch.cat((x, x * x))).mean()
        return self.entropy_bottleneck.compress(self.g_a(x) * number * 100)


class SeveralImages(Hyper):
    def strings(self, x: Tensor) -> list[bytes]:
        y = self.g_a(x)
        return self.entropy_bottleneck.compress(torch.cat((y, y * 0.5 + 1)))


class OtherAxes(Hyper):
    def strings(self, x: Tensor) -> list[bytes]:
        y = self.g_a(x)
        volume = y.unsqueeze(1), self.indexes(y).unsqueeze(1)
        return self.entropy_bottleneck.compress(y) + self.gaussian_conditional.compress(*volume)


class AnotherNumberOfStrings(Hyper):
    def strings(self, x: Tensor) -> list[bytes]:
        y = self.g_a(x)
        again = x.mean() > BEFORE.mean() / 255 + 0.001
        return self.entropy_bottleneck.compress(y) + (self.entropy_bottleneck.compress(y) if again else [])


class OneStringTwice(Hyper):
    def strings(self, x: Tensor) -> list[bytes]:
        y = self.g_a(x)
        first, _ = self.entropy_bottleneck.compress(y), self.entropy_bottleneck.compress(y * 0.5)
        return first + first


def codec(kind: type[Hyper], engine: Engine = "exact") -> Codec:
    torch.manual_seed(0)
    model = kind().eval()
    model.gaussian_conditional.update_scale_table(SCALES, force=True)
    model.entropy_bottleneck.update(force=True)
    with torch.no_grad():
        model.g_a.weight.mul_(20)
        model.h_a.weight.mul_(4)
    return Codec(overlap_tool.wrap(model, tile=32, engine=engine), kind.__name__, "0" * 64, kind.__name__)


def compressed(model: Codec, folder: Path, **how: Any) -> None:
    x, y, width, height = REGION
    after = BEFORE.copy()
    after[y : y + height, x : x + width] = 255
    for name, pixels in (("before", BEFORE), ("after", after)):
        np.save(folder / f"{name}.npy", pixels)
        compress(model, folder / f"{name}.npy", folder / f"{name}.lic", blocks=16, **how)


@pytest.mark.parametrize(
    "kind", [DecodedWithMeans, MeansWrittenTo, NumberOfSeveralImages, SeveralImages, OtherAxes]
)
def test_what_is_made_of_a_change_is_coded_again(tmp_path, kind) -> None:
    model = codec(kind)
    compressed(model, tmp_path)
    update(model, tmp_path / "before.lic", tmp_path / "after.npy", REGION, tmp_path / "updated.lic")
    assert (tmp_path / "updated.lic").read_bytes() == (tmp_path / "after.lic").read_bytes()


def test_every_image_has_its_own_string_whatever_is_in_memory(tmp_path) -> None:
    model = codec(SeveralImages)
    found = []
    for in_memory in (1 << 28, 1000):
        compressed(model, tmp_path, in_memory=in_memory)
        found.append(container.read(tmp_path / "before.lic")[1])
    assert found[0] == found[1]
    assert found[0][0] != found[0][1]


def test_another_number_of_strings_is_refused(tmp_path) -> None:
    model = codec(AnotherNumberOfStrings)
    compressed(model, tmp_path)
    kept = (tmp_path / "before.lic").read_bytes()
    with pytest.raises(ContainerError, match="its model codes another number of strings"):
        update(model, tmp_path / "before.lic", tmp_path / "after.npy", REGION)
    assert (tmp_path / "before.lic").read_bytes() == kept


def test_a_string_that_is_given_twice_is_read_again(tmp_path) -> None:
    model = codec(OneStringTwice)
    compressed(model, tmp_path)
    head, strings = container.read(tmp_path / "before.lic")
    assert strings[0] == strings[1]
    assert not head.order
    with pytest.raises(ContainerError, match="in which order"):
        update(model, tmp_path / "before.lic", tmp_path / "after.npy", REGION)


def test_kernels_whose_bits_depend_on_tiles_are_refused(tmp_path) -> None:
    model = codec(SeveralImages, engine="stock")
    compressed(model, tmp_path)
    with pytest.raises(OptionError, match="its bits depend on tiles"):
        update(model, tmp_path / "before.lic", tmp_path / "after.npy", REGION)
