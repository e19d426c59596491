"""Transports: what moves bytes between ranks, one file each."""
