"""The operator's tool, chatglm-hactl: it talks to the daemon over its Unix socket and to nothing else."""
