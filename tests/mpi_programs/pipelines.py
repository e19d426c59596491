"""A sample of the grid of pipelines on 4 ranks of MPI, against the serial run; prints nothing."""

from pipeline_cases import compare, pipelined, serial

from minipar.comm import world
from minipar.parallel.mesh import Mesh
from minipar.parallel.schedule import SCHEDULES

comm = world()
for model, name, p, m, tp, options in [
        ("gpt", "zb-v", 2, 4, 1, {}), ("own", "1f1b", 2, 7, 1, {}), ("mlp", "gpipe", 4, 8, 1, {}),
        ("gpt", "zb-h1", 4, 4, 1, {"recompute": True}), ("own", "interleaved", 4, 4, 1, {}),
        ("gpt", "zb-h2", 2, 4, 2, {}), ("mlp", "interleaved", 1, 3, 2, {})]:
    mesh = Mesh(comm.size // (p * tp), p, tp)
    state, *rest = pipelined(model, SCHEDULES[name](p, m), mesh, **options)
    expected, losses = serial(model, mesh.dp, m)
    compare([(state if comm.rank == 0 else expected, *rest)], expected, losses)
