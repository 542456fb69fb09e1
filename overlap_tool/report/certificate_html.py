"""A certificate as a standalone page: the checks, and pictures of where maps differ."""

from __future__ import annotations

from fractions import Fraction
from xml.etree.ElementTree import Element

from overlap_tool.report import certificate_tables
from overlap_tool.report.page import PagePart, element, page, titled
from overlap_tool.report.pictures.heat import heat
from overlap_tool.verification import Certificate, Check, DifferenceMap

MOST = 12
"""The most pictures on one page."""


def certificate_to_html(certificate: Certificate) -> str:
    verdict = "holds" if certificate.holds else "FAILS"
    badge = element("span", "badge good" if certificate.holds else "badge bad", verdict)
    failures = certificate_tables.failures(certificate)
    parts: list[PagePart] = [
        element("h1", "", f"{certificate.architecture}: in tiles, and untouched ", badge),
        element("p", "", certificate_tables.verdict(certificate)),
        element("p", "note", certificate_tables.headline(certificate)),
        element("ul", "", *(element("li", "", failure) for failure in failures)) if failures else None,
        *_heats(certificate),
        *(part for table in certificate_tables.tables(certificate) for part in titled(table)),
        *titled(certificate_tables.plan_table(certificate)),
        element("p", "note", certificate_tables.bits_line(certificate)),
        element("p", "note", f"Computed on {certificate_tables.machine_line(certificate.machine)}"),
        element("p", "note", certificate.time),
    ]
    return page(f"{certificate.architecture}: {verdict}", *parts)


def _heats(certificate: Certificate) -> list[PagePart]:
    placed = [(check, check.where) for check in certificate.of("failed") if check.where is not None]
    if not placed:
        return []
    more = f" The first {MOST} of {len(placed)}." if len(placed) > MOST else ""
    return [
        element("h3", "", "Where the bits differ"),
        element(
            "p",
            "note",
            "The whole map; the more of a cell's numbers differ, the stronger its colour. "
            f"Lines are where tiles meet.{more}",
        ),
        element("div", "heats", *(_heat(certificate, check, where) for check, where in placed[:MOST])),
    ]


def _heat(certificate: Certificate, check: Check, where: DifferenceMap) -> Element:
    told = f"{check.stage}: {certificate_tables.title(check)}, {check.image}"
    size = f"{where.columns}×{where.rows}, cells of {where.cell}×{where.cell}"
    return element(
        "figure",
        "",
        heat(where, _tile_on(certificate, check, where), told).element(),
        element("figcaption", "note", f"{told}. {size}."),
    )


def _tile_on(
    certificate: Certificate, check: Check, where: DifferenceMap
) -> tuple[Fraction, Fraction] | None:
    """The tile in samples of the map that was compared."""
    image = next(image for image in certificate.images if image.name == check.image)
    if check.tile is None:
        return None
    return (
        Fraction(check.tile[0] * where.columns, image.padded[0]),
        Fraction(check.tile[1] * where.rows, image.padded[1]),
    )
