#!/bin/sh
# Install the fetched wheels on a host without a package index, beside what it has: install.sh WHEELS SITE.
# Writes SITE (to be put on PYTHONPATH) and the script SITE/peer_python, the interpreter of the PyTorch peer.
set -eu
wheels=${1:-.whl}
site=${2:-/tmp/jaxatoms-site}
python=${PYTHON:-python3}
"$python" -m pip install -q --no-index --no-deps --no-compile --no-cache-dir --upgrade --target "$site" "$wheels"/*.whl
cat > "$site/peer_python" <<END
#!/bin/sh
PYTHONPATH=$site exec $(command -v "$python") "\$@"
END
chmod +x "$site/peer_python"
