#!/bin/sh
# Download the packages of wheels.txt for Python 3.12 on x86-64 Linux into a folder (default: .whl), about 8 MiB.
set -eu
here=$(dirname "$0")
folder=${1:-.whl}
python=${PYTHON:-python3}
platforms=""
for name in manylinux_2_28 manylinux_2_27 manylinux_2_24 manylinux_2_17 manylinux2014 manylinux1; do
  platforms="$platforms --platform ${name}_x86_64"
done
mkdir -p "$folder"
grep -v '^#' "$here/wheels.txt" | while read -r requirement; do
  case $requirement in
    antlr4*) "$python" -m pip wheel -q --no-deps -w "$folder" "$requirement" ;; # published as source only
    *) # shellcheck disable=SC2086
      "$python" -m pip download -q --no-deps --only-binary=:all: --python-version 3.12 --implementation cp $platforms \
        -d "$folder" "$requirement" ;;
  esac
done
