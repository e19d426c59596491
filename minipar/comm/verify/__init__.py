"""Proofs that collective programs are right, and counterexamples for those that are not."""

from .verifier import (VerificationError, cases, lengths, verify, verify_graph,  # noqa: F401
                       verify_traces)
