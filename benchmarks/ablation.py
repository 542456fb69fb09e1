"""The published experiment with weights that were trained: one sample of overlap less, a stage at a time.

The block-based codec's four models, at small width, are trained on photographs. `verify --ablate` runs on
others, and this shows what the paper's table of insufficient overlap shows: what happens to rate and quality.
What both come to is the cost that training minimised.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from statistics import mean

from rich.table import Table

import overlap_tool
from benchmarks.training import BATCH, CODECS, DISTORTION, SIDE, STEPS, checkpoint_of, held_out
from overlap_tool.verification import Certificate, Check

TILE = 256
ORDER = ("h_a", "h_s", "g_a", "g_s")
"""Of the published table. The other stages of a codec come after."""


@dataclass(frozen=True)
class Point:
    """What images cost on average: bits per pixel, PSNR in decibels, and what was minimised."""

    rate: float
    psnr: float
    cost: float

    @classmethod
    def of(cls, rate: float, psnr: float) -> Point:
        return cls(rate, psnr, rate + DISTORTION * 255**2 * 10 ** (-psnr / 10))

    @classmethod
    def average(cls, points: Iterable[Point]) -> Point:
        each = list(points)
        return cls(mean(p.rate for p in each), mean(p.psnr for p in each), mean(p.cost for p in each))


@dataclass(frozen=True)
class Loss:
    """What a stage that is short of overlap does."""

    exact: Point
    short: Point

    @classmethod
    def of(cls, checks: list[Check]) -> Loss:
        exact, short = zip(*map(_points, checks), strict=True)
        return cls(Point.average(exact), Point.average(short))

    @property
    def rate(self) -> float:
        """As a share of the rate; so is the cost."""
        return self.short.rate / self.exact.rate - 1

    @property
    def psnr(self) -> float:
        return self.short.psnr - self.exact.psnr

    @property
    def cost(self) -> float:
        return self.short.cost / self.exact.cost - 1


def losses(certificate: Certificate, zeros: str) -> dict[str, Loss]:
    """By stage, in the order of the published table."""
    checks = [check for check in certificate.of("noted") if check.figures.get("zeros") == zeros]
    stages = list(dict.fromkeys(check.stage for check in checks))
    stages.sort(key=lambda stage: ORDER.index(_short(stage)) if _short(stage) in ORDER else len(ORDER))
    return {_short(stage): Loss.of([check for check in checks if check.stage == stage]) for stage in stages}


def _short(stage: str) -> str:
    """`h_a` for `latent_codec.hyper.h_a`."""
    head, _, last = stage.rpartition(".")
    return last if last in ORDER else f"{head.rpartition('.')[2]}.{last}".removeprefix(".")


def _points(check: Check) -> tuple[Point, Point]:
    """Of one image: exact, and short of overlap."""
    rate, rate_change, psnr, psnr_change = (
        float(check.figures[name])
        for name in ("bits_per_pixel", "change_of_bits_per_pixel", "psnr", "change_of_psnr")
    )
    return Point.of(rate - rate_change, psnr - psnr_change), Point.of(rate, psnr)


def main() -> list[Table]:
    changes = Table(
        title=f"One sample of overlap less on every side of tiles of {TILE}: change of rate, PSNR and cost"
    )
    changes.add_column("codec", overflow="fold")
    changes.add_column("short of overlap", overflow="fold")
    for zeros in ("output", "input"):
        for heading in (f"zeros in its {zeros}: rate", "PSNR", "cost"):
            changes.add_column(heading)
    codecs = Table(
        title=f"The codecs, of {STEPS} steps with {BATCH} patches of {SIDE}x{SIDE}. The cost is bits per "
        f"pixel, and {DISTORTION} of the mean squared error in grey levels"
    )
    for heading in ("codec", "widths", "bits per pixel", "PSNR", "cost", "tiles give the same bits"):
        codecs.add_column(heading, overflow="fold")
    for name, widths in CODECS.items():
        certificate = overlap_tool.verify(
            checkpoint_of(name), tiles=[TILE], schedules=["tiles"], images=held_out(), ablate=True
        )
        lost, padded = losses(certificate, "output"), losses(certificate, "input")
        for stage in lost:
            cells = [
                cell
                for loss in (lost[stage], padded[stage])
                for cell in (f"{loss.rate:+.2%}", f"{loss.psnr:+.3f} dB", f"{loss.cost:+.2%}")
            ]
            changes.add_row(name, stage, *cells)
        exact = lost["g_s"].exact
        codecs.add_row(
            name,
            ", ".join(f"{key}={value}" for key, value in widths.items()),
            f"{exact.rate:.3f}",
            f"{exact.psnr:.2f} dB",
            f"{exact.cost:.3f}",
            "yes" if certificate.holds else "NO",
        )
    return [changes, codecs]
