"""Runs plans: pass by pass, tile by tile, from stores and into them, and on maps that are not in memory."""
