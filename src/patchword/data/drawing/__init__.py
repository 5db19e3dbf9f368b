"""Fractals and shapes, drawn by formulas."""
