"""Simulation of task graphs: what a schedule would cost, without running it."""
