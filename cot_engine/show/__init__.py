"""Drawings of a search: a tree for the terminal, a live board, one self-contained HTML page.

Imports `core` and `escape`.
"""
