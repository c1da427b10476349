"""Drawings of a recorded search: a tree for the terminal, one self-contained HTML page."""
