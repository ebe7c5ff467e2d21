"""`python -m hasupervisor` is the daemon, `chatglm-had`."""

import sys

from hasupervisor.daemon import main

sys.exit(main())
