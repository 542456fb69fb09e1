"""Runs plans: pass by pass, tile by tile, from and to stores, and on maps that are not in memory."""
