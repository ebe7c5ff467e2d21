"""Routes requests: writes nginx's configuration, brings it to the workers and proves that they run it."""
