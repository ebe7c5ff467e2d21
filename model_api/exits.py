"""What the process's exit codes mean; docs/model-server.md tells operators."""

DRAINED = 0  # every accepted request was answered
CANNOT_SERVE = 1  # the model does not load, or does not answer
USAGE = 2  # the environment or the command line is wrong
CUT_OFF = 3  # the grace period, or a second signal, came before the last answer
DEVICE_LOST = 70  # EX_SOFTWARE: this process cannot go on; a new one may
