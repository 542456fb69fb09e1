"""The tables of a certificate as rows of text, for every output format."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable

from overlap_tool.report.tables import Table, by_number, count, in_units, untiled_tables
from overlap_tool.verification import Certificate, Check, SelfTest
from overlap_tool.verification.certificate import Machine

TOLD: dict[str, str] = {
    "stage-equality": "{outputs} numbers",
    "minimality": "{side} {overlap}",
    "model-equality": "{output}",
    "latents": "{nonzero_share:.0%} of {symbols} symbols are not 0",
    "bitstream": "{bytes} bytes, {bits_per_pixel:.3f} bits per pixel",
    "decoding": "distinct streams: {streams}",
    "same-elsewhere": "{digests} digests as on {machine}",
}
"""A table's text for a check that passed; a failed one has a message."""

NOTED = {"exact-against-stock": "exact kernels", "stock-tiles-against-stock": "stock kernels"}


def headline(certificate: Certificate) -> str:
    images = ", ".join(
        image.name if image.size == image.padded else f"{image.name} ({image.size} padded to {image.padded})"
        for image in certificate.images
    )
    called = f", called by {certificate.call}" if certificate.call else ""
    return f"{certificate.architecture}{called}, weights {certificate.weights_sha256[:12]}, on {images}"


def verdict(certificate: Certificate) -> str:
    counts = ", ".join(
        f"{len(certificate.of(status))} {status}"
        for status in ("passed", "failed", "skipped")
        if certificate.of(status)
    )
    if certificate.holds:
        return f"holds: tiles give the untouched model's bits ({counts})"
    return f"FAILS ({counts})"


def check_table(certificate: Certificate) -> Table:
    """One row for all checks of one kind on one stage with the same result: tiles, sides, outputs, images."""
    alike: dict[tuple[str, str, str], list[Check]] = {}
    for check in certificate.checks:
        if check.status != "noted":
            alike.setdefault((check.stage, check.name, check.status), []).append(check)
    return Table(
        "Checks",
        ("stage", "check", "result", "checks", "tiling", "what"),
        by_number(
            (
                stage,
                name,
                status,
                str(len(checks)),
                _joined(_tile(check) for check in checks),
                _joined(TOLD[name].format(**c.figures) for c in checks)
                if status == "passed"
                else _reasons(check.message for check in checks),
            )
            for (stage, name, status), checks in alike.items()
        ),
    )


def kernel_table(certificate: Certificate) -> Table:
    return Table(
        "What differs from the full image with the library's own kernels (information only)",
        ("run", "largest difference", "symbols", "bitstream", "8-bit image"),
        tuple(
            (
                f"{NOTED[check.name]}, {_tile(check) or 'full image'}",
                f"{check.figures['output']} {check.figures['largest_difference']:.3g}",
                _symbols(check),
                _identical(check, "bitstream_identical"),
                _identical(check, "image_identical_in_8_bits"),
            )
            for check in certificate.of("noted")
            if check.name in NOTED
        ),
    )


def ablation_table(certificate: Certificate) -> Table:
    return Table(
        "Overlaps of one sample less on every side, against the exact result",
        (
            "short of overlap",
            "zeros in",
            "tile",
            "bits per pixel",
            "change",
            "PSNR",
            "change",
            "PSNR to exact",
        ),
        tuple(
            (
                check.stage,
                str(check.figures["zeros"]),
                str(check.tile or ""),
                _number(check, "bits_per_pixel", ".4f"),
                _number(check, "change_of_bits_per_pixel", "+.4f"),
                _number(check, "psnr", ".3f"),
                _number(check, "change_of_psnr", "+.3f"),
                _number(check, "psnr_to_exact", ".1f") or "identical",
            )
            for check in certificate.of("noted")
            if check.name == "ablation"
        ),
    )


def fallback_table(certificate: Certificate) -> Table:
    return Table(
        "Layers that ran by elementwise operations: with the same bits, and slowly",
        ("layer", "why"),
        tuple((fallback.layer, fallback.reason) for fallback in certificate.fallbacks),
    )


