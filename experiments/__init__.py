"""The commands."""

import os

# Set before JAX is imported, over JAX's own default of 1, which a parent process hands on. Loading a kept program on a
# CPU, XLA logs errors about features of the processor that it has itself made up (+prefer-no-gather); what really fails
# comes as an exception of JAX's.
if os.environ.get("TF_CPP_MIN_LOG_LEVEL", "1") == "1":
    os.environ["TF_CPP_MIN_LOG_LEVEL"] = "3"
