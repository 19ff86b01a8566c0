"""Only the compiled extensions: everything else about the package is in pyproject.toml.

Every `nokv/_ext/*.pyx` becomes one extension module of the same name. `NOKV_DEBUG_EXT=1` keeps Cython's bounds
checks and C assertions on; `NOKV_SANITIZE=1` adds ASan and UBSan. No `-march=native`: CRC32C picks its instructions
at run time.
"""

import multiprocessing
import os
from pathlib import Path

from Cython.Build import cythonize
from setuptools import Extension, setup

DEBUG = os.environ.get("NOKV_DEBUG_EXT") == "1"
WORKERS = (os.cpu_count() or 1) if multiprocessing.get_start_method() == "fork" else 0  # spawn runs this file again
SANITIZE = os.environ.get("NOKV_SANITIZE") == "1"

compile_args = ["-O1" if SANITIZE else "-O2", "-g1", "-Wall", "-Wno-unused-function", "-Wno-unused-variable"]
link_args: list[str] = []
if SANITIZE:
    compile_args += ["-fsanitize=address,undefined", "-fno-omit-frame-pointer", "-fno-sanitize-recover=undefined"]
    link_args += ["-fsanitize=address,undefined"]
if not DEBUG:
    compile_args.append("-DNDEBUG")
else:
    compile_args.append("-UNDEBUG")  # the interpreter's own flags bring -DNDEBUG

extensions = [
    Extension(
        f"nokv._ext.{path.stem}",
        [str(path)],
        include_dirs=["nokv/_ext"],
        depends=sorted(str(p) for pattern in ("*.h", "*.pxd") for p in Path("nokv/_ext").glob(pattern)),
        extra_compile_args=compile_args,
        extra_link_args=link_args,
    )
    for path in sorted(Path("nokv/_ext").glob("*.pyx"))
]

setup(
    ext_modules=cythonize(
        extensions,
        nthreads=WORKERS,
        compiler_directives={
            "language_level": 3,
            "binding": False,
            "embedsignature": True,
            "boundscheck": DEBUG,
            "wraparound": False,
            "initializedcheck": DEBUG,
            "cdivision": True,
        },
    ),
)
