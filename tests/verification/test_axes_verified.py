"""`verify` of models for sound and for volumes: what it makes up, what it finds, and whose fault it is."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest
from support.axes import Network
from torch import Tensor

import overlap_tool
from overlap_tool import Certificate, report
from overlap_tool.errors import OptionError
from overlap_tool.graph.tracer import DEPTH
from overlap_tool.kernels import cpu
from overlap_tool.kernels.form import Form
from overlap_tool.rules import convolution
from overlap_tool.verification import Check

pytestmark = pytest.mark.usefixtures("one_thread")

AXES = pytest.mark.parametrize(("axes", "tile"), [(1, 64), (3, 16)], ids=["sound", "volume"])


def _of(certificate: Certificate, name: str) -> list[Check]:
    return [check for check in certificate.checks if check.name == name]


@AXES
@pytest.mark.parametrize("normed", [False, True])
def test_both_schedules_hold_and_overlaps_are_minimal(axes, tile, normed) -> None:
    certificate = overlap_tool.verify(Network(axes, normed=normed).eval(), tiles=[tile], ablate=True)
    assert certificate.holds, certificate.of("failed")
    for name in ("stage-equality", "model-equality"):
        checks = _of(certificate, name)
        assert [(c.schedule, c.status) for c in checks] == [("stream", "passed"), ("tiles", "passed")]
    minimal = {c.figures["side"] for c in _of(certificate, "minimality") if c.status == "passed"}
    assert minimal == ({"left", "right"} if axes == 1 else {"left", "right", "top", "bottom"})
    sides = {c.figures["side"] for c in _of(certificate, "minimality")}
    assert sides == minimal
    assert all(check.figures["differing"] for check in _of(certificate, "ablation"))
    (image,) = certificate.images
    assert image.name == f"seeded {image.size}" + ("" if axes == 1 else f"x{DEPTH}")
    assert image.size.height == 1 if axes == 1 else image.size.height > 2 * tile
    assert all(plan.tiles >= 3 for plan in certificate.plans)


@AXES
def test_inputs_that_are_not_those_of_the_rule_are_blamed_on_the_overlap(monkeypatch, axes, tile) -> None:
    own = convolution.windows

    def shifted(kernel: Any, stride: Any, *rest: Any) -> Any:
        rows, columns = own(kernel, stride, *rest)
        if columns.stride == 2:
            columns = replace(columns, before=columns.before + 1, after=columns.after - 1)
        return rows, columns

    monkeypatch.setattr(convolution, "windows", shifted)
    certificate = overlap_tool.verify(Network(axes).eval(), tiles=[tile])
    for check in _of(certificate, "stage-equality"):
        assert (check.status, check.figures["fault"]) == ("failed", "overlap")
        assert str(check.figures["op"]).startswith("down")
        assert check.where is not None
        assert check.where.rows == (1 if axes == 1 else certificate.images[0].size.height)
    assert "failed" in {check.status for check in _of(certificate, "model-equality")}


@AXES
def test_a_kernel_that_depends_on_the_shape_is_blamed(monkeypatch, axes, tile) -> None:
    exact = cpu.convolve

    def uneven(x: Tensor, weight: Any, bias: Tensor | None, form: Form, *out: Any) -> Tensor:
        result = exact(x, weight, bias, form, *out)
        of_tile = form.stride[1] == 2 and tile // 2 < x.shape[-1] < 2 * tile
        return result.mul_(1 + 2**-20) if of_tile else result

    monkeypatch.setattr(cpu, "convolve", uneven)
    certificate = overlap_tool.verify(Network(axes).eval(), tiles=[tile])
    for check in _of(certificate, "stage-equality"):
        assert (check.status, check.figures["fault"]) == ("failed", "kernel")
        assert str(check.figures["op"]).startswith("down")


@AXES
def test_the_certificate_is_written_in_every_format(axes, tile) -> None:
    certificate = overlap_tool.verify(Network(axes).eval(), tiles=[tile], schedules=["tiles"])
    name = certificate.images[0].name
    assert json.loads(report.certificate_to_json(certificate))["images"][0]["name"] == name
    for write in (report.certificate_to_markdown, report.certificate_to_html, report.certificate_to_junit):
        assert name in write(certificate)


def test_pictures_are_no_sound(tmp_path) -> None:
    with pytest.raises(OptionError, match="the model takes a volume"):
        overlap_tool.verify(Network(3).eval(), tiles=[16], images=[tmp_path / "photo.png"])
