"""`python -m hasupervisor.config` prints a configuration file with every key, its default and its meaning."""

import sys

from hasupervisor.config.reference import commented_file

sys.stdout.write(commented_file())