def library_table(certificate: Certificate) -> Table:
    return Table(
        "Between the stages, by PyTorch's own kernels: they get the same whole tensors, tiled or not",
        ("op", "why"),
        tuple((op, "the exact engine has no kernel for it") for op in certificate.library_ops),
    )


def plan_table(certificate: Certificate) -> Table:
    """How the stages ran."""
    return Table(
        "How the stages ran in tiles",
        ("stage", "image", "tile", "schedule", "tiles", "left/right", "top/bottom", "memory", "MACs"),
        tuple(
            (
                plan.stage,
                plan.image,
                str(plan.tile),
                plan.schedule,
                str(plan.tiles),
                f"{plan.left}/{plan.right}",
                f"{plan.top}/{plan.bottom}",
                in_units(plan.peak_bytes),
                count(plan.macs),
            )
            for plan in certificate.plans
        ),
    )


def tables(certificate: Certificate) -> list[Table]:
    found = [
        check_table(certificate),
        fallback_table(certificate),
        library_table(certificate),
        kernel_table(certificate),
        ablation_table(certificate),
    ]
    return [*(table for table in found if table.rows), *untiled_tables(certificate.untiled)]


def failures(certificate: Certificate) -> list[str]:
    return [f"{check.stage}: {title(check)}: {check.message}" for check in certificate.of("failed")]


def title(check: Check) -> str:
    parts = [
        check.name,
        *(
            str(check.figures[key])
            for key in ("segment", "map", "side", "output", "zeros")
            if key in check.figures
        ),
    ]
    parts += [f"tile {check.tile}"] if check.tile is not None else []
    return ", ".join([*parts, *([check.schedule] if check.schedule is not None else [])])


def figures(check: Check) -> list[str]:
    return [f"{name}: {value}" for name, value in check.figures.items()]


def selftest_verdict(found: SelfTest) -> str:
    alike = Counter(vector.kind for vector in found.of("passed"))
    if not found.holds:
        return f"DIFFERS: {len(found.of('failed'))} do not give the bits of arithmetic {found.arithmetic}"
    named = ", ".join(f"{number} {kind}" for kind, number in alike.items())
    return f"holds: the bits of arithmetic {found.arithmetic} ({named})"


def bits_line(certificate: Certificate) -> str:
    """What defines the bits: the arithmetic, except for ops that PyTorch computed."""
    told = f"bits of arithmetic {certificate.arithmetic}"
    if not certificate.library_ops:
        return told
    return f"{told}, but for {', '.join(certificate.library_ops)}: those are of {certificate.machine.device}"


def machine_line(found: Machine) -> str:
    versions = ", ".join(f"{name} {version}" for name, version in found.libraries.items())
    return f"{found.device}, {found.cpu_capability}, {found.threads} threads; {versions}"


def _tile(check: Check) -> str:
    return f"{check.schedule or ''} {check.tile or ''}".strip()


def _joined(texts: Iterable[str]) -> str:
    return ", ".join(text for text in dict.fromkeys(texts) if text)


def _reasons(messages: Iterable[str]) -> str:
    """Each reason once, preceded by everything it applies to: `left, right: there is no overlap`."""
    given: dict[str, list[str]] = {}
    for message in messages:
        of, _, reason = message.rpartition(": ")
        given.setdefault(reason, []).append(of)
    return "; ".join(f"{_joined(of)}: {reason}".removeprefix(": ") for reason, of in given.items())


def _symbols(check: Check) -> str:
    if "symbols" not in check.figures:
        return ""
    return "{differing_symbols} of {symbols} differ".format(**check.figures)


def _identical(check: Check, key: str) -> str:
    return "" if key not in check.figures else "identical" if check.figures[key] else "differs"


def _number(check: Check, key: str, form: str) -> str:
    return format(check.figures[key], form) if key in check.figures else ""
