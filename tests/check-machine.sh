#!/bin/sh
# What `make` needs of the machine: one line to copy for each thing that is missing.
# Without a C compiler everything goes on that can; without Python or venv nothing can.
python=${PYTHON:-python3}
if ! "$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then
    echo "multifd needs Python 3.11 or later, '$python' is not. On Debian or Ubuntu:" >&2
    echo "    sudo apt-get install python3 python3-venv python3-dev gcc" >&2
    exit 1
fi
if ! "$python" -c 'import ensurepip, venv' 2>/dev/null; then
    echo "Python's venv module is missing. On Debian or Ubuntu:" >&2
    echo "    sudo apt-get install python3-venv" >&2
    exit 1
fi
headers=$("$python" -c 'import os, sysconfig; print(os.path.join(sysconfig.get_paths()["include"], "Python.h"))')
if ! command -v "${CC:-cc}" >/dev/null 2>&1 || [ ! -e "$headers" ]; then
    echo "note: no C compiler or no Python headers: methods written in C run without their fast path. For it:" >&2
    echo "    sudo apt-get install gcc python3-dev" >&2
fi
