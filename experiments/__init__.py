"""The commands."""

import os

# Set before JAX is imported. Loading a kept program on a CPU, XLA logs errors about features of the processor that it
# has itself made up (+prefer-no-gather); what really fails comes as an exception of JAX's.
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
