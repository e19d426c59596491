"""The case of `half_cases`, between the ranks of a launcher; prints nothing."""

import half_cases
from minipar.comm import world

half_cases.sixteen_bits(world())
