"""`python -m overlap_tool` is the same as `overlap-tool`."""

from overlap_tool.cli import main

main()
