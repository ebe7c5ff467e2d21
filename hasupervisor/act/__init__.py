"""The only side effects: steps on instances, and nginx."""
