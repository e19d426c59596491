"""CUDA C++ sources. Installed as minipar.kernels; nothing is imported from here."""
