"""Every picture of an analysis as a separate file, SVG or PNG."""

from __future__ import annotations

import re
from pathlib import Path
from types import ModuleType

from overlap_tool.errors import OptionError
from overlap_tool.planning.analysis import Analysis
from overlap_tool.report.notebook import PICTURES
from overlap_tool.report.pictures.drawing import PAPER

ZOOM = 3
"""Pixels of a PNG per pixel of the SVG: about 300 per inch over the width of a page."""


def svg_files(analysis: Analysis) -> dict[str, bytes]:
    """The pictures of every stage by their file names."""
    files: dict[str, bytes] = {}
    for stage in analysis.stages:
        for kind, draw in PICTURES.items():
            drawing = draw(stage)
            if drawing is not None:
                files[_file_name(f"{stage.name}-{kind}", files)] = drawing.alone().encode()
    return files


def png_files(analysis: Analysis) -> dict[str, bytes]:
    """The same pictures on white, in the font of matplotlib on any machine."""
    resvg, fonts = _renderer()
    return {
        f"{name.removesuffix('.svg')}.png": bytes(
            resvg.svg_to_bytes(
                svg_string=svg.decode(),
                background=PAPER,
                zoom=ZOOM,
                skip_system_fonts=True,
                font_dirs=[str(fonts)],
                font_family="DejaVu Sans",
            )
        )
        for name, svg in svg_files(analysis).items()
    }


def _file_name(name: str, taken: dict[str, bytes]) -> str:
    """A file name that stays in the folder, whatever a stage is called, and is not taken."""
    plain = re.sub(r"[^A-Za-z0-9._-]", "_", name).lstrip(".")[-100:]
    number = 1
    while (file := f"{plain}{'' if number == 1 else f'-{number}'}.svg") in taken:
        number += 1
    return file


def _renderer() -> tuple[ModuleType, Path]:
    try:
        import matplotlib
        import resvg_py
    except ImportError as error:
        raise OptionError(
            "pictures as PNG",
            f"needs {error.name}, which is not installed",
            "Run pip install 'overlap-tool[png]', or use SVG",
        ) from error
    return resvg_py, Path(matplotlib.get_data_path()) / "fonts" / "ttf"
