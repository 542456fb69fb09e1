"""`python -m overlap_tool`: the same as `overlap-tool`."""

from overlap_tool.cli import main

main()
