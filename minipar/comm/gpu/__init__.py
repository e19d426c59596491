"""Collectives of arrays that lie on GPUs: staged through the host, mapped, or NCCL's."""
