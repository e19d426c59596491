"""`minipar report`: runs the main job several times over, and puts its metrics side by side.

`runs.py` starts a job and reads the lines that it wrote: every number of a report comes from
these. One file each for what is reported: scaling, compare, strategies. They give rows, which
`table.py` prints and writes, and `plots.py` draws.
"""
