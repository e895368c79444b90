#!/bin/sh
# Removes from a tree of installed packages what no process of the service reads, and the symbol tables of its
# largest libraries: jaxlib's alone is 109 MB. Run: trim.sh FOLDER
set -eu
cd "$1"
find . -mindepth 2 -type d \( -name tests -o -name test \) ! -path './jax/*' ! -path './numpy/_core/*' -prune -exec rm -rf {} +
rm -rf pyarrow/include pyarrow/src pyarrow/lib*flight* pyarrow/_flight*
find . \( -name '*.pyx' -o -name '*.pxi' -o -name '*.pxd' \) -delete
# Not numpy's, scipy's and pillow's: their wheels were patched in ways that strip breaks.
for package in jaxlib ml_dtypes uvloop grpc pyarrow tensorstore; do
    if [ -d "$package" ]; then
        find "$package" -name '*.so*' -size +4M -exec strip --strip-unneeded {} +
    fi
done
