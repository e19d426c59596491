"""Communication hooks: what reduces a bucket of gradients in place of an all-reduce.

    model.register_comm_hook(PowerSGDState(matrix_approximation_rank=2), powerSGD_hook)

`bucket.py` says what a hook is given and must return; one file each for those that there are.
"""

from .allreduce import allreduce_hook
from .bucket import GradBucket
from .choose import COMPRESSIONS, compression
from .half import bf16_compress_hook, fp16_compress_hook
from .powersgd import PowerSGDState, powerSGD_hook
from .quantised import QuantiseState, quantise_hook
from .sign import SignState, sign_hook
from .topk import TopKState, topk_hook

__all__ = ["COMPRESSIONS", "GradBucket", "PowerSGDState", "QuantiseState", "SignState",
           "TopKState", "allreduce_hook", "bf16_compress_hook", "compression",
           "fp16_compress_hook", "powerSGD_hook", "quantise_hook", "sign_hook", "topk_hook"]
