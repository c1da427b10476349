"""Model families, a file each: image, positions, mask, FLOPs, what loading needs.

`registry` finds the file by the architecture, `family` has what all share, `flops` the formulas. A
new family is a file here, its line in the registry, and its tiny model in the tests.
"""
