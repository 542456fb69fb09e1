"""A certificate as JUnit XML, which CI systems show test by test."""

from __future__ import annotations

from xml.etree import ElementTree

from overlap_tool.legible import legible
from overlap_tool.report.certificate_tables import figures, title
from overlap_tool.verification import Certificate


def certificate_to_junit(certificate: Certificate) -> str:
    suite = ElementTree.Element(
        "testsuite",
        name=legible(f"overlap-tool verify {certificate.architecture}"),
        tests=str(len(certificate.checks)),
        failures=str(len(certificate.of("failed"))),
        errors="0",
        skipped=str(len(certificate.of("skipped"))),
        timestamp=certificate.time.partition("+")[0],
    )
    for check in certificate.checks:
        case = ElementTree.SubElement(
            suite,
            "testcase",
            classname=legible(f"{certificate.architecture}.{check.stage}"),
            name=legible(f"{title(check)} on {check.image}"),
        )
        if check.status in ("failed", "skipped"):
            kind = "failure" if check.status == "failed" else "skipped"
            ElementTree.SubElement(case, kind, message=legible(check.message))
        if check.figures:
            ElementTree.SubElement(case, "system-out").text = "\n".join(map(legible, figures(check)))
    ElementTree.indent(suite)
    return ElementTree.tostring(suite, encoding="unicode", xml_declaration=True) + "\n"
